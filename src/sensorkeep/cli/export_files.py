"""Writes rows as CSV, JSONL, Parquet or Arrow: whole files or nothing."""

from __future__ import annotations

import csv
import gzip
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import msgspec
import pyarrow as pa

from sensorkeep.errors import Conflict, InvalidInput

ExportFormat = Literal["csv", "jsonl", "parquet", "arrow"]
_FORMATS: dict[str, ExportFormat] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_GZIP_LEVEL = 6

_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
_IDENTITY: list[tuple[str, pa.DataType]] = [
    ("time", pa.timestamp("us", tz="UTC")),
    ("equipment_uuid", _TEXT),
    ("equipment_external_id", _TEXT),
    ("equipment_name", _TEXT),
    ("sensor_uuid", _TEXT),
    ("sensor_external_id", _TEXT),
    ("sensor_name", _TEXT),
    ("sensor_type", _TEXT),
    ("sensor_unit", _TEXT),
]
RAW_SCHEMA = pa.schema(
    [
        *_IDENTITY,
        ("value", _NUMBER),
        ("status", _TEXT),
        ("battery", _NUMBER),
        ("rssi", _COUNT),
        ("lqi", _COUNT),
        ("battery_voltage", _NUMBER),
    ]
)
"""Columns of exported raw readings; `import` recognises them."""
ROLLUP_SCHEMA = pa.schema(
    [
        *_IDENTITY,
        *((name, _NUMBER) for name in ("avg_value", "max_value", "min_value")),
        ("sample_count", _COUNT),
        ("active_minutes", _COUNT),
        *((name, _NUMBER) for name in ("stddev_value", "median_value", "p95_value", "p99_value")),
        ("approximate", pa.bool_()),
    ]
)
"""Columns of exported hours and days."""

Row = dict[str, Any]


class RowWriter(Protocol):
    """Takes rows of one schema, by column name; missing ones are null. `close` ends the file."""

    def write(self, rows: Sequence[Row]) -> None: ...

    def close(self) -> None: ...


def export_format_of(path: Path) -> ExportFormat:
    """The format that the name tells. Raises InvalidInput (`bad_parameter`)."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in _FORMATS:
        detail = f"{path}: the name does not tell the format; say --format csv|jsonl|parquet|arrow"
        raise InvalidInput(detail, code="bad_parameter")
    return _FORMATS[suffix]


@contextmanager
def writing(path: Path, file_format: ExportFormat, schema: pa.Schema, *, force: bool) -> Iterator[RowWriter]:
    """A writer into `path`, which appears whole when the block ends well and not at all otherwise.

    Raises Conflict (`already_exists`) where it exists and `force` is not set, InvalidInput where it cannot be written.
    """
    if path.name.endswith(".gz") and file_format in ("parquet", "arrow"):
        raise InvalidInput(f"{path}: {file_format} is compressed by itself; leave .gz off", code="bad_parameter")
    _refuse_existing(path, force)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with partial.open("xb") as stream:
            writer = _writer(stream, file_format, schema, compressed=path.name.endswith(".gz"))
            yield writer
            writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        _refuse_existing(path, force)
        os.replace(partial, path)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}", code="bad_parameter") from error
    finally:
        partial.unlink(missing_ok=True)


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise Conflict(f"{path} exists already", code="already_exists")


def _writer(stream: BinaryIO, file_format: ExportFormat, schema: pa.Schema, *, compressed: bool) -> RowWriter:
    if file_format in ("parquet", "arrow"):
        return _ArrowWriter(stream, file_format, schema)
    # No name and no time in the header, so that the same rows give the same bytes.
    text = gzip.GzipFile("", "wb", _GZIP_LEVEL, stream, mtime=0) if compressed else stream
    return _CsvWriter(text, schema) if file_format == "csv" else _JsonLinesWriter(text, schema)


class _CsvWriter:
    def __init__(self, stream: BinaryIO | gzip.GzipFile, schema: pa.Schema) -> None:
        self._stream = stream
        self._names = schema.names
        self._put([self._names])

    def write(self, rows: Sequence[Row]) -> None:
        self._put([[row.get(name) for name in self._names] for row in rows])

    def close(self) -> None:
        if isinstance(self._stream, gzip.GzipFile):
            self._stream.close()

    def _put(self, rows: Sequence[Sequence[object]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._stream.write(text.getvalue().encode())


class _JsonLinesWriter:
    def __init__(self, stream: BinaryIO | gzip.GzipFile, schema: pa.Schema) -> None:
        self._stream = stream
        self._names = schema.names

    def write(self, rows: Sequence[Row]) -> None:
        lines = [msgspec.json.encode({name: row.get(name) for name in self._names}) for row in rows]
        if lines:
            self._stream.write(b"\n".join(lines) + b"\n")

    def close(self) -> None:
        if isinstance(self._stream, gzip.GzipFile):
            self._stream.close()


class _ArrowWriter:
    def __init__(self, stream: BinaryIO, file_format: ExportFormat, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer: Any
        if file_format == "parquet":
            import pyarrow.parquet as pq  # 6 MiB that a server need not pay

            self._writer = pq.ParquetWriter(stream, schema, compression="zstd")
        else:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_file(stream, schema, options=options)  # type: ignore[arg-type]

    def write(self, rows: Sequence[Row]) -> None:
        if rows:
            self._writer.write_table(pa.table([self._column(rows, part) for part in self._schema], schema=self._schema))

    def close(self) -> None:
        self._writer.close()

    def _column(self, rows: Sequence[Row], part: pa.Field[Any]) -> pa.Array[Any]:
        cells: list[Any] = [row.get(part.name) for row in rows]
        if part.name == "time":
            cells = [datetime.fromisoformat(cell) for cell in cells]
        column: pa.Array[Any] = pa.array(cells, part.type)
        return column
