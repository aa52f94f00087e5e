"""History pages as bytes: JSON straight from the columns, CSV, Arrow stream, Parquet; and which of them is wanted.

All four tell the same rows. The tabular ones differ in form only: `metadata` is the four columns battery, rssi, lqi
and battery_voltage; `approximate` is a column of every row; what JSON says beside the rows travels in headers.
Times are RFC 3339 text in JSON and CSV, timestamp[us, UTC] in Arrow and Parquet. CSV is RFC 4180: a header row, CRLF,
quotes where needed; a null is empty, an empty text is "".
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from sensorkeep.clock import MICROSECONDS, rfc3339
from sensorkeep.errors import InvalidInput
from sensorkeep.limits import ENCODED_AT_ONCE_ROWS
from sensorkeep.model import Sensor
from sensorkeep.query.answers import (
    EquipmentBucket,
    EquipmentHistory,
    EquipmentReading,
    SensorBucket,
    SensorHistory,
    SensorReading,
)
from sensorkeep.query.plan import HistoryPeriod, HistoryPlan
from sensorkeep.tsdb.base import RAW_COLUMNS, ROLLUP_COLUMNS

JSON = "application/json"
CSV = "text/csv"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
MEDIA_TYPES = (JSON, CSV, ARROW_STREAM, PARQUET)
"""What history can be answered in, the preferred first."""

_BUCKET_COLUMNS = {
    "avg_value": "average",
    "max_value": "max",
    "min_value": "min",
    "sample_count": "count",
    "active_minutes": "active_minutes",
    "stddev_value": "stddev",
    "median_value": "median",
    "p95_value": "p95",
    "p99_value": "p99",
    "approximate": "approximate",
}
"""Column of an answer -> column of the store (tsdb.base.ROLLUP_COLUMNS)."""
_METADATA = ("battery", "rssi", "lqi", "battery_voltage")
_READING_COLUMNS = {name: name for name in ("value", "status", *_METADATA)}

_STORE_TYPES: dict[str, pa.DataType] = {
    "sensor": pa.int32(),
    "time": pa.timestamp("us", tz="UTC"),
    "status": pa.string(),
    "rssi": pa.int16(),
    "lqi": pa.int16(),
    "count": pa.int64(),
    "active_minutes": pa.int64(),
    "approximate": pa.bool_(),
}
"""Types of the store's columns where they are not float64."""

_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """One page of history. `rows` has the store's columns; its `sensor` indexes `sensors`."""

    about: Literal["equipment", "sensor"]
    uuid: str
    plan: HistoryPlan
    sensors: Sequence[Sensor]
    rows: pa.Table
    complete_until_us: int
    next_cursor: str | None


def negotiate(accept: str | None) -> str:
    """The media type of MEDIA_TYPES that an Accept header prefers (RFC 9110 section 12.5.1).

    Missing or empty means JSON. Of equal qualities the first of MEDIA_TYPES wins; a range with a malformed quality
    does not count. Raises InvalidInput (`not_acceptable`) where none can be produced.
    """
    if accept is None or not accept.strip() or accept == "*/*":
        return JSON
    ranges: dict[str, float] = {}
    for element in accept.split(","):
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        quality = next((p[2:].strip() for p in parameters if p.startswith("q=")), "1")
        if _QUALITY.fullmatch(quality):
            ranges[name] = max(float(quality), ranges.get(name, 0.0))

    def quality_of(media_type: str) -> float:
        for name in (media_type, media_type.split("/")[0] + "/*", "*/*"):
            if name in ranges:
                return ranges[name]
        return 0.0

    best = max(MEDIA_TYPES, key=quality_of)
    if quality_of(best) == 0:
        raise InvalidInput(f"This can be answered as {', '.join(MEDIA_TYPES)}", code="not_acceptable")
    return best


def encode_history(page: HistoryPage, media_type: str) -> bytes:
    """The page as `media_type` (one of MEDIA_TYPES)."""
    return _ENCODERS[media_type](page)


def empty_rows(period: HistoryPeriod) -> pa.Table:
    """No rows, in the store's columns."""
    columns = RAW_COLUMNS if period == "raw" else ROLLUP_COLUMNS
    return pa.schema([(name, _STORE_TYPES.get(name, pa.float64())) for name in columns]).empty_table()


def shortest(value: float) -> float:
    """A float32 as the float64 that prints the same: 3.7 volts, not 3.700000047683716."""
    return float(str(np.float32(value)))


def metadata_of(
    battery: float | None, rssi: int | None, lqi: int | None, battery_voltage: float | None
) -> dict[str, int | float] | None:
    """The known ones by name; None where none is known."""
    values = (battery, rssi, lqi, battery_voltage)
    return {name: value for name, value in zip(_METADATA, values, strict=True) if value is not None} or None


def rfc3339_texts(times: pa.ChunkedArray[Any]) -> list[str]:
    """Each of a timestamp column as clock.rfc3339 writes it, at once: a few hundred nanoseconds a row."""
    times_us = times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    texts: list[str] = np.datetime_as_string(times_us.view("M8[us]"), unit="s", timezone="UTC").tolist()
    fractions = times_us % MICROSECONDS
    if not fractions.any():
        return texts
    return [f"{text[:-1]}.{us:06d}Z" if us else text for text, us in zip(texts, fractions.tolist(), strict=True)]


