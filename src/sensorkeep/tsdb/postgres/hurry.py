"""Taking locks that others wait behind, without holding them up for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import LiteralString

from psycopg import Rollback, errors

from sensorkeep.clock import MICROSECONDS
from sensorkeep.limits import POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS, POSTGRES_MAINTAIN_LOCK_SECONDS_MAX
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.keeper import Keeper
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment

_PAUSE_US = int(POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS * MICROSECONDS)


class Hurry:
    """Transactions that ask for such locks: they give up soon, and for a while no process tries again."""

    def __init__(self, keeper: Keeper, what: LiteralString) -> None:
        """`what`: the column {what}_after of `marks`."""
        self._keeper = keeper
        self._what = what

    def pauses(self, now_us: int) -> bool:
        """Whether it has given up a moment ago."""
        times = {"now": moment(now_us), "longest": moment(now_us + _PAUSE_US)}
        with self._keeper.session() as session:
            ((lately,),) = session.execute(statement("gave_up_lately", what=self._what), times).fetchall()
        return bool(lately)

    def run(self, work: Callable[[Session], bool], now_us: int) -> bool:
        """As Keeper.run, once; False, with nothing changed, where `work` says so, the locks are not free within
        POSTGRES_MAINTAIN_LOCK_SECONDS_MAX, somebody waits for us who has them, or it was so a moment ago."""
        if self.pauses(now_us):
            return False
        try:
            with self._keeper.session() as session, session.transaction():
                limit_locks(session, POSTGRES_MAINTAIN_LOCK_SECONDS_MAX)
                if not work(session):
                    raise Rollback
                return True
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            with self._keeper.session() as session:
                after = {"after": moment(now_us + _PAUSE_US)}
                session.execute(statement("note_given_up", what=self._what), after)
        return False


def limit_locks(session: Session, seconds: float) -> None:
    """Wait this long for a lock, until the end of the transaction."""
    session.execute(statement("limit_locks"), {"limit": f"{int(1000 * seconds)}ms"})
