"""What every time series store must do; see tsdb/base.py."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tsdb_world import (
    EMBEDDED,
    FOREVER_US,
    MANY,
    NOON_US,
    SENSORS,
    SHARED,
    UUIDS,
    batch,
    buckets,
    opened,
    readings,
    values,
    whole,
    write_of,
)

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock
from sensorkeep.model import READINGS_SCHEMA, Counts, Sensor, external_uuid
from sensorkeep.rollup import percentile_cont
from sensorkeep.tsdb.base import RAW_COLUMNS, ROLLUP_COLUMNS, SUMMARY_COLUMNS, Settled, TimeSeriesStore, Write


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_US)


@pytest.fixture(params=[*EMBEDDED, *SHARED])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[TimeSeriesStore]:
    with opened(request.param, tmp_path, clock) as made:
        yield made
        made.close()


def test_a_new_reading_is_stored_and_read_back(store: TimeSeriesStore) -> None:
    metadata = {"status": "ok", "battery": 91.0, "rssi": -70, "lqi": 200, "battery_voltage": 3.5}
    settled = store.write([write_of("a", (0, NOON_US, 21.5), **metadata)])
    assert settled == [Settled("a", Counts(stored=1))]
    table = store.read_raw(UUIDS, NOON_US, NOON_US + 1, 10)
    assert tuple(table.column_names) == RAW_COLUMNS
    assert table.schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("status").type == READINGS_SCHEMA.field("status").type
    row = table.to_pylist()[0]
    assert {"sensor": 0, "value": 21.5} | metadata == {name: row[name] for name in row if name != "time"}


def test_nothing_written_reads_as_empty_tables_of_the_contract(store: TimeSeriesStore) -> None:
    assert store.read_raw(UUIDS, 0, FOREVER_US, 10).num_rows == 0
    hours = store.read_rollup("hour", UUIDS, 0, FOREVER_US, 10)
    assert (hours.num_rows, tuple(hours.column_names)) == (0, ROLLUP_COLUMNS)
    for length_us in (HOUR_US, 30 * DAY_US):
        summary = store.summarize(UUIDS, NOON_US - length_us, NOON_US)
        assert (summary.num_rows, tuple(summary.column_names)) == (0, SUMMARY_COLUMNS)
    assert store.settle() == []
    store.maintain(NOON_US)
    assert store.status().raw_readings == 0


def test_an_empty_write_and_an_empty_batch_are_answered(store: TimeSeriesStore) -> None:
    assert store.write([]) == []
    assert store.write([Write("empty", batch(readings([])))]) == [Settled("empty", Counts())]


def test_the_same_reading_again_is_a_duplicate_and_another_content_an_update(store: TimeSeriesStore) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0))])
    assert store.write([write_of("b", (0, NOON_US, 1.0))]) == [Settled("b", Counts(duplicate=1))]
    assert store.write([write_of("c", (0, NOON_US, 2.0))]) == [Settled("c", Counts(updated=1))]
    assert store.write([write_of("d", (0, NOON_US, 2.0), status="ok")]) == [Settled("d", Counts(updated=1))]
    assert store.write([write_of("e", (0, NOON_US, 2.0), battery=1.0)]) == [Settled("e", Counts(updated=1))]
    assert values(store) == [(0, NOON_US, 2.0)]
    assert buckets(store)[0]["sum"] == 2.0


def test_repeats_inside_one_call_count_in_the_order_written(store: TimeSeriesStore) -> None:
    first = write_of("a", (0, NOON_US, 1.0), (0, NOON_US, 1.0), (0, NOON_US, 2.0))
    second = write_of("b", (0, NOON_US, 2.0), (0, NOON_US, 3.0), (1, NOON_US, 3.0))
    assert store.write([first, second]) == [
        Settled("a", Counts(stored=1, updated=1, duplicate=1)),
        Settled("b", Counts(stored=1, updated=1, duplicate=1)),
    ]
    assert values(store) == [(0, NOON_US, 3.0), (1, NOON_US, 3.0)]


def test_a_change_there_and_back_updates_twice_and_leaves_the_first_content(store: TimeSeriesStore) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0))])
    back = write_of("b", (0, NOON_US, 2.0), (0, NOON_US, 1.0), (0, NOON_US, 1.0))
    assert store.write([back]) == [Settled("b", Counts(updated=2, duplicate=1))]
    assert values(store) == [(0, NOON_US, 1.0)]


def test_a_settled_batch_id_changes_nothing_and_is_answered_with_its_first_counts(store: TimeSeriesStore) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0), (0, NOON_US + 1, 1.0))])
    again = store.write([write_of("a", (0, NOON_US, 9.0)), write_of("b", (1, NOON_US, 1.0))])
    assert again == [Settled("a", Counts(stored=2)), Settled("b", Counts(stored=1))]
    assert (0, NOON_US, 1.0) in values(store)


def test_a_batch_id_twice_in_one_call_counts_once(store: TimeSeriesStore) -> None:
    twice = [write_of("a", (0, NOON_US, 1.0)), write_of("b", (1, NOON_US, 1.0)), write_of("a", (0, NOON_US, 5.0))]
    assert store.write(twice) == [Settled("a", Counts(stored=1)), Settled("b", Counts(stored=1))]
    assert values(store) == [(0, NOON_US, 1.0), (1, NOON_US, 1.0)]


def test_a_late_reading_is_counted_by_write_or_settle_but_once(store: TimeSeriesStore) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0))])
    late = write_of("late", (0, NOON_US - 9 * HOUR_US, 1.0), (0, NOON_US + 1, 2.0))
    answered = store.write([late])
    if not answered:
        assert store.write([late]) == [], "a staged batch changes nothing and is left out"
    answered += store.settle()
    assert answered == [Settled("late", Counts(stored=2))]
    assert store.settle() == []
    assert store.write([late]) == [Settled("late", Counts(stored=2))]
    assert len(values(store)) == 3


def test_of_two_late_contents_the_later_accepted_wins(store: TimeSeriesStore) -> None:
    late_us = NOON_US - 30 * HOUR_US
    store.write([write_of("now", (0, NOON_US, 1.0))])
    answered = store.write([write_of("a", (0, late_us, 1.0))])
    answered += store.write([write_of("b", (0, late_us, 2.0)), write_of("c", (0, late_us, 2.0))])
    answered += store.settle()
    assert sorted(answered) == [
        Settled("a", Counts(stored=1)),
        Settled("b", Counts(updated=1)),
        Settled("c", Counts(duplicate=1)),
    ]
    assert values(store)[0] == (0, late_us, 2.0)


def test_raw_pages_follow_each_other_without_gap_or_overlap(store: TimeSeriesStore) -> None:
    rows = [(sensor, NOON_US + step * 7 * HOUR_US, float(sensor)) for step in range(9) for sensor in range(3)]
    store.write([write_of("a", *rows)])
    store.settle()
    found: list[tuple[int, int]] = []
    after = None
    while True:
        page = store.read_raw(UUIDS, NOON_US, FOREVER_US, 4, after)
        found += zip(whole(page["time"]), whole(page["sensor"]), strict=True)
        if page.num_rows < 4:
            break
        after = found[-1]
    assert found == sorted((time_us, sensor) for sensor, time_us, _ in rows)


def test_sensors_are_answered_by_their_place_in_the_request(store: TimeSeriesStore) -> None:
    store.write([write_of("a", (0, NOON_US, 0.0), (2, NOON_US, 2.0))])
    table = store.read_raw([UUIDS[2], external_uuid("unknown"), UUIDS[0]], 0, FOREVER_US, 10)
    assert list(zip(table["sensor"].to_pylist(), table["value"].to_pylist(), strict=True)) == [(0, 2.0), (2, 0.0)]
    hours = store.read_rollup("hour", [external_uuid("unknown"), UUIDS[2]], 0, FOREVER_US, 10)
    assert hours["sensor"].to_pylist() == [1]


def test_ranges_are_half_open(store: TimeSeriesStore) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0), (0, NOON_US + HOUR_US, 2.0))])
    assert store.read_raw(UUIDS, NOON_US, NOON_US + HOUR_US, 10)["value"].to_pylist() == [1.0]
    assert store.read_rollup("hour", UUIDS, NOON_US, NOON_US + HOUR_US, 10)["sum"].to_pylist() == [1.0]
    assert store.read_rollup("hour", UUIDS, NOON_US + 1, NOON_US + HOUR_US + 1, 10)["sum"].to_pylist() == [2.0]
    assert store.summarize(UUIDS, NOON_US, NOON_US + HOUR_US)["sum"].to_pylist() == [1.0]


def test_a_bucket_holds_its_readings_after_the_end_of_the_range_too(store: TimeSeriesStore) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0), (0, NOON_US + 50 * MINUTE_US, 2.0))])
    assert store.read_rollup("hour", UUIDS, NOON_US, NOON_US + 1, 10)["sum"].to_pylist() == [3.0]


@pytest.mark.parametrize("maintained", [False, True])
def test_a_bucket_has_the_defined_figures(store: TimeSeriesStore, clock: ManualClock, maintained: bool) -> None:
    numbers = [1.0, 2.5, -3.0, 8.0, 8.0, 0.25, 1e6]
    rows = [(0, NOON_US + i * 40 * 1_000_000, number) for i, number in enumerate(numbers)]
    store.write([write_of("a", *rows, (0, NOON_US + 30 * MINUTE_US, None), status="on")])
    if maintained:
        store.write([write_of("later", (1, NOON_US + 30 * HOUR_US, 1.0))])
        for _ in range(5):
            store.maintain(NOON_US + 30 * HOUR_US)
    for period in ("hour", "day"):
        row = buckets(store, period)[0]
        assert (row["count"], row["min"], row["max"], row["active_minutes"]) == (7, -3.0, 1e6, 6)
        assert math.isclose(row["sum"], math.fsum(numbers), rel_tol=1e-15)
        assert math.isclose(row["average"], statistics.fmean(numbers), rel_tol=1e-15)
        assert math.isclose(row["stddev"], statistics.stdev(numbers), rel_tol=1e-12)
        for name, probability in (("median", 0.5), ("p95", 0.95), ("p99", 0.99)):
            assert math.isclose(row[name], percentile_cont(numbers, probability), rel_tol=1e-12)
        assert row["approximate"] is False


def test_a_reading_with_only_a_status_counts_as_activity_and_not_as_a_sample(store: TimeSeriesStore) -> None:
    store.write([write_of("a", (0, NOON_US, None), status="on")])
    for row in (*buckets(store), *store.summarize(UUIDS, NOON_US, NOON_US + DAY_US).to_pylist()):
        assert (row["count"], row["active_minutes"]) == (0, 1)
        assert [row[name] for name in ("sum", "min", "max", "average", "stddev", "median", "p99")] == [None] * 7


def test_values_no_double_can_add_up_do_not_break_the_store(store: TimeSeriesStore) -> None:
    rows = [(0, NOON_US + i * MINUTE_US, value) for i, value in enumerate((1.7e308, 1.7e308, -1.7e308))]
    store.write([write_of("a", *rows), write_of("b", (1, NOON_US + 90 * HOUR_US, 1.0))])
    store.settle()
    for _ in range(8):
        store.maintain(NOON_US + 90 * HOUR_US)
    for period in ("hour", "day"):
        row = buckets(store, period)[0]
        assert (row["count"], row["max"], row["median"]) == (3, 1.7e308, 1.7e308)
        assert row["stddev"] is None
    assert store.summarize(UUIDS, NOON_US - 3 * DAY_US, NOON_US + 4 * DAY_US).num_rows == 2


def test_readings_before_1970_are_kept_like_others(store: TimeSeriesStore) -> None:
    old_us = -DAY_US - 30 * MINUTE_US
    store.write([write_of("a", (0, old_us, 1.0), (0, NOON_US, 2.0))])
    store.settle()
    for _ in range(4):
        store.maintain(NOON_US)
    hours = store.read_rollup("hour", UUIDS, -2 * DAY_US, 0, 10)
    assert hours["time"].cast(pa.int64()).to_pylist() == [-DAY_US - HOUR_US]
    assert store.read_rollup("day", UUIDS, -2 * DAY_US, 0, 10)["sum"].to_pylist() == [1.0]


def test_a_summary_over_weeks_is_exact_but_for_percentiles_and_those_are_close(store: TimeSeriesStore) -> None:
    rng = np.random.default_rng(7)
    minutes = np.arange(0, 20 * 24 * 60, 5)
    numbers = np.round(rng.normal(20, 3, len(minutes)) + minutes / 5000, 3)
    rows = [(0, NOON_US + int(m) * MINUTE_US, float(v)) for m, v in zip(minutes, numbers, strict=True)]
    store.write([write_of("a", *rows)])
    store.settle()
    for _ in range(30):
        store.maintain(NOON_US + 20 * DAY_US)
    start_us = NOON_US // DAY_US * DAY_US
    row = store.summarize(UUIDS, start_us, NOON_US + 21 * DAY_US).to_pylist()[0]
    assert (row["count"], row["active_periods"], row["approximate"]) == (len(rows), 21, True)
    assert row["active_minutes"] == len(rows)
    assert math.isclose(row["sum"], math.fsum(numbers), rel_tol=1e-12)
    assert math.isclose(row["stddev"], float(np.std(numbers, ddof=1)), rel_tol=1e-9)
    ordered = np.sort(numbers)
    for name, probability in (("median", 0.5), ("p95", 0.95), ("p99", 0.99)):
        rank = float(np.searchsorted(ordered, row[name])) / len(ordered)
        assert abs(rank - probability) < 0.002, name


def test_a_summary_of_a_day_is_exact_at_any_edge(store: TimeSeriesStore) -> None:
    rows = [(0, NOON_US + i * 17 * MINUTE_US, float(i % 11)) for i in range(200)]
    store.write([write_of("a", *rows)])
    store.settle()
    start_us, end_us = NOON_US + 5 * HOUR_US + 1, NOON_US + 29 * HOUR_US + 7 * MINUTE_US
    inside = [value for _, time_us, value in rows if start_us <= time_us < end_us]
    row = store.summarize(UUIDS, start_us, end_us).to_pylist()[0]
    assert (row["count"], row["approximate"]) == (len(inside), False)
    assert row["p95"] == pytest.approx(percentile_cont(inside, 0.95))
    hours = {time_us // HOUR_US for _, time_us, _ in rows if start_us <= time_us < end_us}
    assert row["active_periods"] == len(hours)


def test_a_million_readings_of_one_identity_are_one_reading(store: TimeSeriesStore) -> None:
    count = 1_000_000
    table = pa.table(
        {
            "series": pa.array(np.zeros(count, np.int32)),
            "time": pa.array(np.full(count, NOON_US), pa.timestamp("us", tz="UTC")),
            "value": pa.array(np.full(count, 1.0)),
            "status": pa.nulls(count, pa.string()).dictionary_encode(),
            "battery": pa.nulls(count, pa.float32()),
            "rssi": pa.nulls(count, pa.int16()),
            "lqi": pa.nulls(count, pa.int16()),
            "battery_voltage": pa.nulls(count, pa.float32()),
        }
    ).cast(READINGS_SCHEMA)
    assert store.write([Write("a", batch(table))]) == [Settled("a", Counts(stored=1, duplicate=count - 1))]
    assert values(store) == [(0, NOON_US, 1.0)]


def test_two_thousand_batches_with_sensors_of_their_own_go_in_one_call(store: TimeSeriesStore) -> None:
    writes = []
    for i in range(2_000):
        sensors = (SENSORS[0], Sensor(uuid=external_uuid(f"room-{i}"), equipment_uuid=SENSORS[0].equipment_uuid))
        rows = readings([{"series": s, "time": NOON_US + i, "value": float(i), "status": f"s{i}"} for s in (1, 0)])
        writes.append(Write(f"batch-{i:05d}", batch(rows, sensors)))
    settled = store.write(writes)
    assert settled == [Settled(write.batch_id, Counts(stored=2)) for write in writes]
    table = store.read_raw([external_uuid("room-1234")], 0, FOREVER_US, 10)
    assert (table["value"].to_pylist(), table["status"].to_pylist()) == ([1234.0], ["s1234"])
    assert store.read_raw([UUIDS[0]], 0, FOREVER_US, MANY).num_rows == 2_000


def test_a_hundred_sensors_can_be_asked_for_at_once(store: TimeSeriesStore) -> None:
    equipment_uuid = SENSORS[0].equipment_uuid
    sensors = tuple(Sensor(uuid=external_uuid(f"hall-{i}"), equipment_uuid=equipment_uuid) for i in range(100))
    rows = [
        {"series": i, "time": NOON_US - back * HOUR_US, "value": float(i)} for back in (0, 1, 40) for i in range(100)
    ]
    store.write([Write("a", batch(readings(rows), sensors))])
    store.settle()
    for _ in range(4):
        store.maintain(NOON_US + 2 * HOUR_US)
    asked = [sensor.uuid for sensor in reversed(sensors)]
    raw = store.read_raw(asked, NOON_US, FOREVER_US, 3, (NOON_US, 49))
    assert (whole(raw["sensor"]), raw["value"].to_pylist()) == ([50, 51, 52], [49.0, 48.0, 47.0])
    hours = store.read_rollup("hour", asked, 0, FOREVER_US, 150)
    assert whole(hours["sensor"]) == [*range(100), *range(50)]
    assert hours["sum"].to_pylist() == [float(99 - sensor) for sensor in whole(hours["sensor"])]
    for start_us in (NOON_US - DAY_US, NOON_US // DAY_US * DAY_US - 5 * DAY_US):
        summary = store.summarize(asked, start_us, NOON_US + 1)
        assert whole(summary["sensor"]) == list(range(100))
        assert set(whole(summary["count"])) == ({2} if start_us == NOON_US - DAY_US else {3})


def test_readers_see_whole_transactions_while_the_store_is_written_and_maintained(
    store: TimeSeriesStore, clock: ManualClock
) -> None:
    """Each write adds one reading to both sensors and corrects one: any reader must find the sensors alike."""
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.wait(0.02):
                hours = store.read_rollup("hour", UUIDS, 0, FOREVER_US, MANY)
                sums = hours["sum"].to_numpy()
                sensor = hours["sensor"].to_numpy()
                assert sums[sensor == 0].tolist() == sums[sensor == 1].tolist()
                days = store.read_rollup("day", UUIDS, 0, FOREVER_US, MANY)
                assert days.filter(pa.array(days["sensor"].to_numpy() == 0))["count"].to_pylist() == (
                    days.filter(pa.array(days["sensor"].to_numpy() == 1))["count"].to_pylist()
                )
                raw = store.read_raw(UUIDS, 0, FOREVER_US, MANY)
                assert raw.num_rows % 2 == 0
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(16):
        time_us = NOON_US + step * 12 * HOUR_US
        old_us = max(NOON_US, time_us - 36 * HOUR_US)
        rows = [(sensor, at_us, float(step)) for sensor in (0, 1) for at_us in (time_us, old_us)]
        store.write([write_of(f"batch-{step}", *rows)])
        store.settle()
        clock.advance(12 * 3600)
        store.maintain(clock.now_us())
    done.set()
    for thread in threads:
        thread.join(timeout=30)
    assert not failures, failures[0]
    assert not any(thread.is_alive() for thread in threads)
    clock.advance(40 * 24 * 3600)
    for _ in range(200):
        store.maintain(clock.now_us())
        if store.status().raw_readings == 0:
            break
    assert store.read_raw(UUIDS, 0, FOREVER_US, MANY).num_rows == 0, "retention dropped the days"
    assert store.read_rollup("hour", UUIDS, 0, FOREVER_US, MANY).num_rows == 32, "and no rollup"
