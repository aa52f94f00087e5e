"""Keeping the store: hours and days rolled up, changed ones redone, old days sealed, batch ids forgotten.

One process at a time does it (a lock, see `keeper`); the others return at once. Rolling up goes in three steps, so
that no reading is missed and none waits for it long: `marking_until` moves, and from then on writers mark what they
change before it; the writers in flight end; then the buckets are made, and `rolled_until` follows. Marks are forgotten
only if they were there before the buckets were made. How buckets are made is in `rolling`, how days are sealed in
`sealing`.
"""

from __future__ import annotations

from typing import NamedTuple

from sensorkeep.clock import DAY_US, HOUR_US, MICROSECONDS, Clock
from sensorkeep.limits import (
    BATCH_IDS_KEPT_DAYS,
    LATE_AFTER_HOURS,
    POSTGRES_BATCHES_PRUNED_MAX,
    POSTGRES_MAINTAIN_SECONDS,
    ROLL_IDLE_SECONDS,
)
from sensorkeep.rollup import hour_start
from sensorkeep.tsdb.postgres.engine import Engine, Session
from sensorkeep.tsdb.postgres.hurry import Hurry
from sensorkeep.tsdb.postgres.keeper import Keeper
from sensorkeep.tsdb.postgres.rolling import Aggregates, Buckets, Tables
from sensorkeep.tsdb.postgres.sealing import Sealing
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment

_PRUNE_SECONDS = 3600
_FIRST_DAY = -(2**31)
_STEPS_MAX = 100
"""Steps of one call, whatever the clock says: a test's clock stands still."""


class State(NamedTuple):
    """How far things are; None where nothing was written or done yet. See `marks` in postgres_schema.sql."""

    marking_us: int | None
    rolled_us: int | None
    rolled_series: int
    rolling_us: int | None
    newest_us: int | None
    last_write_us: int | None
    last_series: int | None


class Maintenance:
    """Does a bounded part of what is due at each `run`. Not thread-safe."""

    def __init__(self, engine: Engine, clock: Clock, *, extension: str | None, raw_retention_days: int) -> None:
        """`extension`: the schema that TimescaleDB is in; None without it."""
        self._keeper = Keeper(engine)
        self._clock = clock
        self._buckets: Buckets = (
            Tables(self._keeper, clock) if extension is None else Aggregates(self._keeper, extension)
        )
        self._hurry = Hurry(self._keeper, "move")
        self._sealing = Sealing(self._keeper, self._buckets, raw_retention_days)
        self._pruned_us: int | None = None

    def run(self, now_us: int) -> None:
        """See TimeSeriesStore.maintain. Returns at once where another process is at it."""
        with self._keeper.alone() as mine:
            if not mine:
                return
            began = self._clock.monotonic()
            for name in ("observe", "observe_days"):
                with self._keeper.session() as session:
                    session.execute(statement(name), {"now": moment(now_us)})
            for _ in range(_STEPS_MAX):
                if not self._step(now_us) or self._clock.monotonic() - began >= POSTGRES_MAINTAIN_SECONDS:
                    break
            self._buckets.show(now_us)
            self._prune(now_us)

    def _step(self, now_us: int) -> bool:
        """One step of what is due; False where nothing is."""
        with self._keeper.session() as session:
            (row,) = session.execute(statement("maintenance_state")).fetchall()
        state = State(*row)
        if state.newest_us is None:
            return False
        rolled = self._roll(state, now_us)
        redone = self._buckets.redo(now_us)
        sealed = self._sealing.seal(now_us)
        return rolled or redone or sealed

    def _roll(self, state: State, now_us: int) -> bool:
        """Roll up the next hours that are over, or a part of the day that they end."""
        target_us = _over_until(state, now_us)
        start_us = self._next_us(state)
        if start_us is None or start_us >= target_us:
            return False
        until_us = self._until_us(state, start_us, target_us)
        if state.marking_us is None or until_us > state.marking_us:
            # From here on, who writes before `until_us` marks it; who began before, and did not, has ended.
            if not self._hurry.run(lambda session: _move_marking(session, until_us), now_us):
                return False
            # And may have begun an earlier day.
            start_us = self._next_us(state)
            assert start_us is not None
            until_us = min(until_us, self._until_us(state, start_us, target_us))
        return self._buckets.roll(start_us, until_us, state.rolled_series, state.last_series or 0)

    def _next_us(self, state: State) -> int | None:
        """Where rolling up goes on: days without raw are passed over. None where no day is left."""
        first_day = _FIRST_DAY if state.rolled_us is None else state.rolled_us // DAY_US
        with self._keeper.session() as session:
            ((day,),) = session.execute(statement("next_day"), {"day": first_day}).fetchall()
        if day is None:
            return None
        start_us = int(day) * DAY_US
        return start_us if state.rolled_us is None else max(state.rolled_us, start_us)

    def _until_us(self, state: State, start_us: int, target_us: int) -> int:
        """Up to where one step goes: not past the end of the day, whose own buckets are made before it is passed."""
        day_end_us = (start_us // DAY_US + 1) * DAY_US
        if state.rolling_us is not None:
            return min(state.rolling_us, day_end_us)  # some of its sensors are made
        return min(target_us, day_end_us, start_us + self._buckets.hours * HOUR_US)

    def _prune(self, now_us: int) -> None:
        """Forget batch ids that no queue can deliver any more."""
        if self._pruned_us is not None and 0 <= now_us - self._pruned_us < _PRUNE_SECONDS * MICROSECONDS:
            return
        before = {"before": moment(now_us - BATCH_IDS_KEPT_DAYS * DAY_US), "limit": POSTGRES_BATCHES_PRUNED_MAX}
        forgotten = self._keeper.run(lambda session: session.execute(statement("prune_batches"), before).rowcount)
        if forgotten < POSTGRES_BATCHES_PRUNED_MAX:
            self._pruned_us = now_us


def _move_marking(session: Session, until_us: int) -> bool:
    # A writer holds its lock from before it looks at `marking_until` until its end.
    session.execute(statement("wait_for_writers"))
    session.execute(statement("move_marking"), {"until": moment(until_us)})
    return True


def _over_until(state: State, now_us: int) -> int:
    """Start of the first hour that is not rolled up yet: hours that readings still come to are cheaper read from raw.

    The newest reading decides, so that an import of old readings in their order is rolled up like a live stream. Where
    nothing has come for a while the wall clock does, but never past the day of the newest reading (all of that day, so
    that it can be sealed one day).
    """
    if state.newest_us is None or state.last_write_us is None:
        return 0
    idle_us = ROLL_IDLE_SECONDS * MICROSECONDS
    end_us = (state.newest_us // DAY_US + 1) * DAY_US
    if now_us - state.last_write_us >= idle_us and now_us - end_us >= idle_us:
        return end_us
    return hour_start(state.newest_us - LATE_AFTER_HOURS * HOUR_US)
