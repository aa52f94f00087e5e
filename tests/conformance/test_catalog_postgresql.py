"""What a catalog on PostgreSQL promises beside what every catalog does: several processes, outages, texts, secrets. A
Database opened again here stands for another process."""

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
from pubsub_world import wait_until

from sensorkeep.catalog import postgresql
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.base import Accounting, Receipt, RefreshToken, Settlement, StoredAnswer, User
from sensorkeep.catalog.database import Database, open_database
from sensorkeep.catalog.idempotency import CatalogIdempotencyKeys
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import ManualClock
from sensorkeep.errors import BadConfig, Conflict, Unavailable
from sensorkeep.limits import CATALOG_CONNECT_SECONDS_MAX, DESCRIPTIONS_TRUSTED_SECONDS, LEDGER_PORTION_ROWS
from sensorkeep.model import (
    Claim,
    Counts,
    Equipment,
    LatestReading,
    LatestRecord,
    Reason,
    Rejections,
    Sensor,
    WireFormat,
    external_uuid,
)  # fmt: skip
from services import POSTGRESQL_URL, address, make_database
from services.postgresql import PostgreSQL

__all__ = ["private", "service"]  # the fixtures

pytestmark = pytest.mark.distributed

NOW_US = 1_790_000_000_000_000
CLOCK = ManualClock(NOW_US)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Database]:
    with fresh_database("postgresql", tmp_path) as database:
        yield database


@pytest.fixture
def other(one: Database, tmp_path: Path) -> Iterator[Database]:
    with opened("postgresql", tmp_path) as database:
        yield database


def at_once(*acts: Callable[[], None]) -> None:
    """Run them at the same time. The first error is raised."""
    barrier = threading.Barrier(len(acts))
    errors: list[Exception] = []

    def run(act: Callable[[], None]) -> None:
        barrier.wait()
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def claim(number: int, readings: int = 5, **more: object) -> Claim:
    return Claim(
        batch_id=f"b{number:05}", wire_format=WireFormat.READINGS, received_us=NOW_US, readings=readings,
        payload=b"[]", **more,  # type: ignore[arg-type]
    )  # fmt: skip


def rejected(count: int) -> Rejections:
    rejections = Rejections()
    for i in range(count):
        rejections.add(0, i, Reason.TOO_OLD)
    return rejections


# --- several processes at once ------------------------------------------------------------------------------------


def test_gateways_and_workers_at_once_count_every_batch_once(one: Database, other: Database) -> None:
    ledgers = [CatalogLedger(database, CLOCK) for database in (one, other)]
    claims = [claim(number) for number in range(120)]
    begun: list[Accounting] = []

    def receive(ledger: CatalogLedger) -> None:
        for item in claims:  # a request whose answer was lost comes to the other gateway
            ledger.receive([Receipt(item, 1)])

    def settle(ledger: CatalogLedger, order: int) -> None:
        for start in range(0, 120, 8):  # a claim that was delivered to both workers
            portion = claims[start : start + 8][::order]
            ledger.settle([Settlement(item, Counts(4), rejected(1)) for item in portion])

    def watch(ledger: CatalogLedger) -> None:
        for _ in range(60):
            begun.append(ledger.accounting()[1])

    receivers = [lambda ledger=ledger: receive(ledger) for ledger in ledgers]
    settlers = [
        lambda ledger=ledger, order=order: settle(ledger, order) for ledger, order in zip(ledgers, (1, -1), strict=True)
    ]
    at_once(*receivers, *settlers, lambda: watch(ledgers[0]))
    for seen in begun:
        assert seen.received == seen.stored + seen.quarantined + seen.pending
    assert ledgers[1].accounting()[1] == Accounting(received=600, stored=480, quarantined=120)
    assert len(ledgers[0].quarantine(None, None, 1000)) == 120


def test_replays_and_ends_of_the_same_batches_at_once_end_without_a_deadlock(one: Database, other: Database) -> None:
    ledgers = [CatalogLedger(database, CLOCK) for database in (one, other)]
    claims = [claim(number) for number in range(40)]
    ledgers[0].settle([Settlement(item, Counts(3), rejected(2)) for item in claims])

    def replay(ledger: CatalogLedger, mine: list[Claim]) -> None:
        replays = []
        for item in mine:
            ledger.reopen(item.batch_id, item.batch_id + "r")
            replays.append(claim(0, 0, replay_of=item.batch_id))
        settlements = [
            Settlement(
                Claim(batch_id=item.batch_id + "r", wire_format=WireFormat.READINGS, received_us=NOW_US, readings=0,
                      replay_of=item.batch_id), Counts(2), Rejections(),
            )
            for item in mine
        ]  # fmt: skip
        ledger.settle(settlements)

    def settle_again(ledger: CatalogLedger) -> None:
        for _ in range(10):
            ledger.settle([Settlement(item, Counts(3), rejected(2)) for item in reversed(claims)])

    at_once(
        lambda: replay(ledgers[0], claims[:20]),
        lambda: replay(ledgers[1], claims[:19:-1]),
        lambda: settle_again(ledgers[0]),
        lambda: settle_again(ledgers[1]),
    )
    assert ledgers[0].accounting()[1] == Accounting(received=200, stored=200)


