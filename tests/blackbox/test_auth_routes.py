"""Every route of the OpenAPI document asks for a credential and for its scope, but for the documented exceptions."""

from __future__ import annotations

import re
from typing import NamedTuple

import httpx
import pytest
from harness import Server, problem

SCOPES = ("ingest", "read", "live", "admin")
OPEN = {
    ("GET", "/api/v1/health"),
    ("GET", "/api/v1/ping"),
    ("GET", "/metrics"),
    ("POST", "/api/v1/auth/login"),
    ("POST", "/api/v1/auth/device/login"),
    ("POST", "/api/v1/auth/refresh"),
}
"""What needs no credential; /metrics only for loopback."""
ANY_SCOPE = {("GET", "/api/v1/auth/me")}
INGEST = re.compile(r"/api/(v1/)?(telemetry/bulk|telemetria/bulk|temperature_reading|readings)")
ADMIN = re.compile(r"/api/v1/(keys|users)(/.*)?|/api/v1/telemetry/batches/[^/]+/replay")
DETAILED = "/api/v1/health/detailed"


class Route(NamedTuple):
    method: str
    path: str
    documented: bool
    """Whether the document says that it needs a credential."""

    @property
    def address(self) -> str:
        return re.sub(r"\{[^}]+\}", "unknown", self.path)

    @property
    def scope(self) -> str:
        if INGEST.fullmatch(self.path):
            return "ingest"
        if ADMIN.fullmatch(self.path):
            return "admin"
        return "live" if self.path == "/api/v1/auth/ws-ticket" else "read"


@pytest.fixture(scope="module")
def routes(server: Server) -> list[Route]:
    document = httpx.get(server.url + "/openapi.json").json()
    return [
        Route(method.upper(), path, bool(operation.get("security")))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


@pytest.fixture(scope="module")
def keys(admin: httpx.Client) -> dict[frozenset[str], str]:
    """Keys with one scope each, and with all but one."""
    wanted = [{scope} for scope in SCOPES] + [set(SCOPES) - {scope} for scope in SCOPES]
    made = {}
    for scopes in wanted:
        answer = admin.post("/keys", json={"name": "routes", "scopes": sorted(scopes)})
        assert answer.status_code == 201, answer.text
        made[frozenset(scopes)] = answer.json()["secret"]
    return made


def ask(server: Server, route: Route, key: str | None = None, **headers: str) -> httpx.Response:
    if key is not None:
        headers["X-API-Key"] = key
    return server.anonymous.request(route.method, server.url + route.address, headers=headers)


def protected(routes: list[Route]) -> list[Route]:
    found = [route for route in routes if route[:2] not in OPEN]
    assert len(found) > 20, "the document lists too few routes to mean anything"
    return found


def test_without_a_credential_every_route_is_a_401(server: Server, routes: list[Route]) -> None:
    for route in protected(routes):
        answer = ask(server, route)
        assert answer.status_code == 401, (route, answer.text)
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_with_all_scopes_but_its_own_every_route_is_a_403(
    server: Server, routes: list[Route], keys: dict[frozenset[str], str]
) -> None:
    for route in protected(routes):
        if route[:2] in ANY_SCOPE:
            continue
        lacking = set(SCOPES) - {route.scope}
        if route.path == DETAILED:  # admin or read
            lacking = {"ingest"}
        answer = ask(server, route, keys[frozenset(lacking)])
        assert answer.status_code == 403, (route, answer.text)
        problem(answer, 403, "forbidden")


def test_with_its_own_scope_alone_every_route_lets_the_request_in(
    server: Server, routes: list[Route], keys: dict[frozenset[str], str]
) -> None:
    for route in protected(routes):
        answer = ask(server, route, keys[frozenset({route.scope})])
        assert answer.status_code not in (401, 403, 405, 429), (route, answer.text)
        assert answer.status_code < 500, (route, answer.text)


def test_a_bearer_token_is_as_good_as_a_key(server: Server, admin: httpx.Client, routes: list[Route]) -> None:
    for route in protected(routes):
        answer = ask(server, route, Authorization=admin.headers["Authorization"])
        assert answer.status_code not in (401, 403), (route, answer.text)


def test_the_exceptions_are_open_and_the_document_says_so(server: Server, routes: list[Route]) -> None:
    for route in routes:
        assert route.documented == (route[:2] not in OPEN), route
    for route in [route for route in routes if route[:2] in OPEN and route.method == "GET"]:
        assert ask(server, route).status_code == 200, route
    for path in ("/docs", "/redoc", "/api/v1/docs", "/api/v1/redoc", "/openapi.json"):
        assert httpx.get(server.url + path).status_code == 200


def test_metrics_through_a_proxy_need_the_scope_read(
    server: Server, keys: dict[frozenset[str], str], routes: list[Route]
) -> None:
    (metrics,) = [route for route in routes if route.path == "/metrics"]
    forwarded = {"X-Forwarded-For": "203.0.113.7"}
    problem(ask(server, metrics, **forwarded), 401, "unauthenticated")
    problem(ask(server, metrics, keys[frozenset({"live"})], **forwarded), 403, "forbidden")
    assert ask(server, metrics, keys[frozenset({"read"})], **forwarded).status_code == 200


def test_an_unknown_path_is_a_404_and_another_method_a_405(server: Server) -> None:
    problem(server.client.get("/nothing/here"), 404, "not_found")
    problem(server.client.post("/equipment", json={}), 405, "method_not_allowed")
