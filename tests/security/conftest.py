"""A server whose signing secret the tests know, so that they can forge what an attacker would have to."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from attacked import SECRET_KEY
from harness import Server, running


@pytest.fixture(scope="session")
def fortress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that is attacked; it must log no error and be well at the end."""
    with running(tmp_path_factory.mktemp("fortress") / "data", SECRET_KEY=SECRET_KEY) as server:
        yield server
        assert server.anonymous.get("/health").status_code == 200
        server.accounting()
        assert "Traceback" not in server.log


@pytest.fixture(scope="session")
def administrator(fortress: Server) -> Iterator[httpx.Client]:
    """A client with every scope."""
    with fortress.login() as client:
        yield client
