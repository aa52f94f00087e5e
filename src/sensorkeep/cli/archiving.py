"""`export --everything` and `import --everything`: a whole installation to and from a directory, with no server."""

from __future__ import annotations

from pathlib import Path

from sensorkeep.archive.layout import Manifest
from sensorkeep.cli.output import Output
from sensorkeep.clock import MICROSECONDS, Clock, SystemClock
from sensorkeep.config import Config
from sensorkeep.limits import MIB


def export_archive(config: Config, directory: Path, output: Output, *, with_payloads: bool) -> None:
    """Write the installation of the settings into `directory`. Raises as `open_installation`, `export_everything`."""
    from sensorkeep.app.archive import open_installation
    from sensorkeep.archive.exporting import export_everything

    clock = SystemClock()
    began = clock.monotonic()
    with open_installation(config, existing=True) as installation:
        manifest = export_everything(installation, directory, with_payloads=with_payloads, progress=output.progress)
    output.line(f"{directory}: {_contents(manifest)}")
    output.line(f"{directory}: {_size(manifest)}, {_pace(manifest, clock, began)}")
    output.line(f"{directory}: it holds password hashes and the key that signs tokens: keep it to yourself")


def import_archive(config: Config, directory: Path, output: Output) -> None:
    """Bring the archive into the empty installation of the settings. Raises as `open_installation`,
    `import_everything`."""
    from sensorkeep.app.archive import open_installation
    from sensorkeep.archive.files import Archive
    from sensorkeep.archive.importing import import_everything

    clock = SystemClock()
    began = clock.monotonic()
    archive = Archive(directory)
    manifest = archive.manifest
    output.note(f"{directory}: made {manifest.made_at} by version {manifest.product_version}: {_contents(manifest)}")
    with open_installation(config, existing=False) as installation:
        resumed = import_everything(installation, archive, output.progress)
    output.line(f"{directory}: {'gone on with, and ' if resumed else ''}all in: {_contents(manifest)}")
    totals = manifest.accounting
    output.line(
        f"{directory}: totals as before: {totals.received:,} received = {totals.stored:,} stored +"
        f" {totals.updated:,} updated + {totals.duplicate:,} duplicate + {totals.quarantined:,} quarantined +"
        f" {totals.pending:,} pending"
    )
    output.line(f"{directory}: {_pace(manifest, clock, began)}")


def _contents(manifest: Manifest) -> str:
    tables = sum(file.rows for file in manifest.catalog_files())
    payloads = "no payloads (left out)" if manifest.payload_bytes is None else f"{manifest.payloads:,} payloads"
    return (
        f"{manifest.readings:,} readings of {len(manifest.reading_files()):,} days,"
        f" {manifest.rollups('hour'):,} hours and {manifest.rollups('day'):,} days whose readings are gone,"
        f" {tables:,} rows of the catalog, {payloads}"
    )


def _size(manifest: Manifest) -> str:
    size = sum(file.bytes for file in manifest.files) + (manifest.payload_bytes or 0)
    return f"{size / MIB:,.1f} MiB"


def _pace(manifest: Manifest, clock: Clock, began: float) -> str:
    seconds = max(clock.monotonic() - began, 1 / MICROSECONDS)
    return f"{seconds:,.1f} s ({manifest.readings / seconds:,.0f} readings a second)"
