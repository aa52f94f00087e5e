"""The version of the tables, and the way to it. Alembic is imported only where there are tables of an older one."""

from __future__ import annotations

import sqlalchemy as sa

from sensorkeep.catalog.schema import METADATA, make_indexes_partial_on_postgresql
from sensorkeep.errors import BadConfig

HEAD = "0002"
"""The newest revision in `migrations/versions`; a test holds the two together."""

_ADVISORY_LOCK = 7_363_281
"""Any number that nothing else in the database uses: two must not migrate at the same time."""

_VERSION = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Where Alembic keeps the revision, as Alembic makes it."""


def stored_revision(connection: sa.Connection) -> str | None:
    """The revision of the tables, or None where there are none yet."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if revision is None else str(revision)


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Bring the tables up within the caller's transaction. Raises BadConfig where they are newer.

    In an empty database they are made as the code describes them, which is what the revisions lead to.
    """
    if connection.dialect.name == "postgresql":
        # Before anything is looked at; it ends with the transaction.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        make_indexes_partial_on_postgresql()
    if revision == "head" and not sa.inspect(connection).get_table_names():
        METADATA.create_all(connection)
        _VERSION.create(connection)
        connection.execute(_VERSION.insert().values(version_num=HEAD))
        return
    from alembic import command  # 140 ms and 10 MiB that other starts need not pay
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "sensorkeep.catalog:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise BadConfig(f"the catalog's tables belong to another version of Sensorkeep: {error}") from error
