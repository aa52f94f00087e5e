"""What the embedded store does when something fails: a transaction, the disk, the file, the process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from tsdb_world import NOON_US, buckets, open_store, values, write_of

from sensorkeep.clock import DAY_US, HOUR_US, ManualClock
from sensorkeep.errors import Corrupt, DataDirInUse, Overloaded, Unavailable
from sensorkeep.limits import MIB
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import Settled
from sensorkeep.tsdb.duckdb import DuckDBStore, merging, state, writing
from sensorkeep.tsdb.duckdb.engine import translate

KILL_ROUNDS = 3
LATE_US = NOON_US - 20 * HOUR_US


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "readings.duckdb"


def fail(*_: object, **__: object) -> None:
    raise duckdb.IOException('IO Error: Could not write file "readings.duckdb": No space left on device')


@pytest.mark.parametrize("broken", ["state.save", "merging._mark_dirty", "writing._save_settled", "writing._stage"])
def test_a_write_that_fails_midway_changes_nothing_and_leaves_the_store_usable(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    store = open_store(path, ManualClock(NOON_US))
    store.write([write_of("a", (0, NOON_US, 1.0))])
    store.write([write_of("late", (0, LATE_US, 5.0))])
    before = (values(store), buckets(store), store.status().staged_readings)
    # New sensor, new day, a newer watermark, a late reading and a correction: all of it must be undone.
    failing = write_of("b", (0, NOON_US, 2.0), (3, NOON_US + DAY_US, 1.0), (0, LATE_US, 6.0))
    module, name = broken.split(".")
    with monkeypatch.context() as patch:
        patch.setattr({"state": state, "merging": merging, "writing": writing}[module], name, fail)
        with pytest.raises(Unavailable) as raised:
            store.write([failing])
    assert raised.value.code == "disk_full"
    assert (values(store), buckets(store), store.status().staged_readings) == before
    assert store.days() == {NOON_US // DAY_US: "open"}
    assert store.write([failing]) == []
    assert store.settle() == [Settled("late", Counts(stored=1)), Settled("b", Counts(stored=1, updated=2))]
    assert values(store) == [(0, LATE_US, 6.0), (0, NOON_US, 2.0), (3, NOON_US + DAY_US, 1.0)]
    store.close()


def test_a_settle_and_a_maintain_that_fail_can_be_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path, ManualClock(NOON_US))
    store.write([write_of("a", (0, NOON_US, 1.0))])
    store.write([write_of("late", (0, LATE_US, 5.0))])
    with monkeypatch.context() as patch:
        patch.setattr(state, "save", fail)
        for act in (store.settle, lambda: store.maintain(NOON_US)):
            with pytest.raises(Unavailable):
                act()
    assert store.settle() == [Settled("late", Counts(stored=1))]
    store.maintain(NOON_US)
    assert [bucket["sum"] for bucket in buckets(store)] == [5.0, 1.0]
    store.close()


def test_a_batch_settled_before_a_later_portion_failed_is_reported_by_the_next_settle(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SETTLE_READINGS_MAX", 2)
    store = open_store(path, ManualClock(NOON_US))
    store.write([write_of("now", (0, NOON_US, 1.0))])
    late = [write_of(f"late-{i}", *[(0, LATE_US + 3 * i + j, 1.0) for j in range(3)]) for i in range(3)]
    assert store.write(late) == []
    settle, calls = writing.settle, iter(range(10))

    def settle_thrice(transaction: merging.Transaction) -> dict[str, Counts]:
        if next(calls) == 3:
            fail()
        return settle(transaction)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "settle", settle_thrice)
        with pytest.raises(Unavailable):
            store.settle()
    assert 0 < store.status().staged_readings < 9
    assert store.settle() == [Settled(f"late-{i}", Counts(stored=3)) for i in range(3)]
    store.close()


def test_staged_readings_and_counts_survive_a_reopen(path: Path) -> None:
    store = open_store(path, ManualClock(NOON_US))
    store.write([write_of("a", (0, NOON_US, 1.0), (1, NOON_US, 1.0))])
    store.write([write_of("late", (0, LATE_US, 5.0), (0, NOON_US, 1.0))])
    store.close()
    store = open_store(path, ManualClock(NOON_US))
    assert store.status().staged_readings == 1
    assert store.write([write_of("late", (0, LATE_US, 7.0)), write_of("a")]) == [Settled("a", Counts(stored=2))]
    assert store.settle() == [Settled("late", Counts(stored=1, duplicate=1))]
    store.close()


def test_readings_of_a_day_whose_raw_is_gone_merge_into_its_buckets(path: Path) -> None:
    clock = ManualClock(NOON_US)
    store = open_store(path, clock, raw_retention_days=2)
    store.write([write_of("a", *[(0, NOON_US + i * 60_000_000, float(i)) for i in range(10)])])
    clock.advance(5 * 24 * 3600)
    while store.days() != {NOON_US // DAY_US: "sealed"}:
        store.maintain(clock.now_us())
    merged = write_of(
        "b", (0, NOON_US, 100.0), (0, NOON_US, 90.0), (0, NOON_US + 30 * 60_000_000, 50.0), (1, NOON_US, 7.0)
    )
    answered = store.write([merged]) + store.settle()
    assert answered == [Settled("b", Counts(stored=3, updated=1))], "a repeat inside one write is still recognized"
    for period in ("hour", "day"):
        first, second = buckets(store, period)
        assert (first["count"], first["sum"], first["min"], first["max"]) == (12, 185.0, 0.0, 90.0)
        assert (first["active_minutes"], first["approximate"]) == (11, True)
        assert 0.0 <= first["median"] <= first["p95"] <= first["p99"] <= 90.0
        assert (second["count"], second["median"], second["approximate"]) == (1, 7.0, False)
    assert values(store) == []
    store.close()


def test_a_day_keeps_its_raw_while_late_readings_wait_for_it(path: Path) -> None:
    clock = ManualClock(NOON_US)
    store = open_store(path, clock, raw_retention_days=2)
    store.write([write_of("a", (0, LATE_US, 1.0))])
    store.write([write_of("b", (0, NOON_US, 1.0))])
    assert store.write([write_of("late", (0, LATE_US, 1.0), (0, LATE_US + 1, 1.0))]) == []
    clock.advance(9 * 24 * 3600)
    for _ in range(20):
        store.maintain(clock.now_us())
    assert store.days()[LATE_US // DAY_US] != "sealed"
    assert store.settle() == [Settled("late", Counts(stored=1, duplicate=1))]
    clock.advance(25 * 3600)
    for _ in range(20):
        store.maintain(clock.now_us())
    assert set(store.days().values()) == {"sealed"}
    assert [bucket["count"] for bucket in buckets(store)] == [2, 1]
    store.close()


def test_a_file_that_another_process_has_open_is_refused(path: Path) -> None:
    store = open_store(path, ManualClock(NOON_US))
    done = run_child(path, "open_store(path, ManualClock(0))")
    _, errors = done.communicate(timeout=60)
    assert done.returncode != 0
    assert DataDirInUse.__name__ in errors
    store.close()


@pytest.mark.parametrize("damage", [lambda size: (0, 4096), lambda size: (12_288, size)], ids=["header", "blocks"])
def test_a_damaged_file_is_told_as_corrupt(path: Path, damage: Callable[[int], tuple[int, int]]) -> None:
    store = open_store(path, ManualClock(NOON_US))
    store.write([write_of("a", (0, NOON_US, 1.0))])
    store.close()
    content = bytearray(path.read_bytes())
    first, last = damage(len(content))
    content[first:last] = random.Random(1).randbytes(last - first)
    path.write_bytes(content)
    with pytest.raises(Corrupt):
        values(open_store(path, ManualClock(NOON_US)))


def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        open_store(tmp_path / "nowhere" / "readings.duckdb", ManualClock(NOON_US))


def test_errors_of_the_database_become_ours_and_mistakes_of_ours_stay(path: Path) -> None:
    full = translate(duckdb.IOException("IO Error: Could not write: No space left on device"))
    assert isinstance(full, Unavailable)
    assert full.code == "disk_full"
    memory = translate(duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate"))
    assert isinstance(memory, Overloaded)  # not Unavailable: one batch too large must not hold up the others
    assert memory.status == 503
    assert memory.code == "unavailable"
    assert isinstance(translate(duckdb.Error("Corrupt database file: computed checksum 1 does not match")), Corrupt)
    mistake = duckdb.BinderException("Binder Error: no such column")
    assert translate(mistake) is mistake


def test_a_closed_store_is_unavailable(path: Path) -> None:
    store = open_store(path, ManualClock(NOON_US))
    store.close()
    for act in (store.status, lambda: store.write([write_of("a", (0, NOON_US, 1.0))]), lambda: values(store)):
        with pytest.raises(Unavailable):
            act()


def test_a_small_memory_limit_is_enough_for_a_day_of_readings(path: Path) -> None:
    store = DuckDBStore(path, clock=ManualClock(NOON_US), raw_retention_days=0, memory_limit_bytes=64 * MIB, threads=1)
    day_us = NOON_US // DAY_US * DAY_US
    for part in range(4):
        rows = [(sensor, day_us + (part * 6_000 + i) * 3_600_000, i * 0.1) for i in range(6_000) for sensor in range(4)]
        store.write([write_of(f"part-{part}", *rows)])
    store.write([write_of("end", (0, day_us + 5 * DAY_US, 1.0))])
    store.settle()
    for _ in range(10):
        store.maintain(day_us + 5 * DAY_US)
    assert store.days()[day_us // DAY_US] == "closed"
    assert sum(bucket["count"] for bucket in buckets(store, "day")) == 96_001
    store.close()


def run_child(path: Path, code: str) -> subprocess.Popen[str]:
    """A process of its own that runs `code` with `path`."""
    header = f"""
    import sys
    sys.path[:0] = [{str(Path(__file__).parents[0])!r}, {str(Path(__file__).parents[1])!r}]
    from pathlib import Path
    from sensorkeep.clock import ManualClock
    from tsdb_world import *
    path = Path({str(path)!r})
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(header) + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


