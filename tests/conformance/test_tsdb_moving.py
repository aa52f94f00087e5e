"""Buckets whose raw is gone move from one store to another, of any kind, and go on there as in the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tsdb_world import FOREVER_US, MANY, NOON_US, SHARED, UUIDS, buckets, opened, write_of

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock
from sensorkeep.errors import Conflict
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import BUCKET_SCHEMAS, Period, Settled, TimeSeriesStore
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
Rows = list[dict[str, Any]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_US)


def keep_house(store: TimeSeriesStore, clock: ManualClock) -> None:
    """Whatever is due."""
    for _ in range(20):
        store.maintain(clock.now_us())


@pytest.fixture(params=["file", *SHARED])
def old(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[TimeSeriesStore]:
    """A store with six days without raw, one of them with an approximate bucket, and one day with raw."""
    (tmp_path / "old").mkdir()
    with opened(request.param, tmp_path / "old", clock, RETENTION_DAYS) as store:
        store.write([write_of("a", *ROWS)])
        store.settle()
        clock.advance(36 * 3600)
        keep_house(store, clock)
        late = write_of("late", (0, NOON_US - 6 * DAY_US + 5 * MINUTE_US, 9.0), (3, NOON_US - 6 * DAY_US, 1.0))
        store.write([late])
        store.settle()
        assert days_without_raw(store) == [-6, -5, -4, -3, -2, -1]
        yield store


@pytest.fixture(params=["file", *SHARED])
def new(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[TimeSeriesStore]:
    """A store in which nothing was written."""
    (tmp_path / "new").mkdir()
    with opened(request.param, tmp_path / "new", clock, RETENTION_DAYS) as store:
        yield store


def move(old: TimeSeriesStore, new: TimeSeriesStore, start_us: int = 0, end_us: int = FOREVER_US) -> None:
    for period in PERIODS:
        new.import_buckets(period, old.export_buckets(period, start_us, end_us))


def days_without_raw(store: TimeSeriesStore) -> list[int]:
    """The days of the exported buckets, relative to DAY."""
    times: list[Any] = store.export_buckets("day", 0, FOREVER_US)["time"].cast(pa.int64()).to_pylist()
    return sorted({time_us // DAY_US - DAY for time_us in times})


def sealed_buckets(store: TimeSeriesStore, period: Period) -> Rows:
    """The buckets of the days before DAY, as they are read."""
    return close(store.read_rollup(period, UUIDS, 0, DAY * DAY_US, MANY))


def all_buckets(store: TimeSeriesStore, period: Period) -> Rows:
    return close(store.read_rollup(period, UUIDS, 0, FOREVER_US, MANY))


def close(table: pa.Table) -> Rows:
    """The rows without the last bits, which depend on who adds up."""
    rows: Rows = table.to_pylist()
    return [{name: round(cell, 9) if isinstance(cell, float) else cell for name, cell in row.items()} for row in rows]


def test_only_buckets_without_raw_are_exported_in_the_form_that_merges(old: TimeSeriesStore) -> None:
    for period in PERIODS:
        exported = old.export_buckets(period, 0, FOREVER_US)
        assert exported.schema == BUCKET_SCHEMAS[period]
        assert exported.num_rows == len(sealed_buckets(old, period)) > 0
        keys = list(zip(exported["sensor"].to_pylist(), exported["time"].to_pylist(), strict=True))
        assert keys == sorted(keys)
    hours = old.export_buckets("hour", NOON_US - 6 * DAY_US, NOON_US - 6 * DAY_US + HOUR_US)
    assert set(hours["sensor"].to_pylist()) == set(UUIDS)
    first = next(row for row in hours.to_pylist() if row["sensor"] == UUIDS[0])
    assert first["minutes"] == sum(1 << minute for minute in {0, 5, *range(7, 60, 7)})
    assert first["approximate"] is True


def test_moved_buckets_answer_as_before(old: TimeSeriesStore, new: TimeSeriesStore) -> None:
    move(old, new)
    for period in PERIODS:
        assert sealed_buckets(new, period) == sealed_buckets(old, period) == all_buckets(new, period)
        assert new.export_buckets(period, 0, FOREVER_US).equals(old.export_buckets(period, 0, FOREVER_US))
    start_us = (DAY - 8) * DAY_US
    for end_us in ((DAY - 3) * DAY_US, (DAY - 1) * DAY_US + 14 * HOUR_US):
        assert close(new.summarize(UUIDS, start_us, end_us)) == close(old.summarize(UUIDS, start_us, end_us))


def test_buckets_may_come_in_parts_in_any_order_and_again(old: TimeSeriesStore, new: TimeSeriesStore) -> None:
    for day in (-2, -6, -1, -5, -3, -4, -5, -6):
        move(old, new, (DAY + day) * DAY_US, (DAY + day + 1) * DAY_US)
    move(old, new)
    for period in PERIODS:
        assert all_buckets(new, period) == sealed_buckets(old, period)


def test_later_readings_merge_into_moved_buckets_as_into_the_first_ones(
    old: TimeSeriesStore, new: TimeSeriesStore, clock: ManualClock
) -> None:
    move(old, new)
    merged = [(sensor, NOON_US - 4 * DAY_US + i * 11 * MINUTE_US, 3.3 * i) for sensor in range(4) for i in range(30)]
    for store in (old, new):
        store.write([write_of("more", *merged, (0, NOON_US + 2 * DAY_US, 1.0))])
        store.settle()
        keep_house(store, clock)
    for period in PERIODS:
        assert sealed_buckets(new, period) == sealed_buckets(old, period)
    assert {row["approximate"] for row in sealed_buckets(new, "day")} == {True, False}


def test_readings_after_the_buckets_are_written_rolled_up_and_sealed(
    old: TimeSeriesStore, new: TimeSeriesStore, clock: ManualClock
) -> None:
    move(old, new)
    raw = [row for row in ROWS if row[1] >= DAY * DAY_US]
    assert new.write([write_of("raw", *raw)]) + new.settle() == [Settled("raw", Counts(stored=len(raw)))]
    for period in PERIODS:
        assert all_buckets(new, period) == all_buckets(old, period)
    clock.advance(4 * 24 * 3600)
    for store in (old, new):
        keep_house(store, clock)
    assert days_without_raw(new) == days_without_raw(old) == [-6, -5, -4, -3, -2, -1, 0]
    for period in PERIODS:
        assert all_buckets(new, period) == all_buckets(old, period)
    move(old, new)
    for period in PERIODS:
        assert all_buckets(new, period) == all_buckets(old, period), "again, of days without raw alone"


def test_buckets_are_refused_where_raw_of_their_day_is(old: TimeSeriesStore, new: TimeSeriesStore) -> None:
    new.write([write_of("raw", (0, NOON_US - DAY_US, 1.0))])
    before = all_buckets(new, "hour")
    with pytest.raises(Conflict):
        new.import_buckets("hour", old.export_buckets("hour", (DAY - 1) * DAY_US, FOREVER_US))
    assert all_buckets(new, "hour") == before
    assert days_without_raw(new) == []


@pytest.mark.parametrize("days_before", [1, 30])
def test_the_embedded_store_refuses_buckets_later_than_raw_that_is_not_rolled_up(
    tmp_path: Path, clock: ManualClock, days_before: int
) -> None:
    """Its marks would pass that raw."""
    with opened("memory", tmp_path, clock) as store:
        assert isinstance(store, DuckDBStore)
        store.write([write_of("raw", (0, NOON_US - days_before * DAY_US, 1.0))])
        before = (store.version, store.days(), buckets(store))
        row = dict.fromkeys(BUCKET_SCHEMAS["hour"].names) | {"sensor": UUIDS[0], "time": NOON_US, "count": 0}
        rows = pa.Table.from_pylist([row | {"minutes": 1, "approximate": False}], BUCKET_SCHEMAS["hour"])
        with pytest.raises(Conflict):
            store.import_buckets("hour", rows)
        assert (store.version, store.days(), buckets(store)) == before


def test_nothing_to_move_changes_nothing_and_a_store_says_that_it_is_empty(
    old: TimeSeriesStore, new: TimeSeriesStore
) -> None:
    assert new.status().empty is True
    move(new, new)
    assert new.status().empty is True
    move(old, new, (DAY - 1) * DAY_US, DAY * DAY_US)
    assert new.status().empty is False
    assert old.status().empty is False
