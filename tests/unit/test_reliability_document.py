"""docs/RELIABILITY.md names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "RELIABILITY.md").read_text("utf-8"))


def test_every_test_that_the_document_names_exists() -> None:
    assert len(NAMED) > 20
    for path, function in NAMED:
        text = (ROOT / path).read_text("utf-8")
        assert "def test_" in text, path
        assert not function or f"def {function}(" in text, f"{path} has no {function}"
