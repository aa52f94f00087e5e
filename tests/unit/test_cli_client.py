"""The HTTP client of the command line: what it retries, how it authenticates, what it says of errors."""

from __future__ import annotations

import email.utils
import random
import socket

import pytest
from cli_server import Reply, Request, Server, replies, serving

from sensorkeep.cli.client import Answer, ApiClient, Credential, HttpConnection, retry_after_seconds
from sensorkeep.errors import (
    Forbidden,
    InvalidInput,
    LimitExceeded,
    NotFound,
    RateLimited,
    SensorkeepError,
    Unauthenticated,
    Unavailable,
)

OK = Reply(200, {"ok": True})
USER = Credential(username="ana", password="correct horse")


def client_for(url: str, credential: Credential | None = None, waits: list[float] | None = None) -> ApiClient:
    return ApiClient(
        url, credential, sleep=(waits if waits is not None else []).append, source=random.Random(1), timeout_seconds=10
    )


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_passing_failure_is_tried_again(status: int) -> None:
    waits: list[float] = []
    with serving(replies(Reply(status), Reply(status), OK)) as server, client_for(server.url, waits=waits) as client:
        assert client.get("/equipment") == {"ok": True}
    assert len(server.requests) == 3
    assert len(waits) == 2
    assert all(0 < wait <= 1 for wait in waits)


def test_retry_after_is_honoured_and_a_little_more() -> None:
    waits: list[float] = []
    script = replies(Reply(429, headers={"Retry-After": "7"}), OK)
    with serving(script) as server, client_for(server.url, waits=waits) as client:
        client.get("/equipment")
    assert len(waits) == 1
    assert 7 <= waits[0] <= 7.7


def test_a_server_that_asks_for_too_much_patience_is_reported_at_once() -> None:
    waits: list[float] = []
    script = replies(Reply(429, {"code": "rate_limited", "detail": "slow down"}, {"Retry-After": "3600"}))
    with serving(script) as server, client_for(server.url, waits=waits) as client, pytest.raises(RateLimited) as told:
        client.get("/equipment")
    assert told.value.retry_after_seconds == 3600
    assert waits == []


REFUSALS = {
    400: InvalidInput,
    403: Forbidden,
    404: NotFound,
    413: LimitExceeded,
    422: InvalidInput,
    500: SensorkeepError,
}


@pytest.mark.parametrize(("status", "kind"), REFUSALS.items())
def test_other_failures_are_never_retried(status: int, kind: type[SensorkeepError]) -> None:
    with serving(replies(Reply(status, b"no JSON at all"))) as server, client_for(server.url) as client:
        with pytest.raises(kind):
            client.get("/equipment")
        assert len(server.requests) == 1


def test_the_problem_document_gives_message_code_and_further_members() -> None:
    problem = {"code": "no_usable_reading", "detail": "nothing was stored", "errors": [{"reason": "too_old"}]}
    script = replies(Reply(422, problem))
    with serving(script) as server, client_for(server.url) as client, pytest.raises(InvalidInput) as told:
        client.post_json("/readings", [])
    assert (told.value.code, told.value.detail) == ("no_usable_reading", "nothing was stored")
    assert told.value.extra["errors"] == [{"reason": "too_old"}]


def test_a_dropped_connection_is_tried_again_and_tries_are_bounded() -> None:
    waits: list[float] = []
    with serving(replies(Reply(hang_up=True), Reply(hang_up=True), OK)) as server:
        with client_for(server.url, waits=waits) as client:
            assert client.get("/equipment") == {"ok": True}
        assert len(waits) == 2
    with serving(replies(Reply(hang_up=True))) as server:
        client = ApiClient(server.url, attempts_max=3, sleep=waits.append)
        with pytest.raises(Unavailable) as told:
            client.get("/equipment")
        assert told.value.code == "unreachable"
        assert len(server.requests) == 3


def test_back_off_grows_to_its_bound_and_the_same_seed_waits_the_same() -> None:
    def waits_with(seed: int) -> list[float]:
        waits: list[float] = []
        with socket.socket() as unused:  # bound and not listening: every connection is refused
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            client = ApiClient(url, sleep=waits.append, source=random.Random(seed), attempts_max=10)
            with pytest.raises(Unavailable):
                client.get("/equipment")
        return waits

    waits = waits_with(5)
    assert waits == waits_with(5) != waits_with(6)
    assert all(bound / 4 <= wait <= bound for wait, bound in zip(waits, [0.5, 1, 2, 4, 8, 16, 30, 30, 30], strict=True))


