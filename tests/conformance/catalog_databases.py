"""The databases that the catalog's conformance suites run over, and how a fresh one is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sensorkeep.catalog.database import Database, migrate, open_database
from services import POSTGRESQL_URL, address, drop_database, make_database
from services.postgresql import PostgreSQL

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.distributed)
KEPT = ["sqlite-file", POSTGRESQL]
"""Databases that outlive the process."""
EVERY = ["sqlite-memory", *KEPT]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[PostgreSQL]:
    """A server that may be stopped."""
    with PostgreSQL(tmp_path / "postgresql") as made:
        yield made


@pytest.fixture
def private(service: PostgreSQL) -> Iterator[Database]:
    """The catalog on that server."""
    database = open_database(make_database(service.url), schema="migrate")
    yield database
    database.close()


_made: dict[Path, str] = {}
"""URLs of the databases made on the server of the run, by folder."""


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[Database]:
    """An empty database at the newest schema; `opened` with the same folder opens it again while the block lasts, and
    afterwards where it is one of KEPT."""
    if kind == "postgresql":
        _drop_those_of_other_folders(folder)
        _made[folder] = make_database(address(POSTGRESQL_URL))
    with opened(kind, folder) as database:
        yield database


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Database]:
    """The database of `folder`, as it is."""
    database = open_database(database_url(kind, folder), schema="ignore")
    try:
        migrate(database)
        yield database
    finally:
        database.close()


def database_url(kind: str, folder: Path) -> str:
    """The URL of the database of `folder`."""
    if kind == "postgresql":
        return _made[folder]
    return "sqlite://" if kind == "sqlite-memory" else f"sqlite:///{folder}/catalog.db"


def _drop_those_of_other_folders(folder: Path) -> None:
    """The tests that made them are over: a run must not pile them up."""
    for other in [made for made in _made if made != folder]:
        drop_database(address(POSTGRESQL_URL), _made.pop(other))
