"""One row a sensor over a range, from the coarsest parts that give it exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa

from sensorkeep import rollup
from sensorkeep.clock import DAY_US
from sensorkeep.limits import SUMMARY_EXACT_DAYS_MAX, SUMMARY_HOURS_DAYS_MAX
from sensorkeep.tsdb.base import SUMMARY_COLUMNS, Period
from sensorkeep.tsdb.readings import integers
from sensorkeep.tsdb.sealed import PERCENTILE_COLUMNS
from sensorkeep.tsdb.shapes import SUMMARY_SCHEMA, shown

Row = dict[str, Any]


class Snapshot(Protocol):
    """One moment of a store, seen for some sensors."""

    reaches_sealed: bool
    """Whether the range holds readings whose raw is gone."""

    def buckets(self, period: Period, start_us: int, end_us: int) -> pa.Table:
        """Buckets that start in [start, end) with BUCKET_SCHEMA."""
        ...

    def days_with_grid(self, start_us: int, end_us: int) -> pa.Table:
        """Days that start in [start, end), with GRID_SCHEMA."""
        ...

    def summary_from_raw(self, start_us: int, end_us: int) -> pa.Table:
        """One exact row a sensor, straight from raw, with SUMMARY_SCHEMA; `active_periods` counts hours."""
        ...


def summarize(snapshot: Snapshot, start_us: int, end_us: int) -> pa.Table:
    """The summary of [start, end); see TimeSeriesStore.summarize.

    A short range reaching into a day whose raw is gone is made from whole hours, as a longer one.
    """
    if end_us - start_us <= SUMMARY_EXACT_DAYS_MAX * DAY_US and not snapshot.reaches_sealed:
        exact = snapshot.summary_from_raw(start_us, end_us)
        return shown(exact, SUMMARY_COLUMNS)
    summaries: dict[int, _Summary] = {}
    count_hours = end_us - start_us <= SUMMARY_HOURS_DAYS_MAX * DAY_US
    for row in _parts(snapshot, start_us, end_us, count_hours):
        summaries.setdefault(row["sensor"], _Summary()).add(row)
    rows = [{"sensor": sensor} | summaries[sensor].row() for sensor in sorted(summaries)]
    return shown(pa.Table.from_pylist(rows, SUMMARY_SCHEMA), SUMMARY_COLUMNS)


def _parts(snapshot: Snapshot, start_us: int, end_us: int, count_hours: bool) -> Iterator[Row]:
    """Buckets that make up [start, end): the end of an hour from raw, hours, and (for their percentiles, or where days
    are counted) whole days.

    `active_periods` of each row is what it adds; a row without `moments` adds its distribution only, and one without
    `distribution` everything else.
    """
    last_hour_us = rollup.hour_start(end_us)
    days_us = -(-start_us // DAY_US) * DAY_US, rollup.day_start(end_us)
    days_us = days_us if days_us[0] < days_us[1] else (last_hour_us, last_hour_us)
    for row, _ in _rows(snapshot.days_with_grid(*days_us)):
        yield row | {"distribution": True, "moments": not count_hours, "active_periods": 1}
    rest_active: set[int] = set()
    # Where hours are counted, those of whole days are read too, all with one call.
    ranges = [(start_us, last_hour_us)] if count_hours else [(start_us, days_us[0]), (days_us[1], last_hour_us)]
    for first_us, until_us in ranges:
        for row, time_us in _rows(snapshot.buckets("hour", first_us, until_us)):
            # Where days are counted, the hours of the last day are one period together.
            periods = 1 if count_hours else int(row["sensor"] not in rest_active)
            rest_active.add(row["sensor"])
            in_day = days_us[0] <= time_us < days_us[1]
            yield row | {"distribution": not in_day, "moments": True, "active_periods": periods}
    for row in snapshot.summary_from_raw(last_hour_us, end_us).to_pylist():
        periods = 1 if count_hours else int(row["sensor"] not in rest_active)
        yield row | {"distribution": True, "moments": True, "active_periods": periods}


def _rows(buckets: pa.Table) -> Iterator[tuple[Row, int]]:
    """The buckets without their times, and these in microseconds: as Python's times they would cost more."""
    return zip(buckets.drop_columns(["time"]).to_pylist(), integers(buckets["time"]).tolist(), strict=True)


class _Summary:
    """The parts of one sensor."""

    def __init__(self) -> None:
        self._moments: list[rollup.Moments] = []
        self._distributions: list[rollup.Distribution] = []
        self._active_minutes = 0
        self._active_periods = 0

    def add(self, row: Row) -> None:
        """Take a part."""
        if row["moments"]:
            self._moments.append(rollup.Moments(row["count"], row["sum"], row["min"], row["max"], row["m2"]))
            self._active_minutes += row["active_minutes"]
            self._active_periods += row["active_periods"]
        if row["distribution"] and row["count"]:
            self._distributions.append(_distribution(row))

    def row(self) -> Row:
        """The summary."""
        merged = rollup.merge_moments(self._moments)
        percentiles: list[float | None] = [None, None, None]
        if self._distributions:
            percentiles = [*rollup.mixture_percentiles(self._distributions, rollup.PERCENTILES)]
        return {
            "count": merged.count,
            "sum": merged.sum,
            "min": merged.min,
            "max": merged.max,
            "m2": merged.m2,
            "active_minutes": self._active_minutes,
            "active_periods": self._active_periods,
            "approximate": True,
        } | dict(zip(PERCENTILE_COLUMNS, percentiles, strict=True))


def _distribution(row: Row) -> rollup.Distribution:
    if row.get("grid") is not None:
        return rollup.Distribution(row["count"], rollup.DAY_PROBABILITIES, row["grid"])
    values = [row[name] for name in ("min", *PERCENTILE_COLUMNS, "max")]
    return rollup.Distribution(row["count"], rollup.HOUR_PROBABILITIES, values)