def test_of_two_replays_of_a_batch_in_two_processes_one_runs(one: Database, other: Database) -> None:
    ledgers = [CatalogLedger(database, CLOCK) for database in (one, other)]
    for number in range(15):
        item = claim(number)
        ledgers[0].settle([Settlement(item, Counts(3), rejected(2))])
        refused: list[str] = []

        def reopen(ledger: CatalogLedger, replay_id: str, item: Claim = item, refused: list[str] = refused) -> None:
            try:
                ledger.reopen(item.batch_id, replay_id)
            except Conflict:
                refused.append(replay_id)

        at_once(lambda: reopen(ledgers[0], f"x{number}"), lambda: reopen(ledgers[1], f"y{number}"))  # noqa: B023
        assert len(refused) == 1
    assert ledgers[0].accounting()[1] == Accounting(received=75, stored=45, pending=30)


def test_since_start_is_balanced_in_a_process_that_started_amid_the_work_of_others(
    one: Database, other: Database
) -> None:
    early = CatalogLedger(one, CLOCK)
    early.receive([Receipt(claim(1), 1), Receipt(claim(2), 1)])
    early.settle([Settlement(claim(1), Counts(3), rejected(2))])
    late = CatalogLedger(other, CLOCK)
    early.receive([Receipt(claim(3), 1)])
    early.settle([Settlement(claim(2), Counts(1, 1, 3), Rejections())])
    early.reopen("b00001", "r")
    since_start, all_time = late.accounting()
    assert since_start == Accounting(received=12, stored=1, updated=1, duplicate=3, pending=7)
    assert all_time == Accounting(received=15, stored=4, updated=1, duplicate=3, pending=7)
    assert early.accounting()[0] == all_time, "it was there from the beginning"


def test_a_receipt_that_was_entered_on_one_gateway_is_seen_by_the_other_at_once(one: Database, other: Database) -> None:
    gateway, reader = CatalogLedger(one, CLOCK), CatalogLedger(other, CLOCK)
    for number in range(20):
        gateway.receive([Receipt(claim(number), 1)])
        assert reader.batch(f"b{number:05}").state == "accepted"


def test_workers_that_describe_the_same_things_in_any_order_meet_no_deadlock(one: Database, other: Database) -> None:
    inventories = [CatalogInventory(database) for database in (one, other)]
    uuids = [external_uuid(f"room{i}") for i in range(30)]

    def describe(inventory: CatalogInventory, order: int, name: str) -> None:
        for attempt in range(12):
            inventory.describe(
                [Equipment(uuid=uuid, name=f"{name}{attempt}") for uuid in uuids[::2][::order]],
                [
                    Sensor(uuid=external_uuid(uuid), equipment_uuid=uuid, name=f"{name}{attempt}")
                    for uuid in uuids[::order]
                ],
            )

    at_once(
        lambda: describe(inventories[0], 1, "a"),
        lambda: describe(inventories[1], -1, "b"),
        lambda: describe(CatalogInventory(one), -1, "c"),
    )
    names = {sensor.name for uuid in uuids for sensor in inventories[0].sensors_of(uuid)}
    assert len(names) == 1, "one of them was the last, for all sensors"


def test_a_description_that_another_process_replaced_is_stored_again_in_time(one: Database, other: Database) -> None:
    clock = ManualClock(NOW_US)
    first, second = CatalogInventory(one, monotonic=clock.monotonic), CatalogInventory(other)
    room = external_uuid("room")
    first.describe([Equipment(uuid=room, name="one")], [])
    second.describe([Equipment(uuid=room, name="two")], [])
    first.describe([Equipment(uuid=room, name="one")], [])
    assert first.equipment(room).name == "two", "it is believed to be stored"
    clock.advance(DESCRIPTIONS_TRUSTED_SECONDS)
    first.describe([Equipment(uuid=room, name="one")], [])
    assert second.equipment(room).name == "one"


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


def test_savers_of_newest_values_in_any_order_meet_no_deadlock(one: Database, other: Database) -> None:
    def save(database: Database, order: int, offset: int) -> None:
        latest = CatalogLatestReadings(database)
        for attempt in range(12):
            readings = [
                LatestReading(sensor_uuid=f"s{i:03}", time_us=2 * attempt + offset, value=1.0)
                for i in range(100)[::order]
            ]
            latest.offer(readings)
            latest.save()

    at_once(lambda: save(one, 1, 0), lambda: save(other, -1, 1))
    again = CatalogLatestReadings(one)
    assert {again.find([f"s{i:03}"])[0][f"s{i:03}"].time_us for i in range(100)} == {23}


