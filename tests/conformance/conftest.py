"""What the suites leave on the services of the run is removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_databases import drop_databases


@pytest.fixture(autouse=True)
def _dropped_databases(tmp_path: Path) -> Iterator[None]:
    yield
    drop_databases(tmp_path)
