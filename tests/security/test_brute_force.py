"""Guessing passwords and keys is slowed down, and tells nothing. Of one's turn to hash, of equal work for unknown users
and of comparing in constant time: tests/unit/test_auth_passwords.py, test_auth_credentials.py."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from harness import PASSWORD, Server, problem, running

from sensorkeep.limits import CREDENTIAL_FAILURES_PER_MINUTE_PER_IP, LOGIN_FAILURES_PER_MINUTE_PER_USERNAME


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: who is locked out here is locked out for a minute."""
    with running(tmp_path_factory.mktemp("door") / "data") as server:
        yield server


def login(server: Server, username: str, password: str) -> httpx.Response:
    return server.anonymous.post("/auth/login", json={"username": username, "password": password})


def test_guesses_of_a_password_are_cut_off_and_then_even_the_right_one_must_wait(door: Server) -> None:
    for _ in range(LOGIN_FAILURES_PER_MINUTE_PER_USERNAME):
        problem(login(door, "admin", "a wrong guess"), 401, "unauthenticated")
    refused = login(door, "admin", PASSWORD)
    problem(refused, 429, "rate_limited")
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert door.client.get("/equipment").status_code == 200, "others go on"


def test_guesses_of_a_key_are_cut_off_and_good_keys_go_on(door: Server) -> None:
    statuses = []
    for number in range(CREDENTIAL_FAILURES_PER_MINUTE_PER_IP + 5):
        guess = {"X-API-Key": f"sk_{number:040}"}
        statuses.append(door.anonymous.get("/equipment", headers=guess).status_code)
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert set(statuses) == {401, 429}
    assert door.client.get("/equipment").status_code == 200