def test_a_request_that_must_not_be_repeated_is_tried_once() -> None:
    with serving(replies(Reply(503), OK)) as server, client_for(server.url) as client:
        with pytest.raises(Unavailable):
            client.post_json("/keys", {"name": "k"}, repeatable=False)
        assert len(server.requests) == 1


def test_a_kept_connection_that_the_server_closed_is_replaced_without_a_wait() -> None:
    waits: list[float] = []
    with serving(replies(OK, Reply(hang_up=True), OK)) as server, client_for(server.url, waits=waits) as client:
        client.get("/equipment")
        client.get("/equipment")
    assert len(server.requests) == 3
    assert waits == []


def test_an_answer_that_is_cut_off_is_not_taken_for_whole() -> None:
    short = Reply(200, b'{"a":1', {"Content-Length": "99", "Connection": "close"})
    with serving(replies(short, OK)) as server, client_for(server.url) as client:
        assert client.get("/equipment") == {"ok": True}


def test_large_bodies_are_gzipped_and_small_ones_are_not() -> None:
    with serving(replies(OK)) as server, client_for(server.url, Credential(api_key="k" * 20)) as client:
        client.post_json("/readings", ["x" * 5000])
        client.post_json("/readings", ["x"])
    large, small = server.requests
    assert large.headers["content-encoding"] == "gzip"
    assert large.json() == ["x" * 5000]
    assert "content-encoding" not in small.headers
    assert large.headers["x-api-key"] == "k" * 20


def last_parts(server: Server) -> list[str]:
    return [path.rpartition("/")[2] for path in server.paths()]


def tokens(number: int) -> Reply:
    return Reply(200, {"access_token": f"a{number}", "refresh_token": f"r{number}", "token_type": "bearer"})


class Accounts:
    """Logs in as a1, refreshes to a2, a3, …; only `valid` is let in."""

    def __init__(self, valid: str, refresh_works: bool = True) -> None:
        self.valid = valid
        self.refresh_works = refresh_works
        self._issued = 0

    def __call__(self, request: Request) -> Reply:
        if request.path == "/api/v1/auth/login" and request.json() != {"username": "ana", "password": "correct horse"}:
            return Reply(401, {"code": "unauthenticated", "detail": "wrong user or password"})
        if request.path == "/api/v1/auth/refresh" and not self.refresh_works:
            return Reply(401)
        if request.path.startswith("/api/v1/auth/"):
            self._issued += 1
            return tokens(self._issued)
        return OK if request.headers.get("authorization") == f"Bearer {self.valid}" else Reply(401)


def test_an_expired_token_is_refreshed_once() -> None:
    with serving(Accounts("a2")) as server, client_for(server.url, USER) as client:
        client.get("/equipment")
        client.get("/equipment")
    assert last_parts(server) == ["login", "equipment", "refresh", "equipment", "equipment"]
    assert server.requests[2].headers["authorization"] == "Bearer r1"


def test_a_dead_refresh_token_leads_to_a_login() -> None:
    with serving(Accounts("a2", refresh_works=False)) as server, client_for(server.url, USER) as client:
        client.get("/equipment")
    assert last_parts(server) == ["login", "equipment", "refresh", "login", "equipment"]


def test_a_credential_that_stays_refused_is_reported_and_not_hammered() -> None:
    with serving(Accounts("none")) as server, client_for(server.url, USER) as client:
        with pytest.raises(Unauthenticated):
            client.get("/equipment")
        assert len(server.requests) == 4
    with serving(Accounts("none")) as server, client_for(server.url, Credential(api_key="k" * 20)) as client:
        with pytest.raises(Unauthenticated):
            client.get("/equipment")
        assert len(server.requests) == 1


def test_a_wrong_password_is_said_in_the_servers_words() -> None:
    eve = Credential(username="eve", password="x")
    refused = pytest.raises(Unauthenticated, match="wrong user or password")
    with serving(Accounts("a1")) as server, client_for(server.url, eve) as client, refused:
        client.get("/equipment")


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    def read(text: str) -> float | None:
        return retry_after_seconds(Answer(503, {"retry-after": text}, b""), 1_700_000_000.0)

    assert read("120") == 120
    assert read(email.utils.formatdate(1_700_000_030, usegmt=True)) == 30
    assert read(email.utils.formatdate(1_600_000_000, usegmt=True)) == 0
    assert read("soon") is None
    assert read("") is None


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://host:99999"])
def test_an_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        HttpConnection(url)


def test_a_path_of_the_url_is_kept_before_the_api() -> None:
    with serving(replies(OK)) as server, client_for(server.url + "/behind/proxy/") as client:
        client.get("/equipment", limit=5, cursor=None)
    assert server.paths() == ["/behind/proxy/api/v1/equipment"]
    assert server.requests[0].query == {"limit": "5"}
