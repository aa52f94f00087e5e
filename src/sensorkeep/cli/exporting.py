"""`sensorkeep export`: writes readings, hours or days of a running server into one file.

Raw readings as CSV or JSONL can be imported again as they are: they carry the uuids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from sensorkeep.cli import options as common
from sensorkeep.cli.archiving import export_archive
from sensorkeep.cli.client import DEFAULT_URL, ApiClient, unreachable
from sensorkeep.cli.export_files import (
    RAW_SCHEMA,
    ROLLUP_SCHEMA,
    ExportFormat,
    Row,
    RowWriter,
    export_format_of,
    writing,
)
from sensorkeep.cli.output import ExitCode, Output, ProgressReport
from sensorkeep.clock import DAY_US, Clock, SystemClock, rfc3339, to_us
from sensorkeep.config import load_config
from sensorkeep.errors import InvalidInput, NotFound
from sensorkeep.limits import HISTORY_DAYS_DEFAULT, PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX
from sensorkeep.model import canonical_uuid

HistoryPeriod = Literal["raw", "hour", "day"]
_EQUIPMENT_PER_PAGE = 100


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is exported. Neither `equipment` nor `sensor`: all equipment. The range is [start_us, end_us)."""

    start_us: int
    end_us: int
    period: HistoryPeriod = "raw"
    equipment: str | None = None
    sensor: str | None = None
    sensor_type: str | None = None
    page_rows: int = PAGE_ROWS_DEFAULT


class ExportResult(NamedTuple):
    """What was written."""

    rows: int
    equipment: int
    complete_until: str | None
    """Up to when every accepted reading is in the file; None where nothing was asked of the server."""


class Exporter:
    """Pages through the history calls and writes what they answer."""

    def __init__(self, options: ExportOptions, client: ApiClient, writer: RowWriter, report: ProgressReport) -> None:
        self._options = options
        self._client = client
        self._writer = writer
        self._report = report
        self._rows = 0
        self._complete_until: str | None = None

    def run(self) -> ExportResult:
        """Export everything asked for. Raises NotFound for an unknown equipment or sensor, and as ApiClient."""
        if self._options.sensor:
            sensor = self._catalog("sensors", self._options.sensor)
            equipment = self._catalog("equipment", str(sensor.get("equipment_uuid")))
            self._export(f"/analytics/sensor/{sensor['sensor_uuid']}/history", equipment, sensor, 0.0, 1.0)
            return ExportResult(self._rows, 1, self._complete_until)
        count = 0
        for count, equipment in enumerate(self._equipment(), start=1):
            path = f"/analytics/equipment/{equipment['equipment_uuid']}/history"
            # How many equipments there are is not known ahead: the share of one shrinks as more come.
            share = 1.0 if self._options.equipment else 1 / (count + 1)
            self._export(path, equipment, None, 1 - share if count > 1 else 0.0, share)
        return ExportResult(self._rows, count, self._complete_until)

    def _equipment(self) -> Iterator[dict[str, Any]]:
        if self._options.equipment:
            yield self._catalog("equipment", self._options.equipment)
            return
        cursor: str | None = None
        while True:
            page = self._client.get("/equipment", limit=_EQUIPMENT_PER_PAGE, cursor=cursor)
            yield from _rows_of(page, "equipment")
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def _catalog(self, kind: str, identifier: str) -> dict[str, Any]:
        # By uuid: the external id of a sensor holds a slash, which no path takes on its way through a proxy.
        uuid = canonical_uuid(identifier)
        try:
            answer = self._client.get(f"/{kind}/{uuid}")
        except NotFound as error:
            raise NotFound(f"{identifier}: {error.detail}") from error
        if not isinstance(answer, dict):
            raise unreachable(f"/{kind} did not answer with an object: is this a Sensorkeep server?")
        return answer

    def _export(
        self, path: str, equipment: dict[str, Any], sensor: dict[str, Any] | None, begun: float, share: float
    ) -> None:
        """One history call, page by page. `begun` and `share` are of the whole, for the progress."""
        options = self._options
        identities = _identities(equipment, sensor)
        query = {
            "period": options.period,
            "start_date": rfc3339(options.start_us),
            "end_date": rfc3339(options.end_us),
            "sensor_type": options.sensor_type,
            "limit": options.page_rows,
        }
        cursor: str | None = None
        while True:
            page = self._client.get(path, **query, cursor=cursor)
            rows = _rows_of(page, "data")
            self._writer.write([self._row(row, identities, sensor) for row in rows])
            self._rows += len(rows)
            complete = page.get("complete_until")
            self._complete_until = min(filter(None, (self._complete_until, complete)), default=None, key=_moment)
            done = _share_done(rows[-1]["time"], options) if rows else 1.0
            name = equipment.get("name") or equipment.get("external_id") or equipment.get("equipment_uuid")
            self._report.update(begun + share * done, f"{self._rows:,} rows, at {name}")
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def _row(self, row: Row, identities: dict[str, Row], sensor: dict[str, Any] | None) -> Row:
        uuid = str(row.get("sensor_uuid") or (sensor or {}).get("sensor_uuid"))
        metadata = row.get("metadata") or {}
        # A sensor seen first between the two calls is not among the identities: its equipment is the same.
        identity = identities.get(uuid) or identities[""]
        approximate = {"approximate": bool(row.get("approximate"))} if self._options.period != "raw" else {}
        return {**identity, "sensor_uuid": uuid, **row, **metadata, **approximate}


