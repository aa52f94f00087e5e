"""What is particular to the claim queue in SQLite: groups, damage, a full disk, the size of its files."""

from __future__ import annotations

import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from sensorkeep.clock import SystemClock
from sensorkeep.errors import Corrupt, InvalidInput, Unavailable
from sensorkeep.limits import MIB, QUEUE_LOG_BYTES_MAX
from sensorkeep.model import Claim, WireFormat
from sensorkeep.queue.group_commit import Change, GroupCommit
from sensorkeep.queue.sqlite import SqliteClaimQueue

DEADLINE_SECONDS = 20.0
PAYLOAD = b'{"temperature": 21.5}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def queue(path: Path) -> Iterator[SqliteClaimQueue]:
    made = SqliteClaimQueue(path, SystemClock())
    yield made
    made.close()


def claim(name: str, *, received_us: int = 1, payload: bytes | None = None) -> Claim:
    return Claim(batch_id=name, wire_format=WireFormat.READINGS, received_us=received_us, readings=1, payload=payload)


def drain(queue: SqliteClaimQueue) -> list[str]:
    """Fetch and acknowledge all that waits; the names."""
    seen = []
    while deliveries := queue.fetch(500, 1_000_000, 0.0):
        seen += [delivery.claim.batch_id for delivery in deliveries]
        queue.ack(deliveries)
    return seen


class Groups:
    """A GroupCommit whose first transaction waits until the test has queued the others behind it."""

    def __init__(self, transact: Callable[[Sequence[Change]], None]) -> None:
        self.sizes: list[int] = []
        self.group = GroupCommit(self._record)
        self._transact = transact
        self._first_runs = threading.Event()
        self._go_on = threading.Event()

    def _record(self, changes: Sequence[Change]) -> None:
        self.sizes.append(len(changes))
        if len(self.sizes) == 1:
            self._first_runs.set()
            assert self._go_on.wait(DEADLINE_SECONDS)
        self._transact(changes)

    def run(self, callers: Sequence[Callable[[], None]]) -> None:
        """Let the first caller commit alone, and the others while it does."""
        threads = [threading.Thread(target=caller) for caller in callers]
        threads[0].start()
        assert self._first_runs.wait(DEADLINE_SECONDS)
        for thread in threads[1:]:
            thread.start()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(self.group._waiting) < len(callers) - 1:
            assert time.monotonic() < deadline
        self._go_on.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()


def apply_all(changes: Sequence[Change]) -> None:
    connection = sqlite3.connect(":memory:")
    for change in changes:
        change.apply(connection)
    connection.close()


def test_changes_that_arrive_during_a_commit_share_the_next_one() -> None:
    done: list[int] = []
    groups = Groups(apply_all)

    def commit(number: int) -> None:
        groups.group.commit(Change(lambda _: done.append(number), durable=True))

    groups.run([lambda n=n: commit(n) for n in range(10)])  # type: ignore[misc]
    assert groups.sizes == [1, 9]
    assert sorted(done) == list(range(10))


def test_a_bad_change_fails_alone_and_only_its_caller_learns_of_it() -> None:
    failed: list[int] = []
    groups = Groups(apply_all)

    def commit(number: int) -> None:
        def apply(_: sqlite3.Connection) -> None:
            if number == 3:
                raise Unavailable("bad change")

        try:
            groups.group.commit(Change(apply, durable=True))
        except Unavailable:
            failed.append(number)

    groups.run([lambda n=n: commit(n) for n in range(6)])  # type: ignore[misc]
    assert groups.sizes == [1, 5, 1, 1, 1, 1, 1]
    assert failed == [3]


def test_where_the_leader_is_interrupted_the_others_learn_that_it_failed_and_the_next_commit_works() -> None:
    def interrupt(_: sqlite3.Connection) -> None:
        raise KeyboardInterrupt

    group = GroupCommit(apply_all)
    with pytest.raises(KeyboardInterrupt):
        group.commit(Change(interrupt, durable=True))
    group.commit(Change(lambda _: None, durable=True))
    group.close()
    with pytest.raises(Unavailable):
        group.commit(Change(lambda _: None, durable=True))


