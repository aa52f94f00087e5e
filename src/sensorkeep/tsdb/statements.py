"""Statements by name, from the commented SQL files in tsdb/sql."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*\n?", re.MULTILINE)


def load_statements(files: Sequence[str]) -> dict[str, str]:
    """The statements of the files (names without `.sql`), without their comments: a client may look for parameters
    in them."""
    statements: dict[str, str] = {}
    for file in files:
        text = (resources.files("sensorkeep.tsdb") / "sql" / f"{file}.sql").read_text(encoding="utf-8")
        # The text before the first name is the file's own comment.
        _, *parts = _NAME.split(text)
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            assert name not in statements, f"two statements are named {name}"
            statements[name] = _COMMENT.sub("", body).strip()
    return statements