def _identities(equipment: dict[str, Any], sensor: dict[str, Any] | None) -> dict[str, Row]:
    """The identity columns of each sensor by uuid, those of the equipment alone by ""."""
    common_columns = {
        "equipment_uuid": equipment.get("equipment_uuid"),
        "equipment_external_id": equipment.get("external_id"),
        "equipment_name": equipment.get("name"),
    }
    sensors = [sensor] if sensor is not None else equipment.get("sensors") or []
    known = {
        str(part.get("sensor_uuid")): {
            **common_columns,
            "sensor_external_id": part.get("external_id"),
            "sensor_name": part.get("sensor_name"),
            "sensor_type": part.get("sensor_type"),
            "sensor_unit": part.get("sensor_unit"),
        }
        for part in sensors
    }
    return {"": common_columns, **known}


def _rows_of(page: Any, name: str) -> list[dict[str, Any]]:
    rows = page.get(name) if isinstance(page, dict) else None
    if not isinstance(rows, list):
        raise unreachable(f"the answer has no list named {name}: is this a Sensorkeep server?")
    return rows


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _share_done(time: str, options: ExportOptions) -> float:
    span = max(options.end_us - options.start_us, 1)
    return min(max((to_us(_moment(time)) - options.start_us) / span, 0.0), 1.0)


def export_file(
    path: Path, file_format: ExportFormat, options: ExportOptions, client: ApiClient, output: Output, *, force: bool
) -> ExportResult:
    """Write `path`, whole or not at all.

    Raises Conflict (`already_exists`) where it exists and `force` is not set, and as Exporter.run.
    """
    schema = RAW_SCHEMA if options.period == "raw" else ROLLUP_SCHEMA
    with writing(path, file_format, schema, force=force) as writer, output.progress(path.name, 1.0) as report:
        result = Exporter(options, client, writer, report).run()
    output.line(f"{path}: {result.rows} rows of {result.equipment} equipment")
    if result.complete_until is not None and to_us(_moment(result.complete_until)) < options.end_us:
        output.note(f"{path}: complete until {result.complete_until}; later readings may still be on their way")
    return result


def parse_moment(name: str, text: str | None, default_us: int) -> int:
    """An ISO 8601 date or time option, UTC where it has no zone, in microseconds. Raises InvalidInput."""
    if text is None:
        return default_us
    try:
        moment = datetime.fromisoformat(text)
        return to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        detail = f"{name} {text!r} is not an ISO 8601 date or time, such as 2024-01-15 or 2024-01-15T10:00:00Z"
        raise InvalidInput(detail, code="bad_parameter") from error


def export_range(start: str | None, end: str | None, clock: Clock) -> tuple[int, int]:
    """[start, end) of the options in microseconds; by default the last 7 days. Raises InvalidInput."""
    end_us = parse_moment("--end", end, clock.now_us())
    start_us = parse_moment("--start", start, end_us - HISTORY_DAYS_DEFAULT * DAY_US)
    if start_us >= end_us:
        raise InvalidInput("--start must be before --end", code="bad_parameter")
    return start_us, end_us


def export_command(
    output_file: Annotated[
        Path,
        typer.Argument(
            help="File to write: .csv, .jsonl (each also .gz), .parquet or .arrow; with --everything a new directory.",
            metavar="FILE",
        ),
    ],
    url: common.Url = DEFAULT_URL,
    api_key: common.ApiKey = None,
    username: common.Username = None,
    password: common.Password = None,
    equipment: Annotated[
        str | None, typer.Option(help="Only this equipment, by uuid or external id (default: all).")
    ] = None,
    sensor: Annotated[str | None, typer.Option(help="Only this sensor, by uuid or external id.")] = None,
    sensor_type: Annotated[str | None, typer.Option(help="Only sensors of this type.")] = None,
    period: Annotated[HistoryPeriod, typer.Option(help="Readings, hours or days.")] = "raw",
    start: Annotated[str | None, typer.Option(help="First moment (default: 7 days before the end).")] = None,
    end: Annotated[str | None, typer.Option(help="Moment after the last one (default: now).")] = None,
    file_format: Annotated[
        ExportFormat | None, typer.Option("--format", help="Format (default: told by the name).")
    ] = None,
    page_rows: Annotated[int, typer.Option(min=1, max=PAGE_ROWS_MAX, help="Rows per request.")] = PAGE_ROWS_DEFAULT,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
    everything: common.Everything = False,
    without_payloads: Annotated[
        bool, typer.Option("--without-payloads", help="With --everything: leave out what the clients sent.")
    ] = False,
    config_file: common.ArchiveConfig = None,
    data_dir: common.ArchiveDataDir = None,
) -> None:
    """Export history to a file. Raw readings as CSV or JSONL can be imported again with no options.

    With --everything: export the whole installation of the settings (stores, users, keys, totals) into a new
    directory, while no server runs on it.

    Exit codes: 0 done, 1 the server refused or the file exists, 2 wrong usage, 3 the server cannot be reached.
    """
    output = Output()
    with output.reporting_errors():
        common.check_archive_options(everything, without_payloads, config_file, data_dir)
        if everything:
            config = load_config(file=config_file, data_dir=data_dir)
            export_archive(config, output_file, output, with_payloads=not without_payloads)
            raise typer.Exit(ExitCode.OK)
        if equipment and sensor:
            raise InvalidInput("give --equipment or --sensor, not both", code="bad_parameter")
        chosen = file_format or export_format_of(output_file)
        start_us, end_us = export_range(start, end, SystemClock())
        options = ExportOptions(start_us, end_us, period, equipment, sensor, sensor_type, page_rows)
        with common.open_client(url, common.credential(api_key, username, password), output) as client:
            export_file(output_file, chosen, options, client, output, force=force)
    raise typer.Exit(ExitCode.OK)
