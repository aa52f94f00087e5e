"""Reads: raw readings and buckets, each from one snapshot of the database.

Stored buckets answer for what is rolled up; buckets that are not, or that are dirty, are computed from raw.
Planning a statement costs more here than running it, so there are few of them, and as plain as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sensorkeep.clock import DAY_US, HOUR_US
from sensorkeep.model import READINGS_SCHEMA
from sensorkeep.tsdb.base import RAW_COLUMNS, ROLLUP_COLUMNS, Period
from sensorkeep.tsdb.duckdb.engine import registered
from sensorkeep.tsdb.duckdb.readings import Flags, integers
from sensorkeep.tsdb.duckdb.sealed import DAY_GRID
from sensorkeep.tsdb.duckdb.state import State
from sensorkeep.tsdb.duckdb.statements import day_table, statement

_RAW_SCHEMA = pa.schema([pa.field("sensor", pa.int32()), *(READINGS_SCHEMA.field(name) for name in RAW_COLUMNS[1:])])

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

_PERIOD_US = {"hour": HOUR_US, "day": DAY_US}
_ROLLUP = {"hour": "hourly", "day": "daily"}
_READINGS_OF_DIRTY = {"hour": "readings_of_hours", "day": "readings_of_wanted"}
_FEW_SENSORS = 64
"""Up to so many sensors a list is searched for each row; more are joined."""
_ROWS_MAX = 2**62


def version_of(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the last transaction that the connection's snapshot sees."""
    return int(connection.execute(statement("snapshot_version")).fetchall()[0][0])


