"""What every object store must do; see object_store/base.py."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sensorkeep.clock import SystemClock
from sensorkeep.errors import Conflict, InvalidInput, NotFound
from sensorkeep.limits import S3_PART_BYTES
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.object_store.memory import MemoryObjectStore
from services import S3_ENDPOINT, address, new_name
from services.seaweedfs import ACCESS_KEY, SECRET_KEY


def s3(_: Path) -> ObjectStore:
    from sensorkeep.object_store.s3 import S3ObjectStore

    endpoint = address(S3_ENDPOINT)
    return S3ObjectStore(
        new_name("objects"), endpoint=endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY, region="us-east-1"
    )


@dataclass(frozen=True)
class Kind:
    """A backend, and what the contract leaves to it."""

    make: Callable[[Path], ObjectStore]
    order: Callable[[str], Any] = str
    """What keys are listed by."""
    objects_are_folders: bool = False
    """It keeps `a/b` beside `a`."""
    empty_folders_stay: bool = False
    """It keeps no `a` after `a/b` was deleted."""
    racers: int = 8
    """How many put one key at the same moment."""


KINDS = {
    "filesystem": Kind(lambda folder: FilesystemObjectStore(folder / "new" / "objects")),
    "memory": Kind(lambda _: MemoryObjectStore(SystemClock())),
    # SeaweedFS is a tree whose folders go some time after their last object, and whose objects may be folders, too.
    # Who puts one key at the same moment waits there for one second after the other.
    "s3": Kind(s3, order=lambda key: key.split("/"), objects_are_folders=True, empty_folders_stay=True, racers=3),
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.distributed) if name == "s3" else name for name in KINDS])
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def store(kind: Kind, tmp_path: Path) -> Iterator[ObjectStore]:
    made = kind.make(tmp_path)
    yield made
    made.close()
    made.close()


def refuse(store: ObjectStore, key: str) -> None:
    """The store says that `key` is in the way of others."""
    with pytest.raises(Conflict) as caught:
        store.put(key, [b"x"])
    assert caught.value.code == "conflict", key


def content(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.get(key))


def keys(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [found.key for found in store.list(prefix, start_after)]


def test_an_object_reads_back_as_it_was_put(store: ObjectStore) -> None:
    chunks = [b"", b"first", b"\0" * 700_000, b"last"]
    assert store.put("telemetry/2026-11-22-10-00-00/a.json.gz", iter(chunks)) == sum(map(len, chunks))
    assert content(store, "telemetry/2026-11-22-10-00-00/a.json.gz") == b"".join(chunks)
    assert all(len(chunk) <= 1 << 20 for chunk in store.get("telemetry/2026-11-22-10-00-00/a.json.gz"))


@pytest.mark.parametrize("size", [S3_PART_BYTES - 1, S3_PART_BYTES, 2 * S3_PART_BYTES + 1])
def test_a_large_object_is_created_whole_and_once(store: ObjectStore, size: int) -> None:
    piece = random.Random(3).randbytes(700_001)
    whole = (piece * (size // len(piece) + 1))[:size]

    def chunks(content: bytes) -> Iterator[bytes]:
        for start in range(0, size, len(piece)):
            assert keys(store) == []
            yield content[start : start + len(piece)]

    assert store.put("a/large", chunks(whole)) == size
    assert content(store, "a/large") == whole
    assert [(found.key, found.size) for found in store.list()] == [("a/large", size)]
    with pytest.raises(Conflict) as caught:
        store.put("a/large", [b"another one"] * (size // 11 + 1))
    assert caught.value.code == "already_exists"
    assert content(store, "a/large") == whole
    assert [(found.key, found.size) for found in store.list()] == [("a/large", size)]


def test_an_empty_object_can_be_kept(store: ObjectStore) -> None:
    assert store.put("empty", []) == 0
    assert content(store, "empty") == b""
    assert [(found.key, found.size) for found in store.list()] == [("empty", 0)]


def test_chunks_are_pulled_one_at_a_time_and_nothing_shows_before_the_end(store: ObjectStore) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            assert keys(store) == []
            with pytest.raises(NotFound):
                store.get("folder/key")
            yield b"x" * 1000

    assert store.put("folder/key", chunks()) == 3000
    assert keys(store) == ["folder/key"]


def test_a_second_put_is_refused_and_the_first_object_stays(store: ObjectStore) -> None:
    store.put("a/b", [b"first"])
    with pytest.raises(Conflict) as caught:
        store.put("a/b", [b"second"])
    assert caught.value.code == "already_exists"
    assert content(store, "a/b") == b"first"


@pytest.mark.parametrize("size", [10, S3_PART_BYTES])
def test_of_concurrent_puts_of_one_key_exactly_one_wins(store: ObjectStore, kind: Kind, size: int) -> None:
    for round_number in range(5):
        key = f"race/{round_number}/key"
        barrier = threading.Barrier(kind.racers)
        outcomes: list[tuple[int, str]] = []

        def put(number: int, key: str = key, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                store.put(key, [b"%d" % number * (size // 10)] * 10)
                outcomes.append((number, "won"))  # noqa: B023
            except Conflict as error:
                outcomes.append((number, error.code))  # noqa: B023

        threads = [threading.Thread(target=put, args=(number,)) for number in range(kind.racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [number for number, outcome in outcomes if outcome == "won"]
        assert len(winners) == 1
        assert sorted(outcome for _, outcome in outcomes) == ["already_exists"] * (kind.racers - 1) + ["won"]
        assert content(store, key) == b"%d" % winners[0] * (size // 10 * 10)


@pytest.mark.parametrize("size", [4, S3_PART_BYTES + 1])
def test_where_the_chunks_raise_nothing_remains(store: ObjectStore, size: int) -> None:
    class ClientGone(OSError):
        """An error of the source, an OSError on purpose: it is not the store's."""

    def chunks() -> Iterator[bytes]:
        yield b"x" * size
        yield b"half"
        raise ClientGone

    with pytest.raises(ClientGone):
        store.put("a/b/c", chunks())
    assert keys(store) == []
    with pytest.raises(NotFound):
        store.get("a/b/c")
    assert store.put("a/b/c", [b"whole"]) == 5


