"""Buckets whose raw is gone move from one store to another, and go on there as in the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tsdb_world import FOREVER_US, MANY, NOON_US, UUIDS, buckets, open_store, write_of

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock
from sensorkeep.errors import Conflict
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import BUCKET_SCHEMAS, Period, Settled
from sensorkeep.tsdb.duckdb import DuckDBStore

DAY = NOON_US // DAY_US
RETENTION_DAYS = 2
PERIODS: tuple[Period, Period] = ("hour", "day")
ROWS: list[tuple[int, int, float | None]] = [
    (sensor, NOON_US + day * DAY_US + i * 7 * MINUTE_US, None if i % 9 == 8 else i * 0.1 + sensor)
    for day in range(-6, 1)
    for sensor in range(3)
    for i in range(40)
]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_US)


def keep_house(store: DuckDBStore, clock: ManualClock) -> None:
    """Whatever is due."""
    for _ in range(20):
        store.maintain(clock.now_us())


@pytest.fixture
def old(tmp_path: Path, clock: ManualClock) -> Iterator[DuckDBStore]:
    """A store with four days that are sealed, one of them with an approximate bucket, and three with raw."""
    store = open_store(tmp_path / "old.duckdb", clock, RETENTION_DAYS)
    store.write([write_of("a", *ROWS)])
    store.settle()
    clock.advance(36 * 3600)
    keep_house(store, clock)
    store.write([write_of("late", (0, NOON_US - 6 * DAY_US + 5 * MINUTE_US, 9.0), (3, NOON_US - 6 * DAY_US, 1.0))])
    store.settle()
    assert sorted(day - DAY for day, state in store.days().items() if state == "sealed") == [-6, -5, -4, -3, -2, -1]
    yield store
    store.close()


@pytest.fixture
def new(tmp_path: Path, clock: ManualClock) -> Iterator[DuckDBStore]:
    store = open_store(tmp_path / "new.duckdb", clock, RETENTION_DAYS)
    yield store
    store.close()


def move(old: DuckDBStore, new: DuckDBStore, start_us: int = 0, end_us: int = FOREVER_US) -> None:
    for period in PERIODS:
        new.import_buckets(period, old.export_buckets(period, start_us, end_us))


def sealed_buckets(store: DuckDBStore, period: Period) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.read_rollup(period, UUIDS, 0, DAY * DAY_US, MANY).to_pylist()
    return rows


def close(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the last bits, which depend on who adds up: the database, or a read that has few readings."""
    return [{name: round(cell, 9) if isinstance(cell, float) else cell for name, cell in row.items()} for row in rows]


def test_only_buckets_without_raw_are_exported_in_the_form_that_merges(old: DuckDBStore) -> None:
    for period in PERIODS:
        exported = old.export_buckets(period, 0, FOREVER_US)
        assert exported.schema == BUCKET_SCHEMAS[period]
        assert exported.num_rows == len(sealed_buckets(old, period)) > 0
    hours = old.export_buckets("hour", NOON_US - 6 * DAY_US, NOON_US - 6 * DAY_US + HOUR_US)
    assert {row["sensor"] for row in hours.to_pylist()} == set(UUIDS)
    first = next(row for row in hours.to_pylist() if row["sensor"] == UUIDS[0])
    assert first["minutes"] == sum(1 << minute for minute in {0, 5, *range(7, 60, 7)})
    assert first["approximate"] is True


def test_moved_buckets_answer_as_before(old: DuckDBStore, new: DuckDBStore) -> None:
    move(old, new)
    for period in PERIODS:
        assert sealed_buckets(new, period) == sealed_buckets(old, period) == buckets(new, period)
    assert new.days() == {day: state for day, state in old.days().items() if state == "sealed"}
    start_us = (DAY - 8) * DAY_US
    for end_us in ((DAY - 3) * DAY_US, (DAY - 1) * DAY_US + 14 * HOUR_US):
        assert new.summarize(UUIDS, start_us, end_us).equals(old.summarize(UUIDS, start_us, end_us))


def test_buckets_may_come_in_parts_in_any_order_and_again(old: DuckDBStore, new: DuckDBStore) -> None:
    for day in (-2, -6, -1, -5, -3, -4, -5, -6):
        move(old, new, (DAY + day) * DAY_US, (DAY + day + 1) * DAY_US)
    move(old, new)
    for period in PERIODS:
        assert buckets(new, period) == sealed_buckets(old, period)


def test_later_readings_merge_into_moved_buckets_as_into_the_first_ones(
    old: DuckDBStore, new: DuckDBStore, tmp_path: Path, clock: ManualClock
) -> None:
    move(old, new)
    new.close()
    new = open_store(tmp_path / "new.duckdb", clock, RETENTION_DAYS)
    merged = [(sensor, NOON_US - 4 * DAY_US + i * 11 * MINUTE_US, 3.3 * i) for sensor in range(4) for i in range(30)]
    for store in (old, new):
        store.write([write_of("more", *merged, (0, NOON_US + 2 * DAY_US, 1.0))])
        store.settle()
        keep_house(store, clock)
    for period in PERIODS:
        assert sealed_buckets(new, period) == sealed_buckets(old, period)
    assert {row["approximate"] for row in sealed_buckets(new, "day")} == {True, False}
    new.close()


def test_readings_after_the_buckets_are_written_rolled_up_and_sealed(
    old: DuckDBStore, new: DuckDBStore, clock: ManualClock
) -> None:
    move(old, new)
    raw = [row for row in ROWS if row[1] >= DAY * DAY_US]
    assert new.write([write_of("raw", *raw)]) + new.settle() == [Settled("raw", Counts(stored=len(raw)))]
    for period in PERIODS:
        assert close(buckets(new, period)) == close(buckets(old, period))
    clock.advance(4 * 24 * 3600)
    for store in (old, new):
        keep_house(store, clock)
    assert new.days() == old.days()
    for period in PERIODS:
        assert close(buckets(new, period)) == close(buckets(old, period))
    move(old, new)
    for period in PERIODS:
        assert close(buckets(new, period)) == close(buckets(old, period)), "again, of sealed days alone"


@pytest.mark.parametrize("days_before", [0, 1, 30])
def test_buckets_are_refused_where_raw_stands_in_their_way(
    old: DuckDBStore, new: DuckDBStore, days_before: int
) -> None:
    new.write([write_of("raw", (0, NOON_US - days_before * DAY_US - DAY_US, 1.0))])
    before = (new.version, new.days())
    with pytest.raises(Conflict):
        new.import_buckets("hour", old.export_buckets("hour", (DAY - 1) * DAY_US, FOREVER_US))
    assert (new.version, new.days()) == before


def test_nothing_to_move_changes_nothing(new: DuckDBStore) -> None:
    version = new.version
    move(new, new)
    assert (new.version, new.days()) == (version, {})
