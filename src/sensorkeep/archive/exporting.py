"""A whole installation into an archive."""

from __future__ import annotations

from pathlib import Path

from sensorkeep import __version__
from sensorkeep.archive.catalog_tables import export_tables, sensors_by_uuid
from sensorkeep.archive.installation import Installation
from sensorkeep.archive.layout import Manifest
from sensorkeep.archive.payloads import export_payloads
from sensorkeep.archive.progress import Progress
from sensorkeep.archive.readings import ReadingsExport
from sensorkeep.archive.rollups import export_rollups
from sensorkeep.archive.writing import new_archive
from sensorkeep.catalog import migration
from sensorkeep.clock import rfc3339
from sensorkeep.errors import Conflict


def export_everything(
    installation: Installation, directory: Path, *, with_payloads: bool, progress: Progress
) -> Manifest:
    """Write the installation into `directory`, which is absent or empty; where this raises, nothing of it remains.

    Raises Conflict where readings are on their way, or come in meanwhile; as `new_archive`; and as the stores do.
    """
    accounting = installation.require_at_rest()
    with new_archive(directory) as writer:
        export_tables(installation.database, writer, progress)
        sensors = sensors_by_uuid(installation.database)
        export_rollups(installation.store, sensors, writer, installation.clock.now_us(), progress)
        expected = installation.store.status().raw_readings
        ReadingsExport(installation.store, sensors).run(writer, progress, expected)
        payload_bytes = export_payloads(installation.object_store, writer, progress) if with_payloads else None
        if installation.require_at_rest() != accounting:
            raise Conflict("readings came in during the export: stop every server of the installation first")
        manifest = Manifest(
            product_version=__version__,
            made_at=rfc3339(installation.clock.now_us()),
            catalog_revision=migration.HEAD,
            accounting=accounting,
            payload_bytes=payload_bytes,
            files=tuple(writer.files),
        )
        writer.finish(manifest)
    return manifest
