"""The databases that the catalog's conformance suites run over, and how a fresh one is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sensorkeep.catalog.database import Database, migrate, open_database
from services import POSTGRESQL_URL, address, drop_database, make_database

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.distributed)
KEPT = ["sqlite-file", POSTGRESQL]
"""Databases that outlive the process."""
EVERY = ["sqlite-memory", *KEPT]

_URL_FILE = "postgresql-url"


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[Database]:
    """An empty database at the newest schema; `opened` with the same folder opens it again while the block lasts, and
    afterwards where it is one of KEPT."""
    if kind == "postgresql":
        (folder / _URL_FILE).write_text(make_database(address(POSTGRESQL_URL)))
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
        return (folder / _URL_FILE).read_text()
    return "sqlite://" if kind == "sqlite-memory" else f"sqlite:///{folder}/catalog.db"


def drop_databases(folder: Path) -> None:
    """Remove what was made for `folder` and the folders in it on the server of the run."""
    for file in folder.rglob(_URL_FILE):
        drop_database(address(POSTGRESQL_URL), file.read_text())