def test_a_claim_that_the_file_cannot_hold_is_refused_and_others_of_its_group_go_on(queue: SqliteClaimQueue) -> None:
    groups = Groups(queue._transact)
    queue._group = groups.group
    refused: list[str] = []

    def publish(number: int) -> None:
        # One past the largest number that SQLite holds, though msgpack can write it.
        received_us = 2**63 if number % 4 == 0 else number
        try:
            queue.publish([claim(str(number), received_us=received_us)])
        except InvalidInput:
            refused.append(str(number))

    groups.run([lambda n=n: publish(n) for n in range(1, 12)])  # type: ignore[misc]
    assert groups.sizes == [1, 10] + [1] * 10
    assert sorted(refused) == ["4", "8"]
    assert queue.depth().claims == 9
    assert sorted(drain(queue), key=int) == ["1", "2", "3", "5", "6", "7", "9", "10", "11"]
    assert queue.depth() == (0, None)


def test_a_publish_of_many_claims_is_all_or_none(queue: SqliteClaimQueue) -> None:
    with pytest.raises(InvalidInput):
        queue.publish([claim("1"), claim("2"), claim("3", received_us=2**63)])
    assert queue.depth() == (0, None)
    queue.publish([claim("4")])
    assert drain(queue) == ["4"]


def spoil(path: Path, name: str) -> None:
    with sqlite3.connect(path) as connection:
        changed = connection.execute(
            "UPDATE claims SET claim = X'C1FF00' WHERE instr(claim, CAST(? AS BLOB)) > 0", (name,)
        ).rowcount
        assert changed == 1
    connection.close()


def test_claims_that_do_not_read_back_are_set_aside_and_counted(path: Path) -> None:
    queue = SqliteClaimQueue(path, SystemClock())
    queue.publish([claim(name) for name in ("first", "second", "third", "fourth")])
    for name in ("first", "third"):
        spoil(path, name)
    assert drain(queue) == ["second", "fourth"]
    assert queue.damaged() == 2
    assert queue.depth() == (0, None)
    queue.close()
    queue = SqliteClaimQueue(path, SystemClock())
    assert queue.damaged() == 2
    assert drain(queue) == []
    queue.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT seq, claim FROM damaged").fetchall() == [
            (1, b"\xc1\xff\0"),
            (3, b"\xc1\xff\0"),
        ]
    connection.close()


def test_a_flipped_bit_anywhere_in_a_claim_is_noticed(path: Path) -> None:
    size = len(msgspec.msgpack.encode(claim("flipped", payload=PAYLOAD))) + 5
    for bit in range(0, 8 * size, 7):
        queue = SqliteClaimQueue(path, SystemClock())
        queue.publish([claim("sound"), claim("flipped", payload=PAYLOAD)])
        queue.close()
        with sqlite3.connect(path) as connection:
            ((number, content),) = connection.execute(
                "SELECT seq, claim FROM claims WHERE instr(claim, CAST('flipped' AS BLOB)) > 0"
            ).fetchall()
            assert len(content) == size
            place = bit // 8
            flipped = content[:place] + bytes([content[place] ^ (1 << bit % 8)]) + content[place + 1 :]
            connection.execute("UPDATE claims SET claim = ? WHERE seq = ?", (flipped, number))
        connection.close()
        queue = SqliteClaimQueue(path, SystemClock())
        assert drain(queue) == ["sound"], bit
        queue.close()


