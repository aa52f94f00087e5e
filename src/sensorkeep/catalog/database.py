"""The catalog's database: connections, transactions, and what its errors mean.

One code path serves SQLite and PostgreSQL. What differs is here and in `postgresql.py`: how a transaction begins, which
insert knows `ON CONFLICT`, and how a driver names a full disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import StaticPool

from sensorkeep.breaker import Breaker
from sensorkeep.catalog import migration
from sensorkeep.catalog.prepared import ByRow, Prepared, insert_recordset
from sensorkeep.clock import SystemClock
from sensorkeep.errors import BadConfig, Conflict, Corrupt, Poisoned, SensorkeepError, Unavailable
from sensorkeep.limits import (
    CATALOG_ANSWER_SECONDS_MAX,
    CATALOG_ATTEMPTS_MAX,
    CATALOG_BUSY_SECONDS,
    CATALOG_CONNECTIONS_KEPT,
    CATALOG_CONNECTIONS_MAX,
    CATALOG_PAUSE_SECONDS,
)

log = structlog.get_logger(__name__)

AnyRow = sa.Row[*tuple[Any, ...]]
"""A result row of any columns."""

SchemaAction = Literal["migrate", "check", "ignore"]
Result = TypeVar("Result")


class _Contended(Unavailable):
    """The transaction met another one, and PostgreSQL undid it for that: it may be tried again at once."""


class Database:
    """An open database. Thread-safe; made by `open_database`.

    `write` is one transaction, durable when the block ends; `read` sees what is committed. On SQLite the writers of
    this process take turns by a lock, so that none fails because another one is busy. PostgreSQL orders them by the
    rows they change, and may undo one of two that wait for each other: `transact` tries again then.

    No call waits long for a server that is down: it is found out once a CATALOG_PAUSE_SECONDS, by one caller.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.dialect = engine.dialect
        self._name = f"the catalog's database {engine.url.database or 'in memory'}"
        self._closed = False
        self._turn = threading.Lock()
        self._durable: sa.Connection | None = None
        self._relaxed: sa.Connection | None = None
        # All threads share the one connection of a database in memory, so its readers take turns too.
        self._in_memory = isinstance(engine.pool, StaticPool)
        self._breaker = Breaker(
            SystemClock().monotonic, pause_seconds=CATALOG_PAUSE_SECONDS, try_seconds_max=2 * CATALOG_ANSWER_SECONDS_MAX
        )
        if self.is_sqlite:
            with self._translated():
                self._open_writers()

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite (else PostgreSQL)."""
        return self.dialect.name == "sqlite"

    @contextmanager
    def write(self, *, relaxed: bool = False) -> Iterator[sa.Connection]:
        """A transaction; an exception in the block undoes it. Durable at the end of the block.

        `relaxed`: it may be lost by a power cut (never torn), which saves the wait for the disk. Raises
        Unavailable, Corrupt, Conflict where a uniqueness rule is broken, or Poisoned for a value no column can hold.
        """
        writer = self._relaxed if relaxed else self._durable
        with self._translated():
            if writer is None:
                with self._begun(relaxed) as connection:
                    yield connection
            else:
                with self._turn, writer.begin():
                    yield writer

    def transact(self, work: Callable[[sa.Connection], Result], *, relaxed: bool = False) -> Result:
        """Do `work` in one transaction as `write` has it; again (bounded) where PostgreSQL undid it for another one.

        `work` must change nothing but the database.
        """
        for _ in range(CATALOG_ATTEMPTS_MAX - 1):
            try:
                with self.write(relaxed=relaxed) as connection:
                    return work(connection)
            except _Contended:
                continue
        with self.write(relaxed=relaxed) as connection:
            return work(connection)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection to read with; each statement sees one moment. Raises Unavailable or Corrupt."""
        if self._in_memory:
            with self.write() as connection:
                yield connection
        else:
            with self._translated(), self.engine.connect() as connection:
                yield connection

    @contextmanager
    def alone(self) -> Iterator[sa.Connection]:
        """A connection of PostgreSQL on which each statement is a transaction of its own, and one message. Raises as
        `write` does."""
        assert not self.is_sqlite
        with self._translated(), self.engine.connect() as connection:
            yield connection

    def insert(self, table: sa.Table) -> sqlite.Insert:
        """An insert into the table with `on_conflict_do_update` and `on_conflict_do_nothing`."""
        if self.is_sqlite:
            return sqlite.insert(table)
        from sqlalchemy.dialects import postgresql  # 40 ms that SQLite need not pay

        # Both classes take the same calls; the type of one serves for both.
        return postgresql.insert(table)  # type: ignore[return-value]

    def prepare_update(self, statement: sa.Update, names: Sequence[str]) -> Prepared:
        """Compile an update; rows are then tuples in the order of `names`, its bound parameters."""
        return ByRow(statement, self.dialect, names)

    def prepare_insert(
        self,
        table: sa.Table,
        names: Sequence[str],
        conflict: Callable[[sqlite.Insert], sa.Insert] = lambda insert: insert,
        constants: Mapping[str, sa.ColumnElement[Any]] = MappingProxyType({}),
    ) -> Prepared:
        """Compile an insert of the columns `names`, the identity first, and of `constants`; `conflict` adds its
        ON CONFLICT."""
        if not self.is_sqlite:
            return insert_recordset(table, self.dialect, names, conflict, constants)
        insert = sqlite.insert(table).values({name: sa.bindparam(name) for name in names} | dict(constants))
        return ByRow(conflict(insert), self.dialect, names)

    def check(self) -> None:
        """Prove that a transaction could begin: raises Unavailable where it could not."""
        with self.write() as connection:
            connection.exec_driver_sql("SELECT 1")

    def close(self) -> None:
        """Release what is held. Idempotent."""
        with self._turn:
            self._closed = True
            for connection in {self._durable, self._relaxed} - {None}:
                assert connection is not None
                connection.close()
            self.engine.dispose()

    def _open_writers(self) -> None:
        self._durable = self.engine.connect().execution_options(sensorkeep_begin="BEGIN IMMEDIATE")
        if self._in_memory:
            self._relaxed = self._durable
            return
        self._relaxed = self.engine.connect().execution_options(sensorkeep_begin="BEGIN IMMEDIATE")
        driver: Any = self._relaxed.connection.driver_connection
        driver.execute("PRAGMA synchronous = NORMAL")

    @contextmanager
    def _begun(self, relaxed: bool) -> Iterator[sa.Connection]:
        from sensorkeep.catalog.postgresql import BEGIN, BEGIN_RELAXED

        with self.engine.connect() as connection:
            begin = BEGIN_RELAXED if relaxed else BEGIN
            with connection.execution_options(sensorkeep_begin=begin).begin():
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self._closed:
            raise Unavailable("the catalog is closed", code="dependency_down")
        if not self._breaker.admit():
            raise Unavailable(f"{self._name} cannot be reached", code="dependency_down")
        try:
            yield
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            self._note(error)
            raise _meaning(error, self._name) from error
        except (OverflowError, UnicodeEncodeError) as error:  # a driver's, of a number or text it cannot hold
            self._note(None)
            raise Poisoned(f"the catalog cannot hold a value: {error}") from error
        except sa.exc.ResourceClosedError as error:
            raise Unavailable("the catalog is closed", code="dependency_down") from error
        except BaseException:
            self._note(None)
            raise
        self._note(None)

    def _note(self, error: sa.exc.SQLAlchemyError | None) -> None:
        """Remember whether the server was reached; `error` is what came of a call."""
        # Where all connections are in use, that says nothing of the server.
        all_in_use = isinstance(error, sa.exc.TimeoutError)
        if not (_is_lost(error) or (all_in_use and not self._breaker.closed)):
            if self._breaker.succeeded():
                log.info("catalog_reached_again")
        elif self._breaker.failed():
            log.warning("catalog_lost", cause=_cause(error))


