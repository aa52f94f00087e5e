"""Making buckets of days that have their raw: in tables of ours, or in TimescaleDB's continuous aggregates."""

from __future__ import annotations

import math
from typing import Any, LiteralString, NamedTuple, Protocol

import numpy as np
import structlog

from sensorkeep.clock import DAY_US, HOUR_US, MICROSECONDS, Clock
from sensorkeep.limits import POSTGRES_REFRESH_SECONDS, POSTGRES_REFRESH_SECONDS_MAX, POSTGRES_STEP_SECONDS
from sensorkeep.rollup import day_start
from sensorkeep.tsdb.base import Period
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.keeper import Keeper
from sensorkeep.tsdb.postgres.reading import PERCENTILES, PERIOD_US, aggregate
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment
from sensorkeep.tsdb.readings import Integers

log = structlog.get_logger(__name__)

_REDO_PAUSE = 9.0
"""Pause after redoing a day's changed buckets, as a multiple of the time it took: under load, late readings touch every
day of the last three again and again, and redoing them at once would cost more than all the rest. Reads are exact
meanwhile; they compute changed buckets from raw. Where nothing was written since, there is no pause."""
_SERIES_FIRST = 100
_SERIES_MAX = 100_000
"""Sensors of a day aggregated in one step: the first, and at most. Of hours, which cost little, the most are first."""
_NAMES: dict[Period, str] = {"hour": "telemetry_hourly", "day": "telemetry_daily"}
_ALL_SENSORS = 2**31 - 1
_LONGER: LiteralString = f"SET statement_timeout = '{POSTGRES_REFRESH_SECONDS_MAX}s'"


class Buckets(Protocol):
    """How buckets are made and kept while their days have raw. Every call is a step of bounded length."""

    @property
    def hours(self) -> int:
        """How many hours are to be rolled up in one step."""
        ...

    def roll(self, start_us: int, until_us: int, after_series: int, last_series: int) -> bool:
        """Roll up hours of one day, [start, until), and its day where they end it; move `rolled_until`.

        It may take several calls: the sensors up to the number `after_series`, of `last_series`, are made.
        False where nothing could be done now.
        """
        ...

    def redo(self, now_us: int) -> bool:
        """Make some changed buckets anew, where it is their turn, and forget their marks; False where none was."""
        ...

    def redo_day(self, day: int) -> bool:
        """Make what is changed of the day anew, now: a part of it; False where it has no marks (any more)."""
        ...

    def confirm_day(self, day: int) -> bool:
        """Make sure that what is stored of the unmarked day is all of it; False where that cannot be told now."""
        ...

    def show(self, now_us: int) -> None:
        """Now and then, make the newest buckets too, for people who look at them; reads compute these from raw."""
        ...


