"""Reads: raw readings and buckets, each from one moment of the database.

Stored buckets answer for what is rolled up: those of the days that have their raw (tables, or TimescaleDB's continuous
aggregates) and those of sealed days. Buckets that are not rolled up, or that are marked as changed, are computed from
raw by the database at the same moment; so an answer is exact whenever the aggregates were refreshed last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

import numpy as np
import pyarrow as pa

from sensorkeep import rollup
from sensorkeep.clock import DAY_US, HOUR_US
from sensorkeep.limits import POSTGRES_DAYS_AT_ONCE_MAX
from sensorkeep.tsdb.base import Period
from sensorkeep.tsdb.postgres import columns
from sensorkeep.tsdb.postgres.columns import Columns, as_table, fetch, nullable
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import day_number, moment
from sensorkeep.tsdb.readings import Integers
from sensorkeep.tsdb.sealed import DAY_GRID_INDEXES
from sensorkeep.tsdb.shapes import BUCKET_SCHEMA, GRID_SCHEMA, RAW_SCHEMA, SUMMARY_SCHEMA

PERIOD_US: dict[Period, int] = {"hour": HOUR_US, "day": DAY_US}

PERCENTILES: dict[str, Any] = {
    "hour": list(rollup.PERCENTILES), "day": list(rollup.DAY_PROBABILITIES), **DAY_GRID_INDEXES
}  # fmt: skip
"""Parameters of the aggregates."""

_MOMENTS = statement("moment_columns")
_COLUMNS = {period: statement(f"{period}_columns", moments=_MOMENTS) for period in PERIOD_US}
_BUCKET = {
    "series": "int32", "time": "time", "count": "int64", "sum": "float64", "min": "float64", "max": "float64",
    "m2": "float64", "active_minutes": "int32", "median": "float64", "p95": "float64", "p99": "float64",
    "approximate": "bool",
}  # fmt: skip
_BUCKET_WITH_GRID = _BUCKET | {"grid": "grid"}
_SUMMARY = {
    "series": "int32", "count": "int64", "sum": "float64", "min": "float64", "max": "float64", "m2": "float64",
    "active_minutes": "int32", "active_periods": "int32", "median": "float64", "p95": "float64", "p99": "float64",
    "approximate": "bool",
}  # fmt: skip
_RAW = {
    "place": "int32", "time": "time", "value": "float64", "status": "text", "battery": "float32", "rssi": "int16",
    "lqi": "int16", "battery_voltage": "float32",
}  # fmt: skip
_ROWS_MAX = 2**40
_BUCKETS_MIN = 64
"""Buckets of one sensor looked for at once, at least."""
_NOTHING_US = -(2**62)


def aggregate(period: Period, source: str) -> LiteralString:
    """The buckets of the readings that the statement `source` selects."""
    return statement(f"{period}_aggregate", columns=_COLUMNS[period], source=statement(source))


class Snapshot:
    """One moment of the store, seen for some sensors (their series numbers, by place) over [start, end)."""

    def __init__(self, session: Session, series: Sequence[int | None], start_us: int, end_us: int) -> None:
        """`session` is in a transaction that sees one moment. A sensor without a number has no readings."""
        self._session = session
        places: dict[int, int] = {}
        for place, number in enumerate(series):
            if number is not None:
                places.setdefault(number, place)
        self._series = list(places)
        """In the order of their places."""
        self._places: Integers = np.fromiter(places.values(), np.int64, len(places))
        by_number = np.argsort(self._series)
        self._numbers = np.asarray(self._series, np.int64)[by_number]
        self._places_by_number = self._places[by_number]
        bounds = {"first": day_number(start_us), "last": day_number(max(start_us, end_us - 1))}
        ((rolled_us, open_days, reaches_sealed, first_day, last_day),) = session.execute(
            statement("view"), bounds
        ).fetchall()
        self._rolled_us: int = _NOTHING_US if rolled_us is None else rolled_us
        self._open_days: list[int] = open_days or []
        self._few_days = len(self._open_days) <= POSTGRES_DAYS_AT_ONCE_MAX
        self.reaches_sealed: bool = reaches_sealed
        """Whether the range holds readings whose raw is gone."""
        self._start_us: int = DAY_US * (first_day or 0)
        self._end_us: int = 0 if last_day is None else DAY_US * (last_day + 1)

    def raw(self, start_us: int, end_us: int, limit: int, after_sensor: int = -1) -> pa.Table:
        """Readings by (time, sensor); at `start_us` itself only those of sensors after `after_sensor`."""
        after = {"after": moment(start_us), "place": int((self._places <= after_sensor).sum())}
        parts: list[Columns] = []
        for first_us, until_us in self._raw_spans(start_us, end_us, growing=True):
            with self._locks_released():
                bounds = self._bounds(first_us, until_us) | after | {"limit": limit}
                found = fetch(self._session, statement("first_readings"), bounds, _RAW)
            parts.append(columns.ordered(found, np.lexsort((found["place"], found["time"]))))
            limit -= len(found["time"])
            if limit <= 0:
                break
        return self._raw_table(columns.joined(parts)) if parts else RAW_SCHEMA.empty_table()

    def buckets(self, period: Period, start_us: int, end_us: int, limit: int = _ROWS_MAX) -> pa.Table:
        """Buckets that start in [start, end) with BUCKET_SCHEMA, by (time, sensor): at least the first `limit`."""
        length_us = PERIOD_US[period]
        # The first and last bucket that start in the range; buckets are whole.
        start_us = max(-(-start_us // length_us) * length_us, self._start_us)
        end_us = min(-(-end_us // length_us) * length_us, self._end_us)
        # A part of the range at a time, so that a page need not order all of it.
        part_us = max(_BUCKETS_MIN, limit // max(1, len(self._series))) * length_us
        parts = [BUCKET_SCHEMA.empty_table()]
        while start_us < end_us and limit > 0 and self._series:
            until_us = min(end_us, start_us + part_us)
            parts.append(self._buckets(period, BUCKET_SCHEMA, start_us, until_us, limit))
            limit -= parts[-1].num_rows
            start_us, part_us = until_us, 2 * part_us
        return pa.concat_tables(parts)

    def days_with_grid(self, start_us: int, end_us: int) -> pa.Table:
        """Days that start in [start, end), both starts of days, with GRID_SCHEMA."""
        start_us, end_us = max(start_us, self._start_us), min(end_us, self._end_us)
        if start_us >= end_us or not self._series:
            return GRID_SCHEMA.empty_table()
        return self._buckets("day", GRID_SCHEMA, start_us, end_us, _ROWS_MAX)

    def summary_from_raw(self, start_us: int, end_us: int) -> pa.Table:
        """One exact row a sensor, straight from raw, with SUMMARY_SCHEMA; `active_periods` counts hours."""
        if start_us >= end_us or not self._series:
            return SUMMARY_SCHEMA.empty_table()
        query = statement("summary_from_raw", moments=_MOMENTS)
        found = fetch(self._session, query, self._bounds(start_us, end_us) | PERCENTILES, _SUMMARY)
        found["sensor"] = self._sensors(found["series"])
        return as_table(columns.ordered(found, np.argsort(found["sensor"])), SUMMARY_SCHEMA)

    # --- buckets ---

    def _buckets(self, period: Period, schema: pa.Schema, start_us: int, end_us: int, limit: int) -> pa.Table:
        """Whole buckets of [start, end), at least the first `limit`."""
        kinds = _BUCKET_WITH_GRID if "grid" in schema.names else _BUCKET
        query = "shown_days_with_grid" if "grid" in schema.names else f"shown_{period}s"
        stored = self._stored(period, query, kinds, start_us, end_us, limit)
        if len(stored["time"]) >= limit:
            # A full page: later buckets cannot be on it.
            end_us = min(end_us, int(stored["time"].max()) + PERIOD_US[period])
        rolled_us = rollup.day_start(self._rolled_us) if period == "day" else self._rolled_us
        stale = self._stale(period, start_us, min(rolled_us, end_us))
        parts = [_without(stored, stale)]
        for source, bounds in (*self._sources_of(period, stale), *self._sources_from(max(start_us, rolled_us), end_us)):
            made = statement("computed", aggregate=aggregate(period, source))
            with self._locks_released():
                parts.append(fetch(self._session, statement(query, buckets=made), bounds | PERCENTILES, kinds))
        whole = columns.joined(parts)
        whole["sensor"] = self._sensors(whole["series"])
        return as_table(columns.ordered(whole, np.lexsort((whole["sensor"], whole["time"]))), schema)

    def _stored(
        self, period: Period, query: str, kinds: dict[str, str], start_us: int, end_us: int, limit: int
    ) -> Columns:
        """Stored buckets, to be believed where they are not marked; at least the first `limit`."""
        stored = statement(f"stored_{period}s")
        if (end_us - start_us) // PERIOD_US[period] * len(self._series) > limit:
            stored = statement("first_stored", stored=stored)
        rolled_us = rollup.day_start(self._rolled_us) if period == "day" else self._rolled_us
        bounds = self._bounds(start_us, end_us) | {"rolled": moment(rolled_us), "limit": limit}
        return fetch(self._session, statement(query, buckets=stored), bounds, kinds)

    def _stale(self, period: Period, start_us: int, end_us: int) -> Integers:
        """The stored buckets of [start, end) that were changed since: rows of (series, start)."""
        if start_us >= end_us:
            return np.empty((0, 2), np.int64)
        found = self._session.execute(statement("dirty_hours"), self._bounds(start_us, end_us), binary=True).fetchall()
        marked = np.array(found, np.int64).reshape(-1, 2)
        marked[:, 1] -= marked[:, 1] % PERIOD_US[period]
        return np.unique(marked, axis=0)

    def _sources_of(self, period: Period, stale: Integers) -> Iterator[tuple[str, dict[str, Any]]]:
        """What selects the raw of the stale buckets, a day at a time, with its parameters."""
        days = np.floor_divide(stale[:, 1], DAY_US)
        for day in np.unique(days).tolist():
            series, starts_us = stale[days == day].T
            bounds: dict[str, Any] = {"start": moment(day * DAY_US), "end": moment((day + 1) * DAY_US)}
            if period == "day":
                yield "readings_of_sensors", bounds | {"series": series.tolist()}
            else:
                yield "readings_of_hours", bounds | {"hour_series": series.tolist(), "hour_us": starts_us.tolist()}

    def _sources_from(self, start_us: int, end_us: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """What selects the raw of [start, end)."""
        for first_us, until_us in self._raw_spans(start_us, end_us):
            yield "readings_of_sensors", self._bounds(first_us, until_us)

    # --- spans, sensors and their places ---

    def _raw_spans(self, start_us: int, end_us: int, *, growing: bool = False) -> Iterator[tuple[int, int]]:
        """The range in parts of at most POSTGRES_DAYS_AT_ONCE_MAX days that have raw; `growing`: the first of one day,
        the next of two, and so on."""
        days = [day for day in self._open_days if start_us < (day + 1) * DAY_US and day * DAY_US < end_us]
        length, first = 1 if growing else POSTGRES_DAYS_AT_ONCE_MAX, 0
        while first < len(days) and self._series:
            part = days[first : first + length]
            yield max(start_us, part[0] * DAY_US), min(end_us, (part[-1] + 1) * DAY_US)
            first += length
            length = min(2 * length, POSTGRES_DAYS_AT_ONCE_MAX)

    @contextlib.contextmanager
    def _locks_released(self) -> Iterator[None]:
        """Where the range has very many days, the block gives back the locks of the partitions that it looked into:
        the server has not room for all of them. The moment stays the same."""
        if self._few_days:
            yield
            return
        with self._session.transaction(force_rollback=True):
            yield

    def _bounds(self, start_us: int, end_us: int) -> dict[str, Any]:
        return {"series": self._series, "start": moment(start_us), "end": moment(end_us)}

    def _sensors(self, series: Integers) -> Integers:
        """The places of series numbers in the request."""
        places: Integers = self._places_by_number[np.searchsorted(self._numbers, series)]
        return places

    def _raw_table(self, found: Columns) -> pa.Table:
        arrays = {
            "sensor": pa.array(self._places[found["place"] - 1], pa.int32()),
            "time": columns.times(found["time"]),
            "status": pa.array(found["status"], pa.string()).dictionary_encode(),
        }
        for name in RAW_SCHEMA.names:
            if name not in arrays:
                arrays[name] = nullable(found[name], RAW_SCHEMA.field(name).type)
        return pa.table([arrays[name] for name in RAW_SCHEMA.names], schema=RAW_SCHEMA)


def _without(stored: Columns, stale: Integers) -> Columns:
    """The stored buckets that are not stale."""
    if len(stale) == 0 or len(stored["time"]) == 0:
        return stored
    key = np.dtype([("series", np.int64), ("time", np.int64)])
    keys = np.empty(len(stored["time"]), key)
    keys["series"], keys["time"] = stored["series"], stored["time"]
    changed = np.ascontiguousarray(stale).view(key).reshape(-1)
    return columns.ordered(stored, np.flatnonzero(~np.isin(keys, changed)))
