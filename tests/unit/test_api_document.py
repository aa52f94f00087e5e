"""docs/API.md names every route and every error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sensorkeep.app.application import Application
from sensorkeep.config import load_config
from sensorkeep.errors import PROBLEMS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "API.md").read_text("utf-8")
NOT_ANSWERED = {"poisoned", "corrupt", "bad_config", "data_dir_in_use", "unreachable", "wrong_version"}


def test_every_error_code_is_documented() -> None:
    for code, (status, _) in PROBLEMS.items():
        if code not in NOT_ANSWERED:
            assert f"| `{code}` | {status} |" in DOCUMENT, code


def test_every_route_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENSORKEEP_CONFIG", raising=False)
    application = Application(load_config(data_dir=tmp_path / "data"))
    try:
        paths = application.openapi()["paths"]
    finally:
        application.close()
    assert len(paths) > 25
    for path, operations in paths.items():
        shown = re.sub(r":path}", "}", path.removeprefix("/api/v1"))
        for method in operations:
            assert f"{method.upper()} {shown}" in DOCUMENT, f"{method.upper()} {path}"
