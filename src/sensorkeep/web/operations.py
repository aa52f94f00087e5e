"""Health, ping and metrics: what operators and load balancers ask (SPEC section 3, Operations)."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from sensorkeep.auth.gate import Gate
from sensorkeep.auth.scopes import Scope
from sensorkeep.clock import Clock, rfc3339
from sensorkeep.errors import Forbidden
from sensorkeep.metrics import Metrics
from sensorkeep.web.health import Health, HealthMonitor, ServiceHealth
from sensorkeep.web.middleware import CREDENTIAL_KEY

SERVICE = "sensorkeep"

_FORWARDED_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def health_router(monitor: HealthMonitor, gate: Gate, clock: Clock, version: str) -> APIRouter:
    """`/health`, `/health/detailed` and `/ping`, relative to /api/v1. `clock` also tells when the process started."""
    router = APIRouter(tags=["operations"], default_response_class=Response)
    started = clock.monotonic()

    def answer(health: Health, services: dict[str, Any]) -> Response:
        document = {
            "status": "healthy" if health.healthy else "degraded",
            "service": SERVICE,
            "timestamp": rfc3339(clock.now_us()),
            "version": version,
            "services": services,
            "uptime_seconds": round(clock.monotonic() - started, 3),
        }
        return _json(document, 200 if health.accepting else 503)

    described = _described("health")
    described[503] = described[200] | {"description": "The health of an instance that cannot accept."}

    @router.get("/health", summary="Whether this instance works", responses=described)
    async def health() -> Response:
        """200 while readings are accepted, else 503. `degraded`: some service is down."""
        current = await monitor.health()
        return answer(current, {name: _state(service) for name, service in current.services.items()})

    @router.get(
        "/health/detailed",
        summary="Each dependency",
        responses=described,
        openapi_extra={"security": [{"Bearer": []}, {"ApiKey": []}]},  # the schemes of auth/http.py
    )
    async def detailed(request: Request) -> Response:
        """Each dependency with its latency, its lag, and what is wrong. Scope read or admin."""
        await _require_any(gate, request, Scope.READ, Scope.ADMIN)
        current = await monitor.health()
        return answer(current, {name: _detail(service) for name, service in current.services.items()})

    @router.get("/ping", summary="Whether the process answers", responses=_described("answer"))
    async def ping() -> Response:
        return _json({"status": "ok", "message": "Sensorkeep is running"}, 200)

    for path, endpoint in (("/health", health), ("/ping", ping)):  # uptime monitors ask with HEAD
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return router


def metrics_router(
    metrics: Metrics, gate: Gate, *, refresh: Callable[[], None] | None = None, open_to_all: bool = False
) -> APIRouter:
    """`/metrics`, at the root. Open to loopback clients, to all where the setting says so, else scope read.

    `refresh` brings gauges up to date before they are read; it may block, and runs on a thread.
    """
    router = APIRouter(tags=["operations"], default_response_class=Response)

    @router.get("/metrics", summary="Prometheus metrics", responses=_described("metrics", "text/plain"))
    async def prometheus(request: Request) -> Response:
        if not (open_to_all or _is_local(request)):
            await _require_any(gate, request, Scope.READ)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))

        def render() -> bytes:
            if refresh is not None:
                refresh()
            return encode(metrics.registry)

        return Response(await asyncio.to_thread(render), headers={"content-type": content_type})

    return router


def _state(service: ServiceHealth) -> str:
    return "ok" if service.error is None else "down"


def _detail(service: ServiceHealth) -> dict[str, Any]:
    document = {"status": _state(service), "latency_ms": round(service.latency_seconds * 1000, 3), **service.figures}
    if service.error is not None:
        document |= {"code": service.error.code, "detail": service.error.detail}
    return document


def _json(document: dict[str, Any], status: int) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _described(what: str, media_type: str = "application/json") -> dict[int | str, dict[str, Any]]:
    schema = {"type": "object"} if media_type == "application/json" else {"type": "string"}
    return {200: {"description": f"The {what}", "content": {media_type: {"schema": schema}}}}


def _is_local(request: Request) -> bool:
    """Whether the request comes from this machine itself, and not through a proxy on it."""
    if request.client is None or any(name in request.headers for name in _FORWARDED_HEADERS):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _require_any(gate: Gate, request: Request, *scopes: Scope) -> None:
    """Raises what the gate does, and Forbidden where the credential has none of the scopes."""
    presented = request.headers.get("authorization"), request.headers.get("x-api-key")
    admission = gate.admit_now(None, *presented)
    if admission is None:
        client_ip = request.client.host if request.client else ""
        admission = await asyncio.to_thread(gate.admit, None, *presented, client_ip)
    request.scope[CREDENTIAL_KEY] = admission.credential.id
    if not admission.credential.scopes.intersection(scopes):
        raise Forbidden(f"This needs a credential with the scope {' or '.join(repr(str(s)) for s in scopes)}.")