class Snapshot:
    """One moment of the store, seen for some sensors (uuids) over [start, end)."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        state: State,
        sensors: Sequence[str],
        start_us: int,
        end_us: int,
    ) -> None:
        """`connection` is in a transaction that sees what `state` tells. Sensors nobody knows have no readings."""
        self._connection = connection
        self._marks = state.marks
        places: dict[int, int] = {}
        for place, uuid in enumerate(sensors):
            if uuid in state.series:
                places.setdefault(state.series[uuid], place)
        # DuckDB cannot tell the type of an empty list; no sensor has the number -1.
        self._series = list(places) or [-1]
        order = np.argsort(self._series)
        self._known = np.asarray(self._series)[order]
        self._places = np.asarray(list(places.values()) or [-1], np.int32)[order]
        self._few = len(self._series) <= _FEW_SENSORS
        near = [day for day in state.days.values() if start_us < (day.day + 1) * DAY_US and day.day * DAY_US < end_us]
        self._days = sorted(day.day for day in near if day.state != "sealed")
        self.reaches_sealed = any(day.state == "sealed" for day in near)
        """Whether the range holds readings whose raw is gone."""
        self._dirty_days = {"hour": state.hourly_dirty, "day": state.daily_dirty}

    def raw(self, start_us: int, end_us: int, limit: int, after_sensor: int = -1) -> pa.Table:
        """Readings by (time, sensor); at `start_us` itself only those of sensors after `after_sensor`."""
        after_place = int((self._places_in_order() <= after_sensor).sum())
        pages: list[pa.Table] = []
        for day in self._days_of(start_us, end_us):
            if limit <= 0:
                break
            parameters = {"start_us": start_us, "end_us": end_us, "after_place": after_place, "limit": limit}
            page = self._arrow("read_raw", parameters, source=self._of_sensors(day_table(day), placed=True))
            limit -= page.num_rows
            pages.append(self._with_sensor(page).select(_RAW_SCHEMA.names).cast(_RAW_SCHEMA))
        return pa.concat_tables(pages).unify_dictionaries() if pages else _RAW_SCHEMA.empty_table()

    def buckets(self, period: Period, start_us: int, end_us: int, limit: int = _ROWS_MAX) -> pa.Table:
        """Buckets that start in [start, end) with BUCKET_SCHEMA, by (time, sensor): at least the first `limit`."""
        return self._buckets(period, BUCKET_SCHEMA, start_us, end_us, limit)

    def days_with_grid(self, start_us: int, end_us: int) -> pa.Table:
        """Days that start in [start, end), with GRID_SCHEMA."""
        return self._buckets("day", GRID_SCHEMA, start_us, end_us, _ROWS_MAX)

    def summary_from_raw(self, start_us: int, end_us: int) -> pa.Table:
        """One exact row a sensor, straight from raw, with SUMMARY_SCHEMA; `active_periods` counts hours."""
        days = self._days_of(start_us, end_us)
        if not days:
            return SUMMARY_SCHEMA.empty_table()
        source = " UNION ALL ".join(self._readings_of_sensors(day) for day in days)
        parameters = {"start_us": start_us, "end_us": end_us, "origin_us": days[0] * DAY_US}
        summary = self._rows("summary_from_raw", SUMMARY_SCHEMA, parameters, source=source)
        return summary.sort_by("sensor")

    def _buckets(self, period: Period, schema: pa.Schema, start_us: int, end_us: int, limit: int) -> pa.Table:
        length_us = _PERIOD_US[period]
        # The first and last bucket that start in the range; buckets are whole.
        start_us, end_us = -(-start_us // length_us) * length_us, -(-end_us // length_us) * length_us
        rolled_us = self._marks.hourly_until_us if period == "hour" else self._marks.daily_until_us
        until_us = min(max(rolled_us or 0, start_us), end_us)
        dirty = self._dirty(period, start_us, until_us)
        parts = []
        if start_us < until_us:
            stored = self._stored(period, schema, start_us, until_us, limit + dirty.num_rows)
            if stored.num_rows and stored.num_rows == limit + dirty.num_rows:
                # A full page: later buckets cannot be on it.
                end_us = int(integers(stored["time"])[-1]) + length_us
            parts.append(_without(stored, dirty))
        parts += self._redone(period, schema, dirty, end_us)
        for day in self._days_of(until_us, end_us):
            first_us, last_us = max(until_us, day * DAY_US), min(end_us, (day + 1) * DAY_US)
            source = self._readings_of_sensors(day)
            parts.append(self._from_raw(period, schema, day, source, {"start_us": first_us, "end_us": last_us}))
        whole = pa.concat_tables(parts) if parts else schema.empty_table()
        return whole.sort_by([("time", "ascending"), ("sensor", "ascending")])

    def _stored(self, period: Period, schema: pa.Schema, start_us: int, end_us: int, limit: int) -> pa.Table:
        table = _ROLLUP[period]
        settled_us = self._marks.hourly_settled_until_us if period == "hour" else self._marks.daily_settled_until_us
        both = settled_us is not None and start_us < settled_us
        tables = f"(FROM {table} UNION ALL FROM {table}_settled)" if both else table
        name = f"{table}_buckets" if schema is BUCKET_SCHEMA else f"{table}_buckets_with_grid"
        parameters = {"start_us": start_us, "end_us": end_us}
        if (end_us - start_us) // _PERIOD_US[period] * len(self._series) <= limit:
            return self._rows(name, schema, parameters, source=self._of_sensors(tables))
        buckets = statement(name, source=self._of_sensors(tables, placed=True))
        return self._rows("first_buckets", schema, parameters | {"limit": limit}, buckets=buckets)

    def _dirty(self, period: Period, start_us: int, end_us: int) -> pa.Table:
        """Buckets (series, sensor, time) in the range whose stored row is not to be believed."""
        schema = pa.schema({"series": pa.int32()} | {name: _TYPES[name] for name in ("sensor", "time")})
        if not any(start_us < (day + 1) * DAY_US and day * DAY_US < end_us for day in self._dirty_days[period]):
            return schema.empty_table()
        source = self._of_sensors(f"{_ROLLUP[period]}_dirty")
        return self._rows("dirty_of_sensors", schema, {"start_us": start_us, "end_us": end_us}, source=source)

    def _redone(self, period: Period, schema: pa.Schema, dirty: pa.Table, end_us: int) -> list[pa.Table]:
        """The dirty buckets before `end_us`, computed from raw."""
        time_us = integers(dirty["time"])
        parts = []
        for day in np.unique(time_us // DAY_US).tolist():
            if day * DAY_US >= end_us:
                continue
            of_day = time_us // DAY_US == day
            starts = time_us[of_day]
            hours = pa.array(starts % DAY_US // HOUR_US)
            wanted = pa.table({"series": dirty["series"].filter(pa.array(of_day)), "hour": hours})
            source = statement(_READINGS_OF_DIRTY[period], day=day_table(day))
            bounds = {"start_us": int(starts.min()), "end_us": int(starts.max()) + _PERIOD_US[period]}
            with registered(self._connection, {"wanted": wanted}):
                parts.append(self._from_raw(period, schema, day, source, bounds, asked=False))
        return parts

    def _from_raw(
        self, period: Period, schema: pa.Schema, day: int, source: str, bounds: dict[str, int], asked: bool = True
    ) -> pa.Table:
        """The buckets of `day` made of the readings that `source` selects."""
        parameters = bounds | {"day_us": day * DAY_US} | ({} if period == "hour" else DAY_GRID)
        aggregate = statement(f"{period}_aggregate", source=source)
        return self._rows(f"{period}s_from_raw", schema, parameters, asked=asked, aggregate=aggregate)

    def _readings_of_sensors(self, day: int) -> str:
        return statement("readings_of_sensors", source=self._of_sensors(day_table(day)))

    def _of_sensors(self, table: str, *, placed: bool = False) -> str:
        """The rows of `table` of the sensors asked for; `placed` with their places, to order by."""
        few = "of_few_placed" if placed else "of_few"
        return statement(few if self._few else "of_many", table=table)

    def _days_of(self, start_us: int, end_us: int) -> list[int]:
        return [day for day in self._days if start_us < (day + 1) * DAY_US and day * DAY_US < end_us]

    def _places_in_order(self) -> Any:
        """Places of the known sensors, ascending: the order of `self._series`."""
        return np.sort(self._places)

    def _with_sensor(self, table: pa.Table) -> pa.Table:
        """`table` with the place of each row's sensor in the request."""
        places = self._places[np.searchsorted(self._known, integers(table["series"]))]
        return table.append_column("sensor", pa.array(places, pa.int32()))

    def _arrow(self, name: str, parameters: dict[str, Any], **inserted: str) -> pa.Table:
        """A result of many rows, or of columns that numpy has no type for."""
        relation = self._connection.sql(statement(name, **inserted), params=parameters | {"series": self._series})
        table: pa.Table = relation.to_arrow_table()
        return table

    def _rows(
        self, name: str, schema: pa.Schema, parameters: dict[str, Any], *, asked: bool = True, **inserted: str
    ) -> pa.Table:
        """A small result with `schema`, through numpy: that plans the statement once, Arrow's way twice."""
        if asked:
            parameters = parameters | {"series": self._series}
        if "grid" in schema.names:
            relation = self._connection.sql(statement(name, **inserted), params=parameters)
            table: pa.Table = relation.to_arrow_table()
        else:
            found = self._connection.execute(statement(name, **inserted), parameters).fetchnumpy()
            table = pa.table({column: _column(values) for column, values in found.items()})
        table = self._with_sensor(table)
        return table.select(schema.names).cast(schema)


