"""`sensorkeep import`: sends the rows of CSV, JSON and JSONL files to a running server.

Every row read is accounted for: sent, refused (in FILE.refused.jsonl) or without a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sensorkeep.cli import options as common
from sensorkeep.cli.archiving import import_archive
from sensorkeep.cli.client import DEFAULT_URL, ApiClient
from sensorkeep.cli.import_state import Progress, ProgressFile, RefusedFile
from sensorkeep.cli.output import ExitCode, Output, ProgressReport
from sensorkeep.cli.row_batches import GoodRow, RowBatch, RowReader
from sensorkeep.cli.source_files import FileFormat, SourceFile, SourceRow
from sensorkeep.cli.source_rows import ColumnOptions, Converted, parse_columns
from sensorkeep.clock import Clock, SystemClock
from sensorkeep.config import load_config
from sensorkeep.errors import InvalidInput, LimitExceeded, NotFound, SensorkeepError
from sensorkeep.limits import BAD_ROWS_SHOWN_MAX, PREFER_WAIT_SECONDS_MAX, READINGS_PER_GENERAL_REQUEST_MAX

SETTLE_SECONDS = 60.0
"""How long the end of an import waits for the counts of its batches."""
_SETTLE_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How files are imported; see the options of the command."""

    columns: ColumnOptions = field(default_factory=ColumnOptions)
    file_format: FileFormat | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    backfill: bool = False
    batch: int = READINGS_PER_GENERAL_REQUEST_MAX
    """Rows per request."""
    state_directory: Path | None = None
    settle_seconds: float = SETTLE_SECONDS


