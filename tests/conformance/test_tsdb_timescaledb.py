"""What only the store on TimescaleDB has: aggregates that others refresh too, and compressed chunks."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs
from tsdb_world import (
    FOREVER_US,
    MANY,
    NOON_US,
    UUIDS,
    buckets,
    postgres_database,
    values,
    write_of,
)

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock
from sensorkeep.errors import BadConfig
from sensorkeep.limits import MIB
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import Period, Settled
from sensorkeep.tsdb.postgres import PostgresStore, migration

pytestmark = [pytest.mark.distributed, pytest.mark.timescaledb]

PERIODS: tuple[Period, Period] = ("hour", "day")
DAY = NOON_US // DAY_US
DEADLINE_SECONDS = 60.0
REFRESH = "CALL refresh_continuous_aggregate('telemetry.telemetry_{}', NULL, NULL)"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_US)


@pytest.fixture
def url() -> Iterator[str]:
    with postgres_database("timescaledb") as made:
        # The jobs of its own are run when a test says so.
        run(made, "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs WHERE job_id >= 1000")
        yield made


@pytest.fixture
def store(url: str, clock: ManualClock) -> Iterator[PostgresStore]:
    made = PostgresStore(url, clock=clock, raw_retention_days=2)
    yield made
    made.close()


def run(url: str, sql: str) -> list[tuple[Any, ...]]:
    """What the database itself says."""
    with psycopg.connect(url, autocommit=True) as connection:
        done = connection.execute(sql)
        return done.fetchall() if done.description else []


def refresh_all(url: str) -> None:
    """As somebody does by hand, at any time."""
    for name in ("hourly", "daily"):
        run(url, REFRESH.format(name))


def add_policy(url: str) -> None:
    """As somebody does by hand; it does not run by itself."""
    added = run(url, "SELECT add_continuous_aggregate_policy('telemetry.telemetry_daily', INTERVAL '7 days',"
                     " INTERVAL '0 hours', INTERVAL '1 hour')")  # fmt: skip
    run(url, f"SELECT alter_job({added[0][0]}, scheduled => false)")


def keep_house(store: PostgresStore, clock: ManualClock, times: int = 5) -> None:
    for _ in range(times):
        store.maintain(clock.now_us())


def answers(store: PostgresStore) -> list[Any]:
    """But for the last bits of sums, which follow the order that the database adds in."""
    told = [buckets(store, period) for period in PERIODS]
    return [[{name: pytest.approx(value) if isinstance(value, float) else value for name, value in row.items()}
             for row in rows] for rows in told] + [values(store)]  # fmt: skip


def test_it_is_laid_out_as_documented(url: str) -> None:
    information = "timescaledb_information"
    assert run(url, f"SELECT hypertable_name, time_interval FROM {information}.dimensions WHERE hypertable_schema ="
                    " 'telemetry'")[0][0] == "readings"  # fmt: skip
    assert run(
        url,
        f"SELECT extract(epoch FROM time_interval) FROM {information}.dimensions WHERE hypertable_name = 'readings'",
    ) == [(86400,)]
    assert run(
        url,
        f"SELECT view_name, materialized_only FROM {information}.continuous_aggregates"
        " WHERE view_schema = 'telemetry' ORDER BY 1",
    ) == [("telemetry_daily", True), ("telemetry_hourly", True)]
    jobs = f"SELECT proc_name, config ->> 'compress_after' FROM {information}.jobs WHERE job_id >= 1000"
    assert run(url, jobs) == [("policy_compression", "4 days")]
    unique = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'telemetry' AND indexname = 'readings_series_time'"
    assert run(url, unique)[0][0].startswith("CREATE UNIQUE INDEX")


def test_refreshes_of_others_at_any_time_change_no_answer(store: PostgresStore, url: str, clock: ManualClock) -> None:
    rows = [(sensor, NOON_US + i * 50 * MINUTE_US, float(i)) for sensor in range(2) for i in range(100)]
    for turn in range(5):
        part = rows[turn::5]
        store.write([write_of(f"part-{turn}", *part)])
        before = answers(store)
        refresh_all(url)
        assert answers(store) == before
        store.write([write_of(f"corrected-{turn}", (0, part[3][1], -1.0), (1, part[0][1] + 1, 7.0))])
        before = answers(store)
        refresh_all(url)
        assert answers(store) == before
        keep_house(store, clock, 2)
        assert answers(store) == before
    assert sum(row["count"] for row in buckets(store)) == 205


def test_marks_are_kept_while_somebody_else_materializes_their_range(
    store: PostgresStore, url: str, clock: ManualClock
) -> None:
    """A refresh leaves out what another one has in hand, and returns before that is in."""
    store.write([write_of("a", (0, NOON_US, 1.0), (0, NOON_US + 40 * HOUR_US, 1.0))])
    keep_house(store, clock)
    store.write([write_of("b", (0, NOON_US, 5.0), (0, NOON_US + HOUR_US, 6.0))])
    expected = answers(store)
    catalog = "_timescaledb_catalog"
    with psycopg.connect(url) as other:
        # What a policy does first: it moves what was changed to the ranges it will materialize, and holds these.
        other.execute(
            f"INSERT INTO {catalog}.continuous_aggs_materialization_ranges"
            f" SELECT mat_hypertable_id, {NOON_US}, {NOON_US + 2 * HOUR_US} FROM {catalog}.continuous_agg"
            " WHERE user_view_name = 'telemetry_hourly'"
        )
        other.commit()
        other.execute(f"SELECT * FROM {catalog}.continuous_aggs_materialization_ranges FOR UPDATE")
        keep_house(store, clock)
        assert run(url, "SELECT count(*) FROM telemetry.dirty")[0][0] == 2
        assert answers(store) == expected
    keep_house(store, clock)
    assert run(url, "SELECT count(*) FROM telemetry.dirty")[0][0] == 0
    assert answers(store) == expected
    assert run(url, "SELECT sum FROM telemetry.telemetry_hourly ORDER BY time LIMIT 2") == [(5.0,), (6.0,)]


def test_marks_that_wait_for_their_turn_cost_next_to_nothing(
    store: PostgresStore, url: str, clock: ManualClock
) -> None:
    """Neither work of the database while they wait, nor memory of ours when they are taken."""
    store.write([write_of("a", (0, NOON_US, 1.0), (0, NOON_US + 40 * HOUR_US, 1.0))])
    keep_house(store, clock)
    store.write([write_of("b", (0, NOON_US, 4.0))])
    keep_house(store, clock)
    clock.advance(60)
    store.write([write_of("c", (0, NOON_US, 5.0))])
    marks = 200_000
    run(
        url,
        f"INSERT INTO telemetry.dirty (series, time) SELECT i, '2026-02-17 12:00Z' FROM generate_series(1, {marks}) i",
    )
    run(url, "ANALYZE telemetry.dirty")
    before = tuples_read(url, store)
    keep_house(store, clock)
    assert tuples_read(url, store) - before < 100
    assert run(url, "SELECT count(*) FROM telemetry.dirty") == [(marks + 1,)]
    clock.advance(12 * 3600)
    tracemalloc.start()
    keep_house(store, clock)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert run(url, "SELECT count(*) FROM telemetry.dirty") == [(0,)]
    assert peak_bytes < 2 * MIB
    assert [row["sum"] for row in buckets(store)] == [5.0, 1.0]


def tuples_read(url: str, store: PostgresStore) -> int:
    """Of the marks, by all sessions: they tell it at the latest when they end."""
    store._engine._pool.dispose()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while run(url, "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                   " AND backend_type = 'client backend'"):  # fmt: skip
        assert time.monotonic() < deadline, "they do not end"
        time.sleep(0.01)
    read = "SELECT seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes AS i WHERE i.relid = t.relid)"
    return int(run(url, f"{read} FROM pg_stat_user_tables AS t WHERE relname = 'dirty'")[0][0])


def test_readings_of_compressed_chunks_are_recognized_corrected_and_joined_by_others(
    store: PostgresStore, url: str, clock: ManualClock
) -> None:
    rows = [(sensor, NOON_US + i * 1_000_000, float(i)) for sensor in range(4) for i in range(30_000)]
    store.write([write_of("a", *rows), write_of("now", (0, NOON_US + 5 * DAY_US, 0.0))])
    keep_house(store, clock)
    run(url, "SELECT compress_chunk(chunk) FROM show_chunks('telemetry.readings') AS chunk")
    assert run(url, "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed AND hypertable_name ="
                    " 'readings'")[0][0] >= 2  # fmt: skip
    before = answers(store)
    resent = write_of("resent", *rows[::1000])
    assert store.write([resent]) == [Settled("resent", Counts(duplicate=120))]
    assert answers(store) == before
    # One of each thousand, so that every segment of the day is decompressed: more than the extension's own limit.
    corrected = [(sensor, time_us, -5.0) for sensor, time_us, _ in rows[500::1000]]
    added = [(sensor, time_us + 1, 1.0) for sensor, time_us, _ in rows[::1000]]
    late = write_of("late", *corrected, *added, *rows[1::1000])
    assert store.write([late]) == [Settled("late", Counts(stored=120, updated=120, duplicate=120))]
    assert sum(row["count"] for row in buckets(store)) == 120_121
    keep_house(store, clock)
    found = {(sensor, time_us): value for sensor, time_us, value in values(store)}
    assert len(found) == 120_121
    assert all(found[sensor, time_us] == -5.0 for sensor, time_us, _ in corrected)
    expected = sum(value for value in found.values() if value is not None)
    for period in PERIODS:
        assert sum(row["sum"] for row in buckets(store, period)) == pytest.approx(expected)


def test_what_was_accepted_later_stays_in_compressed_chunks_too(store: PostgresStore, url: str) -> None:
    def write(batch_id: str, accepted_us: int, value: float) -> Counts:
        item = write_of(batch_id, (0, NOON_US, value))
        return store.write([type(item)(batch_id, item.batch, accepted_us)])[0].counts

    assert write("a", 100, 1.0) == Counts(stored=1)
    for turn, (accepted_us, value, counts) in enumerate(
        [(50, 9.0, Counts(duplicate=1)), (300, 1.0, Counts(duplicate=1)), (200, 2.0, Counts(duplicate=1)),
         (400, 3.0, Counts(updated=1))]
    ):  # fmt: skip
        run(url, "SELECT compress_chunk(chunk) FROM show_chunks('telemetry.readings') AS chunk")
        assert write(f"turn-{turn}", accepted_us, value) == counts
    assert values(store) == [(0, NOON_US, 3.0)]


def test_no_refresh_erases_what_is_kept_of_sealed_days(store: PostgresStore, url: str, clock: ManualClock) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0), (0, NOON_US + DAY_US, 2.0), (1, NOON_US + 9 * DAY_US, 3.0))])
    clock.advance(9 * 24 * 3600)
    before = [buckets(store, period) for period in PERIODS]
    keep_house(store, clock)
    assert run(url, "SELECT day FROM telemetry.days WHERE sealed ORDER BY day") == [(DAY,), (DAY + 1,)]
    assert run(url, "SELECT min(time) FROM telemetry.readings")[0][0].timestamp() * 1e6 == NOON_US + 9 * DAY_US
    for name in ("hourly", "daily"):
        assert run(url, f"SELECT count(*) FROM telemetry.telemetry_{name}") == [(0,)], "its chunk went with the raw"
    refresh_all(url)
    keep_house(store, clock)
    assert [buckets(store, period) for period in PERIODS] == before


def test_a_refresh_policy_is_refused_at_the_start(url: str, clock: ManualClock) -> None:
    add_policy(url)
    for days in (0, 2, 30):
        with pytest.raises(BadConfig, match=r"remove_continuous_aggregate_policy\('telemetry.telemetry_daily'\)"):
            PostgresStore(url, clock=clock, raw_retention_days=days)
    with pytest.raises(BadConfig, match="telemetry_daily has a refresh policy"):
        migration.upgrade(url)
    run(url, "SELECT remove_continuous_aggregate_policy('telemetry.telemetry_daily')")
    PostgresStore(url, clock=clock, raw_retention_days=2).close()


def test_a_refresh_policy_that_is_added_later_is_told(store: PostgresStore, url: str, clock: ManualClock) -> None:
    with capture_logs() as told:
        keep_house(store, clock)
    assert told == []
    add_policy(url)
    clock.advance(1800)
    with capture_logs() as told:
        keep_house(store, clock)
    assert [(entry["event"], entry["aggregate"]) for entry in told] == [
        ("tsdb_refresh_policy", "telemetry.telemetry_daily")
    ]


def test_people_find_hours_and_days_as_early_as_with_policies(
    store: PostgresStore, url: str, clock: ManualClock
) -> None:
    """Hours up to one hour ago every 30 minutes, days every 2 hours; whatever is rolled up."""
    hours = "SELECT max(time) AT TIME ZONE 'UTC' FROM telemetry.telemetry_hourly"
    days = "SELECT sum(count) FROM telemetry.telemetry_daily"

    def found() -> tuple[int, int | None]:
        ((newest,),), ((count,),) = run(url, hours), run(url, days)
        return newest.hour, count and int(count)

    seen = []
    for turn in range(13):
        yesterday = (0, NOON_US - DAY_US + turn * MINUTE_US, 1.0)
        store.write(
            [write_of(f"turn-{turn}", *[(0, clock.now_us() - i * 600_000_000, 1.0) for i in range(12)], yesterday)]
        )
        keep_house(store, clock, 2)
        seen.append(found())
        clock.advance(15 * 60)
    # At 12:00, 12:15, ...: the whole hours that ended an hour ago.
    assert [hour for hour, _ in seen] == [10, 10, 10, 10, 11, 11, 11, 11, 12, 12, 12, 12, 13]
    counts = [count or 0 for _, count in seen]
    assert max(counts[:8]) < 8, "what else makes days does it twice a day"
    assert counts[8:] == [9] * 5


def test_buckets_that_two_refreshes_at_once_left_twice_are_made_anew(
    store: PostgresStore, url: str, clock: ManualClock
) -> None:
    """Another refresh is in the middle when the worker's begins, and ends before it: each inserts what it has made."""
    clock.advance(40 * 3600)
    store.write([write_of("a", *[(sensor, NOON_US, 1.0) for sensor in range(4)], (0, clock.now_us(), 1.0))])
    keep_house(store, clock)
    run(
        url,
        """
        CREATE OR REPLACE FUNCTION telemetry.half(value DOUBLE PRECISION) RETURNS DOUBLE PRECISION
        LANGUAGE plpgsql AS $$
        BEGIN
            IF current_setting('application_name') = 'somebody' THEN
                PERFORM pg_advisory_xact_lock_shared(1, 1);
            END IF;
            RETURN value * 0.5;
        END $$
    """,
    )
    store.write([write_of("b", (0, NOON_US + 1, 1.0))])
    with psycopg.connect(url, autocommit=True) as holding:
        holding.execute("SELECT pg_advisory_lock(1, 1)")
        somebody = threading.Thread(target=lambda: run(f"{url}?application_name=somebody", REFRESH.format("daily")))
        somebody.start()
        wait_for_locks(url, 1)
        store.write([write_of("c", (1, NOON_US + 1, 1.0))])
        worker = threading.Thread(target=lambda: keep_house(store, clock))
        worker.start()
        wait_for_locks(url, 2)
        holding.execute("SELECT pg_advisory_unlock(1, 1)")
        for thread in (somebody, worker):
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()
    keep_house(store, clock)
    assert run(url, "SELECT count(*) FROM telemetry.dirty") == [(0,)]
    for period in PERIODS:
        assert [row["count"] for row in buckets(store, period)] == [2, 2, 1, 1, 1]


