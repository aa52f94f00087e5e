"""New readings of a day whose raw is gone: merged into its stored buckets.

Count, sum, min, max and m2 merge exactly. Active minutes too: an hour keeps one bit a minute, and a day gains what its
hours gain. Percentiles come from the stored distributions (module rollup), so a merged bucket is approximate. A sensor
that had no bucket there gets an exact one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from sensorkeep import rollup
from sensorkeep.clock import DAY_US
from sensorkeep.tsdb.duckdb.engine import registered
from sensorkeep.tsdb.duckdb.readings import integers
from sensorkeep.tsdb.duckdb.statements import statement

Bucket = Mapping[str, Any]
"""A row of hourly or daily by column name."""

_Key = tuple[int, int]
"""Series number and start of the bucket in microseconds."""

PERCENTILE_COLUMNS = ("median", "p95", "p99")

DAY_GRID = {
    "grid": list(rollup.DAY_PROBABILITIES),
    # SQL counts from 1.
    **{name: index + 1 for name, index in zip(PERCENTILE_COLUMNS, rollup.DAY_PERCENTILE_INDEXES, strict=True)},
}
"""The parameters of day_aggregate."""


def merge(connection: duckdb.DuckDBPyConnection, day: int, readings: pa.Table) -> None:
    """Merge `readings` (columns series, time, value; identities once each) into the buckets of the sealed `day`."""
    if readings.num_rows == 0:
        return
    source = "SELECT series, time, value FROM accepted"
    day_us = {"day_us": day * DAY_US}
    with registered(connection, {"accepted": readings}):
        new_hours = connection.sql(statement("hour_aggregate", source=source), params=day_us).to_arrow_table()
        new_days = connection.sql(statement("day_aggregate", source=source), params=day_us | DAY_GRID).to_arrow_table()
    gained: dict[int, int] = {}
    old_hours = _stored(connection, "hourly", day, new_hours)
    hours = []
    for key, new in _by_key(new_hours).items():
        old = old_hours.get(key)
        hours.append(new if old is None else _merge_hour(old, new))
        minutes_before = 0 if old is None else old["minutes"]
        gained[key[0]] = gained.get(key[0], 0) + (new["minutes"] & ~minutes_before).bit_count()
    old_days = _stored(connection, "daily", day, new_days)
    days = []
    for key, new in _by_key(new_days).items():
        old = old_days.get(key)
        days.append(new if old is None else _merge_day(old, new, gained[key[0]]))
    replace_buckets(connection, "hourly", day, pa.Table.from_pylist(hours, new_hours.schema))
    replace_buckets(connection, "daily", day, pa.Table.from_pylist(days, new_days.schema))


def replace_buckets(connection: duckdb.DuckDBPyConnection, table: str, day: int, rebuilt: pa.Table) -> None:
    """Put the `rebuilt` buckets of `day` in the place of those stored in `table` (hourly or daily)."""
    bounds = {"start_us": day * DAY_US, "end_us": (day + 1) * DAY_US}
    with registered(connection, {"rebuilt": rebuilt}):
        connection.execute(statement("forget_buckets", rollup=table), bounds)
        connection.execute(statement("forget_buckets", rollup=f"{table}_settled"), bounds)
        connection.execute(statement("save_buckets", rollup=table))


def _stored(connection: duckdb.DuckDBPyConnection, table: str, day: int, wanted: pa.Table) -> dict[_Key, Bucket]:
    bounds = {"start_us": day * DAY_US, "end_us": (day + 1) * DAY_US}
    with registered(connection, {"wanted": wanted.select(["series", "time"])}):
        return _by_key(connection.sql(statement("stored_buckets", rollup=table), params=bounds).to_arrow_table())


def _by_key(buckets: pa.Table) -> dict[_Key, Bucket]:
    starts = integers(buckets["time"]).tolist()
    return {(row["series"], start): row for row, start in zip(buckets.to_pylist(), starts, strict=True)}


def _merge_hour(old: Bucket, new: Bucket) -> Bucket:
    merged = _merge_moments(old, new) | {"minutes": old["minutes"] | new["minutes"]}
    if not merged["approximate"]:
        return merged
    parts = [_hour_distribution(row) for row in (old, new) if row["count"]]
    values = rollup.mixture_percentiles(parts, rollup.PERCENTILES)
    return merged | dict(zip(PERCENTILE_COLUMNS, values, strict=True))


def _merge_day(old: Bucket, new: Bucket, minutes_gained: int) -> Bucket:
    merged = _merge_moments(old, new) | {"active_minutes": old["active_minutes"] + minutes_gained}
    if not merged["approximate"]:
        return merged
    parts = [_day_distribution(row) for row in (old, new) if row["count"]]
    grid = rollup.mixture_percentiles(parts, rollup.DAY_PROBABILITIES)
    shown = (grid[i] for i in rollup.DAY_PERCENTILE_INDEXES)
    return merged | {"grid": grid} | dict(zip(PERCENTILE_COLUMNS, shown, strict=True))


def _merge_moments(old: Bucket, new: Bucket) -> dict[str, Any]:
    merged = rollup.merge_moments(
        rollup.Moments(row["count"], row["sum"], row["min"], row["max"], row["m2"]) for row in (old, new)
    )
    # Where one of them has no value, the other's percentiles stay exact.
    percentiles = old if old["count"] else new
    return {
        **percentiles,
        "count": merged.count,
        "sum": merged.sum,
        "min": merged.min,
        "max": merged.max,
        "m2": merged.m2,
        "approximate": old["approximate"] or (old["count"] > 0 and new["count"] > 0),
    }


def _hour_distribution(row: Bucket) -> rollup.Distribution:
    values = [row[name] for name in ("min", *PERCENTILE_COLUMNS, "max")]
    return rollup.Distribution(row["count"], rollup.HOUR_PROBABILITIES, values)


def _day_distribution(row: Bucket) -> rollup.Distribution:
    return rollup.Distribution(row["count"], rollup.DAY_PROBABILITIES, row["grid"])
