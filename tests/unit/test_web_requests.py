"""Problems and the request middleware, through a FastAPI application and through raw ASGI code under it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sensorkeep.auth.credentials import Credential
from sensorkeep.clock import IdSource, SystemClock
from sensorkeep.errors import (
    PROBLEMS,
    Corrupt,
    LimitExceeded,
    RateLimited,
    SensorkeepError,
    Unauthenticated,
    Unavailable,
)
from sensorkeep.limits import FIELD_ERRORS_REPORTED_MAX
from sensorkeep.metrics import Metrics
from sensorkeep.web.logs import Access, configure_logging
from sensorkeep.web.middleware import CREDENTIAL_KEY, ROUTE_KEY, RequestMiddleware, with_cors
from sensorkeep.web.problems import install_problem_handlers, problem_response

SECRET = "the-database-password-is-hunter2"


class Body(BaseModel):
    temperature: float
    password: str = ""


def _api() -> FastAPI:
    app = FastAPI()
    router = APIRouter()

    @router.get("/things/{name}")
    async def thing(name: str, limit: int = 1) -> dict[str, str]:
        return {"name": name}

    @router.post("/things")
    async def add(body: Body, request: Request) -> dict[str, str]:
        request.scope[CREDENTIAL_KEY] = "key:abc"
        return {"request_id": request.state.request_id}

    @router.get("/known")
    async def known(request: Request) -> None:
        request.state.credential = Credential("key:def", "key", "def", frozenset(), 1)

    @router.get("/raise/{what}")
    async def fail(what: str) -> None:
        raise {
            "limit": LimitExceeded("over 3 (MAX_X)", extra={"limit": 3}),
            "login": Unauthenticated("no credential"),
            "rate": RateLimited("slow down", retry_after_seconds=7, headers={"RateLimit": '"r";r=0;t=7'}),
            "down": Unavailable("the queue is down", code="dependency_down"),
            "corrupt": Corrupt(f"{SECRET} page 7"),
            "bug": RuntimeError(SECRET),
            "teapot": HTTPException(418, "short and stout"),
        }[what]

    @router.get("/broken-stream")
    async def broken() -> StreamingResponse:
        async def parts() -> Any:
            yield b"first"
            raise RuntimeError(SECRET)

        return StreamingResponse(parts())

    app.include_router(router, prefix="/api/v1")
    install_problem_handlers(app)
    return app


class Hot:
    """Raw ASGI in front of the application, as the ingest routes are."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/hot"):
            await self._app(scope, receive, send)
            return
        scope[ROUTE_KEY] = "/hot/{id}"
        if scope["path"] == "/hot/limit":
            raise LimitExceeded("over 3")
        if scope["path"] == "/hot/bug":
            raise RuntimeError(SECRET)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class Web:
    """The application behind the middleware, and what it reported."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.accesses: list[Access] = []
        self.log = io.StringIO()
        configure_logging("debug", self.log, terminal=False)
        clock = SystemClock()
        app = with_cors(Hot(_api()), ["https://app.example"])
        self.app = RequestMiddleware(app, self.metrics, clock, IdSource(clock), self.accesses.append)
        self.http = TestClient(self.app, raise_server_exceptions=False)

    def count(self, method: str, route: str, status: int) -> float:
        labels = {"method": method, "route": route, "status": str(status)}
        return self.metrics.registry.get_sample_value("sensorkeep_request_seconds_count", labels) or 0.0


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def web() -> Web:
    return Web()


def test_an_error_is_a_problem_document_with_its_code_extras_and_request_id(web: Web) -> None:
    answer = web.http.get("/api/v1/raise/limit", headers={"X-Request-Id": "abc 1"})
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:sensorkeep:error:too_large",
        "title": PROBLEMS["too_large"][1],
        "status": 413,
        "detail": "over 3 (MAX_X)",
        "instance": "abc%201",
        "code": "too_large",
        "limit": 3,
    }


def test_headers_say_when_to_retry_and_how_to_authenticate(web: Web) -> None:
    limited = web.http.get("/api/v1/raise/rate")
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "7")
    assert limited.headers["ratelimit"] == '"r";r=0;t=7'
    assert web.http.get("/api/v1/raise/login").headers["www-authenticate"] == "Bearer"
    down = web.http.get("/api/v1/raise/down")
    assert (down.status_code, down.headers["retry-after"], down.json()["code"]) == (503, "5", "dependency_down")


@pytest.mark.parametrize("code", sorted(PROBLEMS))
def test_every_code_can_be_answered(code: str) -> None:
    status, headers, body = problem_response(SensorkeepError("why", code=code), "id")
    document = json.loads(body)
    assert document["status"] == status == PROBLEMS[code][0]
    assert dict(headers)[b"content-length"] == str(len(body)).encode()
    assert document["type"] == f"urn:sensorkeep:error:{document['code']}"
    assert document["detail"] == "why" or status == 500


def test_an_extra_cannot_replace_a_standard_member() -> None:
    error = LimitExceeded("why", extra={"status": 200, "type": "x"})
    document = json.loads(problem_response(error, "id")[2])
    assert (document["status"], document["type"]) == (413, "urn:sensorkeep:error:too_large")


def test_invalid_fields_are_listed_with_their_path_and_never_their_value(web: Web) -> None:
    answer = web.http.post("/api/v1/things", json={"temperature": "warm", "password": [SECRET]})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_fields"
    assert [field["path"] for field in problem["errors"]] == ["body.temperature", "body.password"]
    assert all(field["message"] for field in problem["errors"])
    assert SECRET not in answer.text


def test_the_list_of_invalid_fields_is_bounded_and_counted() -> None:
    app = FastAPI()

    @app.post("/many")
    async def many(items: list[int]) -> None: ...

    install_problem_handlers(app)
    problem = TestClient(app).post("/many", json=["x"] * 500).json()
    assert len(problem["errors"]) == FIELD_ERRORS_REPORTED_MAX
    assert problem["error_count"] == 500


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/api/v1/things", b"{", 400, "not_json"),
        ("GET", "/api/v1/things/a?limit=many", None, 400, "bad_parameter"),
        ("GET", "/nowhere", None, 404, "not_found"),
        ("DELETE", "/api/v1/things", None, 405, "method_not_allowed"),
        ("GET", "/api/v1/raise/teapot", None, 400, "bad_request"),
        ("GET", "/api/v1/raise/bug", None, 500, "internal"),
        ("GET", "/api/v1/raise/corrupt", None, 500, "internal"),
        ("GET", "/hot/limit", None, 413, "too_large"),
        ("GET", "/hot/bug", None, 500, "internal"),
    ],
)
def test_every_error_is_a_problem_with_our_headers(
    web: Web, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    answer = web.http.request(method, path, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.json()["instance"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["/api/v1/raise/bug", "/hot/bug", "/api/v1/raise/corrupt"])
def test_what_the_answer_hides_is_logged_once_with_traceback_and_request_id(web: Web, path: str) -> None:
    web.http.get(path, headers={"X-Request-Id": "find-me"})
    lines = [json.loads(line) for line in web.log.getvalue().splitlines()]
    (line,) = [line for line in lines if line["level"] == "error"]
    assert line["request_id"] == "find-me"
    assert "Traceback" in line["exception"]


def test_a_405_says_what_is_allowed(web: Web) -> None:
    assert "POST" in web.http.delete("/api/v1/things").headers["allow"]


@pytest.mark.parametrize("given", ["a", "x" * 128, "trace: 1/2 {3}"])
def test_a_request_id_that_can_be_honoured_is(web: Web, given: str) -> None:
    answer = web.http.post("/api/v1/things", json={"temperature": 1}, headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == given
    assert answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "caf\u00e9", "a\tb"])
def test_any_other_request_id_is_replaced(web: Web, given: str) -> None:
    headers = {"X-Request-Id": given.encode("latin-1")}
    first = web.http.get("/hot/1", headers=headers).headers["x-request-id"]
    second = web.http.get("/hot/1").headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f-]{20,80}", first)
    assert first != second


def test_answers_carry_the_security_headers(web: Web) -> None:
    headers = web.http.get("/hot/1").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"


def test_latency_is_counted_by_route_template_with_the_prefix_and_never_by_path(web: Web) -> None:
    for i in range(20):
        web.http.get(f"/api/v1/things/{i}")
        web.http.get(f"/hot/{i}")
        web.http.get(f"/unknown/{i}")
        web.http.request("BREW", f"/unknown/{i}")
    assert web.count("GET", "/api/v1/things/{name}", 200) == 20
    assert web.count("GET", "/hot/{id}", 201) == 20
    assert web.count("GET", "unmatched", 404) == 20
    assert web.count("OTHER", "unmatched", 404) == 20
    (metric,) = [m for m in web.metrics.registry.collect() if m.name == "sensorkeep_request_seconds"]
    assert len([sample for sample in metric.samples if sample.name.endswith("_count")]) == 4


def test_the_access_log_tells_route_status_size_client_and_credential_but_no_query(web: Web) -> None:
    web.http.post("/api/v1/things?api-key=SECRETSECRET", json={"temperature": 1}, headers={"X-Request-Id": "r1"})
    (access,) = web.accesses
    assert (access.method, access.route, access.status) == ("POST", "/api/v1/things", 200)
    assert (access.request_id, access.credential, access.client_ip) == ("r1", "key:abc", "testclient")
    assert access.bytes == len(b'{"request_id":"r1"}')
    assert access.ms > 0
    assert "SECRET" not in str(access)


def test_the_access_log_knows_the_credential_that_a_dependency_found(web: Web) -> None:
    web.http.get("/api/v1/known")
    assert web.accesses[0].credential == "key:def"


def test_an_answer_that_breaks_off_is_entered_as_499_and_logged(web: Web) -> None:
    web.http.get("/api/v1/broken-stream")
    assert web.count("GET", "/api/v1/broken-stream", 499) == 1
    assert "Traceback" in web.log.getvalue()


def test_cors_answers_only_the_origins_that_are_set(web: Web) -> None:
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    allowed = web.http.options("/hot/1", headers=preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert web.http.options("/hot/1", headers={**preflight, "Origin": "https://evil.example"}).status_code == 400
    answer = web.http.get("/hot/1", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_without_origins_there_is_no_cors() -> None:
    app = FastAPI()
    assert with_cors(app, ()) is app


def test_the_middleware_costs_little() -> None:
    """A guard against a slip of an order of magnitude; the figure itself is told by measuring, not by a test."""
    clock = SystemClock()

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        scope[ROUTE_KEY] = "/x"
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    wrapped = RequestMiddleware(bare, Metrics(), clock, IdSource(clock), configure_logging("info", io.StringIO()))

    async def cost(app: Any) -> float:
        started = time.process_time()
        for _ in range(2_000):
            headers = [(b"host", b"localhost"), (b"x-api-key", b"k"), (b"content-type", b"application/json")]
            await app({"type": "http", "method": "POST", "path": "/x", "headers": headers}, receive, send)
        return (time.process_time() - started) / 2_000

    async def measure() -> float:
        return min([await cost(wrapped) for _ in range(3)]) - min([await cost(bare) for _ in range(3)])

    assert asyncio.run(measure()) < 100e-6
