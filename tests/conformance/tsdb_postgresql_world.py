"""Fixtures of the tests of the store on PostgreSQL: a database of its own, and the store opened on it by many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from tsdb_world import NOON_US, SHARED, postgres_database

from sensorkeep.clock import ManualClock
from sensorkeep.tsdb.postgres import PostgresStore


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_US)


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with the tables of the store."""
    with postgres_database(request.param) as made:
        yield made


@pytest.fixture
def opening(url: str, clock: ManualClock) -> Iterator[Callable[..., PostgresStore]]:
    """Opens the store, as often as asked: as several processes do."""
    stores: list[PostgresStore] = []

    def open_one(raw_retention_days: int = 30) -> PostgresStore:
        stores.append(PostgresStore(url, clock=clock, raw_retention_days=raw_retention_days))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    """What the database itself says."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql).fetchall()


def keep_house(store: PostgresStore, clock: ManualClock, times: int = 5) -> None:
    for _ in range(times):
        store.maintain(clock.now_us())