class Tables:
    """Buckets in tables of ours: hours, or a day with its last hours, of some sensors in one step."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._series = _Pace(_SERIES_FIRST, _SERIES_MAX)
        self._series_of_hours = _Pace(_SERIES_MAX, _SERIES_MAX)
        self._hours = _Pace(1, 24)

    @property
    def hours(self) -> int:
        """See Buckets."""
        return self._hours.size

    def roll(self, start_us: int, until_us: int, after_series: int, last_series: int) -> bool:
        """See Buckets."""
        day_us = day_start(start_us)
        ends_day = until_us == day_us + DAY_US
        pace = self._series if ends_day else self._series_of_hours
        upto = after_series + pace.size
        done = upto >= last_series
        sensors = {"after": after_series, "upto": _ALL_SENSORS if done else upto}

        def roll(session: Session) -> None:
            part = sensors | {"start": moment(start_us), "end": moment(until_us)}
            _save(session, "hour", "readings_of_slice", part)
            if ends_day:
                part = sensors | {"start": moment(day_us), "end": moment(until_us)}
                _save(session, "day", "readings_of_slice", part)
            if done:
                _move_rolled(session, until_us)
            else:
                session.execute(statement("move_rolled_series"), {"upto": upto, "until": moment(until_us)})

        began, seconds = self._clock.monotonic(), math.inf
        try:
            self._keeper.run(roll)
            seconds = self._clock.monotonic() - began
        finally:
            hours = (until_us - start_us) // HOUR_US
            all_at_once = done and after_series == 0 and not ends_day
            if all_at_once:
                self._hours.took(seconds, hours)
            if not all_at_once or hours == 1:
                pace.took(seconds, min(pace.size, last_series - after_series))
        return True

    def redo(self, now_us: int) -> bool:
        """See Buckets."""
        began = self._clock.monotonic()
        due = [turn.day for turn in _turns(self._keeper, now_us, now_us) if turn.is_time]
        if not due:
            return False
        self.redo_day(due[0])
        pause_us = int((self._clock.monotonic() - began) * _REDO_PAUSE * MICROSECONDS)
        self._keeper.run(lambda session: _note_redone(session, due[0], now_us, now_us + pause_us))
        return True

    def redo_day(self, day: int) -> bool:
        """See Buckets."""
        began, seconds, redone = self._clock.monotonic(), math.inf, self._series.size
        try:
            redone = self._keeper.run(lambda session: _redo(session, day, self._series.size))
            seconds = self._clock.monotonic() - began
        finally:
            self._series.took(seconds, redone)
        return redone > 0

    def confirm_day(self, day: int) -> bool:
        """See Buckets."""
        return True

    def show(self, now_us: int) -> None:
        """See Buckets. They come with the others."""


class Aggregates:
    """Buckets in TimescaleDB's continuous aggregates: of all sensors at once, and a day at most in one step."""

    hours: int = 24

    def __init__(self, keeper: Keeper, extension: str) -> None:
        self._keeper = keeper
        self._extension = extension

    def roll(self, start_us: int, until_us: int, after_series: int, last_series: int) -> bool:
        """See Buckets."""
        done = self._refresh("hour", start_us, until_us)
        if until_us % DAY_US == 0:
            done = self._refresh("day", until_us - DAY_US, until_us) and done
        if done:
            self._keeper.run(lambda session: _move_rolled(session, until_us))
        return done

    def redo(self, now_us: int) -> bool:
        """See Buckets."""
        pause_us = int(POSTGRES_REFRESH_SECONDS * MICROSECONDS)
        for turn in _turns(self._keeper, now_us, now_us - pause_us):
            if turn.is_time_for_day and self.redo_day(turn.day):
                redone = turn.day
                break
        else:
            return False
        self._keeper.run(lambda session: _note_redone(session, redone, now_us, now_us))
        return True

    def redo_day(self, day: int) -> bool:
        """See Buckets."""
        first_us, last_us, day_is_rolled = self._keeper.run(lambda session: _take_marks(session, day))
        if first_us is None:
            return False
        done = self._refresh("hour", first_us, last_us + HOUR_US)
        if day_is_rolled:
            done = self._refresh("day", day * DAY_US, (day + 1) * DAY_US) and done
        if done:
            self._keeper.run(lambda session: session.execute(statement("forget_dirty_taken")))
        return done

    def confirm_day(self, day: int) -> bool:
        """See Buckets."""
        span = day * DAY_US, (day + 1) * DAY_US
        return self._refresh("hour", *span, everything=True) and self._refresh("day", *span, everything=True)

    def show(self, now_us: int) -> None:
        """See Buckets. As often and as far as the older program's policies did."""
        since = {period: moment(now_us - window.every_us) for period, window in _SHOWN.items()}
        with self._keeper.session() as session:
            (lately,) = session.execute(statement("shown_lately"), since | {"now": moment(now_us)}).fetchall()
            if not lately[0]:
                for (name,) in session.execute(statement("refresh_policies")).fetchall():
                    log.warning(
                        "tsdb_refresh_policy", aggregate=f"telemetry.{name}", detail="may double buckets: remove it"
                    )
        for (period, window), shown in zip(_SHOWN.items(), lately, strict=True):
            length_us = PERIOD_US[period]
            start_us = -((window.from_us - now_us) // length_us) * length_us
            end_us = (now_us - window.until_us) // length_us * length_us
            if not shown and self._refresh(period, start_us, end_us):
                with self._keeper.session() as session:
                    session.execute(statement("note_shown", period=period), {"now": moment(now_us)})

    def _refresh(self, period: Period, start_us: int, end_us: int, *, everything: bool = False) -> bool:
        """Refresh what changed (or everything) of [start, end); whether all of it is in, and once.

        The extension leaves out what somebody else is refreshing at that moment, and returns before that is in. Where
        both deleted and inserted the same, it is there twice, once the other one is committed: then it is made anew.
        """
        name = _NAMES[period]
        bounds = {"start": moment(start_us), "end": moment(end_us)}
        with self._keeper.session(POSTGRES_REFRESH_SECONDS_MAX) as session:
            for forced in (everything, True):
                sql = statement("refresh_all" if forced else "refresh", extension=self._extension, aggregate=name)
                session.execute(_LONGER)
                try:
                    session.execute(sql, bounds)
                finally:
                    if not session.closed:
                        session.execute("RESET statement_timeout")
                if _is_pending(session, name, start_us, end_us):
                    return False
                ((twice,),) = session.execute(statement("twice", aggregate=name), bounds).fetchall()
                if not twice:
                    return True
        return False


class _Turn(NamedTuple):
    """A day with changed hours; whether it is time to redo any, and whether it is time for this one."""

    day: int
    is_time: bool
    is_time_for_day: bool


class _Shown(NamedTuple):
    """What is refreshed for people: buckets from `from_us` to `until_us` before the present, every `every_us`."""

    from_us: int
    until_us: int
    every_us: int


_SHOWN: dict[Period, _Shown] = {
    "hour": _Shown(4 * HOUR_US, HOUR_US, HOUR_US // 2),
    "day": _Shown(2 * DAY_US, 0, 2 * HOUR_US),
}


class _Marks(NamedTuple):
    """Marks of one day."""

    ids: list[int]
    series: Integers
    time_us: Integers
    day_is_rolled: bool


class _Pace:
    """How much to do in one step, so that it takes about POSTGRES_STEP_SECONDS."""

    def __init__(self, first: int, most: int) -> None:
        self.size = first
        self._most = most

    def took(self, seconds: float, amount: int) -> None:
        """Tell how long a step took, infinity where it failed, and how much it was: one with next to nothing to do
        says nothing about larger ones."""
        if seconds < POSTGRES_STEP_SECONDS / 2:
            self.size = max(self.size, min(2 * amount, self._most))
        elif seconds > POSTGRES_STEP_SECONDS:
            self.size = max(1, min(self.size, amount) // 2)


def _save(session: Session, period: Period, source: str, bounds: dict[str, Any]) -> None:
    """Make the buckets of the readings that `source` selects, and store them."""
    session.execute(statement(f"save_{period}s", aggregate=aggregate(period, source)), bounds | PERCENTILES)


def _move_rolled(session: Session, until_us: int) -> None:
    session.execute(statement("move_rolled"), {"until": moment(until_us)})


def _is_pending(session: Session, aggregate_name: str, start_us: int, end_us: int) -> bool:
    """Whether somebody else refreshes a part of [start, end) now, and the extension has left that out."""
    ((has_ranges,),) = session.execute(statement("has_ranges")).fetchall()
    if not has_ranges:
        return False
    window = {"aggregate": aggregate_name, "start_us": start_us, "end_us": end_us}
    ((pending,),) = session.execute(statement("pending_ranges"), window).fetchall()
    return bool(pending)


def _turns(keeper: Keeper, now_us: int, before_us: int) -> list[_Turn]:
    """Days with changed hours; it is time for those that were not redone since `before_us`."""
    with keeper.session() as session:
        found = session.execute(statement("dirty_days"), {"now": moment(now_us), "before": moment(before_us)})
        return [_Turn(*row) for row in found.fetchall()]


def _note_redone(session: Session, day: int, now_us: int, after_us: int) -> None:
    session.execute(statement("note_redone"), {"day": day, "now": moment(now_us), "after": moment(after_us)})


def _marks(session: Session, day: int, sensors: int) -> _Marks | None:
    """The marks of rolled up hours of some sensors of a day; None where it has none."""
    bounds = {"start": moment(day * DAY_US), "end": moment((day + 1) * DAY_US), "limit": sensors}
    found = session.execute(statement("dirty_of_day"), bounds, binary=True).fetchall()
    if not found:
        return None
    ids, series, time_us = (np.array(column, np.int64) for column in zip(*found, strict=True))
    return _Marks(ids.tolist(), series, time_us, _day_is_rolled(session, day))


def _take_marks(session: Session, day: int) -> tuple[int | None, int, bool]:
    """Remember the marks of rolled up hours of a day in the table `taken`; the first hour, None where there is no mark,
    the last one, and whether the day is rolled up."""
    session.execute(statement("create_taken"))
    session.execute(statement("forget_taken"))
    bounds = {"start": moment(day * DAY_US), "end": moment((day + 1) * DAY_US)}
    ((first_us, last_us),) = session.execute(statement("take_dirty"), bounds).fetchall()
    return first_us, last_us, _day_is_rolled(session, day)


def _day_is_rolled(session: Session, day: int) -> bool:
    ((rolled,),) = session.execute(statement("day_is_rolled"), {"end": moment((day + 1) * DAY_US)}).fetchall()
    return bool(rolled)


def _redo(session: Session, day: int, sensors: int) -> int:
    """Make the changed hours of some sensors of a day anew, and their day; of how many, 0 where there is no mark.

    Each statement sees what was committed before it, so the readings of every mark that was found are in.
    """
    marks = _marks(session, day, sensors)
    if marks is None:
        return 0
    bounds: dict[str, Any] = {"start": moment(day * DAY_US), "end": moment((day + 1) * DAY_US)}
    hours = np.unique(np.stack([marks.series, marks.time_us]), axis=1)
    series = np.unique(marks.series).tolist()
    wanted = {"hour_series": hours[0].tolist(), "hour_us": hours[1].tolist()}
    _save(session, "hour", "readings_of_hours", bounds | wanted)
    if marks.day_is_rolled:
        _save(session, "day", "readings_of_sensors", bounds | {"series": series})
    session.execute(statement("forget_dirty"), {"ids": marks.ids})
    return len(series)
