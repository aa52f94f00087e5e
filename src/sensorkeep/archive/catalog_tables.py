"""The tables of the catalog as files of JSON lines, and back: by their metadata, so that a new table comes along."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import sqlalchemy as sa

from sensorkeep.archive.files import Archive
from sensorkeep.archive.layout import ArchiveFile, table_path
from sensorkeep.archive.progress import Progress
from sensorkeep.archive.writing import ArchiveWriter
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.import_mark import marked_archive, set_mark
from sensorkeep.catalog.schema import METADATA, api_keys, ledger, users
from sensorkeep.errors import Conflict, Corrupt
from sensorkeep.limits import ARCHIVE_CATALOG_ROWS

_FIRST_START = frozenset(
    {"users", "api_keys", "refresh_tokens", "secrets", "counters", "audit_log", "idempotency_keys", "ledger"}
)
"""Tables that may have rows before anybody sent anything: what the first start makes, with its user and its key. An
import replaces them."""

Row = dict[str, Any]


def export_tables(database: Database, writer: ArchiveWriter, progress: Progress) -> None:
    """Write every table, all of one moment. Raises Conflict where an import into the catalog is unfinished."""
    tables = METADATA.sorted_tables
    with _one_transaction(database) as connection, progress("catalog", float(len(tables))) as report:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        if marked_archive(connection) is not None:
            raise Conflict("an import into this installation is unfinished: finish it first, by the same command")
        for number, table in enumerate(tables, start=1):
            with writer.lines(table_path(table.name)) as lines:
                for row in _rows_of(connection, table):
                    lines.write(row)
            report.update(number, f"{table.name}: {lines.rows:,} rows")


def begin_import(database: Database, digest: str) -> bool:
    """Set the mark that an import began; True where it was there, so that this import goes on with an earlier one.

    Raises Conflict where the catalog is in use, or an import of another archive into it is unfinished.
    """
    with database.write() as connection:
        found = marked_archive(connection)
        if found not in (None, digest):
            raise Conflict(
                "an import of another archive into this installation is unfinished: finish it, or name a new one"
            )
        _require_unused(connection)
        if found is None:
            set_mark(connection, digest)
    return found is not None


def import_tables(database: Database, archive: Archive, progress: Progress) -> None:
    """Bring in every table and take the mark away, in one transaction.

    Raises Conflict where the catalog is in use, Corrupt where a file does not hold the rows of its table.
    """
    tables = METADATA.sorted_tables
    with _one_transaction(database) as connection, progress("catalog", float(len(tables))) as report:
        _require_unused(connection)
        for table in reversed(tables):
            connection.execute(sa.delete(table))
        for number, table in enumerate(tables, start=1):
            file = archive.manifest.file(table_path(table.name))
            if file is None:
                raise Corrupt(f"{archive.directory} is damaged: the table {table.name} is missing; export again")
            rows = (_row(table, row, file, archive) for row in archive.lines(file))
            while portion := list(islice(rows, ARCHIVE_CATALOG_ROWS)):
                connection.execute(sa.insert(table), portion)
            _require_rows(connection, table, file, archive)
            if not database.is_sqlite:
                _continue_numbers(connection, table)
            report.update(number, f"{table.name}: {file.rows:,} rows")


def sensors_by_uuid(database: Database) -> list[str]:
    """The uuids of all sensors, in order."""
    sensors = METADATA.tables["sensors"]
    with database.read() as connection:
        return list(connection.execute(sa.select(sensors.c.uuid).order_by(sensors.c.uuid)).scalars())


@contextmanager
def _one_transaction(database: Database) -> Iterator[sa.Connection]:
    """A transaction that may take as long as all of the catalog takes."""
    with database.write() as connection, ExitStack() as patient:
        if not database.is_sqlite:
            from sensorkeep.catalog.postgresql import patience  # a driver that SQLite does not need

            patient.enter_context(patience(connection))
        yield connection


def _require_unused(connection: sa.Connection) -> None:
    """Raises Conflict saying what is there, unless all there is was made by a first start."""
    held = {}
    for table in METADATA.sorted_tables:
        if table.name not in _FIRST_START:
            held[table.name] = _count(connection, table)
    for table in (users, api_keys):
        held[table.name] = max(0, _count(connection, table) - 1)
    received = connection.execute(sa.select(ledger.c.received)).scalar() or 0
    found = [f"{rows:,} {name.replace('_', ' ')}" for name, rows in held.items() if rows]
    if received:
        found.append(f"{received:,} readings received")
    if found:
        raise Conflict(
            f"the catalog is in use (beside what a first start makes it holds {', '.join(found)}): import into a new"
            " installation"
        )


def _count(connection: sa.Connection, table: sa.Table) -> int:
    count: int = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    return count


def _rows_of(connection: sa.Connection, table: sa.Table) -> Iterator[Row]:
    statement = sa.select(table).order_by(*table.primary_key.columns)
    names = [column.name for column in table.columns]
    doubles = [column.name for column in table.columns if isinstance(column.type, sa.Double)]
    for found in connection.execute(statement.execution_options(yield_per=ARCHIVE_CATALOG_ROWS)):
        row = dict(zip(names, found, strict=True))
        for name in doubles:
            if row[name] is not None and not math.isfinite(row[name]):
                raise Corrupt(f"the catalog's table {table.name} holds a number that is none, in {name}")
        yield row


def _row(table: sa.Table, row: Row, file: ArchiveFile, archive: Archive) -> Row:
    """A row as the table takes it."""
    if row.keys() != set(table.columns.keys()):
        raise archive.damaged(file, "a row has other columns than the table")
    for column in table.columns:
        value = row[column.name]
        if value is not None and isinstance(column.type, sa.LargeBinary):
            try:
                row[column.name] = base64.b64decode(value, validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise archive.damaged(file, f"{column.name} is not base64") from error
    return row


def _require_rows(connection: sa.Connection, table: sa.Table, file: ArchiveFile, archive: Archive) -> None:
    found = _count(connection, table)
    if found != file.rows:
        raise archive.damaged(file, f"{found} rows of it are in the catalog, not {file.rows}")


def _continue_numbers(connection: sa.Connection, table: sa.Table) -> None:
    """Rows were brought in with their numbers: let PostgreSQL go on after the greatest."""
    column = table.autoincrement_column
    if column is None:
        return
    sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
    highest = sa.select(sa.func.max(column)).scalar_subquery()
    connection.execute(sa.select(sa.func.setval(sequence, sa.func.coalesce(highest, 1), highest.is_not(None))))
