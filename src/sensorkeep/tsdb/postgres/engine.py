"""Connections to PostgreSQL, transactions, and what its errors mean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg import Connection, errors

from sensorkeep.errors import BadConfig, Conflict, Corrupt, Poisoned, SensorkeepError, Unavailable
from sensorkeep.limits import (
    POSTGRES_ATTEMPTS_MAX,
    POSTGRES_CONNECT_SECONDS_MAX,
    POSTGRES_CONNECTIONS_KEPT,
    POSTGRES_CONNECTIONS_MAX,
    POSTGRES_LOCK_SECONDS_MAX,
    POSTGRES_STATEMENT_SECONDS_MAX,
)

Session = Connection[Any]
Result = TypeVar("Result")


class Retry(Exception):
    """The transaction must be tried again: somebody else changed what it had read."""


class Engine:
    """A pool of connections. Thread-safe. It connects when it must, so an outage heals by itself."""

    def __init__(self, url: str) -> None:
        """`url`: `postgresql://user:password@host/database`. Nothing is connected yet. Raises BadConfig."""
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise BadConfig("SENSORKEEP_TSDB_URL is not a URL such as postgresql://user@host/database") from None
        self._url = url
        self._closed = False
        self._pool = sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_size=POSTGRES_CONNECTIONS_KEPT,
            max_overflow=POSTGRES_CONNECTIONS_MAX - POSTGRES_CONNECTIONS_KEPT,
            pool_timeout=POSTGRES_CONNECT_SECONDS_MAX,
            pool_pre_ping=True,
            pool_use_lifo=True,
        )

    def run(self, work: Callable[[Session], Result]) -> Result:
        """Do `work` in one transaction, durable when it returns; again where it met somebody else's (bounded).

        Raises Unavailable, Corrupt, Poisoned, or what `work` raises; nothing is changed then.
        """
        attempt = 1
        while True:
            try:
                with self.session() as session, session.transaction():
                    return work(session)
            except (Retry, errors.SerializationFailure, errors.DeadlockDetected) as error:
                if attempt == POSTGRES_ATTEMPTS_MAX:
                    raise Unavailable(f"the time series store is too busy: {error}") from error
                attempt += 1

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A transaction to read with, all of one moment."""
        with self.session() as session, session.transaction():
            session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield session

    @contextlib.contextmanager
    def session(self, *, autocommit: bool = False) -> Iterator[Session]:
        """A connection; its errors are translated, but for those that `run` tries again."""
        if self._closed:
            raise Unavailable("the time series store is closed")
        with translated():
            pooled = self._pool.raw_connection()
            session: Session = pooled.driver_connection  # type: ignore[assignment]
            try:
                session.autocommit = True  # transactions begin where the code says so
                yield session
            except BaseException:
                if session.closed:
                    pooled.invalidate()
                raise
            finally:
                if not session.closed and session.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    pooled.invalidate()
                pooled.close()

    def close(self) -> None:
        """Release every connection. Idempotent."""
        self._closed = True
        self._pool.dispose()

    def _connect(self) -> Session:
        return psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=POSTGRES_CONNECT_SECONDS_MAX,
            tcp_user_timeout=1000 * POSTGRES_LOCK_SECONDS_MAX,
            application_name="sensorkeep",
            options=f"-c TimeZone=UTC -c search_path=telemetry,public -c lock_timeout={POSTGRES_LOCK_SECONDS_MAX}s"
            f" -c statement_timeout={POSTGRES_STATEMENT_SECONDS_MAX}s -c client_min_messages=warning -c jit=off",
        )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Errors of the database as ours, within the block."""
    try:
        yield
    except (errors.SerializationFailure, errors.DeadlockDetected):
        raise
    except (psycopg.Error, sa.exc.SQLAlchemyError) as error:
        raise meaning(error) from error


def meaning(error: Exception) -> SensorkeepError:
    """What an error of the driver means to the caller. The message leaves out the statement and its parameters."""
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None)
    said = str(getattr(getattr(original, "diag", None), "message_primary", None) or original).strip()
    detail = f"the time series store failed: {said}"
    if isinstance(original, errors.DiskFull):
        return Unavailable(detail, code="disk_full")
    if state in ("XX001", "XX002"):
        return Corrupt(f"the time series store is damaged ({said}): restore it from a backup")
    if isinstance(original, errors.InsufficientPrivilege):
        return BadConfig(f"the user of SENSORKEEP_TSDB_URL lacks a privilege: {said}")
    if isinstance(original, psycopg.DataError):
        return Poisoned(f"the time series store cannot hold a value: {said}")
    if isinstance(original, psycopg.IntegrityError):
        return Conflict(detail)
    return Unavailable(detail, code="dependency_down")