def test_claims_of_the_first_release_have_no_checksum_and_are_read(path: Path) -> None:
    SqliteClaimQueue(path, SystemClock()).close()
    with sqlite3.connect(path) as connection:
        content = msgspec.msgpack.encode(claim("old"))
        connection.execute("INSERT INTO claims (seq, readings, received_us, claim) VALUES (1, 1, 1, ?)", (content,))
    connection.close()
    queue = SqliteClaimQueue(path, SystemClock())
    assert drain(queue) == ["old"]
    queue.close()


def test_a_fetch_gives_a_sound_claim_behind_any_number_of_damaged_ones(path: Path, queue: SqliteClaimQueue) -> None:
    queue.publish([claim(f"<{i}>") for i in range(9)])
    for i in range(8):
        spoil(path, f"<{i}>")
    assert [delivery.claim.batch_id for delivery in queue.fetch(2, 1_000, 0.0)] == ["<8>"]
    assert queue.damaged() == 8


@pytest.mark.parametrize("damage", ["not a database", "torn", "zeroed page", "text"])
def test_a_damaged_file_is_corrupt_at_open_and_named(path: Path, damage: str) -> None:
    queue = SqliteClaimQueue(path, SystemClock())
    queue.publish([claim(str(i), payload=b"x" * 1000) for i in range(200)])
    queue.close()
    content = bytearray(path.read_bytes())
    if damage == "torn":
        content = content[: len(content) // 2]
    elif damage == "zeroed page":
        content[3 * 4096 : 4 * 4096] = bytes(4096)
    elif damage == "not a database":
        content[:100] = b"\xff" * 100
    else:
        content = bytearray(b"hello\n" * 1000)
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=str(path)):
        SqliteClaimQueue(path, SystemClock())


def test_a_folder_that_is_missing_is_unavailable(path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nowhere") as caught:
        SqliteClaimQueue(path.parent / "nowhere" / "queue.db", SystemClock())
    assert caught.value.code == "dependency_down"


def test_with_no_room_left_nothing_is_half_written_and_it_recovers_by_itself(queue: SqliteClaimQueue) -> None:
    queue.publish([claim("before")])
    queue._writer.execute("PRAGMA max_page_count = 40")  # SQLite's own way to be full
    accepted: list[str] = []
    error = None
    while error is None:
        pair = [f"{len(accepted)}a", f"{len(accepted)}b"]
        try:
            queue.publish([claim(name, payload=b"x" * 3000) for name in pair])
            accepted += pair
        except Unavailable as raised:
            error = raised
    assert error.code == "disk_full"
    assert queue.depth().claims == 1 + len(accepted)
    queue._writer.execute("PRAGMA max_page_count = 1000000")
    queue.check()
    queue.publish([claim("after")])
    assert drain(queue) == ["before", *accepted, "after"]


def test_the_files_stay_small_and_shrink_after_a_flood(path: Path, queue: SqliteClaimQueue) -> None:
    for _ in range(20):
        queue.publish([claim("x", payload=b"x" * 60_000) for _ in range(50)])
    flooded = path.stat().st_size
    assert flooded > 30 * MIB
    drain(queue)
    for _ in range(20):  # a bounded part is given back with each acknowledgement
        queue.publish([claim("y")])
        drain(queue)
    log = path.with_name("queue.db-wal")
    assert log.stat().st_size <= QUEUE_LOG_BYTES_MAX
    queue.close()
    assert path.stat().st_size < 20 * MIB


def test_a_long_queue_is_not_loaded(path: Path) -> None:
    queue = SqliteClaimQueue(path, SystemClock())
    for start in range(0, 40_000, 10_000):
        queue.publish([claim(str(i), payload=b"x" * 200) for i in range(start, start + 10_000)])
    queue.close()
    tracemalloc.start()
    queue = SqliteClaimQueue(path, SystemClock())
    assert queue.depth().claims == 40_000
    assert [delivery.claim.batch_id for delivery in queue.fetch(3, 1_000, 0.0)] == ["0", "1", "2"]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    queue.close()
    assert peak_bytes < 1 * MIB
