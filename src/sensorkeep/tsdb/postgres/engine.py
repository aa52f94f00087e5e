"""Connections to PostgreSQL, transactions, and what its errors mean."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg import errors
from psycopg.pq import TransactionStatus

from sensorkeep.errors import BadConfig, Conflict, Corrupt, Poisoned, Unavailable
from sensorkeep.limits import (
    POSTGRES_ANSWER_GRACE_SECONDS,
    POSTGRES_ATTEMPTS_MAX,
    POSTGRES_CONNECT_SECONDS_MAX,
    POSTGRES_CONNECTIONS_KEPT,
    POSTGRES_CONNECTIONS_MAX,
    POSTGRES_LOCK_SECONDS_MAX,
    POSTGRES_READ_SECONDS_MAX,
    POSTGRES_STATEMENT_SECONDS_MAX,
)
from sensorkeep.tsdb.postgres.times import register

Result = TypeVar("Result")

_SETTINGS = {
    "TimeZone": "UTC",
    "search_path": "telemetry,public",
    # What is planned is short; compiling it takes longer than running it.
    "jit": "off",
    # Plans know their bounds in time then, and so which partitions they need.
    "plan_cache_mode": "force_custom_plan",
    "synchronous_commit": "on",
    "lock_timeout": f"{POSTGRES_LOCK_SECONDS_MAX}s",
    "statement_timeout": f"{POSTGRES_STATEMENT_SECONDS_MAX}s",
    # A process that vanished in the middle must not keep its locks.
    "idle_in_transaction_session_timeout": f"{POSTGRES_STATEMENT_SECONDS_MAX}s",
    "client_min_messages": "warning",
}


class Retry(Exception):
    """The transaction must be tried again: somebody else changed what it had read."""


class Session(psycopg.Connection[Any]):
    """A connection that does not wait for ever: a server that hangs keeps its connections open and answers nothing, and
    cannot end a statement that takes too long."""

    patience_seconds: float = POSTGRES_CONNECT_SECONDS_MAX
    """How long one answer may take."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """As psycopg's, for `patience_seconds` at most; then the connection is closed."""
        try:
            return super().wait(gen, interval, self.patience_seconds if timeout is None else timeout)
        except errors._WaitTimeout as error:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {self.patience_seconds:g} s") from error


class Engine:
    """A pool of connections. Thread-safe. It connects when it must, so an outage heals by itself."""

    def __init__(self, url: str) -> None:
        """`url`: `postgresql://user:password@host/database`. Nothing is connected yet. Raises BadConfig."""
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            # Its message would repeat what it could not read, and that may hold the password.
            raise BadConfig("SENSORKEEP_TSDB_URL is not a URL such as postgresql://user@host/database") from None
        self._url = url
        self._closed = False
        self._lock = threading.Lock()
        self._losses = 0
        self._pool = sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_size=POSTGRES_CONNECTIONS_KEPT,
            max_overflow=POSTGRES_CONNECTIONS_MAX - POSTGRES_CONNECTIONS_KEPT,
            pool_timeout=POSTGRES_CONNECT_SECONDS_MAX,
            pool_pre_ping=True,
            pool_use_lifo=True,
        )

    @property
    def losses(self) -> int:
        """How many connections were lost so far: after one, it may be another server that answers, or the same one
        restored from a backup, so that nothing remembered of it is to be believed."""
        return self._losses

    def run(self, work: Callable[[Session], Result]) -> Result:
        """Do `work` in one transaction, durable when it returns; again where it met somebody else's (bounded).

        Raises Unavailable, Corrupt, Poisoned, or what `work` raises; nothing is changed then.
        """
        return in_transaction(self.session, work)

    @contextlib.contextmanager
    def snapshot(self, first: str | None = None) -> Iterator[Session]:
        """A transaction to read with, all of one moment: that after the statement `first`, which takes none itself."""
        with self.session(POSTGRES_READ_SECONDS_MAX) as session, session.transaction():
            # Sent as one: each statement by itself would be a round trip.
            session.execute(
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
                f"SET LOCAL statement_timeout = '{POSTGRES_READ_SECONDS_MAX}s';{first or ''}",
                prepare=False,
            )
            yield session

    @contextlib.contextmanager
    def session(self, statement_seconds: float = POSTGRES_STATEMENT_SECONDS_MAX) -> Iterator[Session]:
        """A connection; its errors are translated, but for those that `run` tries again.

        Every statement is a transaction of its own unless the block begins one. `statement_seconds`: what the server
        is told, or will be by the block, is the longest time of a statement.
        """
        if self._closed:
            raise Unavailable("the time series store is closed")
        with translated():
            pooled = self._pool.raw_connection()
            session: Session = pooled.driver_connection  # type: ignore[assignment]
            try:
                session.patience_seconds = statement_seconds + POSTGRES_ANSWER_GRACE_SECONDS
                yield session
            except errors.ReadOnlySqlTransaction:
                # The server became a standby; the next connection may find the one that took its place.
                pooled.invalidate()
                self._count_loss()
                raise
            except BaseException:
                if session.closed:
                    pooled.invalidate()
                    self._count_loss()
                raise
            finally:
                if not session.closed and session.info.transaction_status != TransactionStatus.IDLE:
                    pooled.invalidate()
                session.patience_seconds = POSTGRES_CONNECT_SECONDS_MAX  # the next one asks whether it is alive
                pooled.close()

    def close(self) -> None:
        """Release every connection. Idempotent."""
        self._closed = True
        self._pool.dispose()

    def _connect(self) -> Session:
        try:
            session = Session.connect(
                self._url,
                autocommit=True,
                connect_timeout=POSTGRES_CONNECT_SECONDS_MAX,
                tcp_user_timeout=1000 * POSTGRES_LOCK_SECONDS_MAX,
                keepalives_idle=POSTGRES_LOCK_SECONDS_MAX,
                keepalives_interval=POSTGRES_CONNECT_SECONDS_MAX,
                application_name="sensorkeep",
                options=" ".join(f"-c {name}={value}" for name, value in _SETTINGS.items()),
            )
        except psycopg.Error:
            self._count_loss()
            raise
        register(session)
        return session

    def _count_loss(self) -> None:
        with self._lock:
            self._losses += 1