def test_of_two_uses_of_a_refresh_token_at_once_one_wins_and_the_family_dies(one: Database, other: Database) -> None:
    for number in range(15):
        accounts = [CatalogAccounts(database, CLOCK) for database in (one, other)]
        family = f"f{number}"
        for token in "ab":
            accounts[0].put_refresh_token(RefreshToken(family + token, family, "ada", NOW_US + 100))
        won: list[RefreshToken] = []

        def use(mine: CatalogAccounts, family: str = family, won: list[RefreshToken] = won) -> None:
            token = mine.use_refresh_token(family + "a")
            if token is not None:
                won.append(token)

        at_once(lambda: use(accounts[0]), lambda: use(accounts[1]))  # noqa: B023
        assert len(won) == 1
        assert accounts[0].use_refresh_token(family + "b") is None, "a copy was used: the family is dead"


def test_a_family_that_is_ended_while_a_token_of_it_is_spent_is_dead_for_both(one: Database, other: Database) -> None:
    accounts = [CatalogAccounts(database, CLOCK) for database in (one, other)]
    accounts[0].put_refresh_token(RefreshToken("t1", "f", "ada", NOW_US + 100))
    spent: list[RefreshToken | None] = []
    with one.write() as connection:
        connection.execute(sa.text("UPDATE refresh_tokens SET revoked_us = 1 WHERE family = 'f'"))
        waiting = threading.Thread(target=lambda: spent.append(accounts[1].use_refresh_token("t1")))
        waiting.start()
        wait_until(lambda: _waits(one))
    waiting.join()
    assert spent == [None]


def test_a_token_entered_while_its_user_is_changed_waits_and_is_refused(one: Database, other: Database) -> None:
    accounts, ada = CatalogAccounts(other, CLOCK), User("ada", "$argon2id$1", frozenset({"read"}))
    accounts.put_user(ada)
    entered: list[bool] = []
    token = RefreshToken("t1", "f", "ada", NOW_US + 100)
    with one.write() as connection:
        connection.execute(sa.text("UPDATE users SET password_hash = '$argon2id$2'"))
        waiting = threading.Thread(target=lambda: entered.append(accounts.put_refresh_token(token, ada)))
        waiting.start()
        wait_until(lambda: _waits(one))
    waiting.join()
    assert entered == [False]


def _waits(database: Database) -> bool:
    """Whether somebody waits for a row."""
    with database.read() as connection:
        return bool(connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").scalar())


def test_of_administrators_who_remove_each_other_at_once_one_stays(one: Database, other: Database) -> None:
    accounts = [CatalogAccounts(database, CLOCK) for database in (one, other)]
    for _ in range(10):
        for name in ("ada", "bob", "eve"):
            accounts[0].put_user(User(name, "h", frozenset({"admin"} if name != "eve" else {"read"})))
        refused: list[Conflict] = []

        def leave(act: Callable[[], object], refused: list[Conflict] = refused) -> None:
            try:
                act()
            except Conflict as error:
                refused.append(error)

        at_once(
            lambda: leave(lambda: accounts[0].delete_user("ada", keeping="admin")),
            lambda: leave(lambda: accounts[1].change_user("bob", disabled=True, keeping="admin")),
        )
        assert len(refused) == 1
        able = [user for user in accounts[0].users() if "admin" in user.scopes and not user.disabled]
        assert len(able) == 1


def test_of_processes_that_begin_an_idempotency_key_at_once_one_goes_on(one: Database, other: Database) -> None:
    keys = [CatalogIdempotencyKeys(database) for database in (one, other)]
    answer = StoredAnswer(status=201, headers={}, body=b"{}")
    for number in range(15):
        outcomes: list[str] = []

        def begin(mine: CatalogIdempotencyKeys, number: int = number, outcomes: list[str] = outcomes) -> None:
            try:
                outcomes.append("go" if mine.begin("c", f"k{number}", NOW_US) is None else "answer")
            except Conflict:
                outcomes.append("wait")

        at_once(lambda: begin(keys[0]), lambda: begin(keys[1]))
        assert sorted(outcomes) == ["go", "wait"]
        keys[0].finish("c", f"k{number}", "hash", answer)
        assert keys[1].begin("c", f"k{number}", NOW_US) == ("hash", answer)


def test_record_ids_are_reserved_once_by_many_processes(one: Database, other: Database) -> None:
    firsts: list[int] = []

    def reserve(database: Database) -> None:
        registry = CatalogRegistry(database)
        firsts.extend([registry.reserve_ids(3) for _ in range(20)])

    at_once(lambda: reserve(one), lambda: reserve(other))
    assert sorted(firsts) == list(range(1, 121, 3))


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
