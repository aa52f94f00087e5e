"""Aggregates of a few readings, in memory: the definitions of module rollup on whole columns.

Planning an aggregate costs the database three milliseconds, and a read of a few sensors needs less than one for this.
Many readings are aggregated by the database (sql/duckdb_rollup.sql), which does not need to hold them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sensorkeep.clock import HOUR_US, MINUTE_US
from sensorkeep.rollup import DAY_PROBABILITIES, PERCENTILES
from sensorkeep.tsdb.readings import Integers

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Points:
    """At least one reading, in columns: the place of the sensor, the time in microseconds, the value (NaN: none)."""

    sensor: Integers
    time_us: Integers
    value: Doubles


def bucket_columns(points: Points, length_us: int, *, grid: bool = False) -> dict[str, Any]:
    """The buckets of `length_us` of the points, as columns of Arrow; `grid` adds the picture of their distribution."""
    groups = _Groups(points, np.floor_divide(points.time_us, length_us))
    columns = groups.columns() | {"time": pa.array(groups.bucket * length_us, pa.timestamp("us", tz="UTC"))}
    return columns | ({"grid": groups.grid()} if grid else {})


def summary_columns(points: Points) -> dict[str, Any]:
    """One row a sensor over all of the points; `active_periods` counts hours."""
    groups = _Groups(points, np.zeros_like(points.time_us))
    return groups.columns() | {"active_periods": pa.array(groups.distinct(HOUR_US), pa.int32())}


class _Groups:
    """The points by (sensor, bucket), and within each by value; those without a value come last."""

    def __init__(self, points: Points, bucket: Integers) -> None:
        order = np.lexsort((points.value, bucket, points.sensor))
        self._time_us, self._value = points.time_us[order], points.value[order]
        sensor, bucket = points.sensor[order], bucket[order]
        new = np.ones(len(order), np.bool_)
        new[1:] = (sensor[1:] != sensor[:-1]) | (bucket[1:] != bucket[:-1])
        self._starts: Integers = np.flatnonzero(new)
        self._group: Integers = np.cumsum(new) - 1
        self.sensor, self.bucket = sensor[new], bucket[new]
        valued = np.isfinite(self._value)
        self._count: Integers = np.bincount(self._group[valued], minlength=len(self._starts))

    def columns(self) -> dict[str, Any]:
        """What all aggregates have. The order of the groups is (sensor, bucket)."""
        total, m2 = self._sums()
        empty = self._count == 0
        percentiles = self._percentiles((0.0, *PERCENTILES, 1.0))
        names = ("min", "median", "p95", "p99", "max")
        shown = {name: pa.array(percentiles[:, i], mask=empty) for i, name in enumerate(names)}
        return shown | {
            "sensor": pa.array(self.sensor, pa.int32()),
            "count": pa.array(self._count, pa.int64()),
            "sum": pa.array(total, pa.float64()),
            "m2": pa.array(m2, pa.float64()),
            "active_minutes": pa.array(self.distinct(MINUTE_US), pa.int32()),
            "approximate": pa.array(np.zeros(len(empty), np.bool_)),
        }

    def grid(self) -> Any:
        """Percentiles at DAY_PROBABILITIES; null where there is no value."""
        # Single precision cannot hold every double.
        values = np.clip(self._percentiles(DAY_PROBABILITIES), -3.4e38, 3.4e38).astype(np.float32)
        rows = zip(self._count.tolist(), values, strict=True)
        return pa.array([row if count else None for count, row in rows], pa.list_(pa.float32()))

    def distinct(self, length_us: int) -> Integers:
        """How many spans of `length_us` have a point."""
        span = np.floor_divide(self._time_us, length_us)
        span -= span.min()
        spans = int(span.max()) + 1
        return np.bincount(np.unique(self._group * spans + span) // spans, minlength=len(self._starts))

    def _sums(self) -> tuple[list[float | None], list[float | None]]:
        """Sum and m2 of each group, correctly rounded; None where there is no value or no double for it."""
        ends = self._starts + self._count
        spans = list(zip(self._starts.tolist(), ends.tolist(), strict=True))
        values = self._value.tolist()
        totals = [_exact_sum(values[start:end]) for start, end in spans]
        mean = np.array([math.nan if total is None else total for total in totals]) / np.maximum(self._count, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.square(self._value - mean[self._group]).tolist()
        return totals, [_exact_sum(squares[start:end]) for start, end in spans]

    def _percentiles(self, probabilities: Sequence[float]) -> Doubles:
        """Percentiles of each group (rows) at each probability (columns); meaningless where there is no value."""
        rank = np.maximum(self._count - 1, 0)[:, None] * np.asarray(probabilities)
        below = np.floor(rank)
        first = self._starts[:, None]
        low, high = self._value[first + below.astype(np.int64)], self._value[first + np.ceil(rank).astype(np.int64)]
        share = rank - below
        with np.errstate(over="ignore", invalid="ignore"):
            straight = low + share * (high - low)
        # The difference of two doubles may overflow; the weighted ends may not, but lose the last bit of equal ends.
        percentiles: Doubles = np.where(np.isfinite(straight), straight, low * (1.0 - share) + high * share)
        return percentiles


def _exact_sum(values: list[float]) -> float | None:
    try:
        total = math.fsum(values) if values else math.nan
    except (OverflowError, ValueError):
        return None
    return total if math.isfinite(total) else None
