"""Several processes at once on one catalog in PostgreSQL: gateways and workers that enter, settle, replay, describe and
log in. A Database opened again stands for another process."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from catalog_databases import database_url, fresh_database, opened
from catalog_world import CLOCK, NOW_US, at_once, claim
from psycopg.rows import scalar_row
from pubsub_world import wait_until

from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.base import Accounting, Receipt, RefreshToken, Settlement, StoredAnswer, User
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.idempotency import CatalogIdempotencyKeys
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import ManualClock
from sensorkeep.errors import Conflict, Unavailable
from sensorkeep.limits import DESCRIPTIONS_TRUSTED_SECONDS
from sensorkeep.model import (
    Claim,
    Counts,
    Equipment,
    LatestReading,
    Reason,
    Rejections,
    Sensor,
    WireFormat,
    external_uuid,
)  # fmt: skip

pytestmark = pytest.mark.distributed


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Database]:
    """The catalog. No test may meet a deadlock: it would be tried again, but after a second in which others wait."""
    with fresh_database("postgresql", tmp_path) as database:
        yield database
    assert deadlocks_of(database_url("postgresql", tmp_path)) == 0


@pytest.fixture
def other(one: Database, tmp_path: Path) -> Iterator[Database]:
    with opened("postgresql", tmp_path) as database:
        yield database


def deadlocks_of(url: str) -> int:
    """Deadlocks that the server found in that database. All connections to it are closed, or about to be."""
    with psycopg.connect(url, autocommit=True, row_factory=scalar_row) as connection:
        # Each tells what it counted when it ends.
        others = """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"""
        wait_until(lambda: connection.execute(others).fetchone() == 0)
        counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.execute(counted).fetchone() or 0)


def rejected(count: int) -> Rejections:
    rejections = Rejections()
    for i in range(count):
        rejections.add(0, i, Reason.TOO_OLD)
    return rejections


def end_of_replay(item: Claim) -> Settlement:
    """The end of the replay of a batch with two readings in quarantine: both are stored."""
    replay = Claim(
        batch_id=item.batch_id + "r", wire_format=WireFormat.READINGS, received_us=NOW_US, readings=0,
        replay_of=item.batch_id,
    )  # fmt: skip
    return Settlement(replay, Counts(2), Rejections())


def test_gateways_and_workers_at_once_count_every_batch_once(one: Database, other: Database) -> None:
    ledgers = [CatalogLedger(database, CLOCK) for database in (one, other)]
    claims = [claim(number) for number in range(120)]
    begun: list[Accounting] = []

    def receive(ledger: CatalogLedger) -> None:
        for item in claims:  # a request whose answer was lost comes to the other gateway
            with suppress(Unavailable):  # after half a second a gateway goes on; it is entered behind it
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
    assert ledgers[0].accounting()[1] == Accounting(received=600, stored=480, quarantined=120)
    assert ledgers[1].accounting()[1] == ledgers[0].accounting()[1]
    assert len(ledgers[0].quarantine(None, None, 1000)) == 120


def test_ends_that_overtake_their_receipts_meet_no_deadlock(one: Database, other: Database) -> None:
    ledgers = [CatalogLedger(database, CLOCK) for database in (one, other)]
    claims = [claim(number) for number in range(400)]

    def settle(ledger: CatalogLedger, order: int) -> None:
        for start in range(0, 400, 40):
            ledger.settle([Settlement(item, Counts(5), Rejections()) for item in claims[start : start + 40][::order]])

    def receive(first: int) -> None:
        with suppress(Unavailable):
            ledgers[0].receive([Receipt(item, 1) for item in claims[first::9][::-1]])

    at_once(
        lambda: receive(3), lambda: receive(5), lambda: settle(ledgers[0], 1), lambda: settle(ledgers[1], -1)
    )  # fmt: skip
    assert ledgers[0].accounting()[1] == Accounting(received=2000, stored=2000)
    assert ledgers[1].accounting()[1] == ledgers[0].accounting()[1]


def test_replays_and_ends_of_the_same_batches_at_once_end_without_a_deadlock(one: Database, other: Database) -> None:
    ledgers = [CatalogLedger(database, CLOCK) for database in (one, other)]
    claims = [claim(number) for number in range(40)]
    ledgers[0].settle([Settlement(item, Counts(3), rejected(2)) for item in claims])

    def replay(ledger: CatalogLedger, mine: list[Claim]) -> None:
        for item in mine:
            ledger.reopen(item.batch_id, item.batch_id + "r")
        ledger.settle([end_of_replay(item) for item in mine])

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


def test_ends_and_replays_that_are_settled_together_meet_no_deadlock(one: Database, other: Database) -> None:
    ledgers = [CatalogLedger(database, CLOCK) for database in (one, other)]
    for number in range(12):  # each claim is delivered to both workers, in any order
        claims = [claim(30 * number + i) for i in range(30)]
        ends = [Settlement(item, Counts(3), rejected(2)) for item in claims]
        ledgers[0].settle(ends)
        for item in claims:
            ledgers[0].reopen(item.batch_id, item.batch_id + "r")
        both = ends + [end_of_replay(item) for item in claims]

        def settle(ledger: CatalogLedger, seed: int, both: list[Settlement] = both) -> None:
            mixed = random.Random(seed).sample(both, len(both))
            for start in range(0, len(mixed), 20):
                ledger.settle(mixed[start : start + 20])

        at_once(*(lambda ledger=ledger, seed=2 * number + i: settle(ledger, seed) for i, ledger in enumerate(ledgers)))
    for ledger in ledgers:
        assert ledger.accounting()[1] == Accounting(received=1800, stored=1800)


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
