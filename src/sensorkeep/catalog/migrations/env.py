"""Alembic's entry: runs the revisions on the connection that `sensorkeep.catalog.migration` hands over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from sensorkeep.catalog.schema import METADATA


def run() -> None:
    """Run what was asked for within the transaction that the connection is in."""
    connection: sa.Connection = context.config.attributes["connection"]
    # SQLite's DDL is transactional here, since our transactions begin with an explicit BEGIN.
    context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run()
