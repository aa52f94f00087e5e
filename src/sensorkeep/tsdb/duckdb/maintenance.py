"""Keeping house: rolling up, redoing changed buckets, closing days, retention, forgetting old batch ids.

Every step is a bounded transaction of its own. Nothing here changes what reads answer (but for raw past retention):
a bucket moves from "computed from raw when read" to "stored", or from a stale row to a new one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Literal

from sensorkeep.clock import DAY_US, HOUR_US, MICROSECONDS, Clock
from sensorkeep.limits import (
    BATCH_IDS_KEPT_DAYS,
    DAY_CLOSE_DAYS,
    MAINTAIN_AT_ONCE_SECONDS,
    REDO_READINGS_MAX,
    RETENTION_QUIET_SECONDS,
    ROLL_DELAY_SECONDS,
    ROLL_IDLE_SECONDS,
    ROLL_READINGS_MAX,
    RUN_READINGS_MAX,
)
from sensorkeep.rollup import day_start
from sensorkeep.tsdb.duckdb.engine import registered
from sensorkeep.tsdb.duckdb.merging import Transaction
from sensorkeep.tsdb.duckdb.sealed import DAY_GRID, replace_buckets
from sensorkeep.tsdb.duckdb.state import Day, Marks, State
from sensorkeep.tsdb.duckdb.statements import day_table, fetch_table, run, statement

RollupTable = Literal["hourly", "daily"]

_REDO_PAUSE = {"hourly": 39.0, "daily": 29.0}
"""Pause after redoing a day's changed buckets, as a multiple of the time it took: under load, late readings touch every
day of the last three again and again, and redoing them at once would cost more than all the rest. Reads are exact
meanwhile; they compute changed buckets from raw. Where nothing was written since, there is no pause."""

_SETTLED_ROWS_MIN = {"hourly": 20_000, "daily": 20_000}
"""Rows moved to a settled table at once: ten vectors, so that the few of one sensor are in one or two of them."""

_DISORDER_MAX = 1.25
"""A day with more than so many times the rows that are in order is put in order (again, after a backfill)."""

_PRUNE_SECONDS = 3600

_ROUNDS_AT_ONCE_MAX = 32
"""Whatever the clock says: small stores need no more, and a test's clock stands still."""


