"""The SQL of the embedded store, by name, from the commented files in tsdb/sql.

Values are bound, never formatted in. What is formatted in is ours: names of tables (those of day tables are made from
an integer) and other statements of these files as subqueries.
"""

from __future__ import annotations

from datetime import date, timedelta

from sensorkeep.tsdb.statements import load_statements

_STATEMENTS = load_statements(("duckdb_schema", "duckdb_write", "duckdb_rollup", "duckdb_maintain", "duckdb_read"))
_EPOCH = date(1970, 1, 1)


def statement(name: str, **inserted: str) -> str:
    """The statement `name`, with its {placeholders} replaced by table names or other statements."""
    text = _STATEMENTS[name]
    return text.format(**inserted) if inserted else text


def day_table(day: int) -> str:
    """Name of the raw table of a day (whole UTC days since 1970-01-01)."""
    # Days outside the calendar of Python's dates cannot be named by it; no timestamp of ours gets there.
    return "raw_" + (_EPOCH + timedelta(days=day)).isoformat().replace("-", "")
