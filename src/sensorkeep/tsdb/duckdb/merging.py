"""Putting readings into their days, within a transaction: the same for fresh and for late ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import duckdb
import numpy as np
import pyarrow as pa

from sensorkeep.clock import DAY_US, HOUR_US
from sensorkeep.limits import RUN_READINGS_MIN
from sensorkeep.tsdb.duckdb import sealed
from sensorkeep.tsdb.duckdb.engine import registered
from sensorkeep.tsdb.duckdb.state import Day, State
from sensorkeep.tsdb.duckdb.statements import day_table, run, statement
from sensorkeep.tsdb.readings import Incoming, Integers, Known, classify


@dataclass(frozen=True, slots=True)
class Transaction:
    """What the parts of a transaction share: its connection, the draft they change, and the wall time."""

    connection: duckdb.DuckDBPyConnection
    draft: State
    now_us: int


def apply(transaction: Transaction, readings: Incoming, rows: Integers) -> Integers:
    """Put the readings at positions `rows` (ascending) into their days; the outcome of each, in that order."""
    if not len(rows):
        return np.empty(0, np.int64)
    time_us = readings.time_us[rows]
    first_day, last_day = int(time_us.min()) // DAY_US, int(time_us.max()) // DAY_US
    if first_day == last_day:
        return _apply_to_day(transaction, first_day, readings, rows)
    outcome = np.empty(len(rows), np.int64)
    days = time_us // DAY_US
    for day in np.unique(days).tolist():
        of_day = days == day
        outcome[of_day] = _apply_to_day(transaction, day, readings, rows[of_day])
    return outcome


def _apply_to_day(transaction: Transaction, day: int, readings: Incoming, rows: Integers) -> Integers:
    known_day = transaction.draft.days.get(day)
    if known_day is not None and known_day.state == "sealed":
        # Without raw nothing can be recognized but what this very transaction repeats.
        verdict = classify(readings, rows, Known.none())
        sealed.merge(transaction.connection, day, readings.table.take(verdict.inserted))
        return verdict.outcome
    if known_day is None:
        run(transaction.connection, statement("create_day", day=day_table(day)))
        known_day = Day(day, "open", 0, 0, transaction.now_us, day * DAY_US)
    known = _find_known(transaction.connection, known_day, readings, rows)
    verdict = classify(readings, rows, known)
    _insert(transaction.connection, day, readings, verdict.inserted)
    _change(transaction.connection, day, readings, verdict.changed, verdict.changed_row_ids)
    written = np.concatenate([verdict.inserted, verdict.changed])
    if len(written):
        _mark_dirty(transaction, day, readings, written)
        known_day = replace(
            known_day,
            row_count=known_day.row_count + len(verdict.inserted),
            sorted_rows=known_day.sorted_rows + (len(verdict.inserted) if _is_run(verdict.inserted) else 0),
            last_write_us=transaction.now_us,
            newest_us=max(known_day.newest_us, int(readings.time_us[written].max())),
        )
    transaction.draft.days[day] = known_day
    return verdict.outcome


def _find_known(connection: duckdb.DuckDBPyConnection, day: Day, readings: Incoming, rows: Integers) -> Known:
    """Which of `rows` the day has. In a stream in order that can only be the few that are not new in time."""
    old = rows[readings.time_us[rows] <= day.newest_us]
    if len(old) == 0 or day.row_count == 0:
        return Known.none()
    time_us = readings.time_us[old]
    with registered(connection, {"incoming": _take(readings.table, old)}):
        found = run(
            connection,
            statement("find_known", day=day_table(day.day)),
            {"first_us": int(time_us.min()), "last_us": int(time_us.max())},
        ).fetchnumpy()
    positions, row_ids, same = (np.asarray(found[name]) for name in ("position", "row_id", "same"))
    order = np.argsort(positions)
    return Known(positions[order], row_ids[order], same[order])


def _insert(connection: duckdb.DuckDBPyConnection, day: int, readings: Incoming, positions: Integers) -> None:
    if len(positions) == 0:
        return
    if _is_run(positions):
        table = readings.table.take(_in_order(readings.series, positions))
    else:
        table = _take(readings.table, positions)
    with registered(connection, {"accepted": table}):
        run(connection, statement("insert_readings", day=day_table(day)))


def _is_run(positions: Integers) -> bool:
    """Whether these rows are so many that they are put in order before they are inserted."""
    return len(positions) >= RUN_READINGS_MIN


def _in_order(series: Integers, positions: Integers) -> Integers:
    """The positions by sensor, of every other sensor backwards: see the statement order_run.

    Times are left as they came, nearly in order. Sixteen bits are sorted by radix, ten times faster than longer keys;
    of more sensors than that, neighbours share a key.
    """
    numbers = series[positions]
    backwards = numbers % 2 == 1
    arrived = np.concatenate([np.flatnonzero(~backwards), np.flatnonzero(backwards)[::-1]])
    keys = (numbers >> max(0, int(numbers.max()).bit_length() - 16)).astype(np.uint16)
    ordered: Integers = positions[arrived[np.argsort(keys[arrived], kind="stable")]]
    return ordered


def _change(
    connection: duckdb.DuckDBPyConnection, day: int, readings: Incoming, positions: Integers, row_ids: Integers
) -> None:
    if len(positions):
        changed = _take(readings.table, positions).append_column("row_id", pa.array(row_ids))
        with registered(connection, {"changed": changed}):
            run(connection, statement("update_readings", day=day_table(day)))


def _take(table: pa.Table, positions: Integers) -> pa.Table:
    """The rows at `positions` (ascending, each once); the table itself where they are all of it."""
    if len(positions) == table.num_rows:
        return table
    # A filter copies runs of rows, a take row by row.
    chosen = np.zeros(table.num_rows, np.bool_)
    chosen[positions] = True
    return table.filter(pa.array(chosen))


def _mark_dirty(transaction: Transaction, day: int, readings: Incoming, positions: Integers) -> None:
    """Enter the buckets of the readings that are rolled up already."""
    marks, draft = transaction.draft.marks, transaction.draft
    assert marks.hourly_until_us is not None, "the marks are set by the first write"
    assert marks.daily_until_us is not None, "the marks are set by the first write"
    series, time_us = readings.series[positions], readings.time_us[positions]
    hour = time_us // HOUR_US
    passed = hour * HOUR_US < marks.hourly_until_us
    if passed.any():
        touched = np.unique(series[passed] * 24 + hour[passed] % 24)
        times = day * DAY_US + touched % 24 * HOUR_US
        _save_dirty(transaction.connection, "hourly_dirty", touched // 24, times)
        draft.hourly_dirty[day] = draft.hourly_dirty.get(day, 0) + len(touched)
    if day * DAY_US < marks.daily_until_us:
        touched = np.unique(series)
        _save_dirty(transaction.connection, "daily_dirty", touched, np.full(len(touched), day * DAY_US))
        draft.daily_dirty[day] = draft.daily_dirty.get(day, 0) + len(touched)


def _save_dirty(connection: duckdb.DuckDBPyConnection, dirty: str, series: Integers, time_us: Integers) -> None:
    touched = pa.table({"series": pa.array(series), "time": pa.array(time_us, pa.timestamp("us", tz="UTC"))})
    with registered(connection, {"touched": touched}):
        run(connection, statement("mark_dirty", dirty=dirty))
