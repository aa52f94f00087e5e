"""The shapes of tables inside the stores: what merges, not yet what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sensorkeep.model import READINGS_SCHEMA
from sensorkeep.tsdb.base import RAW_COLUMNS, ROLLUP_COLUMNS

RAW_SCHEMA = pa.schema([pa.field("sensor", pa.int32()), *(READINGS_SCHEMA.field(name) for name in RAW_COLUMNS[1:])])
"""Raw readings as they are read; `sensor` is the place in the request."""

_TYPES: dict[str, pa.DataType] = {
    "sensor": pa.int32(),
    "time": pa.timestamp("us", tz="UTC"),
    "count": pa.int64(),
    "sum": pa.float64(),
    "min": pa.float64(),
    "max": pa.float64(),
    "m2": pa.float64(),
    "active_minutes": pa.int32(),
    "active_periods": pa.int32(),
    "median": pa.float64(),
    "p95": pa.float64(),
    "p99": pa.float64(),
    "approximate": pa.bool_(),
    "grid": pa.list_(pa.float32()),
}


def _schema(*without: str) -> pa.Schema:
    return pa.schema({name: kind for name, kind in _TYPES.items() if name not in without})


SUMMARY_SCHEMA = _schema("time", "grid")
"""Summaries as they are inside: what merges, not yet what is shown."""

GRID_SCHEMA = _schema("active_periods")
"""Days with their distribution."""

BUCKET_SCHEMA = _schema("active_periods", "grid")
"""Buckets."""


def as_table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """The columns by name, in the order of the schema."""
    return pa.table([columns[name] for name in schema.names], schema=schema)


_ONE: Any = pa.scalar(1.0)


def shown(buckets: pa.Table, columns: Sequence[str] = ROLLUP_COLUMNS) -> pa.Table:
    """Buckets as the contract shows them: with average and stddev, without m2."""
    count = buckets["count"].cast(pa.float64())
    average = pc.divide(buckets["sum"], count)
    spread = pc.sqrt(pc.divide(buckets["m2"], pc.subtract(count, _ONE)))
    stddev = pc.if_else(pc.greater(count, _ONE), spread, pa.scalar(None, pa.float64()))
    table = buckets.append_column("average", average).append_column("stddev", stddev)
    return table.select(list(columns))
