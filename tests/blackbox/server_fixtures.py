"""Fixtures of every test that speaks to a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from harness import Server, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that use sensors of their own."""
    with running(tmp_path_factory.mktemp("shared") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def admin(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server with every scope."""
    with server.login() as client:
        yield client


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps raw readings for ever, whose naive times are those of Sao Paulo (UTC-3 since 2019)."""
    with running(
        tmp_path_factory.mktemp("archive") / "data",
        SENSORKEEP_RAW_RETENTION_DAYS=0,
        SENSORKEEP_NAIVE_TIMEZONE="America/Sao_Paulo",
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def _accounts_add_up(request: pytest.FixtureRequest) -> Iterator[None]:
    """The accounting equation holds after every test, pending readings included."""
    yield
    for name in ("server", "archive"):
        if name in request.fixturenames:
            request.getfixturevalue(name).accounting()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that does not exist yet."""
    return tmp_path / "data"
