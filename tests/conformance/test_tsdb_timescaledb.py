"""What only the store on TimescaleDB has: aggregates that others refresh too, and compressed chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
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
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import Period, Settled
from sensorkeep.tsdb.postgres import PostgresStore, migration

pytestmark = [pytest.mark.distributed, pytest.mark.timescaledb]

PERIODS: tuple[Period, Period] = ("hour", "day")
DAY = NOON_US // DAY_US
REFRESH = "CALL refresh_continuous_aggregate('telemetry.telemetry_{}', NULL, NULL)"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_US)


@pytest.fixture
def url() -> Iterator[str]:
    with postgres_database("timescaledb", 2) as made:
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


def run_policies(url: str) -> None:
    """All jobs, as the scheduler does at any time."""
    for (job,) in run(url, "SELECT job_id FROM timescaledb_information.jobs WHERE job_id >= 1000"):
        run(url, f"CALL run_job({job})")


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
    jobs = run(
        url,
        "SELECT proc_name, extract(epoch FROM schedule_interval)::INTEGER, config ->> 'start_offset',"
        f" config ->> 'end_offset', config ->> 'compress_after' FROM {information}.jobs WHERE job_id >= 1000"
        " ORDER BY job_id",
    )
    assert jobs[:2] == [
        ("policy_refresh_continuous_aggregate", 1800, "04:00:00", "01:00:00", None),
        ("policy_refresh_continuous_aggregate", 7200, "2 days", "00:00:00", None),
    ]
    assert [(name, after) for name, *_, after in jobs[2:]] == [("policy_compression", "4 days")]
    unique = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'telemetry' AND indexname = 'readings_series_time'"
    assert run(url, unique)[0][0].startswith("CREATE UNIQUE INDEX")


def test_policies_that_run_at_any_time_change_no_answer(store: PostgresStore, url: str, clock: ManualClock) -> None:
    run(url, "SELECT alter_job(job_id, config => config || '{\"start_offset\": null}')"
             " FROM timescaledb_information.jobs WHERE proc_name = 'policy_refresh_continuous_aggregate'")  # fmt: skip
    rows = [(sensor, NOON_US + i * 50 * MINUTE_US, float(i)) for sensor in range(2) for i in range(100)]
    for turn in range(5):
        part = rows[turn::5]
        store.write([write_of(f"part-{turn}", *part)])
        before = answers(store)
        run_policies(url)
        assert answers(store) == before
        store.write([write_of(f"corrected-{turn}", (0, part[3][1], -1.0), (1, part[0][1] + 1, 7.0))])
        before = answers(store)
        run_policies(url)
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
        run(url, REFRESH.format(name))
    run_policies(url)
    keep_house(store, clock)
    assert [buckets(store, period) for period in PERIODS] == before


@pytest.mark.parametrize("offset", ['"10 days"', "null"])
def test_a_policy_that_reaches_back_to_where_raw_is_gone_is_refused(url: str, clock: ManualClock, offset: str) -> None:
    run(url, f"SELECT alter_job(job_id, config => config || '{{\"start_offset\": {offset}}}')"
             " FROM timescaledb_information.jobs WHERE hypertable_name = 'telemetry_daily'")  # fmt: skip
    with pytest.raises(BadConfig, match="telemetry_daily reaches"):
        PostgresStore(url, clock=clock, raw_retention_days=2)
    with pytest.raises(BadConfig, match="SENSORKEEP_RAW_RETENTION_DAYS"):
        migration.upgrade(url, 2)
    for days in (0, *([30] if offset != "null" else [])):
        PostgresStore(url, clock=clock, raw_retention_days=days).close()


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
