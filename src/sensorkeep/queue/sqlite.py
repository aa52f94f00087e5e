"""The claim queue in a SQLite file, with group commit: callers that arrive together share one transaction and one sync.

Deliveries are counted so that a claim that crashes the process still reaches its limit: the count is written before
the claim is handed out. It has to survive the process and not the power, so that write asks for no sync.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from sensorkeep.clock import Clock
from sensorkeep.errors import Corrupt, InvalidInput, SensorkeepError, Unavailable
from sensorkeep.limits import (
    FETCH_BYTES_MAX,
    QUEUE_CHECKED_BYTES_MAX,
    QUEUE_FREE_PAGES_MAX,
    QUEUE_LOG_BYTES_MAX,
    QUEUE_PAGES_FREED_MAX,
)
from sensorkeep.model import Claim
from sensorkeep.queue.base import Delivery, QueueDepth
from sensorkeep.queue.group_commit import Change, GroupCommit

log = structlog.get_logger(__name__)

_COLUMNS = "c.seq, c.readings, c.claim, coalesce(r.attempts, c.seq <= (SELECT delivered_through FROM state))"
_SELECT = f"SELECT {_COLUMNS} FROM claims c LEFT JOIN redelivered r USING (seq)"  # noqa: S608 - constants only
_SELECT_ONE = f"{_SELECT} WHERE c.seq = ?"
_SELECT_NEXT = f"{_SELECT} WHERE c.seq >= ? ORDER BY c.seq"
_INSERT = "INSERT INTO claims (seq, readings, received_us, claim) VALUES (?, ?, ?, ?)"
_COUNT_DELIVERY = (
    "INSERT INTO redelivered SELECT seq, ?2 FROM claims WHERE seq = ?1 "
    "ON CONFLICT (seq) DO UPDATE SET attempts = excluded.attempts"
)
_SET_ASIDE = "INSERT INTO damaged SELECT seq, readings, received_us, claim, ? FROM claims WHERE seq = ?"
_STATE = (
    "SELECT max(last_seq, coalesce((SELECT max(seq) FROM claims), 0)), removed, delivered_through, "
    "(SELECT received_us FROM claims ORDER BY seq LIMIT 1) FROM state"
)

_CHECKED = b"\xc1"
"""Stands before the CRC-32 of a claim and the claim: SQLite would not notice a flipped bit. No MessagePack begins so;
the claims of the first release have no checksum."""
_HEAD_BYTES = len(_CHECKED) + 4

_DAMAGED_FILE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _Row(NamedTuple):
    """A claim as read for delivery; `claim` is None where it does not decode. `attempts` counts this delivery."""

    seq: int
    claim: Claim | None
    attempts: int


class SqliteClaimQueue:
    """A ClaimQueue in the file `path`, which one process at a time has open. Raises Corrupt where it is damaged.

    `token` is the claim's number in the file. A claim that does not read back is set aside and counted; see `damaged`.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Claim)

        self._closed = False
        self._open()

        # What is out. Claims numbered below `_next_seq` are taken, released, or gone.
        self._state = threading.Condition()
        self._next_seq = 0
        self._taken: set[int] = set()
        self._released: set[int] = set()
        self._wakes = 0
        self._taking = threading.Lock()
        """Held by the one thread that uses the reader."""

        # Only the thread that leads a group touches the writer and the fields up to `_free_pages`.
        self._last_seq, self._removed, self._delivered_through, _ = self._query(_STATE)[0]
        self._level = ""
        self._free_pages = 0
        self._committed_seq = self._last_seq
        self._group = GroupCommit(self._transact)

    # --- the contract ---

    def publish(self, claims: Sequence[Claim]) -> None:
        rows = [(claim.readings, claim.received_us, self._encode(claim)) for claim in claims]
        if not rows:
            return

        def insert(connection: sqlite3.Connection) -> None:
            first = self._last_seq + 1
            connection.executemany(_INSERT, ((first + i, *row) for i, row in enumerate(rows)))
            self._last_seq += len(rows)

        self._group.commit(Change(insert, durable=True))

    def fetch(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Delivery]:
        deadline = self._clock.monotonic() + wait_seconds
        with self._state:
            wakes = self._wakes
        while True:
            remaining = deadline - self._clock.monotonic()
            with self._state:
                self._state.wait_for(lambda: self._closed or self._wakes != wakes or self._waits(), remaining)
                if self._closed or not self._waits():
                    return []
            try:
                with self._taking:
                    deliveries = self._take(max_claims, max_readings)
            except Unavailable:
                if self._closed:
                    return []
                raise
            if deliveries:  # else another fetch was first, or all of them were damaged
                return deliveries

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        tokens = [delivery.token for delivery in deliveries]
        if not tokens:
            return

        def delete(connection: sqlite3.Connection) -> None:
            rows = [(token,) for token in tokens]
            self._removed += connection.executemany("DELETE FROM claims WHERE seq = ?", rows).rowcount
            connection.executemany("DELETE FROM redelivered WHERE seq = ?", rows)
            self._free_pages = connection.execute("PRAGMA freelist_count").fetchone()[0]

        self._group.commit(Change(delete, durable=True))
        with self._state:
            self._taken.difference_update(tokens)
            self._released.difference_update(tokens)
        if self._free_pages > QUEUE_FREE_PAGES_MAX:
            self._group.commit(Change(_free_pages, durable=False))

    def release(self, deliveries: Sequence[Delivery]) -> None:
        with self._state:
            for delivery in deliveries:
                if delivery.token in self._taken:
                    self._taken.remove(delivery.token)
                    self._released.add(delivery.token)
            self._state.notify_all()

    def depth(self) -> QueueDepth:
        with self._taking:
            last_seq, removed, _, oldest_us = self._query(_STATE)[0]
        return QueueDepth(last_seq - removed, oldest_us)

    def wake(self) -> None:
        with self._state:
            self._wakes += 1
            self._state.notify_all()

    def check(self) -> None:
        now_us = self._clock.now_us()

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE state SET checked_us = ?", (now_us,))

        self._group.commit(Change(write, durable=True))

    def damaged(self) -> int:
        """How many claims were set aside because they did not read back."""
        with self._taking:
            return int(self._query("SELECT count(*) FROM damaged")[0][0])

    def close(self) -> None:
        with self._taking:
            self._closed = True
        with self._state:
            self._state.notify_all()
        self._group.close()
        with self._taking:
            self._reader.close()
            self._writer.close()

    # --- taking ---

    def _waits(self) -> bool:
        return bool(self._released) or self._next_seq <= self._committed_seq

    def _take(self, max_claims: int, max_readings: int) -> list[Delivery]:
        """Hand out what waits now; may be empty. Claims that do not decode are set aside on the way."""
        with self._state:
            again = sorted(self._released)[:max_claims]
            first_new, through = self._next_seq, self._committed_seq
        rows, exhausted = self._select(again, first_new, max_claims, max_readings)
        if rows:
            self._group.commit(self._hand_out(rows))
            for row in rows:
                if row.claim is None:
                    log.error("claim_damaged", file=str(self._path), number=row.seq)
        with self._state:
            examined = {row.seq for row in rows}
            self._released -= examined
            if exhausted:
                examined.add(through)
                self._released.difference_update(again)  # what was not found was acknowledged meanwhile
            self._next_seq = max(self._next_seq, max(examined, default=-1) + 1)
            self._taken.update(row.seq for row in rows if row.claim is not None)
        return [Delivery(row.claim, row.seq, row.attempts) for row in rows if row.claim is not None]

    def _select(
        self, again: Sequence[int], first_new: int, max_claims: int, max_readings: int
    ) -> tuple[list[_Row], bool]:
        """The next rows within the bounds, and whether there were no more."""
        rows: list[_Row] = []
        readings = size = 0
        with closing(self._stored(again, first_new)) as stored:
            for seq, row_readings, content, earlier in stored:
                readings += row_readings
                size += len(content)
                fits = len(rows) < max_claims and readings <= max_readings and size <= FETCH_BYTES_MAX
                if rows and not fits:
                    return rows, False
                rows.append(_Row(seq, self._decode(content), earlier + 1))
        return rows, True

    def _stored(self, again: Sequence[int], first_new: int) -> Generator[tuple[int, int, bytes, int], None, None]:
        """Rows numbered `again`, then those from `first_new` on, read as they are asked for."""
        self._check_open()
        cursor = self._reader.cursor()
        try:
            for seq in again:
                yield from cursor.execute(_SELECT_ONE, (seq,)).fetchall()
            yield from cursor.execute(_SELECT_NEXT, (first_new,))
        except sqlite3.Error as error:
            raise self._explain(error) from error
        finally:
            cursor.close()  # ends the snapshot, which would keep the log from being cut

    def _encode(self, claim: Claim) -> bytes:
        content = self._encoder.encode(claim)
        return b"".join((_CHECKED, zlib.crc32(content).to_bytes(4, "big"), content))

    def _decode(self, content: bytes) -> Claim | None:
        if content.startswith(_CHECKED):
            checksum, content = content[len(_CHECKED) : _HEAD_BYTES], content[_HEAD_BYTES:]
            if zlib.crc32(content) != int.from_bytes(checksum, "big"):
                return None
        try:
            return self._decoder.decode(content)
        except msgspec.DecodeError:
            return None

    def _hand_out(self, rows: Sequence[_Row]) -> Change:
        """Count these deliveries, and set aside those of them that do not decode."""
        through = max(row.seq for row in rows)
        again = [(row.seq, row.attempts) for row in rows if row.attempts > 1]
        damaged = [row.seq for row in rows if row.claim is None]
        now_us = self._clock.now_us()

        def count(connection: sqlite3.Connection) -> None:
            if through > self._delivered_through:
                connection.execute("UPDATE state SET delivered_through = ?", (through,))
                self._delivered_through = through
            connection.executemany(_COUNT_DELIVERY, again)
            for seq in damaged:
                connection.execute(_SET_ASIDE, (now_us, seq))
                self._removed += connection.execute("DELETE FROM claims WHERE seq = ?", (seq,)).rowcount

        return Change(count, durable=bool(damaged))

    # --- writing ---

    def _transact(self, group: Sequence[Change]) -> None:
        try:
            self._write(group)
        except (sqlite3.Error, OverflowError) as error:
            raise self._explain(error) from error

    def _write(self, group: Sequence[Change]) -> None:
        before = (self._last_seq, self._removed, self._delivered_through)
        level = "FULL" if any(change.durable for change in group) else "NORMAL"
        self._writer.rollback()  # of what an earlier rollback could not
        if level != self._level:
            self._writer.execute(f"PRAGMA synchronous = {level}")
            self._level = level
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for change in group:
                change.apply(self._writer)
            if self._removed != before[1]:
                self._writer.execute("UPDATE state SET removed = ?, last_seq = ?", (self._removed, self._last_seq))
            self._writer.execute("COMMIT")
        except BaseException:
            self._last_seq, self._removed, self._delivered_through = before
            self._writer.rollback()
            raise
        with self._state:
            self._committed_seq = self._last_seq
            self._state.notify_all()

    # --- the file ---

    def _open(self) -> None:
        try:
            with ExitStack() as opened:
                self._writer = opened.enter_context(closing(self._connect()))
                self._reader = opened.enter_context(closing(self._connect()))
                _configure(self._writer)
                _configure(self._reader)
                self._writer.executescript(files(__package__).joinpath("sqlite.sql").read_text())
                self._check_pages()
                self._sync_folder()
                opened.pop_all()
        except sqlite3.Error as error:
            raise self._explain(error) from error
        except OSError as error:
            raise Unavailable(f"the queue {self._path} cannot be opened: {error}", code="dependency_down") from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)

    def _sync_folder(self) -> None:
        """The name of a new file must be durable, too."""
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _check_pages(self) -> None:
        if self._path.stat().st_size <= QUEUE_CHECKED_BYTES_MAX:
            answer = self._writer.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                raise self._damage(answer)

    def _query(self, statement: str) -> list[tuple[Any, ...]]:
        self._check_open()
        try:
            return self._reader.execute(statement).fetchall()
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"the queue {self._path} is closed")

    def _explain(self, error: sqlite3.Error | OverflowError) -> SensorkeepError:
        if isinstance(error, OverflowError):
            return InvalidInput(f"a number of the claim is past 64 bits: {error}")
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code, without the detail
        if code in _DAMAGED_FILE:
            return self._damage(str(error))
        if code == sqlite3.SQLITE_FULL:
            return Unavailable(f"no room is left for the queue {self._path}", code="disk_full")
        return Unavailable(f"the queue {self._path} failed: {error}", code="dependency_down")

    def _damage(self, what: str) -> Corrupt:
        return Corrupt(f"the queue file {self._path} is damaged ({what}): restore it, or move it away to start anew")


def _configure(connection: sqlite3.Connection) -> None:
    for pragma in (
        "auto_vacuum = INCREMENTAL",  # has an effect only before the first write
        "journal_mode = WAL",
        "synchronous = FULL",
        "fullfsync = ON",  # macOS: past the drive's cache
        f"journal_size_limit = {QUEUE_LOG_BYTES_MAX}",
        "secure_delete = OFF",  # payloads are kept elsewhere anyway; zeroing them would double the writing
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _free_pages(connection: sqlite3.Connection) -> None:
    """Give free pages back to the file system, a bounded number of them."""
    for _ in range(QUEUE_PAGES_FREED_MAX):  # one by one: the driver takes one step of a pragma that has no columns
        connection.execute("PRAGMA incremental_vacuum(1)")
