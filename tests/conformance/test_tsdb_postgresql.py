"""What a store that many processes share must do besides: writers and keepers at once, by the time of acceptance,
values that SQL stumbles over, batches over very many days, and the retention of raw."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tsdb_postgresql_world import clock, keep_house, opening, query, url
from tsdb_world import (
    FOREVER_US,
    MANY,
    NOON_US,
    UUIDS,
    batch,
    buckets,
    readings,
    values,
    whole,
    write_of,
)

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock
from sensorkeep.errors import Unavailable
from sensorkeep.limits import POSTGRES_DAYS_AT_ONCE_MAX, POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS
from sensorkeep.model import Counts
from sensorkeep.rollup import moments, percentile_cont
from sensorkeep.tsdb.base import Period, Settled, Write
from sensorkeep.tsdb.postgres import PostgresStore, hurry, maintenance, rows, sealing, writing
from sensorkeep.tsdb.postgres.engine import Session

__all__ = ["clock", "opening", "url"]  # the fixtures

DAY = NOON_US // DAY_US
PERIODS: tuple[Period, Period] = ("hour", "day")
DEADLINE_SECONDS = 60.0


@pytest.fixture
def store(opening: Callable[..., PostgresStore]) -> PostgresStore:
    return opening()


def accepted(batch_id: str, accepted_us: int, *rows: tuple[int, int, float | None]) -> Write:
    """A write of rows that were accepted at a time."""
    return Write(batch_id, write_of(batch_id, *rows).batch, accepted_us)


def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)


# --- by the time of acceptance --------------------------------------------------------------------------------------


def test_what_was_accepted_later_stays_whichever_worker_writes_first(opening: Callable[..., PostgresStore]) -> None:
    fast, lagging = opening(), opening()
    assert fast.write([accepted("new", 200, (0, NOON_US, 2.0))]) == [Settled("new", Counts(stored=1))]
    assert lagging.write([accepted("old", 100, (0, NOON_US, 1.0))]) == [Settled("old", Counts(duplicate=1))]
    assert values(fast) == [(0, NOON_US, 2.0)]
    assert fast.write([accepted("newest", 300, (0, NOON_US, 3.0))]) == [Settled("newest", Counts(updated=1))]
    assert values(lagging) == [(0, NOON_US, 3.0)]


def test_a_repeat_counts_for_the_order_too(store: PostgresStore) -> None:
    """1.0 was sent again after 2.0: so 1.0 is the last word, though 2.0 is written last."""
    store.write([accepted("first", 100, (0, NOON_US, 1.0))])
    assert store.write([accepted("repeat", 300, (0, NOON_US, 1.0))]) == [Settled("repeat", Counts(duplicate=1))]
    assert store.write([accepted("between", 200, (0, NOON_US, 2.0))]) == [Settled("between", Counts(duplicate=1))]
    assert values(store) == [(0, NOON_US, 1.0)]


def test_batches_of_one_call_are_taken_in_the_order_accepted(store: PostgresStore) -> None:
    writes = [
        accepted("c", 300, (0, NOON_US, 3.0), (1, NOON_US, 3.0)),
        accepted("a", 100, (0, NOON_US, 1.0)),
        accepted("b", 200, (0, NOON_US, 3.0), (0, NOON_US, 2.0)),
    ]
    assert store.write(writes) == [
        Settled("c", Counts(stored=1, updated=1)),
        Settled("a", Counts(stored=1)),
        Settled("b", Counts(updated=2)),
    ]
    assert values(store) == [(0, NOON_US, 3.0), (1, NOON_US, 3.0)]


def test_of_a_batch_in_which_only_the_end_is_news_only_the_end_counts(store: PostgresStore) -> None:
    store.write([accepted("stored", 250, (0, NOON_US, 5.0))])
    late = [accepted("a", 100, (0, NOON_US, 1.0)), accepted("b", 200, (0, NOON_US, 2.0))]
    assert store.write([*late, accepted("c", 300, (0, NOON_US, 5.0), (0, NOON_US, 6.0))]) == [
        Settled("a", Counts(duplicate=1)),
        Settled("b", Counts(duplicate=1)),
        Settled("c", Counts(updated=1, duplicate=1)),
    ]
    assert values(store) == [(0, NOON_US, 6.0)]


# --- many at once ---------------------------------------------------------------------------------------------------


def test_two_workers_that_write_the_same_batches_count_them_once(opening: Callable[..., PostgresStore]) -> None:
    writes = [write_of(f"batch-{i}", *[(s, NOON_US + i * MINUTE_US, float(i)) for s in range(4)]) for i in range(60)]
    stores, start = [opening() for _ in range(3)], threading.Barrier(3)

    def work(number: int) -> list[Settled]:
        order = random.Random(number).sample(writes, len(writes))
        start.wait()
        return [settled for i in range(0, 60, 6) for settled in stores[number].write(order[i : i + 6])]

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(work, range(3)))
    for answer in answers:
        assert sorted(answer) == sorted(Settled(write.batch_id, Counts(stored=4)) for write in writes)
    assert len(values(stores[0])) == 240


def test_workers_that_write_the_same_readings_in_other_batches_store_each_once(
    opening: Callable[..., PostgresStore],
) -> None:
    """Every worker brings the same identities, in any order and with values of its own: each is stored once, each later
    one is an update, the last accepted value stays, and nobody is left waiting."""
    workers, rounds = 3, 12
    stores, start = [opening() for _ in range(workers)], threading.Barrier(workers)
    identities = [(sensor, NOON_US + i * 11 * HOUR_US) for sensor in range(4) for i in range(25)]

    def work(number: int) -> Counts:
        source, total = random.Random(number), Counts()
        start.wait()
        for turn in range(rounds):
            chosen = source.sample(identities, 60)
            rows = [(sensor, time_us, float(number * 1000 + turn)) for sensor, time_us in chosen]
            write = accepted(f"{number}-{turn}", turn * workers + number, *rows)
            total += stores[number].write([write])[0].counts
        return total

    with ThreadPoolExecutor(workers) as pool:
        counts = sum(pool.map(work, range(workers)), Counts())
    expected: dict[tuple[int, int], float] = {}
    for number in range(workers):
        source = random.Random(number)
        for turn in range(rounds):
            for identity in source.sample(identities, 60):
                at = turn * workers + number
                known = expected.get(identity)
                if known is None or at >= _accepted_at(known, workers):
                    expected[identity] = float(number * 1000 + turn)
    assert {(sensor, time_us): value for sensor, time_us, value in values(stores[0])} == expected
    assert counts.stored == len(expected)
    assert counts.total == workers * rounds * 60
    check_rollups(stores[0])


def _accepted_at(value: float, workers: int) -> int:
    number, turn = divmod(int(value), 1000)
    return turn * workers + number


def check_rollups(store: PostgresStore) -> None:
    """The hours and days equal a recomputation from what raw says."""
    stored = values(store)
    for period, length_us in zip(PERIODS, (HOUR_US, DAY_US), strict=True):
        expected: dict[tuple[int, int], list[float]] = {}
        for sensor, time_us, value in stored:
            found = expected.setdefault((time_us // length_us * length_us, sensor), [])
            if value is not None:
                found.append(value)
        table = store.read_rollup(period, UUIDS, 0, FOREVER_US, MANY)
        assert list(zip(whole(table["time"]), whole(table["sensor"]), strict=True)) == sorted(expected)
        for start_us, row in zip(whole(table["time"]), table.to_pylist(), strict=True):
            numbers = expected[start_us, row["sensor"]]
            exact = moments(numbers)
            assert (row["count"], row["min"], row["max"]) == (exact.count, exact.min, exact.max)
            assert row["sum"] == pytest.approx(exact.sum)
            assert row["median"] == pytest.approx(percentile_cont(numbers, 0.5))


def test_writes_and_corrections_while_another_process_keeps_house(
    opening: Callable[..., PostgresStore], clock: ManualClock
) -> None:
    """Whatever the keeper is at, a reader finds every acknowledged write in the buckets."""
    writer, keeper, reader = opening(), opening(), opening()
    done, failures = threading.Event(), []

    def keep() -> None:
        try:
            while not done.is_set():
                keeper.maintain(clock.now_us())
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failures.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        latest: dict[tuple[int, int], float] = {}
        source = random.Random(4)
        for turn in range(40):
            now_us = NOON_US + turn * 3 * HOUR_US
            chosen = [(source.randrange(2), now_us - source.choice([0, 1, 5, 26, 50]) * HOUR_US) for _ in range(8)]
            rows = [(sensor, time_us, float(turn)) for sensor, time_us in dict.fromkeys(chosen)]
            writer.write([write_of(f"turn-{turn}", *rows)])
            latest |= {(sensor, time_us): value for sensor, time_us, value in rows}
            clock.advance(3 * 3600)
            for period in PERIODS:
                hours = reader.read_rollup(period, UUIDS, 0, FOREVER_US, MANY)
                assert sum(whole(hours["count"])) == len(latest)
                assert hours["sum"].to_numpy().sum() == pytest.approx(sum(latest.values()))
    finally:
        done.set()
        thread.join(DEADLINE_SECONDS)
    assert not failures, failures[0]
    check_rollups(reader)


def test_only_one_keeps_house_and_the_others_return_at_once(
    opening: Callable[..., PostgresStore], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opening(), opening()
    entered, leave = threading.Event(), threading.Event()
    calls = []

    def step(self: maintenance.Maintenance, now_us: int) -> bool:
        calls.append(now_us)
        entered.set()
        return not leave.wait(DEADLINE_SECONDS)

    monkeypatch.setattr(maintenance.Maintenance, "_step", step)
    thread = threading.Thread(target=lambda: first.maintain(clock.now_us()))
    thread.start()
    assert entered.wait(DEADLINE_SECONDS)
    second.maintain(clock.now_us() + 1)
    first.maintain(clock.now_us() + 2)
    leave.set()
    thread.join(DEADLINE_SECONDS)
    assert calls == [clock.now_us()]
    second.maintain(clock.now_us() + 3)
    assert calls == [clock.now_us(), clock.now_us() + 3]


def test_a_writer_that_began_before_the_mark_moved_is_waited_for(
    opening: Callable[..., PostgresStore], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw that nothing was rolled up yet, and so marks nothing: the roll-up must not begin before it has ended."""
    writer, keeper = opening(), opening()
    writer.write([write_of("a", (0, NOON_US, 1.0), (0, NOON_US + 9 * HOUR_US, 1.0))])
    entered, leave = threading.Event(), threading.Event()
    insert = rows.Target.put

    def slowly(self: rows.Target, *arguments: object) -> object:
        entered.set()
        leave.wait(DEADLINE_SECONDS)
        return insert(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rows.Target, "put", slowly)
    slow = threading.Thread(target=lambda: writer.write([write_of("b", (1, NOON_US, 2.0), (1, NOON_US - DAY_US, 3.0))]))
    slow.start()
    assert entered.wait(DEADLINE_SECONDS)
    keeping = threading.Thread(target=lambda: keep_house(keeper, clock))
    keeping.start()
    until(
        lambda: bool(query(writer._engine._url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
    )
    leave.set()
    slow.join(DEADLINE_SECONDS)
    keeping.join(DEADLINE_SECONDS)
    keep_house(keeper, clock)
    assert [row["sum"] for row in buckets(keeper)] == [3.0, 1.0, 2.0, 1.0]
    assert sum(row["count"] for row in buckets(keeper, "day")) == 4


PROCESS = """
store = PostgresStore(url, clock=SystemClock(), raw_retention_days=0)
source = random.Random(number)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(30):
    chosen = source.sample(range(400), 100)
    rows = [(i % 4, NOON_US + i * 7 * MINUTE_US, float(i)) for i in chosen]
    counts = store.write([write_of(f"{number}-{turn}", *rows)])[0].counts
    store.maintain(SystemClock().now_us())
    print(counts.stored, counts.updated, counts.duplicate, flush=True)
"""


def test_two_processes_write_the_same_readings_at_once(url: str, store: PostgresStore) -> None:
    header = f"""
    import random, sys
    sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
    from sensorkeep.clock import MINUTE_US, SystemClock
    from sensorkeep.tsdb.postgres import PostgresStore
    from tsdb_world import NOON_US, write_of
    url, number = sys.argv[1], int(sys.argv[2])
    """
    code = textwrap.dedent(header) + textwrap.dedent(PROCESS)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
    ended = [child.communicate("go\n", timeout=DEADLINE_SECONDS) for child in children]
    assert [child.returncode for child in children] == [0, 0], [errors for _, errors in ended]
    lines = [[int(number) for number in line.split()] for output, _ in ended for line in output.splitlines()]
    assert len(lines) == 60
    stored, updated, duplicate = (sum(column) for column in zip(*lines, strict=True))
    assert (stored, updated, stored + duplicate) == (len(values(store)), 0, 6000)
    check_rollups(store)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maintained", [False, True])
@pytest.mark.parametrize(
    "numbers",
    [
        [1.7e308, 1.7e308, -1.7e308],
        [1.7976931348623157e308] * 3,
        [-1.7e308, 1.7e308],
        [9e149, -9e149] * 300,
        [1e200, -1e200, 5.0],
        [1e150, 1e150, 1e150 * (1 + 1e-9)],
        [5e-324, 5e-324],
        [1e-50, 2e-50, -1e-320],
        [-0.0, 0.0, 1e-46],
    ],
)
def test_no_value_stops_a_roll_up(
    store: PostgresStore, clock: ManualClock, numbers: list[float], maintained: bool
) -> None:
    rows_ = [(0, NOON_US + i * 1_000_000, value) for i, value in enumerate(numbers)]
    store.write([write_of("hostile", *rows_), write_of("plain", (1, NOON_US, 2.0), (1, NOON_US + 40 * HOUR_US, 3.0))])
    if maintained:
        clock.advance(40 * 3600)
        keep_house(store, clock)
        assert query(store._engine._url, "SELECT count(*) FROM telemetry.telemetry_daily") == [(2,)]
    exact = [Fraction(value) for value in numbers]
    total = sum(exact, Fraction())
    m2 = _double(sum(((value - total / len(exact)) ** 2 for value in exact), Fraction()))
    stddev = None if m2 is None else (m2 / (len(numbers) - 1)) ** 0.5
    for period in PERIODS:
        row = buckets(store, period)[0]
        assert (row["count"], row["min"], row["max"]) == (len(numbers), min(numbers), max(numbers))
        assert _is_near(row["sum"], _double(total))
        assert _is_near(row["stddev"], stddev, 1e-6)  # of decimals of 17 digits, where they are huge
        for name, probability in (("median", 0.5), ("p95", 0.95)):
            wanted = 2 * percentile_cont([value / 2 for value in numbers], probability)
            assert row[name] == pytest.approx(wanted, rel=1e-12, abs=1e-322)
    summary = store.summarize(UUIDS, NOON_US - 5 * DAY_US // 2, NOON_US + 5 * DAY_US)
    assert summary.num_rows == 2
    merged = write_of("again", (1, NOON_US + 1, 4.0), (0, NOON_US + HOUR_US, numbers[0]))
    assert store.write([merged]) == [Settled("again", Counts(stored=2))]


def _double(exact: Fraction) -> float | None:
    try:
        return float(exact)
    except OverflowError:
        return None


def _is_near(found: float | None, wanted: float | None, relative: float = 1e-12) -> bool:
    return found is None if wanted is None else found == pytest.approx(wanted, rel=relative, abs=1e-150)


def test_a_status_with_a_character_that_postgresql_has_not_is_kept_with_a_mark_in_its_place(
    store: PostgresStore,
) -> None:
    write = write_of("a", (0, NOON_US, None), status="on\0off")
    assert store.write([write]) == [Settled("a", Counts(stored=1))]
    again = Write("b", write.batch)
    assert store.write([again]) == [Settled("b", Counts(duplicate=1))]
    table = store.read_raw(UUIDS, 0, FOREVER_US, 10)
    assert table["status"].to_pylist() == ["on\N{REPLACEMENT CHARACTER}off"]


def test_every_kind_of_column_comes_back_as_it_was_written(store: PostgresStore) -> None:
    rows_: list[dict[str, Any]] = [
        {"series": 0, "time": NOON_US, "value": 0.1, "status": "ä 💧 \\ ' \"", "battery": 99.5, "rssi": -32768},
        {"series": 0, "time": NOON_US + 1, "value": None, "status": "", "lqi": 0, "battery_voltage": 1e-45},
        {"series": 1, "time": NOON_US + 1, "value": -1.5e-310, "rssi": 32767, "battery_voltage": -0.0},
    ]
    written = readings(rows_)
    assert store.write([Write("a", batch(written))]) == [Settled("a", Counts(stored=3))]
    assert store.write([Write("b", batch(written))]) == [Settled("b", Counts(duplicate=3))]
    found = store.read_raw(UUIDS, NOON_US, NOON_US + 2, 10)
    for name in ("time", "value", "status", "battery", "rssi", "lqi", "battery_voltage"):
        assert found[name].cast(written.schema.field(name).type).to_pylist() == written[name].to_pylist(), name


# --- very many days ---------------------------------------------------------------------------------------------------


def daily_values(batch_id: str, days: int, value: float = 1.0) -> Write:
    """One reading a day, back in time."""
    return write_of(batch_id, *[(0, NOON_US - back * DAY_US, value + back) for back in range(days)])


def test_a_batch_over_very_many_days_is_written_and_read_with_few_locks_at_once(store: PostgresStore, url: str) -> None:
    days = 450
    assert days > 4 * POSTGRES_DAYS_AT_ONCE_MAX
    assert store.write([daily_values("years", days)]) == [Settled("years", Counts(stored=days))]
    assert store.write([daily_values("years", days)]) == [Settled("years", Counts(stored=days))]
    with store._snapshot(UUIDS, -FOREVER_US, FOREVER_US) as snapshot:
        found = snapshot.raw(-FOREVER_US, FOREVER_US, MANY)
        assert whole(found["time"]) == [NOON_US - back * DAY_US for back in reversed(range(days))]
        assert snapshot.buckets("day", -FOREVER_US, FOREVER_US).num_rows == days
        ((locks,),) = query(url, "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database WHERE datname ="
                                 " current_database()")  # fmt: skip
        assert int(str(locks)) < 100
    first = store.read_raw(UUIDS, -FOREVER_US, FOREVER_US, 7)
    assert first["value"].to_pylist() == [1.0 + back for back in range(days - 1, days - 8, -1)]
    again = daily_values("again", days)
    assert store.write([again]) == [Settled("again", Counts(duplicate=days))]


def test_a_batch_of_many_days_that_fails_midway_is_finished_by_whoever_gets_it_next(
    opening: Callable[..., PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "POSTGRES_DAYS_AT_ONCE_MAX", 3)
    first, second = opening(), opening()
    known = write_of("known", (0, NOON_US - 9 * DAY_US, 10.0), (0, NOON_US - 2 * DAY_US, -1.0))
    first.write([known])
    put, portions = rows.Target.put, iter(range(100))

    def fail_third(self: rows.Target, *arguments: object) -> object:
        if next(portions) == 2:
            raise Unavailable("the power is gone")
        return put(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(rows.Target, "put", fail_third)
        with pytest.raises(Unavailable):
            first.write([daily_values("years", 10)])
    # Another worker, in other company, with other portions.
    monkeypatch.setattr(writing, "POSTGRES_DAYS_AT_ONCE_MAX", 4)
    other = write_of("other", *[(1, NOON_US - back * DAY_US, 1.0) for back in range(30)])
    assert second.write([other, daily_values("years", 10)]) == [
        Settled("other", Counts(stored=30)),
        Settled("years", Counts(stored=8, updated=1, duplicate=1)),
    ]
    assert first.write([daily_values("years", 10)]) == [Settled("years", Counts(stored=8, updated=1, duplicate=1))]
    assert len(values(first)) == 40


# --- retention --------------------------------------------------------------------------------------------------------


def sealed_days(url: str) -> list[int]:
    return [int(str(day)) for (day,) in query(url, "SELECT day FROM telemetry.days WHERE sealed ORDER BY day")]


def test_sealed_days_keep_their_buckets_and_take_later_readings_from_many_workers(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock
) -> None:
    store = opening(2)
    store.write([write_of("a", *[(0, NOON_US + i * MINUTE_US, float(i)) for i in range(10)])])
    before = {period: buckets(store, period) for period in PERIODS}
    clock.advance(5 * 24 * 3600)
    keep_house(store, clock)
    assert sealed_days(url) == [DAY]
    assert values(store) == []
    assert {period: buckets(store, period) for period in PERIODS} == before
    assert query(url, "SELECT count(*) FROM telemetry.readings") == [(0,)]
    assert query(url, "SELECT count(*) FROM telemetry.telemetry_hourly") == [(0,)]
    workers = [opening(2) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        writes = [write_of(f"late-{i}", (0, NOON_US + (20 + i) * MINUTE_US, 100.0 + i)) for i in range(3)]
        settled = list(pool.map(lambda pair: pair[0].write([pair[1]]), zip(workers, writes, strict=True)))
    assert settled == [[Settled(f"late-{i}", Counts(stored=1))] for i in range(3)]
    for period in PERIODS:
        (row,) = buckets(store, period)
        assert (row["count"], row["sum"], row["max"]) == (13, 45.0 + 303.0, 102.0)
        assert (row["active_minutes"], row["approximate"]) == (13, True)
    assert values(store) == []


def test_a_day_that_is_still_written_to_keeps_its_raw(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock
) -> None:
    store = opening(2)
    store.write([write_of("a", (0, NOON_US, 1.0))])
    clock.advance(6 * 24 * 3600)
    store.write([write_of("backfill", (0, NOON_US + 1, 2.0))])
    keep_house(store, clock)
    assert sealed_days(url) == []
    clock.advance(23 * 3600)
    keep_house(store, clock)
    assert sealed_days(url) == []
    clock.advance(2 * 3600)
    keep_house(store, clock)
    assert sealed_days(url) == [DAY]
    assert [row["sum"] for row in buckets(store, "day")] == [3.0]


def test_a_read_under_way_finds_the_days_that_it_has_seen(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealing gives way to it, and is done later."""
    monkeypatch.setattr(hurry, "POSTGRES_MAINTAIN_LOCK_SECONDS_MAX", 0.3)
    store = opening(2)
    store.write([write_of("a", (0, NOON_US, 1.0))])
    clock.advance(6 * 24 * 3600)
    with store._snapshot(UUIDS, 0, FOREVER_US) as snapshot:
        keeper = opening(2)
        keep_house(keeper, clock)
        assert sealed_days(url) == []
        assert snapshot.raw(0, FOREVER_US, 10).num_rows == 1
        assert snapshot.buckets("day", 0, FOREVER_US)["sum"].to_pylist() == [1.0]
    keep_house(keeper, clock)
    assert sealed_days(url) == [], "it gave up a moment ago"
    clock.advance(POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS)
    keep_house(keeper, clock)
    assert sealed_days(url) == [DAY]


def test_a_write_between_the_last_look_and_the_seal_is_not_lost(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opening(2)
    store.write([write_of("a", (0, NOON_US, 1.0))])
    clock.advance(6 * 24 * 3600)
    seal = sealing._seal
    written: list[Settled] = []

    def write_before(session: Session, day: int) -> bool:
        if not written:
            written.extend(opening(2).write([write_of("b", (0, NOON_US + 1, 2.0))]))
        return seal(session, day)

    monkeypatch.setattr(sealing, "_seal", write_before)
    keep_house(store, clock)
    assert written == [Settled("b", Counts(stored=1))]
    clock.advance(25 * 3600)
    keep_house(store, clock)
    assert sealed_days(url) == [DAY]
    assert [row["sum"] for row in buckets(store, "day")] == [3.0]


def test_house_is_kept_in_steps_and_goes_on_where_another_process_left_off(
    opening: Callable[..., PostgresStore], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_STEPS_MAX", 1)
    monkeypatch.setattr("sensorkeep.tsdb.postgres.rolling._SERIES_FIRST", 1)
    monkeypatch.setattr("sensorkeep.tsdb.postgres.rolling._SERIES_MAX", 1)
    keepers = [opening(2), opening(2)]
    rows_ = [(s, NOON_US + i * 5 * HOUR_US, float(i)) for s in range(4) for i in range(12)]
    keepers[0].write([write_of("a", *rows_)])
    before = {period: buckets(keepers[0], period) for period in PERIODS}
    for turn in range(400):
        if turn == 40:
            clock.advance(9 * 24 * 3600)
        keepers[turn % 2].maintain(clock.now_us())
        if turn % 10 == 0:
            assert {period: buckets(keepers[0], period) for period in PERIODS} == before
    assert values(keepers[0]) == []
    assert {period: buckets(keepers[1], period) for period in PERIODS} == before


def test_batch_ids_are_forgotten_after_a_week(store: PostgresStore, url: str, clock: ManualClock) -> None:
    store.write([write_of("old", (0, NOON_US, 1.0))])
    clock.advance(8 * 24 * 3600)
    store.write([write_of("new", (0, NOON_US + 8 * DAY_US, 1.0))])
    keep_house(store, clock, 1)
    assert query(url, "SELECT batch_id FROM telemetry.batches") == [("new",)]


def test_an_export_and_import_of_nothing_is_nothing(store: PostgresStore) -> None:
    for period in PERIODS:
        nothing = store.export_buckets(period, 0, FOREVER_US)
        assert nothing.num_rows == 0
        store.import_buckets(period, nothing)
    assert store.status().empty
