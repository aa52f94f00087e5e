"""Statements compiled once for the hot paths, run for many rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa

from sensorkeep.limits import LEDGER_PORTION_ROWS

Rows = Sequence[tuple[Any, ...]]


class Prepared(Protocol):
    """A statement. Rows are tuples in the order of the names it was prepared with."""

    def run(self, connection: sa.Connection, rows: Rows) -> int:
        """Execute for every row, in order, and return how many rows of the table were changed."""
        ...


class ByRow:
    """A statement that the driver executes for each row."""

    def __init__(self, statement: sa.Insert | sa.Update, dialect: sa.Dialect, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(names))
        self.sql = compiled.string
        self._names = tuple(names)
        self._positional = compiled.positional
        if set(compiled.params) != set(names):
            raise ValueError(f"the statement binds {sorted(compiled.params)}, not {sorted(names)}")
        if self._positional and tuple(compiled.positiontup or ()) != self._names:
            raise ValueError(f"the statement binds in the order {compiled.positiontup}")

    def run(self, connection: sa.Connection, rows: Rows) -> int:
        if self._positional:
            return connection.exec_driver_sql(self.sql, list(rows)).rowcount
        return connection.exec_driver_sql(self.sql, [dict(zip(self._names, row, strict=True)) for row in rows]).rowcount


class Recordset:
    """A statement of PostgreSQL that takes its rows as one JSON document, its parameter `given`: to insert a thousand
    rows with ON CONFLICT costs the client 1 ms so, and 13 ms one by one. None of the columns holds bytes.

    More than LEDGER_PORTION_ROWS are several statements: one for all that a batch may bring would be ended by its time
    limit, however often it is tried."""

    def __init__(self, sql: str, names: Sequence[str]) -> None:
        self.sql = sql
        self._names = tuple(names)

    def run(self, connection: sa.Connection, rows: Rows) -> int:
        changed = 0
        for wave in _without_repeats(rows):
            for start in range(0, len(wave), LEDGER_PORTION_ROWS):
                given = self._document(wave[start : start + LEDGER_PORTION_ROWS])
                changed += connection.exec_driver_sql(self.sql, {"given": given}).rowcount
        return changed

    def _document(self, rows: Rows) -> str:
        document = msgspec.json.encode([dict(zip(self._names, row, strict=True)) for row in rows])
        if b"\\u0000" in document:
            # PostgreSQL's text holds every character but NUL, for which U+FFFD stands.
            document = msgspec.json.encode(
                [dict(zip(self._names, map(_without_nul, row), strict=True)) for row in rows]
            )
        return document.decode()


def insert_recordset(
    table: sa.Table,
    dialect: sa.Dialect,
    names: Sequence[str],
    conflict: Callable[[Any], sa.Insert],
    constants: Mapping[str, sa.ColumnElement[Any]],
) -> Recordset:
    """An insert of the columns `names` and of `constants`, with what `conflict` adds."""
    from sqlalchemy.dialects import postgresql

    given = sa.func.json_to_recordset(sa.cast(sa.bindparam("given", type_=sa.Text), postgresql.JSON))
    columns = [sa.column(name, table.c[name].type) for name in names]
    rows = given.table_valued(*columns).render_derived(name="given", with_types=True)
    selected = sa.select(*(rows.c[name] for name in names), *constants.values())
    insert = conflict(postgresql.insert(table).from_select([*names, *constants], selected))
    return Recordset(insert.compile(dialect=dialect).string, names)


def _without_nul(value: Any) -> Any:
    return value.replace("\x00", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def _without_repeats(rows: Rows) -> list[Rows]:
    """The rows in waves: one statement cannot change a row twice. The first column is the identity."""
    if len({row[0] for row in rows}) == len(rows):
        return [rows]
    waves: list[list[tuple[Any, ...]]] = []
    seen: dict[Any, int] = {}
    for row in rows:
        wave = seen[row[0]] = seen.get(row[0], -1) + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(row)
    return list(waves)
