"""How the store on PostgreSQL keeps itself: in steps that any of many workers takes, beside all others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors
from tsdb_postgresql_world import clock, keep_house, opening, query, url
from tsdb_world import EQUIPMENT, NOON_US, UUIDS, batch, buckets, postgres_database, readings, values, write_of

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock
from sensorkeep.errors import Unavailable
from sensorkeep.limits import POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS, POSTGRES_STEP_SECONDS
from sensorkeep.model import Sensor, external_uuid
from sensorkeep.tsdb.base import Period, StoreStatus, Write
from sensorkeep.tsdb.postgres import PostgresStore, maintenance, rolling, sealing
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.statements import statement

pytestmark = pytest.mark.distributed

__all__ = ["clock", "opening", "url"]  # the fixtures

DAY = NOON_US // DAY_US
DEADLINE_SECONDS = 60.0
PERIODS: tuple[Period, Period] = ("hour", "day")


def sealed_days(url: str) -> list[int]:
    return [int(str(day)) for (day,) in query(url, "SELECT day FROM telemetry.days WHERE sealed ORDER BY day")]


def wait_for_a_lock(url: str) -> None:
    """Until somebody waits for somebody."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not query(url, waiting):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.01)


def hourly(batch_id: str, hours: range, value: float = 1.0) -> Write:
    """A reading an hour of each sensor."""
    return write_of(batch_id, *[(sensor, NOON_US + hour * HOUR_US, value) for sensor in range(4) for hour in hours])