class Maintenance:
    """The steps of `maintain`, and what they remember between calls (nothing that a restart must keep)."""

    def __init__(
        self,
        begin: Callable[[], AbstractContextManager[Transaction]],
        checkpoint: Callable[[], bool],
        clock: Clock,
        raw_retention_days: int,
    ) -> None:
        """`begin` opens a transaction; `checkpoint` frees the room of what was dropped, or says that it cannot now;
        `raw_retention_days` 0 keeps raw for ever."""
        self._begin = begin
        self._checkpoint = checkpoint
        self._clock = clock
        self._raw_retention_days = raw_retention_days
        self._redo_not_before = {"hourly": 0.0, "daily": 0.0}
        self._redo_write_us: dict[RollupTable, int | None] = {"hourly": None, "daily": None}
        self._redone: dict[RollupTable, dict[int, int]] = {"hourly": {}, "daily": {}}
        self._rounds = 0
        self._ordering: tuple[int, int] | None = None
        self._room_to_free = False
        self._kept: dict[int, tuple[int, int]] = {}
        """Days not dropped because late readings wait for them, and what was staged then."""
        self._pruned_us: int | None = None

    def run(self, state: Callable[[], State], now_us: int) -> None:
        """Rounds of what is due, until nothing is or MAINTAIN_AT_ONCE_SECONDS have passed."""
        began = self._clock.monotonic()
        for _ in range(_ROUNDS_AT_ONCE_MAX):
            before = state().version
            self._round(state, now_us)
            if state().version == before or self._clock.monotonic() - began >= MAINTAIN_AT_ONCE_SECONDS:
                break
        if self._room_to_free:
            self._room_to_free = not self._checkpoint()

    def _round(self, state: Callable[[], State], now_us: int) -> None:
        """A bounded part of everything that is due."""
        self._roll_hours(state(), now_us)
        self._roll_day(state(), now_us)
        self._redo(state(), "hourly")
        self._redo(state(), "daily")
        self._close_day(state())
        self._seal_day(state(), now_us)
        self._prune(now_us)

    def _roll_hours(self, state: State, now_us: int) -> None:
        start_us = state.marks.hourly_until_us
        target_us = _over_until(state.marks, now_us, HOUR_US)
        if start_us is None or start_us >= target_us:
            return
        day = next((d for d in sorted(state.days) if (d + 1) * DAY_US > start_us), None)
        if day is None or day * DAY_US >= target_us:
            with self._begin() as transaction:
                _move_hourly_mark(transaction, target_us)
            return
        start_us = max(start_us, day * DAY_US)
        hours = max(1, 24 * ROLL_READINGS_MAX // 2 // max(1, state.days[day].row_count))
        end_us = min(target_us, (day + 1) * DAY_US, start_us + hours * HOUR_US)
        slices = _slices(state.days[day].row_count // 12, ROLL_READINGS_MAX)
        with self._begin() as transaction:
            for slice_number in range(slices):
                run(
                    transaction.connection,
                    _roll_hours_statement(day),
                    {"day_us": day * DAY_US, "start_us": start_us, "end_us": end_us}
                    | {"slices": slices, "slice": slice_number},
                )
            _move_hourly_mark(transaction, end_us)

    def _roll_day(self, state: State, now_us: int) -> None:
        start_us = state.marks.daily_until_us
        target_us = _over_until(state.marks, now_us, DAY_US)
        if start_us is None or start_us >= target_us:
            return
        with self._begin() as transaction:
            draft = transaction.draft
            days = [day for day in sorted(draft.days) if start_us <= day * DAY_US < target_us]
            if days:
                marked = run(
                    transaction.connection,
                    statement("mark_day_dirty", day=day_table(days[0])),
                    {"day_us": days[0] * DAY_US},
                ).fetchall()
                draft.daily_dirty[days[0]] = draft.daily_dirty.get(days[0], 0) + marked[0][0]
                target_us = (days[0] + 1) * DAY_US
                _order_hours(transaction, days[0])
            draft.marks = replace(draft.marks, daily_until_us=target_us)

    def _redo(self, state: State, table: RollupTable, only: int | None = None) -> None:
        """Compute the changed buckets of one day anew: of day `only`, else of the day whose turn it is."""
        dirty = state.hourly_dirty if table == "hourly" else state.daily_dirty
        began = self._clock.monotonic()
        written = state.marks.last_write_us != self._redo_write_us[table]
        if not dirty or (only is None and written and began < self._redo_not_before[table]):
            return
        turns = self._redone[table]
        day = min(dirty, key=lambda d: (turns.get(d, -1), d)) if only is None else only
        self._rounds += 1
        turns[day] = self._rounds
        with self._begin() as transaction:
            _redo_slice(transaction, table, day)
        self._redo_write_us[table] = state.marks.last_write_us
        self._redo_not_before[table] = began + (self._clock.monotonic() - began) * (1 + _REDO_PAUSE[table])
        self._redone[table] = {d: turn for d, turn in turns.items() if d in dirty}

    def _close_day(self, state: State) -> None:
        """Put one day in (sensor, time) order, a run each time: one sensor's readings are then ten times faster to
        find. A day that was written in long runs needs nothing."""
        watermark_us = state.marks.watermark_us
        if watermark_us is None:
            return
        before = (watermark_us - DAY_CLOSE_DAYS * DAY_US) // DAY_US
        due = [day for day in state.days.values() if day.day < before and (day.state == "open" or _in_disorder(day))]
        if not due:
            return
        day = min(due, key=lambda day: day.day)
        with self._begin() as transaction:
            left = self._order_run(transaction, day) if _in_disorder(day) else 0
            if left == 0:
                transaction.draft.days[day.day] = replace(day, state="closed", sorted_rows=day.row_count)
                _settle_buckets(transaction, day_start(watermark_us) - DAY_CLOSE_DAYS * DAY_US)
        self._ordering = (day.day, left) if left else None
        self._room_to_free |= left == 0

    def _order_run(self, transaction: Transaction, day: Day) -> int:
        """Move the first readings of the day, in order, to its end; how many are left to move."""
        left = day.row_count
        if self._ordering is not None and self._ordering[0] == day.day:
            left = self._ordering[1]
        connection, table = transaction.connection, day_table(day.day)
        first = run(connection, statement("first_row", day=table)).fetchall()[0][0]
        rows = {"first": first, "end": first + RUN_READINGS_MAX}
        run(connection, statement("order_run", day=table), rows)
        moved: int = run(connection, statement("forget_run", day=table), rows).fetchall()[0][0]
        return max(0, left - moved)

    def _seal_day(self, state: State, now_us: int) -> None:
        """Drop the raw of one day past the retention, once its rollups hold all of it."""
        if self._raw_retention_days == 0:
            return
        before = (now_us - self._raw_retention_days * DAY_US) // DAY_US
        quiet_us = now_us - RETENTION_QUIET_SECONDS * MICROSECONDS
        due = sorted(
            day.day
            for day in state.days.values()
            if day.day < before and day.state != "sealed" and day.last_write_us <= quiet_us
        )
        for day in due:
            if not _rolled_up(state, day):
                continue
            if day in state.hourly_dirty:
                self._redo(state, "hourly", day)
                return
            if day in state.daily_dirty:
                self._redo(state, "daily", day)
                return
            staged = (state.next_sequence, state.staged_readings)
            if self._kept.get(day) != staged:
                if self._drop(day):
                    return
                self._kept[day] = staged

    def _drop(self, day: int) -> bool:
        """Drop the raw of `day`, unless late readings wait to meet it."""
        with self._begin() as transaction:
            if _has_staged(transaction, day):
                return False
            run(transaction.connection, statement("drop_day", day=day_table(day)))
            transaction.draft.days[day] = replace(transaction.draft.days[day], state="sealed")
        self._kept.pop(day, None)
        self._room_to_free = True
        return True

    def _prune(self, now_us: int) -> None:
        if self._pruned_us is not None and now_us - self._pruned_us < _PRUNE_SECONDS * MICROSECONDS:
            return
        with self._begin() as transaction:
            run(
                transaction.connection, statement("prune_batches"), {"before_us": now_us - BATCH_IDS_KEPT_DAYS * DAY_US}
            )
        self._pruned_us = now_us


def _over_until(marks: Marks, now_us: int, period_us: int) -> int:
    """Start of the first hour or day that is not over.

    The newest reading decides, so that an import of old readings in their order is rolled up like a live stream. Where
    nothing has come for a while the wall clock does, but never past the day of the newest reading (all of that day, so
    that it can be dropped one day).
    """
    if marks.watermark_us is None or marks.last_write_us is None:
        return 0
    idle_us = ROLL_IDLE_SECONDS * MICROSECONDS
    if now_us - marks.last_write_us >= idle_us:
        for length_us in (DAY_US, period_us):
            end_us = (marks.watermark_us // length_us + 1) * length_us
            if now_us - end_us >= idle_us:
                return end_us
    return (marks.watermark_us - ROLL_DELAY_SECONDS * MICROSECONDS) // period_us * period_us


def _slices(readings: int, readings_max: int) -> int:
    """Slices to cut so many readings into."""
    return max(1, math.ceil(readings / readings_max))


def _roll_hours_statement(day: int) -> str:
    source = statement("readings_of_slice", day=day_table(day))
    return statement("roll_hours", aggregate=statement("hour_aggregate", source=source))


def _move_hourly_mark(transaction: Transaction, until_us: int) -> None:
    transaction.draft.marks = replace(transaction.draft.marks, hourly_until_us=until_us)


def _order_hours(transaction: Transaction, day: int) -> None:
    """Put the hours of a day that is over in (sensor, time) order, where they are not too many for one transaction."""
    connection = transaction.connection
    bounds = {"start_us": day * DAY_US, "end_us": (day + 1) * DAY_US}
    if run(connection, statement("count_between", table="hourly"), bounds).fetchall()[0][0] > RUN_READINGS_MAX:
        return
    rows_end = run(connection, statement("rows_end", table="hourly")).fetchall()[0][0]
    hours = bounds | {"rows_end": rows_end}
    run(connection, statement("order_hours"), hours)
    run(connection, statement("forget_unordered_hours"), hours)


def _redo_slice(transaction: Transaction, table: RollupTable, day: int) -> None:
    """Redo one slice of the sensors of `day`, and forget that they were dirty."""
    connection, draft = transaction.connection, transaction.draft
    slices = _slices(draft.days[day].row_count, REDO_READINGS_MAX)
    bounds = {"start_us": day * DAY_US, "end_us": (day + 1) * DAY_US}
    hourly = table == "hourly"
    first = run(connection, statement("first_dirty", dirty=f"{table}_dirty"), bounds).fetchall()[0][0]
    part = {"slices": slices, "slice": first % slices}
    wanted = fetch_table(connection, statement("dirty_hours" if hourly else "dirty_days"), bounds | part)
    with registered(connection, {"wanted": wanted}):
        source = statement("readings_of_hours" if hourly else "readings_of_wanted", day=day_table(day))
        aggregate = statement("hour_aggregate" if hourly else "day_aggregate", source=source)
        parameters = bounds | {"day_us": day * DAY_US} | ({} if hourly else DAY_GRID)
        rebuilt = fetch_table(connection, aggregate, parameters)
    replace_buckets(connection, table, day, rebuilt)
    run(connection, statement("forget_dirty", dirty=f"{table}_dirty"), bounds | part)
    left = run(connection, statement("count_between", table=f"{table}_dirty"), bounds).fetchall()[0][0]
    dirty = draft.hourly_dirty if hourly else draft.daily_dirty
    if left:
        dirty[day] = left
    else:
        del dirty[day]


def _in_disorder(day: Day) -> bool:
    return day.state != "sealed" and day.row_count > day.sorted_rows * _DISORDER_MAX


def _settle_buckets(transaction: Transaction, before_us: int) -> None:
    """Move the buckets of closed days to the settled tables, when there are enough of them."""
    before = {"before_us": before_us}
    for table, rows_min in _SETTLED_ROWS_MIN.items():
        count = run(transaction.connection, statement("count_buckets_before", rollup=table), before).fetchall()
        if count[0][0] >= rows_min:
            run(transaction.connection, statement("settle_buckets", rollup=table), before)
            run(transaction.connection, statement("forget_settled_buckets", rollup=table), before)
            mark = {f"{table}_settled_until_us": before_us}
            transaction.draft.marks = replace(transaction.draft.marks, **mark)


def _rolled_up(state: State, day: int) -> bool:
    """Whether the marks have passed the day; changed buckets of it may still be dirty."""
    end_us = (day + 1) * DAY_US
    until = (state.marks.hourly_until_us, state.marks.daily_until_us)
    return all(mark_us is not None and mark_us >= end_us for mark_us in until)


def _has_staged(transaction: Transaction, day: int) -> bool:
    """Whether late readings of the day still wait to be merged: they must meet its raw."""
    if not transaction.draft.unsettled:
        return False
    bounds = {"start_us": day * DAY_US, "end_us": (day + 1) * DAY_US}
    rows = run(transaction.connection, statement("count_between", table="late_stage"), bounds).fetchall()
    return bool(rows[0][0])
