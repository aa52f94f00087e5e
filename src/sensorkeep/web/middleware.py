"""What surrounds every HTTP request: its id, security headers, metrics, the access log, and the last resort.

One pure ASGI callable outside the whole application, for the hot ingest routes pass through it too: it must stay
below ten microseconds.

Raw ASGI routes may set `scope["sensorkeep.route"]` (their template) and any code `scope["sensorkeep.credential"]`
(the credential's id); both are for the metrics and the log. The request id is `scope["state"]["request_id"]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import Histogram
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensorkeep.clock import Clock, IdSource, rfc3339
from sensorkeep.errors import SensorkeepError
from sensorkeep.limits import REQUEST_ID_CHARS_MAX
from sensorkeep.metrics import Metrics
from sensorkeep.web.logs import Access, request_id_of_context
from sensorkeep.web.problems import internal_error, report_problem, send_problem
from sensorkeep.web.protocol import Express

ROUTE_KEY = "sensorkeep.route"
CREDENTIAL_KEY = "sensorkeep.credential"

UNMATCHED = "unmatched"
"""The route of requests that no route matched: their paths must not become metric labels."""
_CLIENT_CLOSED = 499
"""What is entered where the client left, or the answer broke off, before its end (nginx has the same)."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_STRICT_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NO_STORE = (b"cache-control", b"no-store")


EXPRESS_HEADERS = b"".join(
    name + b": " + value + b"\r\n" for name, value in (*SECURITY_HEADERS, _STRICT_POLICY, _NO_STORE)
)
"""What every answer carries, for those who write answers without this middleware."""


class RequestMiddleware:
    """ASGI. `access_log` is called once for each request; None logs none."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        clock: Clock,
        ids: IdSource,
        access_log: Callable[[Access], None] | None = None,
    ) -> None:
        self._app = app
        self._clock = clock
        self._access_log = access_log
        self._latency = _LatencyByRoute(metrics.request_seconds)
        # Unique by the process's own UUID and a count: a UUID for each request would cost more than all the rest.
        self._prefix = ids.new()
        self._count = itertools.count(1)
        self.express: Express | None = None
        """Serves plain requests without ASGI where the server can (web/protocol.py); the application may set it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock.monotonic()
        request_id = _given_id(scope["headers"]) or self.new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        token = request_id_of_context.set(request_id)
        answer = _Answer(send, request_id)
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            pass  # Entered as such by the report below.
        except SensorkeepError as error:
            report_problem(error)
            await _answer_error(answer, error, request_id)
        except Exception as error:  # noqa: BLE001  The outermost loop: nobody else would report it.
            report_problem(error)
            await _answer_error(answer, internal_error(), request_id)
        finally:
            request_id_of_context.reset(token)
            self._report(scope, answer, self._clock.monotonic() - started, request_id)

    def new_request_id(self) -> str:
        """An id for a request that brings none."""
        return f"{self._prefix}-{next(self._count):x}"

    def report(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        body_bytes: int,
        client_ip: str,
        request_id: str,
        credential: str | None,
    ) -> None:
        """Enter a served request into the metrics and the access log; `credential` is the credential's id."""
        self._latency.observe(method, route, status, seconds)
        if self._access_log is not None:
            now = rfc3339(self._clock.now_us())
            milliseconds = round(seconds * 1000, 3)
            self._access_log(
                Access(method, route, status, milliseconds, body_bytes, client_ip, request_id, credential, now)
            )

    def _report(self, scope: Scope, answer: _Answer, seconds: float, request_id: str) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        status = answer.status if answer.complete else _CLIENT_CLOSED
        client = scope.get("client")
        client_ip = client[0] if client else ""
        credential = _credential_id(scope)
        self.report(
            method, route_template(scope), status, seconds, answer.body_bytes, client_ip, request_id, credential
        )


class _Answer:
    """Adds the headers to the answer of one request, and remembers what was sent."""

    __slots__ = ("_request_id", "_send", "body_bytes", "complete", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0
        self.body_bytes = 0
        self.complete = False

    async def send(self, message: Message) -> None:
        """ASGI send."""
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            message["headers"] = self._headers(list(message.get("headers", ())))
        elif kind == "http.response.body":
            self.body_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What the answer has, and ours; a page that says its own policy or may be cached keeps that."""
        names = {name for name, _ in headers}
        headers.append((b"x-request-id", self._request_id.encode("ascii")))
        headers += SECURITY_HEADERS
        if b"content-security-policy" not in names:
            headers.append(_STRICT_POLICY)
        if b"cache-control" not in names:
            headers.append(_NO_STORE)
        return headers


class _LatencyByRoute:
    """The latency histogram with its children at hand: finding one by labels costs more than observing."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._children: dict[tuple[str, str, int], Any] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Enter one request."""
        key = (method, route, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._histogram.labels(method, route, str(status))
        child.observe(seconds)


def route_template(scope: Scope) -> str:
    """The template of the route that served the request, e.g. /api/v1/sensors/{uuid}; UNMATCHED where none did."""
    template = scope.get(ROUTE_KEY)
    if template is not None:
        return str(template)
    route = scope.get("route")
    if route is None:
        return UNMATCHED
    # FastAPI keeps included routes without the prefix they are included under, and tells the whole path here.
    effective = scope.get("fastapi", {}).get("effective_route_context")
    return str(getattr(effective or route, "path_format", None) or getattr(route, "path", UNMATCHED))


def _credential_id(scope: Scope) -> str | None:
    """The id of who asked: from CREDENTIAL_KEY, or from `request.state.credential`, where dependencies leave it."""
    credential: str | None = scope.get(CREDENTIAL_KEY) or getattr(scope["state"].get("credential"), "id", None)
    return credential


def _given_id(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The caller's X-Request-Id where it is printable ASCII and not too long."""
    for name, value in headers:
        if name == b"x-request-id":
            if 0 < len(value) <= REQUEST_ID_CHARS_MAX:
                text = value.decode("latin-1")
                return text if text.isascii() and text.isprintable() else None
            return None
    return None


async def _answer_error(answer: _Answer, error: SensorkeepError, request_id: str) -> None:
    """Answer with a problem where the answer has not begun; else the server breaks the connection off."""
    if answer.status == 0:
        await send_problem(answer.send, error, request_id)


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app` answering browsers of these origins (`*`: all); `app` itself where there is none."""
    if not origins:
        return app
    return CORSMiddleware(
        _answering_errors(app),
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PATCH", "DELETE"],
        allow_headers=[
            "Authorization", "Content-Encoding", "Content-Type", "Idempotency-Key", "Prefer", "X-API-Key",
            "X-Request-Id",
        ],
        expose_headers=[
            "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Complete-Until", "X-Next-Cursor",
            "X-Request-Id",
        ],
        max_age=600,
    )  # fmt: skip


def _answering_errors(app: ASGIApp) -> ASGIApp:
    """`app` with our errors answered as problems inside of CORS: a browser shows no page an answer without its headers.
    Of the raw ASGI routes they would pass through it to RequestMiddleware."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await app(scope, receive, watched)
        except SensorkeepError as error:
            if begun or scope["type"] != "http":
                raise
            report_problem(error)
            await send_problem(send, error, scope["state"]["request_id"])

    return answering
