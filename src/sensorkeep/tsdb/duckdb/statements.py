"""The SQL of the embedded store, by name, from the commented files in tsdb/sql.

Values are bound, never formatted in. What is formatted in is ours: names of tables (those of day tables are made from
an integer) and other statements of these files as subqueries.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from importlib import resources

_FILES = ("duckdb_schema", "duckdb_write", "duckdb_rollup", "duckdb_maintain", "duckdb_read")
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n?", re.MULTILINE)
_EPOCH = date(1970, 1, 1)


def _load() -> dict[str, str]:
    statements: dict[str, str] = {}
    for file in _FILES:
        text = (resources.files("sensorkeep.tsdb") / "sql" / f"{file}.sql").read_text(encoding="utf-8")
        # The text before the first name is the file's own comment.
        _, *parts = _NAME.split(text)
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            assert name not in statements, f"two statements are named {name}"
            # Without its comments: DuckDB's client looks for parameters in them.
            statements[name] = _COMMENT.sub("", body).strip()
    return statements


_STATEMENTS = _load()


def statement(name: str, **inserted: str) -> str:
    """The statement `name`, with its {placeholders} replaced by table names or other statements."""
    text = _STATEMENTS[name]
    return text.format(**inserted) if inserted else text


def day_table(day: int) -> str:
    """Name of the raw table of a day (whole UTC days since 1970-01-01)."""
    # Days outside the calendar of Python's dates cannot be named by it; no timestamp of ours gets there.
    return "raw_" + (_EPOCH + timedelta(days=day)).isoformat().replace("-", "")
