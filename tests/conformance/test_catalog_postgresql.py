"""What a catalog on PostgreSQL promises beside what every catalog does: outages, texts, secrets. A Database opened
again stands for another process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from catalog_databases import database_url, fresh_database, opened, private, service
from catalog_world import CLOCK, NOW_US, at_once, claim
from pubsub_world import wait_until

from sensorkeep.catalog import postgresql
from sensorkeep.catalog.base import Receipt, Settlement
from sensorkeep.catalog.database import Database, open_database
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import ManualClock
from sensorkeep.errors import BadConfig, Conflict, Unavailable
from sensorkeep.limits import CATALOG_CONNECT_SECONDS_MAX, DESCRIPTIONS_TRUSTED_SECONDS, LEDGER_PORTION_ROWS
from sensorkeep.model import (
    Counts,
    Equipment,
    LatestReading,
    LatestRecord,
    Reason,
    Rejections,
    Sensor,
    external_uuid,
)  # fmt: skip
from services import POSTGRESQL_URL, address, make_database
from services.postgresql import PostgreSQL

__all__ = ["private", "service"]  # the fixtures

pytestmark = pytest.mark.distributed


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Database]:
    with fresh_database("postgresql", tmp_path) as database:
        yield database


@pytest.fixture
def other(one: Database, tmp_path: Path) -> Iterator[Database]:
    with opened("postgresql", tmp_path) as database:
        yield database


def test_what_is_described_again_and_is_the_same_writes_no_row(one: Database) -> None:
    clock = ManualClock(NOW_US)
    inventory = CatalogInventory(one, monotonic=clock.monotonic)
    room = Equipment(uuid=external_uuid("room"), name="one", siren_active=None)
    inventory.describe([room], [])

    def version() -> str:
        with one.read() as connection:
            return str(connection.exec_driver_sql("SELECT xmin FROM equipment").scalar())

    before = version()
    clock.advance(DESCRIPTIONS_TRUSTED_SECONDS)
    inventory.describe([room], [])
    assert version() == before


def test_however_much_a_batch_brings_each_statement_stays_short(one: Database) -> None:
    room = external_uuid("room")
    uuids = [f"s{number:05}" for number in range(2 * LEDGER_PORTION_ROWS + 1)]
    latest = CatalogLatestReadings(one)
    rows: list[int] = []

    @sa.event.listens_for(one.engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, _sql: str, parameters: object, *_: object) -> None:
        if isinstance(parameters, dict) and "given" in parameters:
            rows.append(len(json.loads(parameters["given"])))

    named = [[Sensor(uuid=uuid, equipment_uuid=room, name=name) for uuid in uuids] for name in ("a", "b")]
    CatalogInventory(one).describe([], [*named[0], *named[1]])
    latest.offer([LatestReading(sensor_uuid=uuid, time_us=1, value=1.0) for uuid in uuids])
    latest.save()
    assert max(rows) <= LEDGER_PORTION_ROWS
    assert [sensor.name for sensor in CatalogInventory(one).sensors_of(room)] == ["b"] * len(uuids)
    assert CatalogLatestReadings(one).find(uuids)[0].keys() == set(uuids)


def test_two_that_wait_for_each_other_are_told_apart_and_both_get_their_turn(one: Database, other: Database) -> None:
    with one.write() as connection:
        connection.exec_driver_sql("INSERT INTO counters VALUES ('a', 0), ('b', 0)")
    reached = threading.Barrier(2)
    tries: list[int] = []

    def add(database: Database, first: str, second: str) -> None:
        mine: list[int] = []

        def work(connection: sa.Connection) -> None:
            mine.append(1)
            connection.execute(sa.text("UPDATE counters SET value = value + 1 WHERE name = :name"), {"name": first})
            if len(mine) == 1:
                reached.wait()
            connection.execute(sa.text("UPDATE counters SET value = value + 1 WHERE name = :name"), {"name": second})

        database.transact(work)
        tries.extend(mine)

    at_once(lambda: add(one, "a", "b"), lambda: add(other, "b", "a"))
    with one.read() as connection:
        assert set(connection.exec_driver_sql("SELECT value FROM counters").scalars()) == {2}
    assert len(tries) > 2, "one of them was undone, and tried again"


# --- texts --------------------------------------------------------------------------------------------------------


def test_a_nul_in_any_text_is_stored_as_the_replacement_character(one: Database) -> None:
    inventory, latest, ledger = CatalogInventory(one), CatalogLatestReadings(one), CatalogLedger(one, CLOCK)
    room = external_uuid("room")
    inventory.describe(
        [Equipment(uuid=room, external_id="ro\x00om", name="\x00")],
        [Sensor(uuid=external_uuid("s"), equipment_uuid=room, name="a\\u0000b", unit="x\x00y")],
    )
    latest.offer(
        [LatestReading(sensor_uuid="s", time_us=1, status="o\x00n")],
        [LatestRecord(equipment_uuid="e", sensor_id="\x00", time_us=1, id=1, client_ip="::1", values={"a\x00": 1.0})],
    )
    latest.save()
    rejections = Rejections()
    rejections.add(0, 0, Reason.BAD_READING, "x\x00y")
    ledger.settle([Settlement(claim(1, object_key="k\x00"), Counts(), rejections, dead_letter="\x00why")])
    assert inventory.equipment(room).name == "\N{REPLACEMENT CHARACTER}"
    (sensor,) = inventory.sensors_of(room)
    assert (sensor.name, sensor.unit) == ("a\\u0000b", "x\N{REPLACEMENT CHARACTER}y")
    again = CatalogLatestReadings(one)
    assert again.find(["s"])[0]["s"].status == "o\N{REPLACEMENT CHARACTER}n"
    assert again.find([], ["e"])[1]["e"].values == {"a\x00": 1.0}, "they are kept as JSON"
    assert ledger.batch("b00001").detail == "\N{REPLACEMENT CHARACTER}why"
    assert {row.excerpt for row in ledger.quarantine(None, None, 9)} == {
        "x\N{REPLACEMENT CHARACTER}y", "\N{REPLACEMENT CHARACTER}why",
    }  # fmt: skip


# --- outages ------------------------------------------------------------------------------------------------------


def fails(database: Database) -> Unavailable | None:
    try:
        database.check()
    except Unavailable as error:
        return error
    return None


def test_an_outage_is_told_fast_by_every_call_and_heals_by_itself(service: PostgreSQL, private: Database) -> None:
    registry, ledger = CatalogRegistry(private), CatalogLedger(private, CLOCK)
    registry.reserve_ids(1)
    for round_number in range(2):
        service.kill()
        calls: list[Callable[[], object]] = [
            lambda: registry.reserve_ids(1),
            ledger.accounting,
            lambda: ledger.receive([Receipt(claim(round_number), 1)]),  # noqa: B023
            private.check,
        ]
        began = time.monotonic()
        for call in calls * 20:
            with pytest.raises(Unavailable) as caught:
                call()
            assert caught.value.code == "dependency_down"
            assert "127.0.0.1" not in caught.value.detail, "addresses do not concern clients"
        assert time.monotonic() - began < 4.0
        service.start()
        wait_until(lambda: fails(private) is None)
        assert ledger.batch(f"b{round_number:05}").state == "accepted", "what waited was entered"
    registry.reserve_ids(1)


def test_an_answer_that_does_not_come_is_given_up_and_the_connection_with_it(
    private: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql.BoundedConnection, "answer_seconds_max", 0.3)
    began = time.monotonic()
    with pytest.raises(Unavailable), private.read() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(5)")
    assert time.monotonic() - began < 2.0
    wait_until(lambda: fails(private) is None)
    with private.read() as connection:
        assert connection.exec_driver_sql("SELECT 7").scalar() == 7, "the answer to this question"


def test_a_server_that_takes_no_connection_holds_up_one_caller_at_a_time(
    service: PostgreSQL, private: Database
) -> None:
    registry = CatalogRegistry(private)
    private.engine.dispose()
    service.pause()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            registry.reserve_ids(1)
        assert time.monotonic() - began < CATALOG_CONNECT_SECONDS_MAX + 2
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(Unavailable):
                registry.reserve_ids(1)
        assert time.monotonic() - began < 0.5
    finally:
        service.resume()
    wait_until(lambda: fails(private) is None)
    assert registry.reserve_ids(1) == 1, "nothing of it was done"


def test_a_row_that_is_held_for_long_makes_others_unavailable_and_not_wait_for_ever(
    one: Database, other: Database
) -> None:
    CatalogRegistry(one).reserve_ids(1)
    with one.write() as connection:
        connection.exec_driver_sql("UPDATE counters SET value = value")

        def wait(waiting: sa.Connection) -> None:
            waiting.exec_driver_sql("SET LOCAL lock_timeout TO '50ms'")
            waiting.exec_driver_sql("UPDATE counters SET value = value")

        with pytest.raises(Unavailable) as caught:
            other.transact(wait)
        assert caught.value.code == "dependency_down"
    assert fails(other) is None, "the server is there: others are not turned away"


def test_every_connection_has_its_bounds(one: Database) -> None:
    with one.read() as connection:
        for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            assert connection.exec_driver_sql(f"SHOW {name}").scalar() not in ("0", None), name


def test_relaxed_writes_do_not_wait_for_the_disk_and_others_do(one: Database) -> None:
    shown = {}
    for relaxed in (True, False):
        with one.write(relaxed=relaxed) as connection:
            shown[relaxed] = connection.exec_driver_sql("SHOW synchronous_commit").scalar()
    assert shown == {True: "off", False: "on"}


def test_a_connection_that_the_server_ended_is_replaced_unseen(one: Database, other: Database) -> None:
    def mine() -> int:
        with one.read() as connection:
            return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())

    before = mine()
    with other.read() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(%s)", (before,))
    wait_until(lambda: not _is_there(other, before))
    time.sleep(1.1)  # what was used a moment ago is not asked first
    assert mine() != before


def _is_there(database: Database, pid: int) -> bool:
    with database.read() as connection:
        return bool(connection.exec_driver_sql("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,)).scalar())


# --- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_usual_scheme_opens_the_database(one: Database, tmp_path: Path, scheme: str) -> None:
    url = database_url("postgresql", tmp_path).replace("postgresql", scheme, 1)
    open_database(url).close()


def test_a_catalog_without_tables_or_of_another_version_says_how_to_migrate(one: Database, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="run: sensorkeep migrate upgrade"):
        open_database(make_database(address(POSTGRESQL_URL)))
    with one.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(BadConfig, match=r"at revision 0000.*run: sensorkeep migrate upgrade"):
        open_database(database_url("postgresql", tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:se/cret@127.0.0.1:1/x",
        "postgresql://u:se#cret@h:cret/x",
        "postgresql://u:cret@h/x?nonsense_cret=1",
        "postgresql://u@h:cret/x",
        "mysql://u:cret@h/x",
    ],
)
def test_no_part_of_a_password_is_shown_whatever_is_wrong_with_the_url(url: str) -> None:
    with pytest.raises((BadConfig, Unavailable)) as caught:
        open_database(url)
    assert "cret" not in str(caught.value)


def test_a_server_that_cannot_be_reached_at_the_start_is_told_with_the_reason() -> None:
    with pytest.raises(Unavailable, match="refused") as caught:
        open_database("postgresql://u:cret@127.0.0.1:1/x")
    assert caught.value.code == "dependency_down"
    assert "cret" not in str(caught.value)


def test_a_value_that_is_there_already_is_not_quoted_in_the_error(one: Database) -> None:
    def insert(connection: sa.Connection) -> None:
        connection.exec_driver_sql("INSERT INTO secrets VALUES ('name', 'the secret')")

    one.transact(insert)
    with pytest.raises(Conflict) as caught:
        one.transact(insert)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, sa.exc.IntegrityError)
    assert isinstance(caught.value.__cause__.orig, psycopg.errors.UniqueViolation)
