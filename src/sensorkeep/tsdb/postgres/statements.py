"""The SQL of the store on PostgreSQL, by name. Values are bound; what is formatted in is ours."""

from __future__ import annotations

from typing import LiteralString

from sensorkeep.tsdb.statements import load_statements

_STATEMENTS = load_statements(
    ("postgres_schema", "postgres_write", "postgres_rollup", "postgres_read", "postgres_maintain")
)


def statement(name: str, **inserted: str) -> LiteralString:
    """The statement `name`, with its {placeholders} replaced by names or other statements."""
    text = _STATEMENTS[name]
    return text.format(**inserted) if inserted else text
