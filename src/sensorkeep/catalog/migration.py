"""The version of the tables, and the way to it. Alembic is imported only where there is something to do."""

from __future__ import annotations

import sqlalchemy as sa

from sensorkeep.errors import BadConfig

HEAD = "0002"
"""The newest revision in `migrations/versions`; a test holds the two together."""

_ADVISORY_LOCK = 7_363_281
"""Any number that nothing else in the database uses: two must not migrate at the same time."""


def stored_revision(connection: sa.Connection) -> str | None:
    """The revision of the tables, or None where there are none yet."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if revision is None else str(revision)


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Run the missing revisions within the caller's transaction. Raises BadConfig where the tables are newer."""
    from alembic import command  # 140 ms that a start with nothing to do need not pay
    from alembic.config import Config
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":
        # Before anything is looked at; it ends with the transaction.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    config = Config()
    config.set_main_option("script_location", "sensorkeep.catalog:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise BadConfig(f"the catalog's tables belong to another version of Sensorkeep: {error}") from error
