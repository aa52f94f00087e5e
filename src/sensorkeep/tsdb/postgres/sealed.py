"""Buckets of days whose raw is gone: new readings merged into them, and their move from one store to another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US
from sensorkeep.errors import Conflict
from sensorkeep.tsdb.aggregating import Points, bucket_columns
from sensorkeep.tsdb.base import BUCKET_SCHEMAS, Period
from sensorkeep.tsdb.postgres.columns import as_table, copy_in, fetch
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment
from sensorkeep.tsdb.readings import Integers, integers
from sensorkeep.tsdb.sealed import merged

_MOMENTS = ("count", "sum", "min", "max", "m2")
_PERCENTILES = ("median", "p95", "p99")
_COLUMNS: dict[Period, tuple[str, ...]] = {
    "hour": ("series", "time", *_MOMENTS, "minutes", *_PERCENTILES, "approximate"),
    "day": ("series", "time", *_MOMENTS, "active_minutes", *_PERCENTILES, "approximate", "grid"),
}
"""The columns of sealed_hourly and sealed_daily."""

_TYPES: dict[str, pa.DataType] = {
    "series": pa.int32(), "time": pa.timestamp("us", tz="UTC"), "count": pa.int64(), "minutes": pa.int64(),
    "active_minutes": pa.int32(), "approximate": pa.bool_(), "grid": pa.list_(pa.float32()),
}  # fmt: skip
_SCHEMAS: dict[Period, pa.Schema] = {
    period: pa.schema([pa.field(name, _TYPES.get(name, pa.float64())) for name in names])
    for period, names in _COLUMNS.items()
}
_KINDS = {
    "series": "int32", "time": "time", "count": "int64", "minutes": "int64", "active_minutes": "int32",
    "approximate": "bool", "grid": "grid", "sensor": "text",
}  # fmt: skip


def merge(session: Session, day: int, readings: pa.Table) -> None:
    """Merge `readings` (columns series, time, value; identities once each) into the buckets of the sealed `day`."""
    if readings.num_rows == 0:
        return
    value = np.asarray(readings["value"].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    points = Points(integers(readings["series"]), integers(readings["time"]), value)
    bounds = {
        "series": np.unique(points.sensor).tolist(),
        "start": moment(day * DAY_US),
        "end": moment((day + 1) * DAY_US),
    }
    old: dict[Period, pa.Table] = {
        period: as_table(fetch(session, statement(f"sealed_{period}s_of"), bounds, kinds(period)), _SCHEMAS[period])
        for period in _SCHEMAS
    }
    hours, days = merged(old["hour"], _made("hour", points), old["day"], _made("day", points))
    _put(session, "hour", hours)
    _put(session, "day", days)


def export_buckets(session: Session, period: Period, start_us: int, end_us: int) -> pa.Table:
    """See TimeSeriesStore.export_buckets."""
    names = {"sensor": "text"} | {name: kind for name, kind in kinds(period).items() if name != "series"}
    bounds = {"start": moment(start_us), "end": moment(end_us)}
    found = fetch(session, statement(f"export_{period}s"), bounds, names)
    return as_table(found, BUCKET_SCHEMAS[period])


def import_buckets(session: Session, period: Period, buckets: pa.Table, numbers: dict[str, int], now_us: int) -> None:
    """See TimeSeriesStore.import_buckets; `numbers` are those of the sensors."""
    days = np.unique(np.floor_divide(integers(buckets["time"]), DAY_US)).tolist()
    # Nobody makes a day meanwhile.
    session.execute(statement("lock_days"))
    if session.execute(statement("unsealed_of"), {"days": days}).fetchall():
        raise Conflict("the store holds readings already: bring in the buckets without readings before them")
    session.execute(statement("add_sealed_days"), {"days": days, "now": moment(now_us)})
    session.execute(statement("lock_sealed"))
    uuids: list[Any] = buckets["sensor"].to_pylist()
    series = pa.array([numbers[uuid] for uuid in uuids], pa.int32())
    table = buckets.set_column(0, "series", series)
    _put(session, period, table.select(list(_COLUMNS[period])).cast(_SCHEMAS[period]))


def kinds(period: Period) -> dict[str, str]:
    """The kind of each column of the table, for `fetch`."""
    return {name: _KINDS.get(name, "float64") for name in _COLUMNS[period]}


def _made(period: Period, points: Points) -> pa.Table:
    """The buckets of `points` (`sensor` is the series number)."""
    if period == "day":
        columns = bucket_columns(points, DAY_US, grid=True)
    else:
        columns = bucket_columns(points, HOUR_US) | {"minutes": pa.array(_minutes(points))}
    columns["series"] = columns["sensor"]
    schema = _SCHEMAS[period]
    return pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)


def _minutes(points: Points) -> Integers:
    """One bit for each minute with a reading, of each hour, by (series, hour)."""
    hours = np.stack([points.sensor, np.floor_divide(points.time_us, HOUR_US)])
    _, group = np.unique(hours, axis=1, return_inverse=True)
    group = group.reshape(-1)
    bits = np.left_shift(np.int64(1), np.floor_divide(points.time_us, MINUTE_US) % 60)
    minutes: Integers = np.zeros(int(group.max()) + 1, np.int64)
    np.bitwise_or.at(minutes, group, bits)
    return minutes


def _put(session: Session, period: Period, buckets: pa.Table) -> None:
    """Put the buckets in the place of those stored."""
    if buckets.num_rows:
        session.execute(statement(f"create_incoming_{period}s"))
        copy_in(session, f"incoming_{period}s", buckets)
        session.execute(statement(f"put_{period}s"))
