"""Sealing days whose raw is past its retention: their buckets are kept, their raw goes."""

from __future__ import annotations

from sensorkeep.clock import DAY_US, MICROSECONDS
from sensorkeep.limits import POSTGRES_SEAL_READS_SECONDS_MAX, RETENTION_QUIET_SECONDS
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.hurry import Hurry, limit_locks
from sensorkeep.tsdb.postgres.keeper import Keeper
from sensorkeep.tsdb.postgres.rolling import Buckets
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment


class Sealing:
    """Applies the retention of raw, a day in each step."""

    def __init__(self, keeper: Keeper, buckets: Buckets, raw_retention_days: int) -> None:
        """`raw_retention_days` 0 keeps raw for ever."""
        self._keeper = keeper
        self._hurry = Hurry(keeper, "seal")
        self._buckets = buckets
        self._retention_days = raw_retention_days
        self._confirmed: set[int] = set()
        """Days whose buckets were made sure of, and that waited for a lock since."""

    def seal(self, now_us: int) -> bool:
        """Seal the first day that is due, or take a step towards it; False where none could be taken."""
        if not self._retention_days:
            return False
        bounds = {
            "last": now_us // DAY_US - self._retention_days - 1,
            "quiet": moment(now_us - RETENTION_QUIET_SECONDS * MICROSECONDS),
        }
        with self._keeper.session() as session:
            days = [day for (day,) in session.execute(statement("days_to_seal"), bounds).fetchall()]
        for day in days:
            if self._hurry.pauses(now_us):
                return False
            if self._seal(day, now_us):
                return True
        return False

    def _seal(self, day: int, now_us: int) -> bool:
        if self._buckets.redo_day(day):
            self._confirmed.discard(day)
            return True
        if day not in self._confirmed:
            if not self._buckets.confirm_day(day):
                return False
            self._confirmed.add(day)
        # Whether the locks can be had at all, before anything is copied that would then be undone.
        sealed = self._hurry.run(_lock_days_out, now_us) and self._hurry.run(
            lambda session: _seal(session, day), now_us
        )
        if sealed:
            self._confirmed.discard(day)
        return sealed


def _seal(session: Session, day: int) -> bool:
    """Keep the day's buckets and drop its raw; False, to be undone, where it was written to meanwhile.

    They are copied before anybody is locked out: only a write could change them, and it would leave a mark.
    """
    bounds = {"start": moment(day * DAY_US), "end": moment((day + 1) * DAY_US)}
    session.execute(statement("seal_hours"), bounds)
    session.execute(statement("seal_days"), bounds)
    session.execute(statement("wait_for_writers"))
    _lock_days_out(session)
    ((changed,),) = session.execute(statement("any_dirty"), bounds).fetchall()
    if changed:
        return False
    session.execute(statement("seal_day"), {"day": day})
    session.execute(statement("drop_day"), {"day": day})
    return True


def _lock_days_out(session: Session) -> bool:
    limit_locks(session, POSTGRES_SEAL_READS_SECONDS_MAX)
    session.execute(statement("lock_days_out"))
    return True
