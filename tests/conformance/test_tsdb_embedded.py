"""What only the embedded store has: two ways to aggregate, runs in order, and a database opened anew."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from tsdb_world import FOREVER_US, MANY, NOON_US, UUIDS, batch, open_store, readings, values, write_of

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock
from sensorkeep.errors import Unavailable
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import Settled, Write
from sensorkeep.tsdb.duckdb import DuckDBStore, maintenance, merging, reading


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_US)


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[DuckDBStore]:
    made = open_store(tmp_path / "readings.duckdb", clock)
    yield made
    made.close()


def some_rows(count: int, first_us: int, every_us: int) -> list[tuple[int, int, float | None]]:
    """Readings of four sensors with two decimals, some without a value."""
    source = random.Random(5)
    return [
        (i % 4, first_us + i * every_us, None if source.random() < 0.1 else round(source.gauss(20, 30), 2))
        for i in range(count)
    ]


def assert_alike(few: pa.Table, many: pa.Table) -> None:
    """Equal but for the last bits."""
    assert few.schema == many.schema
    assert few.num_rows == many.num_rows > 0
    for name in few.column_names:
        if pa.types.is_floating(few.schema.field(name).type):
            left, right = (table[name].to_numpy() for table in (few, many))
            np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12, err_msg=name)
        else:
            assert few[name].to_pylist() == many[name].to_pylist(), name


@pytest.mark.parametrize("maintained", [False, True])
def test_few_readings_aggregated_here_equal_many_aggregated_by_the_database(
    store: DuckDBStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, maintained: bool
) -> None:
    store.write([write_of("a", *some_rows(1_000, NOON_US - 40 * HOUR_US, 2 * MINUTE_US + 7))])
    store.settle()
    if maintained:
        store.maintain(clock.now_us())
        store.write([write_of("corrected", *some_rows(40, NOON_US - 39 * HOUR_US, 2 * MINUTE_US))])
        store.settle()
    asked = [UUIDS[3], UUIDS[0]]

    def read() -> list[pa.Table]:
        return [
            store.read_rollup("hour", asked, 0, FOREVER_US, MANY),
            store.read_rollup("day", asked, 0, FOREVER_US, MANY),
            store.summarize(asked, NOON_US - 30 * HOUR_US + 1, NOON_US - HOUR_US),
            store.summarize(asked, (NOON_US // DAY_US - 20) * DAY_US, NOON_US),
            store.read_raw(asked, 0, FOREVER_US, MANY),
        ]

    few = read()
    monkeypatch.setattr(reading, "_FEW_READINGS", 0)
    monkeypatch.setattr(reading, "_FEW_DAYS", 0)
    for here, there in zip(few, read(), strict=True):
        assert_alike(here, there)


def test_raw_of_a_few_days_is_paged_the_same_with_one_statement_as_with_many(
    store: DuckDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(sensor, NOON_US + step * 5 * HOUR_US, float(sensor)) for step in range(9) for sensor in range(3)]
    store.write([write_of("a", *rows)])
    for after in (None, (NOON_US + 10 * HOUR_US, 0), (NOON_US + 10 * HOUR_US, 2), (NOON_US + 40 * HOUR_US, 1)):
        for limit in (1, 4, 100):
            pages = []
            for days in (3, 0):
                monkeypatch.setattr(reading, "_FEW_DAYS", days)
                pages.append(store.read_raw(UUIDS, NOON_US, FOREVER_US, limit, after).to_pylist())
            assert pages[0] == pages[1]


def test_a_day_is_put_in_order_run_by_run_with_writes_between_and_nothing_changes(
    store: DuckDBStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "RUN_READINGS_MAX", 64)
    monkeypatch.setattr(maintenance, "_ROUNDS_AT_ONCE_MAX", 1)
    day_us = NOON_US // DAY_US * DAY_US
    rows = some_rows(300, day_us, 4 * MINUTE_US)
    store.write([write_of("a", *rows)])
    store.write([write_of("end", (0, day_us + 6 * DAY_US, 1.0))])
    store.settle()
    clock.advance(6 * 24 * 3600)
    found = {(sensor, time_us): value for sensor, time_us, value in values(store)}
    rounds = 0
    while store.days()[day_us // DAY_US] == "open":
        store.maintain(clock.now_us())
        late = write_of(f"late-{rounds}", (0, day_us + rounds * MINUTE_US, 7.0), (1, rows[rounds * 4 + 1][1], -1.0))
        assert store.write([late]) == []
        settled = store.settle()
        assert settled[0].counts.total == 2
        found |= {(0, day_us + rounds * MINUTE_US): 7.0, (1, rows[rounds * 4 + 1][1]): -1.0}
        assert {(sensor, time_us): value for sensor, time_us, value in values(store)} == found
        rounds += 1
    assert rounds > 4
    assert len(values(store)) == len(found), "no reading twice"


def test_a_large_batch_is_stored_in_the_order_of_its_sensors_and_read_in_that_of_time(
    store: DuckDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "RUN_READINGS_MIN", 100)
    rows = some_rows(400, NOON_US, MINUTE_US // 10)
    assert store.write([write_of("a", *rows)]) == [Settled("a", Counts(stored=400))]
    assert values(store) == sorted(rows, key=lambda row: (row[1], row[0]))
    again = write_of("again", *rows[:-1], (*rows[-1][:2], 1e6))
    assert store.write([again]) == [Settled("again", Counts(updated=1, duplicate=399))]


def test_rows_are_ordered_by_sensor_also_where_numbers_need_more_than_sixteen_bits() -> None:
    series = np.array([70_000, 3, 200_001, 3, 70_000, 8, 200_001, 8])
    order = merging._in_order(series, np.arange(len(series)))
    assert series[order].tolist() == sorted(series.tolist())
    assert sorted(order.tolist()) == list(range(len(series)))
    assert [i for i in order.tolist() if series[i] == 3] == [3, 1], "an odd sensor backwards"
    assert [i for i in order.tolist() if series[i] == 8] == [5, 7]


def test_a_commit_that_the_disk_refuses_is_undone_and_the_store_goes_on(store: DuckDBStore, tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk."""
    store.write([write_of("a", (0, NOON_US, 1.0))])
    rows = readings([{"series": 0, "time": NOON_US + 1 + i, "value": i / 7} for i in range(50_000)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(file.stat().st_size for file in tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, before[1]))
    try:
        with pytest.raises(Unavailable) as raised:
            store.write([Write("b", batch(rows))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.code == "disk_full"
    assert values(store) == [(0, NOON_US, 1.0)]
    assert store.write([Write("b", batch(rows))]) == [Settled("b", Counts(stored=50_000))]
    assert store.write([write_of("a")]) == [Settled("a", Counts(stored=1))]


def test_a_database_that_was_given_up_on_is_opened_anew_with_all_that_was_acknowledged(store: DuckDBStore) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0))])
    assert values(store) == [(0, NOON_US, 1.0)], "a cursor of the first database is kept for the next read"
    store._engine.writing.execute("SET GLOBAL debug_checkpoint_abort = 'before_header'")
    with pytest.raises(Unavailable):
        store._engine.checkpoint()
    assert values(store) == [(0, NOON_US, 1.0)]
    again = write_of("b", (0, NOON_US + 1, 2.0))
    assert store.write([again, write_of("a")]) == [Settled("b", Counts(stored=1)), Settled("a", Counts(stored=1))]
    assert values(store) == [(0, NOON_US, 1.0), (0, NOON_US + 1, 2.0)]


def test_a_database_given_up_on_within_a_transaction_is_opened_anew_by_the_next(store: DuckDBStore) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0))])
    connection = store._engine.writing
    connection.execute("SET GLOBAL debug_checkpoint_abort = 'before_header'")
    with pytest.raises(duckdb.FatalException):
        connection.execute("CHECKPOINT")
    again = write_of("b", (0, NOON_US + 1, 2.0))
    with pytest.raises(Unavailable):
        store.maintain(NOON_US)
    assert store.write([again]) == [Settled("b", Counts(stored=1))]
    assert values(store) == [(0, NOON_US, 1.0), (0, NOON_US + 1, 2.0)]
