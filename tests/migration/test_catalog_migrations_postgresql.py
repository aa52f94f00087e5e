"""On PostgreSQL, too, the revisions lead to the tables that the code expects, whoever runs them at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from sensorkeep.catalog import migration
from sensorkeep.catalog.database import Database, migrate, open_database, schema_status
from sensorkeep.catalog.schema import METADATA
from sensorkeep.errors import BadConfig
from services import POSTGRESQL_URL, address, drop_database, make_database

pytestmark = pytest.mark.distributed

# What makes up a schema, as PostgreSQL itself writes it down.
_COLUMNS = """
SELECT table_name || '.' || column_name, data_type, is_nullable, column_default, is_identity
FROM information_schema.columns WHERE table_schema = 'public'
"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
_CONSTRAINTS = """
SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace
"""


@pytest.fixture
def url() -> Iterator[str]:
    made = make_database(address(POSTGRESQL_URL))
    yield made
    drop_database(address(POSTGRESQL_URL), made)


@pytest.fixture
def empty(url: str) -> Iterator[Database]:
    database = open_database(url, schema="ignore")
    yield database
    database.close()


def ddl(connection: sa.Connection) -> set[tuple[object, ...]]:
    """The schema, one tuple for each column, index and constraint."""
    return {tuple(row) for text in (_COLUMNS, _INDEXES, _CONSTRAINTS) for row in connection.exec_driver_sql(text)}


def test_migrated_tables_equal_tables_made_from_the_code(empty: Database) -> None:
    migrate(empty)
    with empty.write() as connection:
        from_code = ddl(connection)
        METADATA.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
        migration.upgrade(connection, migration.HEAD)
    with empty.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA) == []
        assert ddl(connection) == from_code
    assert len(from_code) > 100


def test_migrate_is_idempotent_and_tells_where_it_is(empty: Database) -> None:
    assert schema_status(empty) == (None, migration.HEAD)
    for _ in range(2):
        migrate(empty)
        assert schema_status(empty) == (migration.HEAD, migration.HEAD)


def test_many_who_migrate_at_once_wait_for_each_other(url: str) -> None:
    errors: list[Exception] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        database = open_database(url, schema="ignore")
        barrier.wait()
        try:
            migrate(database)
        except Exception as error:  # noqa: BLE001 - asserted below
            errors.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    open_database(url).close()


def test_a_migration_that_fails_leaves_nothing_behind(empty: Database) -> None:
    with empty.write() as connection:
        connection.exec_driver_sql("CREATE TABLE audit_log (in_the_way integer)")
    with pytest.raises(Exception, match="audit_log"):
        migrate(empty)
    with empty.read() as connection:
        assert sa.inspect(connection).get_table_names() == ["audit_log"]
    assert schema_status(empty)[0] is None
    with empty.write() as connection:
        connection.exec_driver_sql("DROP TABLE audit_log")
    migrate(empty)
    assert schema_status(empty)[0] == migration.HEAD


def test_tables_of_a_newer_version_are_refused(empty: Database, url: str) -> None:
    migrate(empty)
    with empty.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BadConfig):
        open_database(url)
    with pytest.raises(BadConfig):
        migrate(empty)


def test_every_revision_keeps_the_rows_that_an_older_version_left(empty: Database) -> None:
    with empty.write() as connection:
        migration.upgrade(connection, "0001")
        connection.exec_driver_sql("INSERT INTO secrets VALUES ('kept', 'x')")
    migrate(empty)
    with empty.read() as connection:
        assert connection.exec_driver_sql("SELECT value FROM secrets WHERE name = 'kept'").scalar() == "x"