def test_a_late_reading_is_in_the_day_that_is_rolled_up_in_parts(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sensor whose day is made, while that of others is not."""
    monkeypatch.setattr(maintenance, "_STEPS_MAX", 1)
    monkeypatch.setattr("sensorkeep.tsdb.postgres.rolling._SERIES_FIRST", 1)
    monkeypatch.setattr("sensorkeep.tsdb.postgres.rolling._SERIES_MAX", 1)
    store = opening()
    store.write([hourly("a", range(30))])
    made_first = min(range(4), key=UUIDS.__getitem__)  # sensors that come together are numbered in this order
    late = 0
    for _ in range(120):
        store.maintain(clock.now_us())
        if query(url, "SELECT rolled_series FROM telemetry.marks") == [(1,)]:
            late += 1
            store.write([write_of(f"late-{late}", (made_first, NOON_US + late * MINUTE_US, 10.0))])
    assert query(url, "SELECT rolled_until >= '2026-02-18', (SELECT count(*) FROM telemetry.dirty) FROM telemetry.marks"
                 ) == [(True, 0)]  # fmt: skip
    for period in PERIODS:
        assert sum(row["sum"] for row in buckets(store, period)) == 120.0 + 10.0 * late


@pytest.mark.parametrize("step", ["_move_rolled", "_note_redone"])
def test_a_keeper_that_lost_its_lock_changes_nothing_any_more(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Its session is ended in the middle of a step, and another worker goes on meanwhile."""
    monkeypatch.setattr("sensorkeep.tsdb.postgres.rolling._SERIES_FIRST", 3)
    first, second = opening(), opening()
    first.write([hourly("a", range(30))])
    if step == "_note_redone":
        keep_house(first, clock)
        first.write([hourly("b", range(3), 2.0)])
    going_on = getattr(rolling, step)
    states: list[object] = []

    def too_late(*arguments: object) -> None:
        if not states:
            query(url, "SELECT pg_terminate_backend(pid, 60000) FROM pg_locks WHERE locktype = 'advisory'"
                       " AND classid = 7363282 AND objid = 3 AND granted AND database = (SELECT oid FROM pg_database"
                       " WHERE datname = current_database())")  # fmt: skip
            states.append(None)
            clock.advance(3600)
            keep_house(second, clock)
            states[0] = query(url, "SELECT * FROM telemetry.marks")
        going_on(*arguments)

    monkeypatch.setattr(rolling, step, too_late)
    with pytest.raises(Unavailable):
        first.maintain(clock.now_us())
    assert query(url, "SELECT * FROM telemetry.marks") == states[0]
    keep_house(first, clock)
    for period in PERIODS:
        assert sum(row["sum"] for row in buckets(second, period)) == 120.0 + (12.0 if step == "_note_redone" else 0.0)


def test_a_clock_that_was_ahead_holds_up_nothing_once_it_was_put_right(url: str, clock: ManualClock) -> None:
    clock.advance(400 * 24 * 3600)
    store = PostgresStore(url, clock=clock, raw_retention_days=2)
    store.write([hourly("a", range(2))])
    keep_house(store, clock)
    clock.set_wall(NOON_US)
    rolled = "SELECT (rolled_until AT TIME ZONE 'UTC')::TEXT FROM telemetry.marks"
    for hour in range(2, 30):
        clock.advance(3600)
        store.write([hourly(f"b-{hour}", range(hour, hour + 1))])
        keep_house(store, clock)
    assert query(url, rolled) == [("2026-02-18 14:00:00",)]
    clock.advance(6 * 24 * 3600)
    keep_house(store, clock)
    assert sealed_days(url) == [DAY, DAY + 1]
    clock.advance(3 * 24 * 3600)
    keep_house(store, clock)
    assert query(url, "SELECT batch_id FROM telemetry.batches") == [("a",)], "it is of the future still"
    store.close()


# --- locks that others wait behind ------------------------------------------------------------------------------------


def test_the_status_is_asked_while_a_day_is_sealed(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, and holds nothing that sealing needs."""
    keeper, other = opening(2), opening(2)
    keeper.write([hourly("a", range(1))])
    clock.advance(6 * 24 * 3600)
    seals: list[int] = []
    asked: list[Future[StoreStatus]] = []
    seal = sealing._seal

    def sealing_once_more(session: Session, day: int) -> bool:
        seals.append(day)
        return seal(session, day)

    def before_the_drop(name: str) -> str:
        if name == "drop_day":
            asked.append(pool.submit(other.status))
            wait_for_a_lock(url)
        return statement(name)

    monkeypatch.setattr(sealing, "_seal", sealing_once_more)
    monkeypatch.setattr(sealing, "statement", before_the_drop)
    with ThreadPoolExecutor() as pool:
        keep_house(keeper, clock)
    assert (sealed_days(url), seals, len(asked)) == ([DAY], [DAY], 1)
    assert not asked[0].result().empty


def test_a_deadlock_makes_maintenance_pause(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opening(2)
    store.write([hourly("a", range(1))])
    clock.advance(6 * 24 * 3600)
    seals: list[int] = []

    def deadlock(session: Session, day: int) -> bool:
        seals.append(day)
        raise errors.DeadlockDetected("deadlock detected")

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "_seal", deadlock)
        keep_house(store, clock)
    assert seals == [DAY]
    clock.advance(POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS)
    keep_house(store, clock)
    assert sealed_days(url) == [DAY]


def test_of_many_workers_beside_a_backup_one_tries_to_seal_now_and_then_and_no_read_waits_for_it_long(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keepers = [opening(2) for _ in range(3)]
    keepers[0].write([hourly("a", range(-24, 1))])
    clock.advance(6 * 24 * 3600)
    confirmed: list[int] = []
    kind = rolling.Aggregates if query(url, "SELECT timescale FROM telemetry.marks") == [(True,)] else rolling.Tables
    confirm: Any = kind.confirm_day

    def confirm_day(self: object, day: int) -> bool:
        confirmed.append(day)
        return bool(confirm(self, day))

    def keep_all() -> None:
        for keeper in keepers:
            keep_house(keeper, clock, 2)

    monkeypatch.setattr(kind, "confirm_day", confirm_day)
    with psycopg.connect(url) as backup, ThreadPoolExecutor() as pool:
        backup.execute("LOCK TABLE telemetry.days IN ACCESS SHARE MODE")
        keeping = pool.submit(keep_all)
        wait_for_a_lock(url)
        began = time.monotonic()
        assert len(values(keepers[1])) == 100
        assert time.monotonic() - began < 3
        keeping.result()
    assert confirmed == [DAY - 1]
    assert sealed_days(url) == []
    clock.advance(POSTGRES_MAINTAIN_LOCK_PAUSE_SECONDS)
    keep_house(keepers[2], clock)
    assert sealed_days(url) == [DAY - 1, DAY]


def test_a_pause_that_ends_in_a_future_that_no_clock_is_at_any_more_is_none(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock
) -> None:
    store = opening(2)
    store.write([hourly("a", range(1))])
    clock.advance(6 * 24 * 3600)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE telemetry.marks SET move_after = '2030-01-01', seal_after = '2030-01-01'")
    keep_house(store, clock)
    assert sealed_days(url) == [DAY]


def test_while_the_buckets_of_a_day_are_copied_reads_and_writes_go_on(
    opening: Callable[..., PostgresStore], url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even writes into the day, which then is not sealed yet, and into days that are sealed."""
    keeper, other = opening(2), opening(2)
    keeper.write([hourly("a", range(-24, 1))])
    clock.advance(6 * 24 * 3600)
    written: list[str] = []

    def meanwhile(name: str) -> str:
        if name == "seal_days" and sealed_days(url) == [DAY - 1] and not written:
            for late_us in (NOON_US, NOON_US - DAY_US, NOON_US + 6 * DAY_US):
                written.append(f"late-{late_us}")
                other.write([write_of(written[-1], (0, late_us + MINUTE_US, 10.0))])
            assert sum(row["sum"] for row in buckets(other, "day")) == 130.0
        return statement(name)

    monkeypatch.setattr(sealing, "statement", meanwhile)
    keep_house(keeper, clock)
    assert (sealed_days(url), len(written)) == ([DAY - 1], 3)
    clock.advance(25 * 3600)
    keep_house(keeper, clock)
    assert sealed_days(url) == [DAY - 1, DAY]
    for period in PERIODS:
        assert sum(row["sum"] for row in buckets(other, period)) == 130.0


# --- the size of a step -----------------------------------------------------------------------------------------------

NOT_TOO_MANY = """
CREATE FUNCTION telemetry.refuse() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT count(DISTINCT series) FROM made) > {most} THEN
        RAISE query_canceled USING MESSAGE = 'canceling statement due to statement timeout';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER refuse_new AFTER INSERT ON telemetry.telemetry_{table} REFERENCING NEW TABLE AS made
FOR EACH STATEMENT EXECUTE FUNCTION telemetry.refuse();
CREATE TRIGGER refuse_changed AFTER UPDATE ON telemetry.telemetry_{table} REFERENCING NEW TABLE AS made
FOR EACH STATEMENT EXECUTE FUNCTION telemetry.refuse();
"""
"""Statements that make buckets of too many sensors at once take too long."""


class BusyClock(ManualClock):
    """Every step takes as long as it should."""

    def monotonic(self) -> float:
        self.advance(0.75 * POSTGRES_STEP_SECONDS)
        return super().monotonic()


@pytest.fixture
def plain_url() -> Iterator[str]:
    with postgres_database("postgresql") as made:
        yield made


@pytest.mark.parametrize("table", ["hourly", "daily"])
@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_the_server_ends_is_followed_by_smaller_ones(plain_url: str, table: str, late: bool) -> None:
    clock = BusyClock(NOON_US)
    store = PostgresStore(plain_url, clock=clock, raw_retention_days=0)
    store.write([hourly("a", range(30))])
    if late:
        keep_house(store, clock, 30)
        store.write([hourly("b", range(10), 2.0)])
    with psycopg.connect(plain_url, autocommit=True) as connection:
        connection.execute(NOT_TOO_MANY.format(table=table, most=1))
    failures = 0
    for _ in range(60):
        clock.advance(60)
        try:
            store.maintain(clock.now_us())
        except Unavailable:
            failures += 1
    assert 0 < failures < 10
    rolled = "SELECT rolled_until >= '2026-02-18', (SELECT count(*) FROM telemetry.dirty) FROM telemetry.marks"
    assert query(plain_url, rolled) == [(True, 0)]
    assert sum(row["sum"] for row in buckets(store, "day")) == (160.0 if late else 120.0)
    store.close()


def test_steps_with_next_to_nothing_to_do_make_the_next_ones_no_larger(
    plain_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorkeep.tsdb.postgres.rolling._SERIES_FIRST", 1)
    store = PostgresStore(plain_url, clock=clock, raw_retention_days=0)

    def write(batch_id: str, sensors: int, hours: int) -> None:
        made = tuple(Sensor(uuid=external_uuid(f"many/{i}"), equipment_uuid=EQUIPMENT.uuid) for i in range(sensors))
        rows = [
            {"series": i, "time": NOON_US + hour * HOUR_US, "value": 1.0}
            for i in range(sensors)
            for hour in range(hours)
        ]
        store.write([Write(batch_id, batch(readings(rows), made))])

    write("few", 10, 30)
    keep_house(store, clock)
    for turn in range(8):
        store.write([write_of(f"late-{turn}", (0, NOON_US + turn, 1.0))])
        keep_house(store, clock, 1)
    with psycopg.connect(plain_url, autocommit=True) as connection:
        connection.execute(NOT_TOO_MANY.format(table="daily", most=20))
    write("many", 40, 1)
    keep_house(store, clock)
    assert query(plain_url, "SELECT count(*) FROM telemetry.dirty") == [(0,)]
    store.close()
