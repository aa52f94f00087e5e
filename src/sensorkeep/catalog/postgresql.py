"""The catalog's database on PostgreSQL: connections whose waits are bounded, transactions, texts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry

from sensorkeep.limits import (
    CATALOG_ANSWER_SECONDS_MAX,
    CATALOG_CONNECT_SECONDS_MAX,
    CATALOG_IDLE_TRANSACTION_SECONDS_MAX,
    CATALOG_LOCK_SECONDS_MAX,
    CATALOG_MIGRATION_SECONDS_MAX,
    CATALOG_PING_SECONDS,
    CATALOG_POSTGRES_CONNECTIONS_KEPT,
    CATALOG_POSTGRES_CONNECTIONS_MAX,
    CATALOG_STATEMENT_SECONDS_MAX,
)

BEGIN = "BEGIN"
BEGIN_RELAXED = "BEGIN; SET LOCAL synchronous_commit TO off"
"""In one message. The commit does not wait for the disk; a crash of the server may lose it, never tear it."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that does not wait for ever: a server that hangs keeps its end of the connection open."""

    answer_seconds_max: float = CATALOG_ANSWER_SECONDS_MAX

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.answer_seconds_max if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                # The answer did not come; whatever it is, nobody may read it as the answer to the next question.
                self.pgconn.finish()
            raise


@contextmanager
def patience(connection: sa.Connection) -> Iterator[None]:
    """Within the block the transaction of `connection` may wait for a migration and be one itself."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, BoundedConnection)
    for name in ("lock_timeout", "statement_timeout"):
        connection.exec_driver_sql(f"SET LOCAL {name} TO '{CATALOG_MIGRATION_SECONDS_MAX}s'")
    driver.answer_seconds_max = CATALOG_MIGRATION_SECONDS_MAX
    try:
        yield
    finally:
        del driver.answer_seconds_max  # that of the class holds again


class _TextDumper(StrDumperUnknown):
    """PostgreSQL's text holds every character but NUL, for which U+FFFD stands, as in the time series store."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\x00", "\N{REPLACEMENT CHARACTER}") if "\x00" in obj else obj)


def make_engine(url: sa.URL) -> sa.Engine:
    """An engine; nothing is connected yet. Reads begin no transaction, writes begin theirs by the option
    `sensorkeep_begin`."""
    settings = {
        "lock_timeout": f"{CATALOG_LOCK_SECONDS_MAX}s",
        "statement_timeout": f"{CATALOG_STATEMENT_SECONDS_MAX}s",
        "idle_in_transaction_session_timeout": f"{CATALOG_IDLE_TRANSACTION_SECONDS_MAX}s",
        "synchronous_commit": "on",  # whatever the server is set to: a write is durable when it returns
        "jit": "off",  # what is planned is short; compiling it takes longer than running it
    }
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        pool_size=CATALOG_POSTGRES_CONNECTIONS_KEPT,
        max_overflow=CATALOG_POSTGRES_CONNECTIONS_MAX - CATALOG_POSTGRES_CONNECTIONS_KEPT,
        pool_timeout=CATALOG_CONNECT_SECONDS_MAX,
        pool_use_lifo=True,
        connect_args={
            "connect_timeout": CATALOG_CONNECT_SECONDS_MAX,
            # A peer that is gone without a word is found out in about as long as one that hangs.
            "tcp_user_timeout": 1000 * CATALOG_ANSWER_SECONDS_MAX,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": "sensorkeep-catalog",
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, arguments: Any, parameters: Any) -> BoundedConnection:
        connection = BoundedConnection.connect(*arguments, **parameters)
        connection.adapters.register_dumper(str, _TextDumper)
        return connection

    @event.listens_for(engine, "checkin")
    def note_use(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        # What was used a moment ago is not asked first: that would be half of what many a call costs.
        if time.monotonic() - record.info.get("used_at", 0.0) < CATALOG_PING_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise sa.exc.DisconnectionError from error  # the pool takes another one

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        statement = connection.get_execution_options().get("sensorkeep_begin")
        if statement is not None:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    return engine
