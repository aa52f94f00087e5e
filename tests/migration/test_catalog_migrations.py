"""The revisions of the catalog's tables lead to the tables that the code expects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from sensorkeep.catalog import migration
from sensorkeep.catalog.database import Database, migrate, open_database, schema_status
from sensorkeep.catalog.schema import METADATA
from sensorkeep.errors import BadConfig


@pytest.fixture
def empty(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path}/empty.db", schema="ignore")


def ddl(connection: sa.Connection) -> dict[str, str]:
    """Every table and index by name, as the database keeps its statement, but for white space."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: " ".join(sql.split()) for name, sql in rows if name != "alembic_version"}


def version_table(connection: sa.Connection) -> tuple[str, list[str]]:
    """How the table of the revision is made, and what it holds."""
    made = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'alembic_version'").scalar_one()
    held = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()
    return " ".join(made.split()), list(held)


def test_head_is_the_newest_revision_in_one_line_of_descent() -> None:
    config = Config()
    config.set_main_option("script_location", "sensorkeep.catalog:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [migration.HEAD]


def test_migrated_tables_equal_tables_made_from_the_code(empty: Database) -> None:
    with empty.write() as connection:
        migration.upgrade(connection, migration.HEAD)
        by_alembic = version_table(connection)
    made = open_database("sqlite://", schema="ignore")
    with made.write() as connection:
        migration.upgrade(connection)
        from_code = ddl(connection)
        assert version_table(connection) == by_alembic
    with empty.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA) == []
        assert ddl(connection) == from_code
    assert len(from_code) > 25
    made.close()
    empty.close()


def test_migrate_is_idempotent_and_tells_where_it_is(empty: Database) -> None:
    assert schema_status(empty) == (None, migration.HEAD)
    for _ in range(2):
        migrate(empty)
        assert schema_status(empty) == (migration.HEAD, migration.HEAD)
    empty.close()


def test_an_older_database_is_brought_up_with_its_data_when_it_is_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    database = open_database(url)
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO secrets VALUES ('kept', 'x')")
        # As a version would have left it that knew no revision yet.
        connection.exec_driver_sql("DELETE FROM alembic_version")
        for table in METADATA.tables:
            if table != "secrets":
                connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("ALTER TABLE secrets RENAME TO kept_secrets")
    database.close()
    with pytest.raises(BadConfig):
        open_database(url, schema="check")
    database = open_database(url)
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT name FROM kept_secrets").scalar() == "kept"
        assert sa.inspect(connection).has_table("batches")
    assert schema_status(database) == (migration.HEAD, migration.HEAD)
    database.close()


def test_a_migration_that_fails_leaves_nothing_behind(empty: Database) -> None:
    with empty.write() as connection:
        connection.exec_driver_sql("CREATE TABLE audit_log (in_the_way INTEGER)")
    with pytest.raises(Exception, match="audit_log"):
        migrate(empty)
    with empty.read() as connection:
        assert sorted(ddl(connection)) == ["audit_log"]
    assert schema_status(empty)[0] is None
    empty.close()


def test_tables_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    database = open_database(url)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(BadConfig):
        open_database(url)
    with pytest.raises(BadConfig):
        open_database(url, schema="check")


def test_opening_a_database_at_head_does_not_import_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    open_database(url).close()
    script = (
        "import sys; from sensorkeep.catalog.database import open_database; "
        f"open_database({url!r}).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
