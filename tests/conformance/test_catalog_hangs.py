"""What a request that is durable waits for where PostgreSQL takes the catalog's questions and does not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from catalog_databases import fresh_database, private, service
from pubsub_world import wait_until

from sensorkeep.catalog.base import Accounting, Receipt, Settlement
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.catalog.shared_latest import SharedLatestReadings
from sensorkeep.clock import ManualClock
from sensorkeep.errors import Unavailable
from sensorkeep.limits import CATALOG_LOCK_SECONDS_MAX
from sensorkeep.model import Claim, Counts, LatestReading, Rejections, WireFormat
from sensorkeep.valkey import Client, Valkey
from services import VALKEY_URL, address, new_name
from services.postgresql import PostgreSQL

__all__ = ["private", "service"]  # the fixtures

pytestmark = pytest.mark.distributed

NOW_US = 1_790_000_000_000_000
CLOCK = ManualClock(NOW_US)
SOON_SECONDS = 2.5
"""Far more than the bound, and far less than what PostgreSQL is waited for otherwise."""
THREADS = 8


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with fresh_database("postgresql", tmp_path) as database:
        yield database


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    client = Valkey(address(VALKEY_URL), prefix=new_name("test"))
    yield client
    client.close()


def receipt(number: int) -> Receipt:
    claim = Claim(
        batch_id=f"b{number:05}", wire_format=WireFormat.READINGS, received_us=NOW_US, readings=3, oldest_us=NOW_US
    )
    return Receipt(claim, 100)


def reading(time_us: int, sensor: str = "s") -> LatestReading:
    return LatestReading(sensor_uuid=sensor, time_us=time_us, value=1.5, status="ok", battery=91.5, rssi=-70)


@contextmanager
def hanging(service: PostgreSQL) -> Iterator[None]:
    service.pause()
    try:
        yield
    finally:
        service.resume()


@contextmanager
def held(database: Database, statement: str) -> Iterator[None]:
    """Another client of the database holds what the statement locks."""
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute(statement)
        yield
        connection.rollback()


def test_a_server_that_hangs_holds_up_receipts_for_a_moment_and_all_are_entered_once(
    service: PostgreSQL, private: Database
) -> None:
    ledger = CatalogLedger(private, CLOCK)
    ledger.receive([receipt(0)])

    def receive(numbers: range) -> None:
        for number in numbers:
            with pytest.raises(Unavailable) as caught:
                ledger.receive([receipt(number)])
            assert caught.value.code == "dependency_down"

    with hanging(service), ThreadPoolExecutor(THREADS) as threads:
        began = time.monotonic()
        for sent in [threads.submit(receive, range(first, 100, THREADS)) for first in range(1, THREADS + 1)]:
            sent.result()
        assert time.monotonic() - began < SOON_SECONDS
    wait_until(lambda: ledger.accounting()[1] == Accounting(received=300, pending=300))
    ledger.receive([receipt(100), receipt(50)])
    ledger.settle([Settlement(receipt(number).claim, Counts(3), Rejections()) for number in range(100)])
    assert ledger.accounting()[1] == Accounting(received=303, stored=300, pending=3)


def test_a_row_that_is_held_for_long_holds_up_a_receipt_for_a_moment(database: Database) -> None:
    gateway, reader = CatalogLedger(database, CLOCK), CatalogLedger(database, CLOCK)
    with held(database, "UPDATE ledger SET received = received"):
        began = time.monotonic()
        for number in range(20):
            with pytest.raises(Unavailable):
                gateway.receive([receipt(number)])
        assert time.monotonic() - began < SOON_SECONDS < CATALOG_LOCK_SECONDS_MAX
    wait_until(lambda: gateway.accounting()[1] == Accounting(received=60, pending=60))
    gateway.receive([receipt(20)])
    assert reader.batch("b00020").state == "accepted", "others see it at once again"


def test_an_offer_waits_a_moment_for_tables_that_do_not_answer_and_they_decide_in_the_end(
    database: Database, valkey: Valkey
) -> None:
    gateway, worker = (SharedLatestReadings(database, valkey, saves=saves) for saves in (False, True))
    worker.offer([reading(NOW_US + 1, "known")])
    worker.save()
    valkey.run(lambda client: _forget(client, valkey.name("*")))
    with held(database, "LOCK TABLE latest_readings IN ACCESS EXCLUSIVE MODE"):
        began = time.monotonic()
        for number in range(20):
            gateway.offer([reading(NOW_US, "known"), reading(NOW_US, f"new-{number}")])
        assert time.monotonic() - began < SOON_SECONDS < CATALOG_LOCK_SECONDS_MAX

    def is_right() -> bool:
        gateway.offer([reading(NOW_US, "another")])
        other = SharedLatestReadings(database, valkey, saves=False)
        return all(other.reading(f"new-{number}") == reading(NOW_US, f"new-{number}") for number in range(20))

    wait_until(is_right)
    assert worker.reading("known") == reading(NOW_US + 1, "known"), "the older one replaced nothing"


def _forget(client: Client, names: str) -> None:
    client.delete(*client.keys(names))