WRITER = """
clock = ManualClock(NOON_US)
store = open_store(path, clock)
first = len(values(store)) // 3
for number in range(first, 100_000):
    time_us = NOON_US + number * 60_000_000
    rows = [(sensor, time_us - (number % 7) * 3_600_000_000, float(number)) for sensor in range(3)]
    store.write([write_of(f"batch-{number:06d}", *rows)])
    if number % 3 == 0:
        store.settle()
        clock.advance(60)
        store.maintain(clock.now_us())
    print(number, flush=True)
"""


def test_nothing_acknowledged_is_lost_or_doubled_when_the_process_is_killed(path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    acknowledged = -1
    for _ in range(KILL_ROUNDS):
        child = run_child(path, WRITER)
        assert child.stdout is not None
        deadline = time.monotonic() + 60
        wanted = acknowledged + source.randrange(2, 40)
        while acknowledged < wanted and time.monotonic() < deadline:
            line = child.stdout.readline()
            assert line, child.communicate()[1]
            acknowledged = int(line)
        # The kill falls into the next write: somewhere between its first statement and its answer.
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate(timeout=30)
        acknowledged = max([acknowledged, *map(int, rest.split())])
        store = open_store(path, ManualClock(NOON_US))
        store.settle()
        found = values(store)
        assert len(found) == len({row[:2] for row in found}), "no reading twice"
        numbers = sorted({int(value) for _, _, value in found if value is not None})
        assert numbers == list(range(len(numbers))), "whole batches, without a gap"
        assert len(found) == 3 * len(numbers)
        assert len(numbers) > acknowledged, "every acknowledged batch is there"
        redelivered = store.write([write_of(f"batch-{len(numbers) - 1:06d}", (0, NOON_US, -1.0))])
        assert redelivered[0].counts == Counts(stored=3)
        assert sum(bucket["count"] for bucket in buckets(store)) == len(found)
        store.close()
