"""Keeping the store: hours and days rolled up, changed ones redone, old days sealed and dropped.

One worker at a time does it (an advisory lock); the others return at once. Rolling up goes in three steps, so that no
reading is missed and none waits for it long: `marking_until` moves, and from then on writers mark what they change
before it; the writers in flight end; then the buckets are made, and `rolled_until` follows. Marks are forgotten only
if they were there before the buckets were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sensorkeep.clock import DAY_US, HOUR_US, MICROSECONDS
from sensorkeep.limits import (
    BATCH_IDS_KEPT_DAYS,
    LATE_AFTER_HOURS,
    POSTGRES_BATCHES_PRUNED_MAX,
    POSTGRES_DIRTY_HOURS_MAX,
    POSTGRES_REFRESH_SECONDS,
    POSTGRES_ROLL_HOURS_MAX,
)
from sensorkeep.rollup import day_start, hour_start
from sensorkeep.tsdb.aggregating import Points
from sensorkeep.tsdb.base import Period
from sensorkeep.tsdb.postgres import sealed
from sensorkeep.tsdb.postgres.copying import fetch
from sensorkeep.tsdb.postgres.engine import Engine, Session
from sensorkeep.tsdb.postgres.reading import GRID, PERIOD_US
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment, partition_of
from sensorkeep.tsdb.sealed import DAY_GRID_INDEXES

_POINTS = {"series": "int32", "time": "time", "value": "float64"}
_QUIET_US = DAY_US
"""A day that was written to within this is not sealed."""


class _State(NamedTuple):
    """How far things are; None where nothing was written or done yet."""

    marking_us: int | None
    rolled_us: int | None
    refreshed_us: int | None
    first_day: int | None
    last_day: int | None
    any_dirty: bool


class Maintenance:
    """Does a bounded part of what is due at each `run`."""

    def __init__(self, engine: Engine, *, timescale_schema: str | None, raw_retention_days: int) -> None:
        """`timescale_schema`: where TimescaleDB lives; None without it."""
        self._engine = engine
        self._extension = timescale_schema
        self._retention_days = raw_retention_days

    def run(self, now_us: int) -> None:
        """See TimeSeriesStore.maintain. Returns at once where another process is at it."""
        with self._engine.session() as session:
            ((mine,),) = session.execute(statement("try_maintenance")).fetchall()
            if not mine:
                return
            try:
                self._roll_up(now_us)
                self._seal(now_us)
                self._prune(now_us)
            finally:
                if not session.closed:
                    session.execute(statement("end_maintenance"))

    def _state(self) -> _State:
        with self._engine.session() as session:
            (row,) = session.execute(statement("maintenance_state")).fetchall()
        return _State(*row)

    # --- rolling up ---

    def _roll_up(self, now_us: int) -> None:
        state = self._state()
        if state.first_day is None or state.last_day is None:
            return
        until_us = self._target(state, now_us)
        if state.marking_us is None or until_us > state.marking_us:
            self._engine.run(lambda session: _move_marking(session, until_us))
        if self._extension is not None:
            self._refresh(state, until_us, now_us)
            return
        start_us = self._from_us(state)
        if start_us < until_us:
            self._engine.run(lambda session: _roll_hours(session, start_us, until_us))
        self._engine.run(_redo_dirty)

    def _target(self, state: _State, now_us: int) -> int:
        """Up to where hours are to be rolled up now: hours that nobody should write to any more, a bounded part."""
        until_us = hour_start(min(now_us, self._newest_us(state)) - LATE_AFTER_HOURS * HOUR_US)
        before_us = self._from_us(state)
        if self._extension is not None:
            return max(before_us, until_us)
        with self._engine.session() as session:
            ((next_day,),) = session.execute(statement("next_day"), {"day": before_us // DAY_US}).fetchall()
        first_us = before_us if next_day is None else max(before_us, next_day * DAY_US)
        return max(before_us, min(until_us, first_us + POSTGRES_ROLL_HOURS_MAX * HOUR_US))

    def _from_us(self, state: _State) -> int:
        """Where rolling up goes on."""
        assert state.first_day is not None
        return state.first_day * DAY_US if state.rolled_us is None else state.rolled_us

    def _newest_us(self, state: _State) -> int:
        """The newest reading's time."""
        assert state.last_day is not None
        bounds = {"start": moment(state.last_day * DAY_US), "end": moment((state.last_day + 1) * DAY_US)}
        with self._engine.session() as session:
            ((found,),) = session.execute(statement("newest_reading"), bounds).fetchall()
        return state.last_day * DAY_US if found is None else int(found)

    def _refresh(self, state: _State, until_us: int, now_us: int) -> None:
        """Bring the continuous aggregates up to date, where it is time, and forget the marks that are done with."""
        due_us = int(POSTGRES_REFRESH_SECONDS * MICROSECONDS)
        moved = state.rolled_us is None or until_us >= state.rolled_us + HOUR_US
        waited = state.refreshed_us is None or now_us >= state.refreshed_us + due_us
        if not (moved or (state.any_dirty and waited)):
            return
        first_us, last_id = self._engine.run(_marked)
        start_us = self._from_us(state)
        if first_us is not None:
            start_us = min(start_us, first_us)
        with self._engine.session() as session:
            hours = day_start(start_us), until_us
            for name, (from_us, to_us) in (
                ("telemetry_hourly", hours),
                ("telemetry_daily", (hours[0], day_start(until_us))),
            ):
                if from_us < to_us:
                    bounds = {"start": moment(from_us), "end": moment(to_us)}
                    session.execute(statement("refresh", schema=str(self._extension), aggregate=name), bounds)
        self._engine.run(lambda session: _refreshed(session, until_us, now_us, last_id))

    # --- retention ---

    def _seal(self, now_us: int) -> None:
        """Seal one day whose raw is past its retention: keep its buckets, drop its readings."""
        if not self._retention_days:
            return
        last = now_us // DAY_US - self._retention_days - 1
        with self._engine.session() as session:
            bounds = {"last": last, "quiet_us": now_us - _QUIET_US, "limit": 1}
            days = [day for (day,) in session.execute(statement("days_to_seal"), bounds).fetchall()]
        for day in days:
            self._engine.run(lambda session, day=day: self._seal_day(session, day))  # type: ignore[misc]

    def _seal_day(self, session: Session, day: int) -> None:
        """Its buckets are made from raw once more, so that none hangs on what was marked; then the raw goes."""
        session.execute(statement("lock_writers_out"))
        start_us, end_us = day * DAY_US, (day + 1) * DAY_US
        for period in PERIOD_US:
            _save(session, period, "readings_between", start_us, end_us)
        bounds = {"start": moment(start_us), "end": moment(end_us)}
        session.execute(statement("forget_dirty_of_day"), bounds)
        session.execute(statement("seal_day"), {"day": day})
        if self._extension is None:
            session.execute(statement("drop_partition", partition=partition_of(day)))
        else:
            session.execute(statement("drop_chunks", schema=self._extension), bounds)

    def _prune(self, now_us: int) -> None:
        """Forget batch ids that no queue can deliver any more."""
        before = {"before_us": now_us - BATCH_IDS_KEPT_DAYS * DAY_US, "limit": POSTGRES_BATCHES_PRUNED_MAX}
        self._engine.run(lambda session: session.execute(statement("prune_batches"), before))