def wait_for_locks(url: str, count: int) -> None:
    """Until so many sessions wait for others."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while run(url, waiting) < [(count,)]:
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.01)


def test_a_store_whose_extension_is_gone_is_refused(url: str, clock: ManualClock) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP EXTENSION timescaledb CASCADE")
    with pytest.raises(BadConfig, match="no longer"):
        PostgresStore(url, clock=clock, raw_retention_days=2)


def test_the_views_for_people_tell_what_the_store_answers(store: PostgresStore, url: str, clock: ManualClock) -> None:
    store.write([write_of("a", *[(0, NOON_US + i * 7 * HOUR_US, float(i)) for i in range(40)])])
    clock.advance(13 * 24 * 3600)
    keep_house(store, clock, 10)
    for period, view in zip(PERIODS, ("hourly", "daily"), strict=True):
        shown = run(url, f"SELECT count, average, min, max, active_minutes, median, approximate FROM telemetry.{view}"
                         f" WHERE sensor_uuid = '{UUIDS[0]}' ORDER BY time")  # fmt: skip
        wanted = store.read_rollup(period, UUIDS[:1], 0, FOREVER_US, MANY).to_pylist()
        names = ("count", "average", "min", "max", "active_minutes", "median", "approximate")
        assert shown == [tuple(row[name] for name in names) for row in wanted]