@pytest.mark.parametrize("key", ["missing", "folder/missing", "folder", "object/below"])
def test_what_is_not_there_is_not_found_at_the_call_and_deleted_without_error(store: ObjectStore, key: str) -> None:
    store.put("folder/kept", [b"1"])
    store.put("object", [b"2"])
    with pytest.raises(NotFound):
        store.get(key)
    store.delete(key)
    assert keys(store) == ["folder/kept", "object"]


def test_delete_removes_the_object_for_good_and_the_key_can_be_used_again(store: ObjectStore) -> None:
    store.put("a/b/c", [b"1"])
    store.put("a/d", [b"2"])
    store.delete("a/b/c")
    store.delete("a/b/c")
    assert keys(store) == ["a/d"]
    store.put("a/b/c", [b"3"])
    assert content(store, "a/b/c") == b"3"


def test_an_empty_folder_is_in_the_way_of_no_object_unless_the_store_says_so(store: ObjectStore, kind: Kind) -> None:
    store.put("a/b/c", [b"1"])
    store.delete("a/b/c")
    if kind.empty_folders_stay:
        refuse(store, "a/b")
        assert keys(store) == []
    else:
        store.put("a/b", [b"2"])
        assert keys(store) == ["a/b"]


def test_many_objects_are_deleted_together(store: ObjectStore) -> None:
    wanted = [f"a/{n:02}/object" for n in range(30)]
    for key in wanted:
        store.put(key, [b"1"])
    store.delete(*wanted[:20], "a/missing", wanted[0])
    assert keys(store) == wanted[20:]
    with pytest.raises(InvalidInput):
        store.delete(wanted[20], "bad key")
    store.delete()
    assert keys(store) == wanted[20:]