def numbers(column: pa.ChunkedArray[Any]) -> list[Any]:
    """A column of floats as Python numbers, NaN where null; JSON then says null (msgspec)."""
    values: list[Any] = column.cast(pa.float64()).to_numpy().tolist()
    return values


def sensor_columns(rows: pa.Table, sensors: Sequence[Sensor]) -> list[list[Any]]:
    """For each row the uuid, name, type and unit of its sensor: four columns."""
    indexes: list[Any] = rows["sensor"].to_pylist()
    facts: list[list[str | None]] = [[s.uuid for s in sensors], [s.name for s in sensors]]
    facts += [[s.type for s in sensors], [s.unit for s in sensors]]
    return [[fact[i] for i in indexes] for fact in facts]


def _json(page: HistoryPage) -> bytes:
    envelope: type[EquipmentHistory[Any]] | type[SensorHistory[Any]]
    envelope = EquipmentHistory if page.about == "equipment" else SensorHistory
    answer: EquipmentHistory[Any] | SensorHistory[Any] = envelope(
        page.uuid,
        page.plan.period,
        rfc3339(page.plan.start_us),
        rfc3339(page.plan.end_us),
        rfc3339(page.complete_until_us),
        [],
        page.next_cursor,
    )
    # The empty data is the only "[]" there can be: no other member can hold a bracket.
    before, after = msgspec.json.encode(answer).split(b"[]")
    content = bytearray(before + b"[")
    for start in range(0, page.rows.num_rows, ENCODED_AT_ONCE_ROWS):
        if start:
            content += b","
        content += msgspec.json.encode(_json_rows(page, page.rows.slice(start, ENCODED_AT_ONCE_ROWS)))[1:-1]
    content += b"]" + after
    return bytes(content)


def _json_rows(page: HistoryPage, rows: pa.Table) -> list[Any]:
    raw = page.plan.period == "raw"
    columns = [rfc3339_texts(rows["time"])]
    row: Callable[..., Any]
    if page.about == "equipment":
        columns += sensor_columns(rows, page.sensors)
        row = EquipmentReading if raw else EquipmentBucket
    else:
        row = SensorReading if raw else SensorBucket
    columns += _reading_columns(rows) if raw else _bucket_columns(rows)
    return list(map(row, *columns))


def _bucket_columns(rows: pa.Table) -> list[list[Any]]:
    whole = ("sample_count", "active_minutes", "approximate")
    return [
        rows[source].to_pylist() if name in whole else numbers(rows[source]) for name, source in _BUCKET_COLUMNS.items()
    ]


def _reading_columns(rows: pa.Table) -> list[list[Any]]:
    if all(rows[name].null_count == len(rows) for name in _METADATA):
        metadata: list[Any] = [None] * len(rows)
    else:
        metadata = list(map(metadata_of, *(_shortest(rows[name]).to_pylist() for name in _METADATA)))
    return [numbers(rows["value"]), rows["status"].cast(pa.string()).to_pylist(), metadata]


def _shortest(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """A column of `shortest` values, where it is float32."""
    return column.cast(pa.string()).cast(pa.float64()) if column.type == pa.float32() else column


def _table(page: HistoryPage) -> pa.Table:
    rows = page.rows
    columns: dict[str, pa.ChunkedArray[Any]] = {"time": rows["time"].cast(pa.timestamp("us", tz="UTC"))}
    if page.about == "equipment":
        for name in ("uuid", "name", "type", "unit"):
            facts = pa.array([getattr(sensor, name) for sensor in page.sensors], pa.string())
            columns[f"sensor_{name}"] = pa.chunked_array([facts.take(rows["sensor"].combine_chunks())])
    for name, source in (_READING_COLUMNS if page.plan.period == "raw" else _BUCKET_COLUMNS).items():
        # The same types whatever the store and whatever the page, so that pages can be put together.
        columns[name] = _shortest(rows[source]).cast(_STORE_TYPES.get(source, pa.float64()))
    return pa.table(columns)


def _csv(page: HistoryPage) -> bytes:
    from pyarrow import csv  # imported late: a server that nobody asks for CSV starts without it

    table = _table(page)
    table = table.set_column(0, "time", pa.array(rfc3339_texts(table["time"]), pa.string()))
    sink = io.BytesIO()
    csv.write_csv(table, sink, csv.WriteOptions(eol="\r\n"))  # type: ignore[call-arg]  # the stubs lag
    return sink.getvalue()


def _arrow_stream(page: HistoryPage) -> bytes:
    table = _table(page)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(page: HistoryPage) -> bytes:
    from pyarrow import parquet  # imported late, as csv

    sink = io.BytesIO()
    parquet.write_table(_table(page), sink, compression="zstd")
    return sink.getvalue()


_ENCODERS: dict[str, Callable[[HistoryPage], bytes]] = {
    JSON: _json,
    CSV: _csv,
    ARROW_STREAM: _arrow_stream,
    PARQUET: _parquet,
}
