"""Buckets that are made outside of the database: merged ones of days whose raw is gone, and those whose values SQL
cannot add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from sensorkeep import rollup
from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US
from sensorkeep.tsdb.aggregating import Points, bucket_columns
from sensorkeep.tsdb.base import Period
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment
from sensorkeep.tsdb.readings import Integers, integers
from sensorkeep.tsdb.sealed import merged

_MOMENTS = ("count", "sum", "min", "max", "m2")
_PERCENTILES = ("median", "p95", "p99")
COLUMNS: dict[Period, tuple[str, ...]] = {
    "hour": ("series", "time", *_MOMENTS, "minutes", *_PERCENTILES, "approximate"),
    "day": ("series", "time", *_MOMENTS, "active_minutes", *_PERCENTILES, "approximate", "grid"),
}
"""The columns of the tables hourly and daily."""

_TYPES: dict[str, pa.DataType] = {
    "series": pa.int32(), "time": pa.timestamp("us", tz="UTC"), "count": pa.int64(), "minutes": pa.int64(),
    "active_minutes": pa.int32(), "approximate": pa.bool_(), "grid": pa.list_(pa.float32()),
}  # fmt: skip
SCHEMAS: dict[Period, pa.Schema] = {
    period: pa.schema([pa.field(name, _TYPES.get(name, pa.float64())) for name in names])
    for period, names in COLUMNS.items()
}


def merge(session: Session, day: int, readings: pa.Table) -> None:
    """Merge `readings` (columns series, time, value; identities once each) into the buckets of the sealed `day`."""
    if readings.num_rows == 0:
        return
    session.execute("SELECT pg_advisory_xact_lock(7363284, %(day)s)", {"day": day})
    points = points_of(integers(readings["series"]), integers(readings["time"]), readings["value"])
    new_hours, new_days = made("hour", points), made("day", points)
    series = np.unique(points.sensor).tolist()
    bounds = {"series": series, "start": moment(day * DAY_US), "end": moment((day + 1) * DAY_US)}
    old_hours = table_of("hour", session.execute(statement("hours_of_day"), bounds).fetchall())
    old_days = table_of("day", session.execute(statement("days_of_day"), bounds).fetchall())
    hours, days = merged(old_hours, new_hours, old_days, new_days)
    put(session, "hour", hours)
    put(session, "day", days)


def points_of(series: Integers, time_us: Integers, value: Any) -> Points:
    """Readings as points; a value that is null is NaN."""
    return Points(series, time_us, np.asarray(value.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64))


def made(period: Period, points: Points) -> pa.Table:
    """The buckets of `points` (at least one; `sensor` is the series number), with SCHEMAS."""
    if period == "day":
        columns = bucket_columns(points, DAY_US, grid=True)
    else:
        columns = bucket_columns(points, HOUR_US) | {"minutes": pa.array(_minutes(points))}
    columns["series"] = columns["sensor"]
    schema = SCHEMAS[period]
    return pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)


def put(session: Session, period: Period, buckets: pa.Table) -> None:
    """Put the buckets in the place of those stored."""
    if buckets.num_rows == 0:
        return
    parameters: dict[str, Any] = {name: buckets[name].to_pylist() for name in COLUMNS[period]}
    parameters["time_us"] = integers(buckets["time"]).tolist()
    del parameters["time"]
    if period == "day":
        # Arrays of arrays must all be of one length here, so the grids go as one.
        points = len(rollup.DAY_PROBABILITIES)
        empty = [0.0] * points
        parameters["grids"] = [value for grid in parameters.pop("grid") for value in (grid or empty)]
        parameters["points"] = points
    session.execute(statement(f"put_{period}s"), parameters)


def table_of(period: Period, rows: list[tuple[Any, ...]]) -> pa.Table:
    """Rows of hourly or daily (times in microseconds) with SCHEMAS."""
    schema = SCHEMAS[period]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema.names)
    arrays = []
    for name, column in zip(schema.names, columns, strict=True):
        if name == "time":
            arrays.append(pa.array(column, pa.int64()).cast(schema.field(name).type))
        else:
            arrays.append(pa.array(column, schema.field(name).type))
    return pa.table(arrays, schema=schema)


def _minutes(points: Points) -> Integers:
    """One bit for each minute with a reading, of each hour, by (series, hour)."""
    hours = np.stack([points.sensor, np.floor_divide(points.time_us, HOUR_US)])
    _, group = np.unique(hours, axis=1, return_inverse=True)
    group = group.reshape(-1)
    bits = np.left_shift(np.int64(1), np.floor_divide(points.time_us, MINUTE_US) % 60)
    minutes: Integers = np.zeros(int(group.max()) + 1, np.int64)
    np.bitwise_or.at(minutes, group, bits)
    return minutes
