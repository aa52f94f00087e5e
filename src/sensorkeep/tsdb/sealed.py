"""Merging new readings of a day whose raw is gone into its stored buckets. No database here.

Count, sum, min, max and m2 merge exactly. Active minutes too: an hour keeps one bit a minute, and a day gains what its
hours gain. Percentiles come from the stored distributions (module rollup), so a merged bucket is approximate. A sensor
that had no bucket there gets an exact one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sensorkeep import rollup
from sensorkeep.tsdb.readings import integers

Bucket = Mapping[str, Any]
"""A row of hourly or daily by column name."""

_Key = tuple[int, int]
"""Series number and start of the bucket in microseconds."""

PERCENTILE_COLUMNS = ("median", "p95", "p99")

DAY_GRID_INDEXES = {
    name: index + 1 for name, index in zip(PERCENTILE_COLUMNS, rollup.DAY_PERCENTILE_INDEXES, strict=True)
}
"""Where they stand in a day's distribution; SQL counts from 1."""


def merged(
    old_hours: pa.Table, new_hours: pa.Table, old_days: pa.Table, new_days: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """The hours and days that take the place of the old ones, one for each new one, with the new tables' schemas.

    `new_…` are the buckets of the new readings alone, all of one day; `old_…` those stored of the same sensors.
    """
    gained: dict[int, int] = {}
    known = _by_key(old_hours)
    hours = []
    for key, new in _by_key(new_hours).items():
        old = known.get(key)
        hours.append(new if old is None else _merge_hour(old, new))
        minutes_before = 0 if old is None else old["minutes"]
        gained[key[0]] = gained.get(key[0], 0) + (new["minutes"] & ~minutes_before).bit_count()
    known = _by_key(old_days)
    days = []
    for key, new in _by_key(new_days).items():
        old = known.get(key)
        days.append(new if old is None else _merge_day(old, new, gained[key[0]]))
    return pa.Table.from_pylist(hours, new_hours.schema), pa.Table.from_pylist(days, new_days.schema)


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