def open_database(url: str, *, schema: SchemaAction | None = None) -> Database:
    """Open `sqlite:///path`, `sqlite://` (in memory) or `postgresql://…`.

    `schema`: "migrate" brings the tables to this version, "check" refuses any other version, "ignore" looks at
    nothing. By default SQLite is migrated and PostgreSQL checked, since there other processes may be at work.
    Raises BadConfig (the URL, or the version), Unavailable or Corrupt.
    """
    database = Database(_make_engine(url))
    try:
        action = schema or ("migrate" if database.is_sqlite else "check")
        if action == "migrate":
            migrate(database)
        elif action == "check":
            _require_head(database)
    except Unavailable as error:
        database.close()
        # Later such a message goes to clients, whom addresses do not concern; here it goes to the operator.
        raise Unavailable(f"{error.detail}: {_cause(error.__cause__)}", code=error.code) from error
    except BaseException:
        database.close()
        raise
    return database


def _require_head(database: Database) -> None:
    current, head = schema_status(database)
    if current == head:
        return
    if current is None:
        raise BadConfig("the catalog has no tables yet; run: sensorkeep migrate upgrade")
    raise BadConfig(
        f"the catalog's tables are at revision {current}, this version needs {head}; run: sensorkeep migrate upgrade"
    )


def migrate(database: Database) -> None:
    """Bring the tables to this version. Idempotent; one transaction; of several processes one at a time. Raises
    BadConfig where they are newer."""
    if schema_status(database)[0] == migration.HEAD:
        return
    with database.write() as connection, _patience(connection):
        migration.upgrade(connection)