def in_transaction(
    opened: Callable[[], contextlib.AbstractContextManager[Session]], work: Callable[[Session], Result]
) -> Result:
    """See Engine.run. `opened` gives the session, for each try."""
    attempt = 1
    while True:
        try:
            with opened() as session, session.transaction():
                return work(session)
        except (Retry, errors.SerializationFailure, errors.DeadlockDetected) as error:
            if attempt == POSTGRES_ATTEMPTS_MAX:
                raise Unavailable(f"the time series store is too busy: {error}") from error
            attempt += 1


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Errors of the database as ours, within the block."""
    try:
        yield
    except (errors.SerializationFailure, errors.DeadlockDetected):
        raise
    except (psycopg.Error, sa.exc.SQLAlchemyError) as error:
        told = meaning(error)
        if told is error:
            raise
        raise told from error


# Mistakes of ours, that trying again cannot mend.
_OURS = (errors.SyntaxError, errors.UndefinedFunction, errors.DatatypeMismatch, errors.UndefinedParameter)
# The tables are not those that this version knows.
_SCHEMA = (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName)


def meaning(error: Exception) -> Exception:
    """What an error of the driver means to the caller; `error` itself where it can only be a mistake of ours.

    The message leaves out the statement and its parameters.
    """
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None)
    said = str(getattr(getattr(original, "diag", None), "message_primary", None) or original).strip()
    detail = f"the time series store failed: {said}"
    if isinstance(original, errors.DiskFull):
        return Unavailable(detail, code="disk_full", retry_after_seconds=30)
    if state in ("XX001", "XX002"):
        return Corrupt(f"the time series store is damaged ({said}): restore it from a backup")
    if isinstance(original, errors.InsufficientPrivilege):
        return Unavailable(f"the user of SENSORKEEP_TSDB_URL lacks a privilege: {said}", code="dependency_down")
    if isinstance(original, _SCHEMA):
        return Unavailable(
            f"the time series store has not the tables of this version ({said}); run: sensorkeep migrate upgrade",
            code="dependency_down",
        )
    if isinstance(original, _OURS):
        return error
    if isinstance(original, psycopg.DataError):
        return Poisoned(f"the time series store cannot hold a value: {said}")
    if isinstance(original, psycopg.IntegrityError):
        return Conflict(detail)
    return Unavailable(detail, code="dependency_down")