def _column(values: Any) -> Any:
    """An array of numpy, masked where there are nulls, as Arrow."""
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, mask=np.ma.getmaskarray(values))
    return pa.array(values)


def _without(stored: pa.Table, dirty: pa.Table) -> pa.Table:
    """The stored buckets that are not dirty."""
    if dirty.num_rows == 0 or stored.num_rows == 0:
        return stored
    stale = set(zip(dirty["sensor"].to_pylist(), integers(dirty["time"]).tolist(), strict=True))
    keys = zip(stored["sensor"].to_pylist(), integers(stored["time"]).tolist(), strict=True)
    keep: Flags = np.fromiter((key not in stale for key in keys), np.bool_, stored.num_rows)
    return stored.filter(pa.array(keep))


_ONE: Any = pa.scalar(1.0)


def shown(buckets: pa.Table, columns: Sequence[str] = ROLLUP_COLUMNS) -> pa.Table:
    """Buckets as the contract shows them: with average and stddev, without m2."""
    count = buckets["count"].cast(pa.float64())
    average = pc.divide(buckets["sum"], count)
    spread = pc.sqrt(pc.divide(buckets["m2"], pc.subtract(count, _ONE)))
    stddev = pc.if_else(pc.greater(count, _ONE), spread, pa.scalar(None, pa.float64()))
    table = buckets.append_column("average", average).append_column("stddev", stddev)
    return table.select(list(columns))