@contextmanager
def _patience(connection: sa.Connection) -> Iterator[None]:
    if connection.dialect.name == "sqlite":
        yield
        return
    from sensorkeep.catalog.postgresql import patience

    with patience(connection):
        yield


def schema_status(database: Database) -> tuple[str | None, str]:
    """(revision of the tables, None where there are none; revision this version needs)."""
    with database.read() as connection:
        return migration.stored_revision(connection), migration.HEAD


def _make_engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        kind = parsed.get_backend_name()
        if kind == "sqlite":
            return _sqlite_engine(parsed)
        if kind in ("postgresql", "postgres"):
            from sensorkeep.catalog.postgresql import make_engine  # the driver's 60 ms are not for SQLite

            return make_engine(parsed)
    except (sa.exc.ArgumentError, ModuleNotFoundError, ValueError):
        pass
    # No part of it is shown: what does not read as a URL may hold a password anywhere.
    raise BadConfig(
        "the catalog's URL (SENSORKEEP_CATALOG_URL) cannot be used; it is sqlite:///path or"
        " postgresql://user:password@host/database, with %XX for special characters in the password"
    ) from None


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    arguments: dict[str, Any] = {
        "isolation_level": None,  # the driver begins nothing by itself; the listener below does
        "check_same_thread": False,
        "timeout": CATALOG_BUSY_SECONDS,
    }
    if url.database in (None, "", ":memory:"):
        engine = sa.create_engine(url, connect_args=arguments, poolclass=StaticPool)
    else:
        engine = sa.create_engine(
            url,
            connect_args=arguments,
            pool_size=CATALOG_CONNECTIONS_KEPT,
            max_overflow=CATALOG_CONNECTIONS_MAX - CATALOG_CONNECTIONS_KEPT,
            pool_reset_on_return=None,  # a reader is never in a transaction, so there is nothing to roll back
        )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        statement = connection.get_execution_options().get("sensorkeep_begin")
        if statement is not None:
            connection.exec_driver_sql(statement)

    return engine


_DISK_FULL = {"SQLITE_FULL", "53100"}
_DAMAGED = {"SQLITE_CORRUPT", "SQLITE_NOTADB", "XX001", "XX002"}
_MET_ANOTHER = {"40001", "40P01"}
"""serialization_failure and deadlock_detected."""


def _meaning(error: sa.exc.SQLAlchemyError, database: str) -> SensorkeepError:
    """What a driver's error of `database` means to the caller. The message leaves out the statement, its parameters,
    and addresses."""
    original = getattr(error, "orig", None)
    # An extended SQLite code such as SQLITE_CORRUPT_INDEX begins with the name of its family.
    name = str(getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None) or "")
    family = "_".join(name.split("_")[:2])
    if _is_lost(error):
        return Unavailable(f"{database} cannot be reached", code="dependency_down")
    said = _said(error)
    if family in _MET_ANOTHER:
        return _Contended(f"{database} is too busy: {said}", code="dependency_down")
    if family in _DISK_FULL:
        return Unavailable(f"{database} failed: {said}", code="disk_full")
    if family in _DAMAGED:
        return Corrupt(f"{database} is damaged ({said}): restore it from a backup")
    if isinstance(error, sa.exc.DataError):
        return Poisoned(f"the catalog cannot hold a value: {said}")
    if isinstance(error, sa.exc.IntegrityError):
        return Conflict("the catalog holds one of that identity already", code="already_exists")
    return Unavailable(f"{database} failed: {said}", code="dependency_down")


def _is_lost(error: sa.exc.SQLAlchemyError | None) -> bool:
    """Whether PostgreSQL was not reached, or did not answer: other calls would fail as well. An error that it names
    itself has a code."""
    original: Any = getattr(error, "orig", None)
    return isinstance(error, sa.exc.OperationalError) and hasattr(original, "sqlstate") and original.sqlstate is None


def _said(error: sa.exc.SQLAlchemyError) -> str:
    """What the driver says. Of PostgreSQL only the message itself: its details quote values."""
    original = getattr(error, "orig", None)
    primary = getattr(getattr(original, "diag", None), "message_primary", None)
    return str(primary or original or error).strip()


def _cause(error: BaseException | None) -> str:
    """A driver's own words, for operators."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
