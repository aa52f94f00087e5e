"""An archive into an empty installation.

The order makes a crash harmless wherever it comes: a mark in the catalog first, then rollups, readings and payloads,
each of which changes nothing when it is repeated, and last the catalog in one transaction that takes the mark away. So
the same command can be given again until it succeeds, and an installation with a catalog is whole.
"""

from __future__ import annotations

from sensorkeep.archive.catalog_tables import begin_import, import_tables
from sensorkeep.archive.files import Archive
from sensorkeep.archive.installation import Installation
from sensorkeep.archive.layout import PAYLOADS_INDEX, ROLLUP_FILES, table_path
from sensorkeep.archive.payloads import import_payloads
from sensorkeep.archive.progress import Progress
from sensorkeep.archive.readings import ReadingsImport
from sensorkeep.archive.rollups import count_rollups, import_rollups
from sensorkeep.catalog import migration
from sensorkeep.catalog.import_mark import unfinished_import
from sensorkeep.errors import Conflict, Corrupt, InvalidInput
from sensorkeep.model import Sensor


def import_everything(installation: Installation, archive: Archive, progress: Progress) -> bool:
    """Bring the archive into the installation; whether this went on with an earlier try.

    Raises InvalidInput (`wrong_version`), Corrupt where the archive is damaged (told before anything is written, but
    for payloads), Conflict where the installation is not empty, and as the stores do.
    """
    manifest = archive.manifest
    if manifest.catalog_revision != migration.HEAD:
        raise InvalidInput(
            f"{archive.directory} was written by version {manifest.product_version} with the catalog's revision"
            f" {manifest.catalog_revision}, this version has {migration.HEAD}: import it with the version that wrote"
            " it, then upgrade",
            code="wrong_version",
        )
    archive.verify(progress)
    sensors = _sensors(archive)
    if not unfinished_import(installation.database):
        _require_empty(installation, archive)
    resumed = begin_import(installation.database, archive.digest)
    import_rollups(installation.store, archive, progress)
    ReadingsImport(installation.store, archive, sensors).run(progress)
    _require_rollups(installation, archive, list(sensors))
    import_payloads(installation.object_store, archive, progress)
    import_tables(installation.database, archive, progress)
    found = installation.accounting()
    if found != manifest.accounting:
        raise Corrupt(f"the totals after the import are {found}, in the archive they were {manifest.accounting}")
    return resumed


def _sensors(archive: Archive) -> dict[str, Sensor]:
    """The sensors of the archive by uuid, as far as a store needs them."""
    file = archive.manifest.file(table_path("sensors"))
    if file is None:
        raise Corrupt(f"{archive.directory} is damaged: it has no table of sensors; export it again")
    return {row["uuid"]: Sensor(uuid=row["uuid"], equipment_uuid=row["equipment_uuid"]) for row in archive.lines(file)}


def _require_empty(installation: Installation, archive: Archive) -> None:
    """Raises Conflict saying what is there; what is in the catalog is looked at when the import begins."""
    found = []
    claims = installation.queue.depth().claims
    if claims:
        found.append(f"{claims:,} claims in the queue")
    status = installation.store.status()
    if not status.empty:
        found.append(f"about {status.raw_readings + status.staged_readings:,} readings and their rollups")
    if archive.manifest.file(PAYLOADS_INDEX) is not None and next(installation.object_store.list(), None) is not None:
        found.append("payloads in the object store")
    if found:
        raise Conflict(f"the installation is in use (it holds {', '.join(found)}): import into a new one")


def _require_rollups(installation: Installation, archive: Archive, sensors: list[str]) -> None:
    """Raises Corrupt where the store does not tell as many buckets as the archive holds."""
    for period in ROLLUP_FILES:
        expected = archive.manifest.rollups(period)
        found = count_rollups(installation.store, sensors, period, installation.clock.now_us())
        if found != expected:
            raise Corrupt(f"the store holds {found:,} {period}s whose readings are gone, the archive {expected:,}")
