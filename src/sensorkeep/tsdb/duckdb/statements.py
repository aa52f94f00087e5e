"""The SQL of the embedded store, by name, from the commented files in tsdb/sql.

Values are bound, never formatted in. What is formatted in is ours: names of tables (those of day tables are made from
an integer) and other statements of these files as subqueries.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from sensorkeep.limits import STATEMENT_CHARS_KEPT_MAX, STATEMENTS_KEPT_MAX
from sensorkeep.tsdb.statements import load_statements

_STATEMENTS = load_statements(("duckdb_schema", "duckdb_write", "duckdb_rollup", "duckdb_maintain", "duckdb_read"))
_EPOCH = date(1970, 1, 1)
_parsed: dict[str, duckdb.Statement] = {}
"""Statements as DuckDB's parser understood them, by text: of what a small one costs a quarter is the parser's. They
belong to no connection, and each run copies what it runs."""


def statement(name: str, **inserted: str) -> str:
    """The statement `name`, with its {placeholders} replaced by table names or other statements."""
    text = _STATEMENTS[name]
    return text.format(**inserted) if inserted else text


def day_table(day: int) -> str:
    """Name of the raw table of a day (whole UTC days since 1970-01-01)."""
    # Days outside the calendar of Python's dates cannot be named by it; no timestamp of ours gets there.
    return "raw_" + (_EPOCH + timedelta(days=day)).isoformat().replace("-", "")


def run(
    connection: duckdb.DuckDBPyConnection, text: str, parameters: dict[str, Any] | None = None
) -> duckdb.DuckDBPyConnection:
    """Execute the one statement of `text`; the connection, to fetch its rows from."""
    return connection.execute(_parse(connection, text), parameters)


def fetch_table(connection: duckdb.DuckDBPyConnection, text: str, parameters: dict[str, Any] | None = None) -> pa.Table:
    """The rows of the one statement of `text`. For many of them: their relation becomes Arrow without a copy."""
    table: pa.Table = connection.sql(_parse(connection, text), params=parameters).to_arrow_table()
    return table


def _parse(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.Statement:
    known = _parsed.get(text)
    if known is None:
        (known,) = connection.extract_statements(text)
        if len(text) <= STATEMENT_CHARS_KEPT_MAX:
            if len(_parsed) >= STATEMENTS_KEPT_MAX:  # tables of days come and go
                _parsed.clear()
            _parsed[text] = known
    return known