def test_a_reader_keeps_what_it_opened_while_it_is_deleted(store: ObjectStore) -> None:
    store.put("a", [b"x" * 600_000])
    chunks = store.get("a")
    first = next(chunks)
    store.delete("a")
    assert first + b"".join(chunks) == b"x" * 600_000


BAD_KEYS = [
    "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".tmp/a", "a/.hidden", "a\0b", "a b", "a\n",
    "ä", "a\\b", "C:a", "a" * 256, "/".join(["a" * 200] * 6), "٣",
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_bad_key_is_refused_by_every_method(store: ObjectStore, key: str) -> None:
    for act in (lambda: store.put(key, [b"x"]), lambda: store.get(key), lambda: store.delete(key)):
        with pytest.raises(InvalidInput):
            act()
    assert keys(store) == []
    assert keys(store, key + "/") == []


def test_no_key_can_be_the_folder_of_another(store: ObjectStore, kind: Kind) -> None:
    store.put("a/b", [b"1"])
    store.put("c", [b"2"])
    refuse(store, "a")
    expected = ["a/b", "c"]
    for key in ("a/b/c", "c/d", "c/e/f"):
        if kind.objects_are_folders:
            store.put(key, [b"x"])
            expected.append(key)
        else:
            refuse(store, key)
    assert keys(store) == sorted(expected)
    assert (content(store, "a/b"), content(store, "c")) == (b"1", b"2")


def test_list_is_in_key_order_with_sizes_and_times(store: ObjectStore, kind: Kind) -> None:
    before_us = SystemClock().now_us() - 2_000_000
    # As whole strings: '-' < '.' < '/' < '0' < 'A' < '_' < 'a', so folder `a` comes between `a.b` and `a0`.
    expected = ["A", "_", "a-", "a-/x", "a-b", "a.b", "a/-", "a/b-", "a/b/c", "a/b0", "a0", "a_", "aa/z"]
    expected.remove("a-")  # a folder as well
    shuffled = random.Random(1).sample(expected, len(expected))
    for key in shuffled:
        store.put(key, [key.encode()])
    found = list(store.list())
    assert sorted(expected) == expected
    assert [each.key for each in found] == sorted(expected, key=kind.order)
    assert all(each.size == len(each.key) for each in found)
    assert all(before_us < each.modified_us < SystemClock().now_us() + 2_000_000 for each in found)


def test_list_answers_by_prefix_and_goes_on_behind_any_key(store: ObjectStore, kind: Kind) -> None:
    source = random.Random(2)
    parts = ["a", "a-b", "a.b", "ab", "b", "0"]
    wanted = {"/".join([*(source.choice(parts) for _ in range(source.randrange(3))), f"k{n}"]) for n in range(60)}
    for key in wanted:
        store.put(key, [b""])
    every = sorted(wanted, key=kind.order)
    for prefix in ["", "a", "a-", "a/", "a.b/", "a/a", "b/k", "zz", "/", "a//", *source.sample(every, 10)]:
        expected = [key for key in every if key.startswith(prefix)]
        assert keys(store, prefix) == expected, prefix
        for position, key in enumerate(expected):
            assert keys(store, prefix, key) == expected[position + 1 :], (prefix, key)


def test_a_list_goes_on_behind_an_object_that_was_deleted_since(store: ObjectStore) -> None:
    wanted = [f"a/{folder}/{name}" for folder in range(4) for name in range(3)]
    for key in wanted:
        store.put(key, [b""])
    found: list[str] = []
    while page := keys(store, "a/", found[-1] if found else "")[:2]:
        found += page
        store.delete(*page)
    assert found == wanted


def test_puts_lists_and_deletes_of_one_folder_can_run_together(store: ObjectStore) -> None:
    failures: list[BaseException] = []

    def churn(number: int) -> None:
        try:
            for turn in range(40):
                key = f"shared/{turn % 2}/{number}"
                store.put(key, [b"x" * 100])
                assert content(store, key) == b"x" * 100
                assert key in keys(store, "shared/")
                store.delete(key)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert keys(store) == []


def test_check_passes_and_leaves_nothing(store: ObjectStore) -> None:
    store.check()
    assert keys(store) == []
