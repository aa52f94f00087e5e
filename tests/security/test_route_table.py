"""Every route of the process, the undocumented, the raw and the WebSocket ones too, asks for its scope.

The table here names each route. A new one that is not in it fails, so that nobody adds a route without a thought.
tests/blackbox/test_auth_routes.py asks the documented ones of a running server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sensorkeep.app.application import Application
from sensorkeep.config import load_config

OPEN = "open"
ANY = "any"
SCOPES = ("ingest", "read", "live", "admin")
EXPECTED = {
    # raw ASGI
    "POST /api/v1/telemetry/bulk": "ingest",
    "POST /api/v1/telemetria/bulk": "ingest",
    "POST /api/telemetria/bulk": "ingest",
    "POST /api/v1/temperature_reading": "ingest",
    "POST /api/v1/readings": "ingest",
    "WS /ws/sensor_updates": "live",
    # batches
    "GET /api/v1/telemetry/batches": "read",
    "GET /api/v1/telemetry/batches/{batch_id}": "read",
    "GET /api/v1/telemetry/quarantine": "read",
    "GET /api/v1/telemetry/accounting": "read",
    "POST /api/v1/telemetry/batches/{batch_id}/replay": "admin",
    # queries
    "GET /api/v1/analytics/equipment/{uuid:identifier}/history": "read",
    "GET /api/v1/analytics/sensor/{uuid:identifier}/history": "read",
    "GET /api/v1/analytics/equipment/{uuid:identifier}/stats": "read",
    "GET /api/v1/analytics/home-assistant/{uuid:identifier}": "read",
    "GET /api/v1/sensor/{sensor_id:identifier}/latest": "read",
    "GET /api/v1/equipment": "read",
    "GET /api/v1/equipment/{uuid:identifier}": "read",
    "GET /api/v1/sensors/{uuid:identifier}": "read",
    # auth
    "POST /api/v1/auth/login": OPEN,
    "POST /api/v1/auth/device/login": OPEN,
    "POST /api/v1/auth/refresh": OPEN,
    "GET /api/v1/auth/me": ANY,
    "POST /api/v1/auth/ws-ticket": "live",
    "GET /api/v1/keys": "admin",
    "POST /api/v1/keys": "admin",
    "DELETE /api/v1/keys/{key_id}": "admin",
    "GET /api/v1/users": "admin",
    "POST /api/v1/users": "admin",
    "PATCH /api/v1/users/{username}": "admin",
    "DELETE /api/v1/users/{username}": "admin",
    # operations
    "GET /api/v1/health": OPEN,
    "HEAD /api/v1/health": OPEN,
    "GET /api/v1/ping": OPEN,
    "HEAD /api/v1/ping": OPEN,
    "GET /api/v1/health/detailed": "read",
    "GET /metrics": "read",
    # documentation
    "GET /": OPEN,
    "GET /docs": OPEN,
    "GET /redoc": OPEN,
    "GET /api/v1/docs": OPEN,
    "GET /api/v1/redoc": OPEN,
    "GET /docs/assets/{name}": OPEN,
    "GET /openapi.json": OPEN,
    "HEAD /openapi.json": OPEN,
}
ENOUGH = {"GET /api/v1/health/detailed": {"read", "admin"}}
"""Routes for which either of several scopes is enough."""


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    application = Application(load_config(data_dir=tmp_path_factory.mktemp("routes") / "data"))
    application.start()
    yield application
    application.close()


@pytest.fixture(scope="module")
def asgi(application: Application) -> Any:
    return application.asgi()


@pytest.fixture(scope="module")
def client(asgi: Any) -> Iterator[TestClient]:
    """A client that is not on this machine."""
    with TestClient(asgi, client=("203.0.113.7", 50_000), follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def keys(application: Application) -> dict[str, str]:
    """A key with each scope alone, and with all but that one."""
    from sensorkeep.auth.administration import Actor

    administration = application.system.auth.administration
    actor = Actor("test", "local")
    made = {}
    for scope in SCOPES:
        made[scope] = administration.issue_key(scope, [scope], actor).secret
        made[f"all but {scope}"] = administration.issue_key(
            f"no {scope}", [other for other in SCOPES if other != scope], actor
        ).secret
    return made


def layers(asgi: Any) -> Iterator[Any]:
    """The applications that stand around one another, the outermost first."""
    layer = asgi
    while layer is not None:
        yield layer
        layer = getattr(layer, "_app", None) or getattr(layer, "app", None)


def flat(routes: Any) -> Iterator[str]:
    """ "METHOD path" of the routes and of those of included routers."""
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from flat(route.effective_candidates())
            yield from flat(route.effective_low_priority_routes())
            continue
        shown = getattr(route, "starlette_route", None) or route
        methods = getattr(shown, "methods", None)
        for method in sorted(methods) if methods else ["WS"]:
            yield f"{method} {shown.path}"


def route_table(asgi: Any) -> list[str]:
    found: list[str] = []
    for layer in layers(asgi):
        found += [f"POST {path}" for path in getattr(layer, "paths", ())]
        if hasattr(layer, "router"):
            found += flat(layer.router.routes)
    return found


def address(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "unknown", path)


def ask(client: TestClient, route: str, secret: str | None = None) -> int:
    """The status of a request, or 401, 403, 101 of a WebSocket."""
    method, path = route.split(" ")
    headers = {"X-API-Key": secret} if secret is not None else {}
    if method != "WS":
        status: int = client.request(method, address(path), headers=headers).status_code
        return status
    with client.websocket_connect(path, headers=headers) as socket:
        if secret is not None and "all but" not in secret:
            socket.send_text("still here")
        try:
            message = socket.receive()
        except WebSocketDisconnect:
            return 101
    if message["type"] != "websocket.close":
        return 101
    assert message["code"] == 1008
    return 403 if "scope" in message["reason"] else 401


def test_every_route_is_in_the_table_and_no_other(asgi: Any) -> None:
    found = route_table(asgi)
    assert len(found) > 40, "the table was not read"
    new = sorted(set(found) - EXPECTED.keys())
    assert not new, f"say here which scope they ask for: {new}"
    assert sorted(EXPECTED.keys() - set(found)) == []
    assert len(found) == len(set(found)), "a route is there twice, and only the first one serves"


GUARDED = [route for route, scope in EXPECTED.items() if scope != OPEN]
SCOPED = [route for route in GUARDED if EXPECTED[route] != ANY and not route.startswith("WS")]


@pytest.mark.parametrize("route", GUARDED)
def test_without_a_credential_it_is_refused(client: TestClient, route: str) -> None:
    assert ask(client, route) == 401


@pytest.mark.parametrize("route", SCOPED)
def test_with_every_scope_but_its_own_it_is_refused(client: TestClient, keys: dict[str, str], route: str) -> None:
    lacking = f"all but {EXPECTED[route]}"
    if route in ENOUGH:
        lacking = "live"
    assert ask(client, route, keys[lacking]) == 403


@pytest.mark.parametrize("route", SCOPED)
def test_with_its_scope_alone_it_is_let_in(client: TestClient, keys: dict[str, str], route: str) -> None:
    for scope in ENOUGH.get(route, {EXPECTED[route]}):
        status = ask(client, route, keys[scope])
        assert status not in (401, 403, 405)
        assert status < 500


def test_a_websocket_asks_for_the_scope_live(client: TestClient, keys: dict[str, str]) -> None:
    assert ask(client, "WS /ws/sensor_updates", keys["all but live"]) == 403
    with client.websocket_connect("/ws/sensor_updates", headers={"X-API-Key": keys["live"]}) as socket:
        socket.close()


@pytest.mark.parametrize("route", [route for route, scope in EXPECTED.items() if scope == OPEN])
def test_what_is_open_answers_without_a_credential(client: TestClient, route: str) -> None:
    status = ask(client, route)
    assert status < 500
    if not route.startswith("POST"):  # those ask for a credential in the body
        assert status not in (401, 403)


def test_a_path_that_no_route_has_tells_nothing_more_with_a_credential(
    client: TestClient, keys: dict[str, str]
) -> None:
    for secret in (None, keys["admin"]):
        assert ask(client, "GET /api/v1/nothing", secret) == 404
