"""The DuckDB database of one store: opening, one writing connection, cursors for reads, and its errors as ours."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sensorkeep.errors import Corrupt, DataDirInUse, Overloaded, SensorkeepError, Unavailable
from sensorkeep.limits import MIB

_CHECKPOINT_THRESHOLD = "32MB"
"""Size of the write-ahead log that starts a checkpoint: larger ones hold up a write longer, and a reopen after a crash;
with smaller ones the same blocks are written more often."""

_CHECKPOINT_AT_ONCE_BYTES_MAX = 8 * MIB
"""With a longer log an asked-for checkpoint is left to the threshold above; it would hold up writes."""

_CURSORS_KEPT_MAX = 32
"""Idle cursors kept for the next reads."""

_NO_SPACE = ("no space left on device", "disk quota exceeded", "enospc", "file too large")
_DAMAGED = (
    "corrupt database file",
    "not a valid duckdb database file",
    "could not read enough bytes",
    "checksum",
    "failed to deserialize",
)


def translate(error: duckdb.Error) -> Exception:
    """The error of ours that says what the caller can do; `error` itself where it can only be a mistake of ours."""
    text = str(error)
    lowered = text.lower()
    if "could not set lock on file" in lowered:
        return DataDirInUse(f"another process has opened the time series store: {text}")
    if any(words in lowered for words in _NO_SPACE):
        return Unavailable(f"no room for the time series store: {text}", code="disk_full", retry_after_seconds=30)
    if isinstance(error, duckdb.SerializationException) or any(words in lowered for words in _DAMAGED):
        return Corrupt(f"the time series store is damaged; restore it from a backup: {text}")
    if isinstance(error, duckdb.OutOfMemoryException):
        return Overloaded(f"the time series store needs more than SENSORKEEP_TSDB_MEMORY_BYTES: {text}")
    if isinstance(error, duckdb.InternalException):  # by what it was given: the same will fail again
        return SensorkeepError(f"the time series store failed: {text}")
    if isinstance(error, duckdb.OperationalError | duckdb.InternalError | duckdb.FatalException):
        return Unavailable(f"the time series store failed: {text}")
    return error


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Errors of DuckDB leave the block as errors of ours."""
    try:
        yield
    except duckdb.Error as error:
        told = translate(error)
        if told is error:
            raise
        raise told from error


class Engine:
    """One open database. `writing` is for the one writer; reads take a `snapshot` each, on any thread."""

    def __init__(self, path: Path | None, *, memory_limit_bytes: int, threads: int) -> None:
        """Open the file, or make it; None keeps all in memory.

        Raises DataDirInUse where another process has it, Corrupt where it does not read back, else Unavailable.
        """
        self._path = path
        self._config: dict[str, Any] = {
            "threads": threads,
            "memory_limit": f"{memory_limit_bytes // 1024}KiB",
            "preserve_insertion_order": False,
            "checkpoint_threshold": _CHECKPOINT_THRESHOLD,
        }
        if path is not None:
            self._config["temp_directory"] = str(path.with_name(path.name + ".tmp"))
        self._cursors: list[duckdb.DuckDBPyConnection] = []
        self._lock = threading.Lock()
        self._generation = 0
        self._closed = False
        self._connection = self._connect()
        self._broken = False
        """A fatal error closed the database and it could not be opened again yet."""

    @property
    def writing(self) -> duckdb.DuckDBPyConnection:
        """The connection of the one writer."""
        return self._connection

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @contextlib.contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A transaction of the writer: committed (and on disk) when the block ends, undone where it raises."""
        self._require_open()
        with translated():
            self._mend()
            try:
                self._connection.begin()
                yield self._connection
                self._connection.commit()
            except BaseException:
                self._undo()
                raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor in a transaction of its own: all statements of the block see the same moment."""
        self._require_open()
        with translated():
            self._mend()
            cursor, generation = self._take_cursor()
            try:
                cursor.begin()
                yield cursor
                cursor.commit()
            except BaseException:
                cursor.close()
                raise
            self._return_cursor(cursor, generation)

    def checkpoint(self) -> bool:
        """Write the log into the file, so that the room of what was dropped is used again. Not in a transaction.

        False where reads under way stood against it, or where the log is long, so that it would take a while and will
        come by itself soon: it can be done later as well.
        """
        self._require_open()
        if self._path is not None and _bytes_of(self._log_of(self._path)) > _CHECKPOINT_AT_ONCE_BYTES_MAX:
            return False
        with translated():
            try:
                self._connection.execute("CHECKPOINT")
            except duckdb.TransactionException:
                return False
            except (duckdb.FatalException, duckdb.InternalException):
                self._reopen()
                raise
        return True

    def disk_bytes(self) -> int:
        """Bytes of the file and its write-ahead log; 0 in memory."""
        if self._path is None:
            return 0
        return _bytes_of(self._path) + _bytes_of(self._log_of(self._path))

    def close(self) -> None:
        """Write everything into the file and let it go. Idempotent. Reads under way end first or raise Unavailable."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            cursors, self._cursors = self._cursors, []
        with translated():
            for cursor in cursors:
                cursor.close()
            self._connection.close()

    @staticmethod
    def _log_of(path: Path) -> Path:
        return path.with_name(path.name + ".wal")

    def _connect(self) -> duckdb.DuckDBPyConnection:
        with translated():
            connection = duckdb.connect(":memory:" if self._path is None else str(self._path), config=self._config)
            # Not possible in the config: the setting belongs to an extension that is loaded later.
            connection.execute("SET GLOBAL TimeZone = 'UTC'")
            return connection

    def _undo(self) -> None:
        """Roll back. A database that DuckDB gave up on after a failed sync is opened anew from what is on disk."""
        try:
            self._connection.rollback()
        except duckdb.TransactionException:
            pass  # the failed statement or commit has ended the transaction already
        except (duckdb.FatalException, duckdb.InternalException):
            self._reopen()

    def _reopen(self) -> None:
        if self._path is None:
            return  # nothing on disk to open; every later call says so with the database's own error
        with self._lock:
            self._generation += 1
            cursors, self._cursors = self._cursors, []
        for cursor in cursors:
            cursor.close()
        self._connection.close()
        self._broken = True
        self._mend()

    def _mend(self) -> None:
        """Open the database again where the last try to do so failed."""
        if self._broken:
            with self._lock:
                if self._broken:
                    self._connection = self._connect()
                    self._broken = False

    def _take_cursor(self) -> tuple[duckdb.DuckDBPyConnection, int]:
        with self._lock:
            self._require_open()
            if self._cursors:
                return self._cursors.pop(), self._generation
            return self._connection.cursor(), self._generation

    def _return_cursor(self, cursor: duckdb.DuckDBPyConnection, generation: int) -> None:
        with self._lock:
            if not self._closed and generation == self._generation and len(self._cursors) < _CURSORS_KEPT_MAX:
                self._cursors.append(cursor)
                return
        cursor.close()

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("the time series store is closed")


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # the log goes with every checkpoint


@contextlib.contextmanager
def registered(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table]) -> Iterator[None]:
    """Arrow tables as tables of `connection`, without a copy, inside the block.

    A block that raises leaves them: its transaction is over, and with it the names.
    """
    for name, table in tables.items():
        connection.register(name, table)
    yield
    for name in tables:
        connection.unregister(name)
