"""Reads: raw readings and buckets, each from one snapshot of the database.

Stored buckets answer for what is rolled up; buckets that are not, or that are dirty, are computed from raw.
Planning a statement costs more here than running it, so there are few of them, and as plain as can be: few readings
are fetched and aggregated here, many are aggregated by the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from sensorkeep.clock import DAY_US, HOUR_US
from sensorkeep.tsdb.aggregating import Points, bucket_columns, summary_columns
from sensorkeep.tsdb.base import Period
from sensorkeep.tsdb.duckdb.sealed import DAY_GRID
from sensorkeep.tsdb.duckdb.state import State
from sensorkeep.tsdb.duckdb.statements import day_table, fetch_table, run, statement
from sensorkeep.tsdb.readings import Flags, Integers, integers
from sensorkeep.tsdb.shapes import BUCKET_SCHEMA, GRID_SCHEMA, RAW_SCHEMA, SUMMARY_SCHEMA, as_table

_PERIOD_US = {"hour": HOUR_US, "day": DAY_US}
_ROLLUP = {"hour": "hourly", "day": "daily"}
_FEW_SENSORS = 64
"""Up to so many sensors a list is searched for each row; more are joined."""
_FEW_READINGS = 50_000
"""Up to so many readings are aggregated here."""
_FEW_DAYS = 3
"""Up to so many days a page of readings is tried with one statement."""
_ROWS_MAX = 2**62


class Span(NamedTuple):
    """Part of a day."""

    day: int
    start_us: int
    end_us: int


def version_of(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the last transaction that the connection's snapshot sees."""
    return int(run(connection, statement("snapshot_version")).fetchall()[0][0])


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
        self._places: Integers = np.asarray(list(places.values()) or [-1], np.int64)[order]
        self._few = len(self._series) <= _FEW_SENSORS
        near = [day for day in state.days.values() if start_us < (day.day + 1) * DAY_US and day.day * DAY_US < end_us]
        self._days = sorted(day.day for day in near if day.state != "sealed")
        self.reaches_sealed = any(day.state == "sealed" for day in near)
        """Whether the range holds readings whose raw is gone."""
        self._dirty_days = {"hour": state.hourly_dirty, "day": state.daily_dirty}

    def raw(self, start_us: int, end_us: int, limit: int, after_sensor: int = -1) -> pa.Table:
        """Readings by (time, sensor); at `start_us` itself only those of sensors after `after_sensor`."""
        after_place = int((self._places_in_order() <= after_sensor).sum())
        spans = self._spans(start_us, end_us)
        if len(spans) <= _FEW_DAYS:
            table = self._all_raw(spans, limit)
            if table is not None:
                time_us, sensor = integers(table["time"]), integers(table["sensor"])
                order = np.lexsort((sensor, time_us))
                if after_sensor >= 0:
                    order = order[(time_us[order] > start_us) | (sensor[order] > after_sensor)]
                return table.take(order)
        pages: list[pa.Table] = []
        for span in spans:
            if limit <= 0:
                break
            parameters = {"first_us": start_us, "after_place": after_place, "limit": limit}
            source = self._selected("readings", [span], placed=True)
            page = self._arrow("first_readings", parameters | _bounds([span]), source=source)
            limit -= page.num_rows
            pages.append(self._with_sensor(page).select(RAW_SCHEMA.names).cast(RAW_SCHEMA))
        return pa.concat_tables(pages).unify_dictionaries() if pages else RAW_SCHEMA.empty_table()

    def buckets(self, period: Period, start_us: int, end_us: int, limit: int = _ROWS_MAX) -> pa.Table:
        """Buckets that start in [start, end) with BUCKET_SCHEMA, by (time, sensor): at least the first `limit`."""
        return self._buckets(period, BUCKET_SCHEMA, start_us, end_us, limit)

    def days_with_grid(self, start_us: int, end_us: int) -> pa.Table:
        """Days that start in [start, end), with GRID_SCHEMA."""
        return self._buckets("day", GRID_SCHEMA, start_us, end_us, _ROWS_MAX)

    def summary_from_raw(self, start_us: int, end_us: int) -> pa.Table:
        """One exact row a sensor, straight from raw, with SUMMARY_SCHEMA; `active_periods` counts hours."""
        spans = self._spans(start_us, end_us)
        if not spans:
            return SUMMARY_SCHEMA.empty_table()
        points = self._few_points(spans)
        if points is not None:
            return (
                as_table(summary_columns(points), SUMMARY_SCHEMA)
                if len(points.sensor)
                else SUMMARY_SCHEMA.empty_table()
            )
        parameters = _bounds(spans) | {"origin_us": spans[0].day * DAY_US}
        summary = self._rows("summary_from_raw", SUMMARY_SCHEMA, parameters, source=self._selected("values", spans))
        return summary.sort_by("sensor")

    def _buckets(self, period: Period, schema: pa.Schema, start_us: int, end_us: int, limit: int) -> pa.Table:
        length_us = _PERIOD_US[period]
        # The first and last bucket that start in the range; buckets are whole.
        start_us, end_us = -(-start_us // length_us) * length_us, -(-end_us // length_us) * length_us
        if start_us >= end_us:
            return schema.empty_table()
        rolled_us = self._marks.hourly_until_us if period == "hour" else self._marks.daily_until_us
        until_us = min(max(rolled_us or 0, start_us), end_us)
        stored = schema.empty_table()
        if start_us < until_us:
            stored = self._stored(period, schema, start_us, until_us, limit)
            if stored.num_rows == limit:
                # A full page: later buckets cannot be on it.
                end_us = min(end_us, int(integers(stored["time"])[-1]) + length_us)
        spans = _joined(self._stale_spans(period, start_us, min(until_us, end_us)) + self._spans(until_us, end_us))
        computed = self._computed(period, schema, spans)
        whole = pa.concat_tables([_outside(stored, spans), computed])
        order = np.lexsort((integers(whole["sensor"]), integers(whole["time"])))
        return whole.take(order)

    def _computed(self, period: Period, schema: pa.Schema, spans: list[Span]) -> pa.Table:
        """All buckets that start in `spans`, from raw."""
        points = self._few_points(spans) if spans else None
        if points is None:
            parts = [self._from_raw(period, schema, span) for span in spans]
            return pa.concat_tables(parts) if parts else schema.empty_table()
        if len(points.sensor) == 0:
            return schema.empty_table()
        return as_table(bucket_columns(points, _PERIOD_US[period], grid="grid" in schema.names), schema)

    def _few_points(self, spans: list[Span]) -> Points | None:
        """The readings in `spans`; None where they are many."""
        sql = statement("limited", source=self._selected("values", spans))
        parameters = _bounds(spans) | {"series": self._series, "limit": _FEW_READINGS + 1}
        found: dict[str, Any] = run(self._connection, sql, parameters).fetchnumpy()
        if len(found["series"]) > _FEW_READINGS:
            return None
        value = found["value"].filled(np.nan) if isinstance(found["value"], np.ma.MaskedArray) else found["value"]
        return Points(self._sensors(found["series"]), found["time"], value)

    def _all_raw(self, spans: list[Span], limit: int) -> pa.Table | None:
        """All readings in `spans`, in no order; None where they are more than `limit`."""
        if not spans:
            return RAW_SCHEMA.empty_table()
        parameters = _bounds(spans) | {"limit": limit + 1}
        table = self._arrow("limited", parameters, source=self._selected("readings", spans))
        if table.num_rows > limit:
            return None
        return self._with_sensor(table).select(RAW_SCHEMA.names).cast(RAW_SCHEMA).unify_dictionaries()

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

    def _stale_spans(self, period: Period, start_us: int, end_us: int) -> list[Span]:
        """The parts of days in the range that hold the buckets whose stored rows are not to be believed."""
        days = self._dirty_days[period]
        if not any(start_us < (day + 1) * DAY_US and day * DAY_US < end_us for day in days):
            return []
        source = self._of_sensors(f"{_ROLLUP[period]}_dirty")
        parameters = {"series": self._series, "start_us": start_us, "end_us": end_us}
        found = run(self._connection, statement("dirty_of_sensors", source=source), parameters).fetchall()
        return [Span(day, first_us, last_us + _PERIOD_US[period]) for day, first_us, last_us in found]

    def _from_raw(self, period: Period, schema: pa.Schema, span: Span) -> pa.Table:
        """The buckets in `span`, made by the database."""
        parameters = _bounds([span]) | {"day_us": span.day * DAY_US} | ({} if period == "hour" else DAY_GRID)
        aggregate = statement(f"{period}_aggregate", source=self._selected("instants", [span]))
        return self._rows(f"{period}s_from_raw", schema, parameters, aggregate=aggregate)

    def _selected(self, what: str, spans: list[Span], *, placed: bool = False) -> str:
        """What the statement {what}_of_sensors selects, of all `spans`; their bounds are parameters (`_bounds`)."""
        return " UNION ALL ".join(
            statement(
                f"{what}_of_sensors", source=self._of_sensors(day_table(span.day), placed=placed), span=str(number)
            )
            for number, span in enumerate(spans)
        )

    def _of_sensors(self, table: str, *, placed: bool = False) -> str:
        """The rows of `table` of the sensors asked for; `placed` with their places, to order by."""
        few = "of_few_placed" if placed else "of_few"
        return statement(few if self._few else "of_many", table=table)

    def _spans(self, start_us: int, end_us: int) -> list[Span]:
        """The parts of the days with raw that lie in the range, in order."""
        spans = (Span(day, max(start_us, day * DAY_US), min(end_us, (day + 1) * DAY_US)) for day in self._days)
        return [span for span in spans if span.start_us < span.end_us]

    def _places_in_order(self) -> Any:
        """Places of the known sensors, ascending: the order of `self._series`."""
        return np.sort(self._places)

    def _with_sensor(self, table: pa.Table) -> pa.Table:
        """`table` with the place of each row's sensor in the request."""
        return table.append_column("sensor", pa.array(self._sensors(integers(table["series"])), pa.int32()))

    def _sensors(self, series: Integers) -> Integers:
        """The places of series numbers in the request."""
        return self._places[np.searchsorted(self._known, series)]

    def _arrow(self, name: str, parameters: dict[str, Any], **inserted: str) -> pa.Table:
        """A result of many rows, or of columns that numpy has no type for."""
        return fetch_table(self._connection, statement(name, **inserted), parameters | {"series": self._series})

    def _rows(self, name: str, schema: pa.Schema, parameters: dict[str, Any], **inserted: str) -> pa.Table:
        """A result with `schema`; a small one goes through numpy, which is quicker than Arrow there."""
        if "grid" in schema.names:
            table = self._arrow(name, parameters, **inserted)
        else:
            parameters = parameters | {"series": self._series}
            found = run(self._connection, statement(name, **inserted), parameters).fetchnumpy()
            table = pa.table({column: _column(values) for column, values in found.items()})
        return self._with_sensor(table).select(schema.names).cast(schema)


def _bounds(spans: list[Span]) -> dict[str, int]:
    """The parameters of `Snapshot._selected`."""
    starts = {f"start_{number}": span.start_us for number, span in enumerate(spans)}
    return starts | {f"end_{number}": span.end_us for number, span in enumerate(spans)}


def _joined(spans: list[Span]) -> list[Span]:
    """One span a day, from the first to the last of that day: reading a bit more costs less than another scan."""
    joined: dict[int, Span] = {}
    for span in spans:
        other = joined.get(span.day, span)
        joined[span.day] = Span(span.day, min(other.start_us, span.start_us), max(other.end_us, span.end_us))
    return list(joined.values())


def _outside(stored: pa.Table, spans: list[Span]) -> pa.Table:
    """The stored buckets that start in none of `spans`."""
    if stored.num_rows == 0 or not spans:
        return stored
    time_us = integers(stored["time"])
    keep: Flags = np.ones(len(time_us), np.bool_)
    for span in spans:
        keep &= (time_us < span.start_us) | (time_us >= span.end_us)
    return stored if keep.all() else stored.filter(pa.array(keep))


def _column(values: Any) -> Any:
    """An array of numpy, masked where there are nulls, as Arrow."""
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, mask=np.ma.getmaskarray(values))
    return pa.array(values)