@dataclass(slots=True)
class ImportResult:
    """What became of one file. `stored`, `updated`, `duplicate` and `pending` are of the batches sent by this run."""

    progress: Progress
    batches: int = 0
    stored: int = 0
    updated: int = 0
    duplicate: int = 0
    pending: int = 0
    """Readings accepted whose counts were not known when the wait ended."""
    resumed_after_line: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing was refused or quarantined."""
        return not (self.progress.refused or self.progress.quarantined)


class Importer:
    """Sends one file. `run` may be called once."""

    def __init__(self, path: Path, options: ImportOptions, client: ApiClient, output: Output, clock: Clock) -> None:
        self._options = options
        self._client = client
        self._output = output
        self._clock = clock
        self._source = open_source(path, options)
        # The batch size decides only how it is sent, not what: it may change between two runs.
        decides = [asdict(options.columns), options.file_format, options.encoding, options.delimiter, options.backfill]
        self._state = ProgressFile(path, options.state_directory, [decides, client.connection.base_url])
        self._progress = self._state.load()
        self._refused = RefusedFile(path, options.state_directory, self._progress.refused_file_bytes)
        self._shown = _Shown(path, output)
        self._reader = RowReader(options.columns, self._shown.hint)
        self._result = ImportResult(self._progress)
        self._unsettled: list[tuple[str, int, int]] = []
        """(batch id, readings, quarantined at receipt) of the batches whose counts are not known yet."""

    def run(self) -> ImportResult:
        """Send what is left of the file.

        Raises what the server answers to a whole request. After that, or an interruption, another run goes on after
        the last acknowledged batch.
        """
        path, start = self._source.path, self._progress.place
        with self._source, closing(self._refused), self._output.progress(path.name, self._source.size) as report:
            if start.offset:
                self._result.resumed_after_line = start.line
                self._output.note(f"{path}: going on after line {start.line}")
            waiting: RowBatch | None = None
            # The last batch is sent with Prefer: wait, so each waits here until the next one is there.
            for batch in self._reader.batches(self._source.rows(start), self._options.batch):
                if waiting is not None:
                    self._deliver(waiting, report, last=False)
                waiting = batch
            if waiting is not None:
                self._deliver(waiting, report, last=True)
        self._state.remove()
        self._settle()
        return self._result

    def _deliver(self, batch: RowBatch, report: ProgressReport, *, last: bool) -> None:
        """Send a batch, then save how far we are: in this order, so that nothing is skipped after a crash."""
        progress = self._progress
        for row, problem in batch.bad:
            self._refuse(row, problem)
        if batch.good:
            self._send(batch.good, last=last)
        progress.offset, progress.line = batch.end
        progress.rows += batch.rows
        progress.empty += batch.empty
        progress.refused_file_bytes = self._refused.flush()
        self._state.save(progress)
        report.update(self._source.bytes_read, f"{progress.rows:,} rows, {progress.refused:,} refused")

    def _send(self, rows: Sequence[GoodRow], *, last: bool) -> None:
        assert self._reader.converter is not None
        preferences = ["backfill"] if self._options.backfill else []
        if last and self._options.settle_seconds:
            preferences.append(f"wait={PREFER_WAIT_SECONDS_MAX}")
        headers = {"Prefer": ", ".join(preferences)} if preferences else {}
        body = self._reader.converter.encode([row.converted for row in rows])
        try:
            answer = self._client.post_json(self._reader.converter.path, body, headers=headers)
        except InvalidInput as error:
            self._send_refused(rows, error, last=last)
            return
        self._account(answer, sum(row.converted.readings for row in rows))

    def _send_refused(self, rows: Sequence[GoodRow], error: InvalidInput, *, last: bool) -> None:
        """The server took none of the rows: find those at fault by halves, unless it says that all are."""
        if not (isinstance(error, LimitExceeded) or error.status == 422):
            raise error
        if len(rows) > 1 and error.code != "no_usable_reading":
            half = len(rows) // 2
            self._send(rows[:half], last=False)
            self._send(rows[half:], last=last)
            return
        reasons = _reasons(error.extra)
        for row in rows:
            self._refuse(row.row, f"refused by the server: {reasons or error.detail}")
        if "too_old" in reasons:
            self._shown.hint(_TOO_OLD)

    def _account(self, answer: Any, readings: int) -> None:
        if not isinstance(answer, dict):
            answer = {}
        quarantined = int(answer.get("quarantined") or 0)
        self._result.batches += 1
        self._progress.sent += readings
        self._progress.quarantined += quarantined
        if quarantined:
            reasons = _reasons(answer)
            self._shown.hint(f"the server set readings aside ({reasons}); GET /api/v1/telemetry/quarantine lists them")
            if "too_old" in reasons:
                self._shown.hint(_TOO_OLD)
        if "stored" in answer:
            self._count(answer)
        else:
            self._unsettled.append((str(answer.get("batch_id", "")), readings, quarantined))

    def _refuse(self, row: SourceRow, reason: str) -> None:
        self._progress.refused += 1
        self._refused.add(row.line, reason, row.text if row.fields is None else row.fields)
        self._shown.bad_row(row.line, reason)

    def _count(self, counts: dict[str, Any]) -> None:
        self._result.stored += int(counts.get("stored") or 0)
        self._result.updated += int(counts.get("updated") or 0)
        self._result.duplicate += int(counts.get("duplicate") or 0)

    def _settle(self) -> None:
        """Ask what became of the batches, oldest first, until all are stored or the time is over."""
        deadline = self._clock.monotonic() + self._options.settle_seconds
        for batch_id, readings, quarantined in self._unsettled:
            batch = self._settled(batch_id, deadline) if batch_id else None
            if batch is None:
                self._result.pending += readings - quarantined
            else:
                self._count(batch)
                self._progress.quarantined += int(batch.get("quarantined") or 0) - quarantined

    def _settled(self, batch_id: str, deadline: float) -> dict[str, Any] | None:
        while self._options.settle_seconds:
            try:
                batch = self._client.get(f"/telemetry/batches/{batch_id}")
            except NotFound:
                return None
            if isinstance(batch, dict) and batch.get("state") != "accepted":
                return batch
            if self._clock.monotonic() >= deadline:
                return None
            self._client.sleep(_SETTLE_POLL_SECONDS)
        return None


_TOO_OLD = "readings older than the raw retention need --backfill, with an admin credential"


class _Shown:
    """What the person was told, so that a thousand bad rows are not a thousand lines, nor a hint said twice."""

    def __init__(self, path: Path, output: Output) -> None:
        self._path = path
        self._output = output
        self._rows = 0
        self._hints: set[str] = set()

    def bad_row(self, line: int, reason: str) -> None:
        self._rows += 1
        if self._rows <= BAD_ROWS_SHOWN_MAX:
            self._output.note(f"{self._path}:{line}: {reason}")
        elif self._rows == BAD_ROWS_SHOWN_MAX + 1:
            self._output.note(f"{self._path}: more rows are refused")

    def hint(self, text: str) -> None:
        if text not in self._hints:
            self._hints.add(text)
            self._output.note(f"{self._path}: {text}")


def _reasons(answer: dict[str, Any]) -> str:
    errors = answer.get("errors")
    if not isinstance(errors, list):
        return ""
    return ", ".join(sorted({str(item.get("reason")) for item in errors if isinstance(item, dict)}))


def open_source(path: Path, options: ImportOptions) -> SourceFile:
    """The file as the options say. Raises InvalidInput (`bad_parameter`)."""
    if not 1 <= options.batch <= READINGS_PER_GENERAL_REQUEST_MAX:
        raise InvalidInput(f"--batch must be 1 to {READINGS_PER_GENERAL_REQUEST_MAX}", code="bad_parameter")
    if options.delimiter is not None and len(options.delimiter) != 1:
        raise InvalidInput("--delimiter must be one character", code="bad_parameter")
    return SourceFile(path, options.file_format, encoding=options.encoding, delimiter=options.delimiter)


def check_file(path: Path, options: ImportOptions, output: Output) -> bool:
    """`--dry-run`: read the whole file, say what would be sent, send nothing. True where every row can be sent."""
    shown = _Shown(path, output)
    reader = RowReader(options.columns, shown.hint)
    rows = empty = refused = readings = requests = 0
    example: Converted | None = None
    with open_source(path, options) as source, output.progress(path.name, source.size) as report:
        for batch in reader.batches(source.rows(), options.batch):
            rows, empty, refused = rows + batch.rows, empty + batch.empty, refused + len(batch.bad)
            readings += sum(row.converted.readings for row in batch.good)
            requests += bool(batch.good)
            example = example or (batch.good[0].converted if batch.good else None)
            for row, problem in batch.bad:
                shown.bad_row(row.line, problem)
            report.update(source.bytes_read, f"{rows:,} rows, {refused:,} bad")
    if reader.converter is not None and example is not None:
        first = reader.converter.encode([example])[:500].decode("utf-8", "replace")
        output.line(f"{path}: to POST /api/v1{reader.converter.path}, the first one as {first}")
    output.line(
        f"{path}: {rows} rows: {readings} readings in {requests} requests would be sent, "
        f"{empty} rows have no value, {refused} would be refused"
    )
    return not refused


def check_files(paths: Sequence[Path], options: ImportOptions, output: Output) -> ExitCode:
    """`--dry-run` of several files."""
    good = [check_file(path, options, output) for path in paths]
    return ExitCode.OK if all(good) else ExitCode.SOME_REFUSED


def import_files(paths: Sequence[Path], options: ImportOptions, client: ApiClient, output: Output) -> ExitCode:
    """Send the files one after another and print the totals of each. Raises as `Importer.run`."""
    require_distinct(paths, options.state_directory)
    complete = True
    for path in paths:
        try:
            result = Importer(path, options, client, output, SystemClock()).run()
        except (SensorkeepError, KeyboardInterrupt):
            output.note(f"{path}: not finished; the same command goes on after the last acknowledged row")
            raise
        complete = result.complete and complete
        _print_result(path, options, result, output)
    return ExitCode.OK if complete else ExitCode.SOME_REFUSED


def require_distinct(paths: Sequence[Path], state_directory: Path | None) -> None:
    """Refuse inputs whose state files would be the same. Raises InvalidInput (`bad_parameter`)."""
    places = [path.name if state_directory else str(path.resolve()) for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise InvalidInput(f"{place} is given twice; import them one by one", code="bad_parameter")


def _print_result(path: Path, options: ImportOptions, result: ImportResult, output: Output) -> None:
    progress = result.progress
    output.line(
        f"{path}: {progress.rows} rows read: {progress.sent} readings received, {progress.quarantined} quarantined, "
        f"{progress.empty} rows without a value, {progress.refused} rows refused"
    )
    since = " since it went on" if result.resumed_after_line else ""
    pending = f", {result.pending} accepted and not stored yet" if result.pending else ""
    output.line(
        f"{path}: {result.stored} stored, {result.updated} updated, {result.duplicate} duplicate{pending}{since}"
    )
    if progress.refused:
        refused = (options.state_directory or path.parent) / f"{path.name}.refused.jsonl"
        output.line(f"{path}: the refused rows and why are in {refused}")


Files = Annotated[
    list[Path],
    typer.Argument(
        help="CSV, JSON or JSONL files, each also .gz; with --everything the directory of an export.",
        show_default=False,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="TARGET=COLUMN; a target is time, sensor_id, quantity, value, status, battery, rssi, lqi, "
        "battery_voltage, or the name of a quantity. Repeat it.",
    ),
]
SensorId = Annotated[str | None, typer.Option(help="The sensor of every row.")]
SensorIdColumn = Annotated[str | None, typer.Option(help="The column that names the sensor.")]
Quantity = Annotated[str | None, typer.Option(help="What the column `value` measures.")]
Timezone = Annotated[
    str | None, typer.Option(help="IANA zone of times without one (default: the server's naive time zone).")
]
TimeFormat = Annotated[
    str | None, typer.Option(help="A strptime pattern, epoch, epoch_ms or epoch_us (default: ISO 8601).")
]
Format = Annotated[FileFormat | None, typer.Option("--format", help="Format of the files (default: told by the name).")]
Encoding = Annotated[str, typer.Option(help="Text encoding of CSV files.")]
Delimiter = Annotated[str | None, typer.Option(help="CSV delimiter (default: found in the header).")]
Backfill = Annotated[bool, typer.Option("--backfill", help="Allow readings older than the raw retention (admin).")]
BatchRows = Annotated[int, typer.Option(min=1, max=READINGS_PER_GENERAL_REQUEST_MAX, help="Rows per request.")]
StateDirectory = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the state and refused files (default: beside each input).",
        file_okay=False,
        exists=True,
    ),
]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait at the end for the counts.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Read everything, send nothing.")]


def import_command(
    files: Files,
    url: common.Url = DEFAULT_URL,
    api_key: common.ApiKey = None,
    username: common.Username = None,
    password: common.Password = None,
    columns: Columns = None,
    sensor_id: SensorId = None,
    sensor_id_column: SensorIdColumn = None,
    quantity: Quantity = None,
    timezone: Timezone = None,
    time_format: TimeFormat = None,
    file_format: Format = None,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    backfill: Backfill = False,
    batch: BatchRows = READINGS_PER_GENERAL_REQUEST_MAX,
    state: StateDirectory = None,
    wait: Wait = SETTLE_SECONDS,
    dry_run: DryRun = False,
    everything: common.Everything = False,
    config_file: common.ArchiveConfig = None,
    data_dir: common.ArchiveDataDir = None,
) -> None:
    """Import readings from files. An interrupted import goes on where it was; sending a row again changes nothing.

    With --everything: bring the directory of `export --everything` into the empty installation of the settings, while
    no server runs on it.

    Exit codes: 0 all rows are in, 1 some were refused, 2 wrong usage, 3 the server cannot be reached.
    """
    output = Output()
    with output.reporting_errors():
        common.check_archive_options(everything, False, config_file, data_dir)
        if everything:
            if len(files) != 1:
                raise InvalidInput("--everything takes one directory", code="bad_parameter")
            import_archive(load_config(file=config_file, data_dir=data_dir), files[0], output)
            raise typer.Exit(ExitCode.OK)
        mapping = parse_columns(columns or [])
        if sensor_id_column:
            mapping["sensor_id"] = sensor_id_column
        options = ImportOptions(
            columns=ColumnOptions(mapping, sensor_id, quantity, timezone, time_format),
            file_format=file_format,
            encoding=encoding,
            delimiter=delimiter,
            backfill=backfill,
            batch=batch,
            state_directory=state,
            settle_seconds=wait,
        )
        if dry_run:
            code = check_files(files, options, output)
        else:
            with common.open_client(url, common.credential(api_key, username, password), output) as client:
                code = import_files(files, options, client, output)
    raise typer.Exit(code)
