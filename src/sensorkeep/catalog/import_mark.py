"""The mark that an import of a whole installation leaves in the catalog until it is finished (folder archive).

It tells a repeated import from one into an installation that is in use, and keeps servers from starting on half of it.
"""

from __future__ import annotations

import sqlalchemy as sa

from sensorkeep.catalog.database import Database
from sensorkeep.catalog.schema import secrets
from sensorkeep.errors import BadConfig

_NAME = "unfinished_import"
"""Name of the mark among the secrets; its value tells the archive."""


def marked_archive(connection: sa.Connection) -> str | None:
    """Which archive is being imported; None where none is."""
    found: str | None = connection.execute(sa.select(secrets.c.value).where(secrets.c.name == _NAME)).scalar()
    return found


def set_mark(connection: sa.Connection, archive: str) -> None:
    """Enter that an import of `archive` began; there is no mark yet."""
    connection.execute(sa.insert(secrets).values(name=_NAME, value=archive))


def unfinished_import(database: Database) -> bool:
    """Whether an import began and did not end."""
    with database.read() as connection:
        return marked_archive(connection) is not None


def refuse_unfinished_import(database: Database) -> None:
    """Raises BadConfig where the installation is half imported."""
    if unfinished_import(database):
        raise BadConfig(
            "an import into this installation was not finished: give the same command `sensorkeep import DIRECTORY"
            " --everything` again, or begin anew with empty stores"
        )
