"""Taking locks that others wait behind, without holding them up for long."""

from __future__ import annotations

from collections.abc import Callable

from psycopg import errors

from sensorkeep.clock import Clock
from sensorkeep.limits import POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS, POSTGRES_MAINTAIN_LOCK_SECONDS_MAX
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.keeper import Keeper


class Hurry:
    """Transactions that ask for such locks: they give up soon, and are then not tried again for a while."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._not_before = clock.monotonic()

    @property
    def pauses(self) -> bool:
        """Whether it has given up a moment ago."""
        return self._clock.monotonic() < self._not_before

    def run(self, work: Callable[[Session], bool]) -> bool:
        """As Keeper.run, once; False, with nothing changed, where the locks are not free within
        POSTGRES_MAINTAIN_LOCK_SECONDS_MAX, or somebody waits for us who has them, or it was so a moment ago."""
        if self.pauses:
            return False
        try:
            with self._keeper.session() as session, session.transaction():
                return _hurried(session, work)
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            self._not_before = self._clock.monotonic() + POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS
            return False


def _hurried(session: Session, work: Callable[[Session], bool]) -> bool:
    limit = f"{int(1000 * POSTGRES_MAINTAIN_LOCK_SECONDS_MAX)}ms"
    session.execute("SELECT set_config('lock_timeout', %s, true)", (limit,))
    return work(session)
