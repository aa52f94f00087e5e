"""Buckets whose raw is gone, out of one store and into another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from sensorkeep.clock import DAY_US, HOUR_US
from sensorkeep.errors import Conflict
from sensorkeep.tsdb.base import BUCKET_SCHEMAS, Period
from sensorkeep.tsdb.duckdb.engine import registered
from sensorkeep.tsdb.duckdb.merging import Transaction
from sensorkeep.tsdb.duckdb.state import Day, Marks, State
from sensorkeep.tsdb.duckdb.statements import fetch_table, run, statement
from sensorkeep.tsdb.readings import integers

_TABLES: dict[Period, str] = {"hour": "hourly", "day": "daily"}
_PERIOD_US: dict[Period, int] = {"hour": HOUR_US, "day": DAY_US}


def export_buckets(
    connection: duckdb.DuckDBPyConnection, state: State, period: Period, start_us: int, end_us: int
) -> pa.Table:
    """The buckets of sealed days; `connection` is in a transaction that sees what `state` tells."""
    schema = BUCKET_SCHEMAS[period]
    sealed = [
        day.day
        for day in state.days.values()
        if day.state == "sealed" and start_us < (day.day + 1) * DAY_US and day.day * DAY_US < end_us
    ]
    if not sealed:
        return schema.empty_table()
    parameters = {"days": sealed, "start_us": start_us, "end_us": end_us}
    exported: pa.Table = fetch_table(connection, statement(f"export_{_TABLES[period]}"), parameters)
    return exported.select(schema.names).cast(schema)


def import_buckets(transaction: Transaction, period: Period, buckets: pa.Table) -> None:
    """Put the buckets (at least one) in the place of those stored; the days they belong to become sealed.

    They go straight to the settled table, in order, since their days are over.
    """
    draft, table = transaction.draft, _TABLES[period]
    time_us = integers(buckets["time"])
    _seal(transaction, np.unique(np.floor_divide(time_us, DAY_US)).tolist())
    sensor: Any = pa.concat_arrays(buckets["sensor"].chunks).dictionary_encode()
    numbers = pa.array([draft.number_of(uuid) for uuid in sensor.dictionary.to_pylist()], pa.int32())
    series = numbers.take(sensor.indices)
    rebuilt = buckets.select(BUCKET_SCHEMAS[period].names).set_column(0, "series", series)
    bounds = {"start_us": int(time_us.min()), "end_us": int(time_us.max()) + 1}
    with registered(transaction.connection, {"rebuilt": rebuilt}):
        for stored in (table, f"{table}_settled"):
            run(transaction.connection, statement("forget_buckets", rollup=stored), bounds)
        run(transaction.connection, statement("save_buckets", rollup=f"{table}_settled"))
    mark = f"{table}_settled_until_us"
    before_us: int | None = getattr(draft.marks, mark)
    until: dict[str, Any] = {mark: _later(before_us, int(time_us.max()) + _PERIOD_US[period])}
    draft.marks = replace(draft.marks, **until)


def _seal(transaction: Transaction, days: list[int]) -> None:
    """Enter the days as sealed, and let the marks pass them: their buckets are stored, there is no raw of them.

    A mark must not pass a day with raw that is not rolled up: its stored buckets would be believed. Readings that are
    written after it has passed are marked as changes of theirs.
    """
    draft = transaction.draft
    until_us = (max(days) + 1) * DAY_US
    marks = draft.marks
    for day in draft.days.values():
        if day.state != "sealed" and (day.day in days or _is_passed(day, marks, until_us)):
            raise Conflict("the store holds readings already: bring in the buckets without readings before them")
    draft.marks = replace(
        marks,
        hourly_until_us=_later(marks.hourly_until_us, until_us),
        daily_until_us=_later(marks.daily_until_us, until_us),
    )
    for number in days:
        if number not in draft.days:
            newest_us = (number + 1) * DAY_US - 1
            draft.days[number] = Day(number, "sealed", 0, 0, transaction.now_us, newest_us)


def _is_passed(day: Day, marks: Marks, until_us: int) -> bool:
    """Whether a mark that is moved to `until_us` passes a part of the day."""
    befores = (marks.hourly_until_us, marks.daily_until_us)
    return day.day * DAY_US < until_us and any(
        before is None or before < min(until_us, (day.day + 1) * DAY_US) for before in befores
    )


def _later(mark_us: int | None, until_us: int) -> int:
    return until_us if mark_us is None else max(mark_us, until_us)
