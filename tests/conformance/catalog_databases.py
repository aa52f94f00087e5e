"""The databases that the catalog's conformance suites run over, and how a fresh one is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from sensorkeep.catalog.database import Database, migrate, open_database

POSTGRESQL_URL = os.environ.get("SENSORKEEP_TEST_POSTGRESQL_URL")
"""Set it to run the suites over PostgreSQL too; the database it names is emptied."""

KEPT = ["sqlite-file"] + (["postgresql"] if POSTGRESQL_URL else [])
"""Databases that outlive the process."""
EVERY = ["sqlite-memory", *KEPT]


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[Database]:
    """An empty database at the newest schema."""
    if kind == "postgresql":
        _empty_postgresql()
    with opened(kind, folder) as database:
        yield database


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Database]:
    """The database of `folder`, as it is."""
    url = {"sqlite-memory": "sqlite://", "sqlite-file": f"sqlite:///{folder}/catalog.db", "postgresql": POSTGRESQL_URL}
    database = open_database(str(url[kind]), schema="ignore")
    try:
        migrate(database)
        yield database
    finally:
        database.close()


def _empty_postgresql() -> None:
    engine = sa.create_engine(str(POSTGRESQL_URL))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