def _move_marking(session: Session, until_us: int) -> None:
    """From the commit on, who writes before `until_us` marks it; who wrote without is waited for here."""
    session.execute(statement("lock_writers_out"))
    session.execute(statement("move_marking"), {"until": moment(until_us)})


def _roll_hours(session: Session, start_us: int, until_us: int) -> None:
    """Roll up the hours of [start, until), and the days that end in it."""
    _save(session, "hour", "readings_between", start_us, until_us)
    first_us, last_us = day_start(start_us), day_start(until_us)
    if first_us < last_us:
        _save(session, "day", "readings_between", first_us, last_us)
    session.execute(statement("move_rolled"), {"until": moment(until_us)})


def _redo_dirty(session: Session) -> None:
    """Make the changed hours anew, some at a time, and the days that they belong to."""
    found = session.execute(statement("some_dirty"), {"limit": POSTGRES_DIRTY_HOURS_MAX}).fetchall()
    if not found:
        return
    ids, series, time_us = (np.array(column, np.int64) for column in zip(*found, strict=True))
    ((_, rolled_us),) = session.execute(statement("marks")).fetchall()
    # What is marked but not rolled up yet is read from raw, and rolled up with the rest of its time.
    stored = time_us < (rolled_us or 0)
    if stored.any():
        for period, length_us in PERIOD_US.items():
            starts = time_us[stored] // length_us * length_us
            complete = starts + length_us <= (rolled_us or 0)
            wanted = np.unique(np.stack([series[stored], starts])[:, complete], axis=1)
            _redo(session, period, wanted[0].tolist(), wanted[1].tolist())
    session.execute(statement("forget_dirty"), {"ids": ids.tolist()})


def _redo(session: Session, period: Period, series: Sequence[int], time_us: Sequence[int]) -> None:
    """Make these buckets anew. Rows of readings are never removed, so each still has one."""
    if series:
        wanted = {"series": list(series), "time_us": list(time_us)}
        _save(session, period, f"readings_of_{period}s", min(time_us), max(time_us) + PERIOD_US[period], wanted)


def _save(
    session: Session,
    period: Period,
    source: str,
    start_us: int,
    end_us: int,
    wanted: dict[str, list[int]] | None = None,
) -> None:
    """Make the buckets of a selection of readings and store them."""
    aggregate = statement(f"{period}_aggregate", source=statement(source))
    bounds = {"start": moment(start_us), "end": moment(end_us)} | (wanted or {})
    parameters = bounds | GRID | DAY_GRID_INDEXES
    extreme = session.execute(statement(f"save_{period}s", aggregate=aggregate), parameters).fetchall()
    for series, time_us in extreme:
        span = {"series": [series], "start": moment(time_us), "end": moment(time_us + PERIOD_US[period])}
        found = fetch(session, statement("points"), span, _POINTS)
        points = Points(found["series"].astype(np.int64), found["time"], found["value"])
        sealed.put(session, period, sealed.made(period, points))


def _marked(session: Session) -> tuple[int | None, int | None]:
    """The earliest marked hour and the last mark, when no writer is in flight: one that has its number already and
    commits later would be forgotten unseen."""
    session.execute(statement("lock_writers_out"))
    ((first_us, last_id),) = session.execute(statement("dirty_range")).fetchall()
    return first_us, last_id


def _refreshed(session: Session, until_us: int, now_us: int, last_id: int | None) -> None:
    """Note what the aggregates hold now, and forget the marks that were there before they were refreshed."""
    session.execute(statement("move_rolled"), {"until": moment(until_us)})
    session.execute(statement("mark_refreshed"), {"now_us": now_us})
    if last_id is not None:
        session.execute(statement("forget_dirty_until"), {"id": last_id})
