"""Reads: raw readings and buckets, each from one snapshot of the database.

Stored buckets answer for what is rolled up: those of the tables hourly and daily, and with TimescaleDB, for days that
have their raw, those of the continuous aggregates. Buckets that are not rolled up, or that are marked as changed, are
computed from raw in the same snapshot; so an answer is exact whenever the aggregates were refreshed last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple

import numpy as np
import pyarrow as pa

from sensorkeep import rollup
from sensorkeep.clock import DAY_US, HOUR_US
from sensorkeep.tsdb.aggregating import Points, bucket_columns, summary_columns
from sensorkeep.tsdb.base import Period
from sensorkeep.tsdb.postgres.copying import Columns, fetch
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment
from sensorkeep.tsdb.readings import Integers, integers
from sensorkeep.tsdb.sealed import DAY_GRID_INDEXES
from sensorkeep.tsdb.shapes import BUCKET_SCHEMA, GRID_SCHEMA, RAW_SCHEMA, SUMMARY_SCHEMA, as_table

PERIOD_US: dict[Period, int] = {"hour": HOUR_US, "day": DAY_US}
GRID = {"grid": list(rollup.DAY_PROBABILITIES)}
_ROWS_MAX = 2**40
_DOUBLES = ("sum", "min", "max", "m2", "median", "p95", "p99")
_BUCKET = {
    "series": "int32", "time": "time", "count": "int64", "sum": "float64", "min": "float64", "max": "float64",
    "m2": "float64", "active_minutes": "int32", "median": "float64", "p95": "float64", "p99": "float64",
    "approximate": "bool", "extreme": "bool",
}  # fmt: skip
_SUMMARY = {
    "series": "int32", "count": "int64", "sum": "float64", "min": "float64", "max": "float64", "m2": "float64",
    "active_minutes": "int32", "active_periods": "int32", "median": "float64", "p95": "float64", "p99": "float64",
    "extreme": "bool",
}  # fmt: skip
_POINTS = {"series": "int32", "time": "time", "value": "float64"}


class Span(NamedTuple):
    """A range of time whose buckets are computed from raw."""

    start_us: int
    end_us: int


class Snapshot:
    """One moment of the store, seen for some sensors (by their series numbers) over [start, end)."""

    def __init__(
        self, session: Session, series: Sequence[int | None], start_us: int, end_us: int, *, timescale: bool
    ) -> None:
        """`session` is in a transaction that sees one moment. A sensor without a number has no readings."""
        self._session = session
        self._timescale = timescale
        places: dict[int, int] = {}
        for place, number in enumerate(series):
            if number is not None:
                places.setdefault(number, place)
        self._series = list(places)
        order = np.argsort(self._series)
        self._known = np.asarray(self._series, np.int64)[order]
        self._places: Integers = np.asarray(list(places.values()), np.int64)[order]
        last = max(start_us, end_us - 1)
        bounds = {"first": _day(start_us), "last": _day(last)}
        ((rolled_us, open_days, sealed_days),) = session.execute(statement("view"), bounds).fetchall()
        self._rolled_us: int | None = rolled_us
        self._open_days: list[int] = open_days or []
        self._sealed_days: list[int] = sealed_days or []
        self.reaches_sealed = bool(self._sealed_days)
        """Whether the range holds readings whose raw is gone."""

    def raw(self, start_us: int, end_us: int, limit: int, after_sensor: int = -1) -> pa.Table:
        """Readings by (time, sensor); at `start_us` itself only those of sensors after `after_sensor`."""
        place = int((np.sort(self._places) <= after_sensor).sum()) - 1
        rows: list[tuple[Any, ...]] = []
        for span in self._raw_spans(start_us, end_us):
            if len(rows) >= limit or not self._series:
                break
            bounds = self._bounds(*span) | {"after": moment(start_us), "place": place, "limit": limit - len(rows)}
            rows += self._session.execute(statement("first_readings"), bounds, binary=True).fetchall()
        columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * 8
        ordered = np.asarray(self._places_by_number(), np.int64)
        place_of = ordered[np.asarray(columns[0], np.int64)] if rows else np.empty(0, np.int64)
        named = dict(zip(RAW_SCHEMA.names[2:], columns[2:], strict=True))
        status = pa.array(named.pop("status"), pa.string()).dictionary_encode()
        arrays = {name: pa.array(column, RAW_SCHEMA.field(name).type) for name, column in named.items()}
        arrays |= {"sensor": pa.array(place_of, pa.int32()), "status": status}
        arrays["time"] = pa.array(np.asarray(columns[1], np.int64)).cast(RAW_SCHEMA.field("time").type)
        return pa.table([arrays[name] for name in RAW_SCHEMA.names], schema=RAW_SCHEMA)

    def buckets(self, period: Period, start_us: int, end_us: int, limit: int = _ROWS_MAX) -> pa.Table:
        """Buckets that start in [start, end) with BUCKET_SCHEMA, by (time, sensor): at least the first `limit`."""
        length_us = PERIOD_US[period]
        # The first and last bucket that start in the range; buckets are whole.
        start_us, end_us = -(-start_us // length_us) * length_us, -(-end_us // length_us) * length_us
        if start_us >= end_us or not self._series:
            return BUCKET_SCHEMA.empty_table()
        stored = self._stored(period, start_us, end_us, limit)
        if len(stored["time"]) >= limit:
            # A full page: later buckets cannot be on it.
            end_us = min(end_us, int(np.sort(stored["time"])[limit - 1]) + length_us)
        spans = self._stale_spans(period, start_us, end_us)
        parts = [_outside(stored, spans), *(self._computed(period, *span) for span in spans)]
        return self._table(self._without_extremes(period, _joined(parts)))

    def days_with_grid(self, start_us: int, end_us: int) -> pa.Table:
        """Days that start in [start, end), with GRID_SCHEMA."""
        days = self.buckets("day", start_us, end_us)
        if days.num_rows == 0:
            return GRID_SCHEMA.empty_table()
        grids: dict[tuple[int, int], Any] = {}
        bounds = self._bounds(start_us, end_us)
        if self._timescale:
            grids |= self._grids(statement("made_grids", source=statement("continuous_days")), bounds)
        grids |= self._grids(statement("stored_grids"), bounds)
        for span in self._stale_spans("day", start_us, end_us):
            source = statement("day_aggregate", source=statement("readings_of_sensors"))
            grids |= self._grids(statement("made_grids", source=source), self._bounds(*span) | GRID)
        keys = (integers(days[name]).tolist() for name in ("sensor", "time", "count"))
        column = [grids[sensor, time_us] if count else None for sensor, time_us, count in zip(*keys, strict=True)]
        return days.append_column("grid", pa.array(column, GRID_SCHEMA.field("grid").type)).select(GRID_SCHEMA.names)

    def summary_from_raw(self, start_us: int, end_us: int) -> pa.Table:
        """One exact row a sensor, straight from raw, with SUMMARY_SCHEMA; `active_periods` counts hours."""
        if start_us >= end_us or not self._series:
            return SUMMARY_SCHEMA.empty_table()
        found = fetch(self._session, statement("summary_from_raw"), self._bounds(start_us, end_us), _SUMMARY)
        if found["extreme"].any():
            return as_table(summary_columns(self._points(start_us, end_us)), SUMMARY_SCHEMA)
        found["approximate"] = np.zeros(len(found["series"]), np.bool_)
        found["sensor"] = self._sensors(found["series"])
        table = _nulls(found).select(SUMMARY_SCHEMA.names).cast(SUMMARY_SCHEMA)
        return table.sort_by("sensor")

    # --- stored buckets ---

    def _stored(self, period: Period, start_us: int, end_us: int, limit: int) -> Columns:
        """Stored buckets that may be believed where they are not marked; at least the first `limit`."""
        bounds = self._bounds(start_us, end_us) | {"limit": limit}
        parts = [fetch(self._session, statement(f"stored_{period}s"), bounds, _BUCKET)]
        until_us = self._rolled_until(period)
        if self._timescale and until_us > start_us:
            bounds |= {"end": moment(min(end_us, until_us))} | DAY_GRID_INDEXES
            source = statement(f"continuous_{period}s")
            found = fetch(self._session, statement(f"made_{period}s", source=source), bounds, _BUCKET)
            sealed = np.isin(np.floor_divide(found["time"], DAY_US), np.asarray(self._sealed_days, np.int64))
            parts.append({name: column[~sealed] for name, column in found.items()})
        return _joined(parts)

    def _stale_spans(self, period: Period, start_us: int, end_us: int) -> list[Span]:
        """The ranges whose buckets are computed: what is not rolled up, and what was changed since."""
        length_us, until_us = PERIOD_US[period], self._rolled_until(period)
        changed: set[int] = set()
        if start_us < until_us:
            bounds = self._bounds(start_us, min(until_us, end_us))
            found = self._session.execute(statement("dirty_of_sensors"), bounds).fetchall()
            changed = {time_us // length_us * length_us for (time_us,) in found}
        spans = [Span(time_us, time_us + length_us) for time_us in sorted(changed)]
        if until_us < end_us:
            spans += self._raw_spans(max(start_us, until_us), end_us)
        return _merged_spans(spans)

    def _rolled_until(self, period: Period) -> int:
        """Buckets that start before this are stored, those of sealed days apart."""
        if self._rolled_us is None:
            return -(2**62)
        return rollup.day_start(self._rolled_us) if period == "day" else self._rolled_us

    def _raw_spans(self, start_us: int, end_us: int) -> list[Span]:
        """The parts of the days with raw that lie in the range, in order."""
        spans = (Span(max(start_us, day * DAY_US), min(end_us, (day + 1) * DAY_US)) for day in self._open_days)
        return [span for span in spans if span.start_us < span.end_us]

    # --- buckets from raw ---

    def _computed(self, period: Period, start_us: int, end_us: int) -> Columns:
        """All buckets that start in the range, from raw. The range is whole days or hours."""
        source = statement(f"{period}_aggregate", source=statement("readings_of_sensors"))
        end_us = -(-end_us // PERIOD_US[period]) * PERIOD_US[period]
        bounds = self._bounds(start_us, end_us) | GRID | DAY_GRID_INDEXES | {"limit": _ROWS_MAX}
        return fetch(self._session, statement(f"made_{period}s", source=source), bounds, _BUCKET)

    def _without_extremes(self, period: Period, columns: Columns) -> Columns:
        """The buckets with values near the end of what a double holds, computed where they cannot overflow."""
        if not columns["extreme"].any():
            return columns
        extreme = columns["extreme"] != 0
        for start_us in np.unique(columns["time"][extreme]).tolist():
            points = self._points(start_us, start_us + PERIOD_US[period])
            exact = as_table(bucket_columns(points, PERIOD_US[period]), BUCKET_SCHEMA)
            by_sensor = {row["sensor"]: row for row in exact.drop_columns(["time"]).to_pylist()}
            for i in np.flatnonzero(extreme & (columns["time"] == start_us)).tolist():
                row = by_sensor[int(self._sensors(columns["series"][i : i + 1])[0])]
                for name in _DOUBLES:
                    columns[name][i] = np.nan if row[name] is None else row[name]
        return columns

    def _points(self, start_us: int, end_us: int) -> Points:
        found = fetch(self._session, statement("points"), self._bounds(start_us, end_us), _POINTS)
        return Points(self._sensors(found["series"]), found["time"], found["value"])

    def _grids(self, query: LiteralString, bounds: dict[str, Any]) -> dict[tuple[int, int], Any]:
        """Distributions by (place of the sensor, start); single precision cannot hold every double."""
        found = self._session.execute(query, bounds, binary=True).fetchall()
        if not found:
            return {}
        sensors = self._sensors(np.array([row[0] for row in found])).tolist()
        return {
            (sensor, time_us): np.clip(np.asarray(grid, np.float64), -3.4e38, 3.4e38).astype(np.float32)
            for sensor, (_, time_us, grid) in zip(sensors, found, strict=True)
        }

    # --- sensors and their places ---

    def _bounds(self, start_us: int, end_us: int) -> dict[str, Any]:
        return {"series": self._series_in_order(), "start": moment(start_us), "end": moment(end_us)}

    def _series_in_order(self) -> list[int]:
        """Series numbers by the place of their sensor."""
        return [int(number) for number in self._known[np.argsort(self._places)]]

    def _places_by_number(self) -> list[int]:
        """The place of each sensor of `_series_in_order`."""
        return np.sort(self._places).tolist()  # type: ignore[no-any-return]

    def _sensors(self, series: Any) -> Integers:
        """The places of series numbers in the request."""
        places: Integers = self._places[np.searchsorted(self._known, series)]
        return places

    def _table(self, columns: Columns) -> pa.Table:
        columns["sensor"] = self._sensors(columns["series"])
        order = np.lexsort((columns["sensor"], columns["time"]))
        table = _nulls({name: column[order] for name, column in columns.items()})
        return table.select(BUCKET_SCHEMA.names).cast(BUCKET_SCHEMA)


def _day(time_us: int) -> int:
    # Days are of the type INTEGER; no reading is near the ends of that.
    return min(max(time_us // DAY_US, -(2**31)), 2**31 - 1)


def _nulls(columns: Columns) -> pa.Table:
    """The columns as Arrow; a missing number is NaN here and null there."""
    arrays: dict[str, Any] = {}
    for name, column in columns.items():
        if name == "time":
            arrays[name] = pa.array(column.astype(np.int64)).cast(pa.timestamp("us", tz="UTC"))
        elif name in _DOUBLES:
            arrays[name] = pa.array(column, mask=np.isnan(column))
        else:
            arrays[name] = pa.array(column.astype(np.bool_) if name in ("approximate", "extreme") else column)
    return pa.table(arrays)


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _outside(stored: Columns, spans: list[Span]) -> Columns:
    """The stored buckets that start in none of `spans`."""
    keep = np.ones(len(stored["time"]), np.bool_)
    for span in spans:
        keep &= (stored["time"] < span.start_us) | (stored["time"] >= span.end_us)
    return {name: column[keep] for name, column in stored.items()}


def _merged_spans(spans: list[Span]) -> list[Span]:
    """Neighbours of one day as one; each day by itself, so that the database looks into one partition at a time."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start_us <= merged[-1].end_us and span.start_us // DAY_US == merged[-1].start_us // DAY_US:
            merged[-1] = Span(merged[-1].start_us, max(merged[-1].end_us, span.end_us))
        else:
            merged.append(span)
    return merged
