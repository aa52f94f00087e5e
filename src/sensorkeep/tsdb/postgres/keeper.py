"""The session of the one process that keeps the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from psycopg import errors
from psycopg.pq import TransactionStatus

from sensorkeep.errors import Unavailable
from sensorkeep.limits import POSTGRES_ANSWER_GRACE_SECONDS, POSTGRES_STATEMENT_SECONDS_MAX
from sensorkeep.tsdb.postgres.engine import Engine, Result, Session, in_transaction
from sensorkeep.tsdb.postgres.statements import statement


class Keeper:
    """Whoever keeps the store holds a lock, and does everything in the session that holds it: if that is lost, so is
    what it was at, and it can do no harm to what the next one does. Not thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held: Session | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this process is the one, for the block; the lock ends with the block, the session or the process."""
        with self._engine.session() as session:
            ((mine,),) = session.execute(statement("try_maintenance")).fetchall()
            if not mine:
                yield False
                return
            self._held = session
            try:
                yield True
            except (errors.SerializationFailure, errors.DeadlockDetected) as error:
                raise Unavailable(f"the time series store is too busy: {error}") from error
            finally:
                self._held = None
                # One that is in the middle of something is closed by the engine.
                if not session.closed and session.info.transaction_status == TransactionStatus.IDLE:
                    session.execute(statement("end_maintenance"))

    @contextlib.contextmanager
    def session(self, statement_seconds: float = POSTGRES_STATEMENT_SECONDS_MAX) -> Iterator[Session]:
        """As Engine.session, within `alone`, which translates the errors."""
        assert self._held is not None, "nobody is alone"
        patience_seconds = self._held.patience_seconds
        self._held.patience_seconds = statement_seconds + POSTGRES_ANSWER_GRACE_SECONDS
        try:
            yield self._held
        finally:
            if self._held is not None:
                self._held.patience_seconds = patience_seconds

    def run(self, work: Callable[[Session], Result]) -> Result:
        """As Engine.run, within `alone`."""
        return in_transaction(self.session, work)
