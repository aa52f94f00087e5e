"""A server of its own for those who try to break one, and the seed of the run.

SENSORKEEP_TEST_SEED chooses the seed, SENSORKEEP_TEST_FUZZ_ROUNDS multiplies what is tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from harness import Server, running


@pytest.fixture
def seed() -> int:
    """The seed of the run, told where a test fails."""
    chosen = int(os.environ.get("SENSORKEEP_TEST_SEED", "0"))
    print(f"SENSORKEEP_TEST_SEED={chosen}")
    return chosen


@pytest.fixture(scope="session")
def rounds() -> int:
    """How much more than usual is tried."""
    return int(os.environ.get("SENSORKEEP_TEST_FUZZ_ROUNDS", "1"))


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is attacked. It must be well at the end, and have logged no error."""
    with running(tmp_path_factory.mktemp("victim") / "data", SENSORKEEP_ACCESS_LOG="false") as server:
        yield server
        assert server.anonymous.get("/health").status_code == 200
        server.accounting()
        errors = [line for line in server.log.splitlines() if '"level":"error"' in line or "Traceback" in line]
        assert not errors, errors[:3]
