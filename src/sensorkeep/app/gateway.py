"""The gateway's side of a process: everything that answers HTTP and WebSockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from zoneinfo import ZoneInfo

import structlog
from fastapi import APIRouter, FastAPI
from starlette.routing import WebSocketRoute
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from sensorkeep import __version__
from sensorkeep.app.system import System
from sensorkeep.auth.http import Requires, auth_router
from sensorkeep.clock import LocalTime
from sensorkeep.decode.handoff import Handoff
from sensorkeep.errors import SensorkeepError
from sensorkeep.ingest.accept import Acceptor, IngestSettings
from sensorkeep.ingest.announce import Announcer, SettledWaiters
from sensorkeep.ingest.batches import batches_router
from sensorkeep.ingest.express import ExpressLane
from sensorkeep.ingest.gather import Gatherer
from sensorkeep.ingest.http import AsgiApp, IngestRoutes
from sensorkeep.ingest.openapi import document_ingest
from sensorkeep.limits import UPKEEP_SECONDS
from sensorkeep.live.hub import Hub
from sensorkeep.live.messages import encode_batch
from sensorkeep.live.websocket import LiveEndpoint
from sensorkeep.query.http import query_router
from sensorkeep.query.service import QueryService
from sensorkeep.web.docs import install_docs
from sensorkeep.web.logs import Access
from sensorkeep.web.middleware import EXPRESS_HEADERS, RequestMiddleware, with_cors
from sensorkeep.web.openapi import document_problems
from sensorkeep.web.problems import install_problem_handlers, problem_response

log = structlog.get_logger(__name__)


class Gateway:
    """The routes and what serves them. `operations` are the routers that every kind of process has."""

    def __init__(self, system: System, handoff: Handoff) -> None:
        self._system = system
        backends = system.backends
        self._acceptor = _make_acceptor(system, handoff)
        self._gatherer = Gatherer(self._acceptor, system.registry)
        self._waiters = SettledWaiters(backends.pubsub)
        self._display_zone = ZoneInfo(system.config.display_timezone)
        self._hub = Hub(backends.pubsub, system.metrics)
        system.auth.authenticator.on_forget(self._hub.revoke)
        self._upkeep_stop = threading.Event()
        self._upkeep_thread = threading.Thread(target=self._upkeep, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin what is done once a minute."""
        self._upkeep_thread.start()

    def close(self) -> None:
        """End that. Idempotent."""
        self._upkeep_stop.set()
        if self._upkeep_thread.is_alive():
            self._upkeep_thread.join()

    def asgi(self, api: FastAPI, access_log: Callable[[Access], None] | None = None) -> AsgiApp:
        """The ASGI application around `api`. Requests are served between its lifespan's startup and shutdown."""
        system = self._system
        live = LiveEndpoint(self._hub, system.auth.gate, system.auth.tickets)
        api.router.routes.append(WebSocketRoute("/ws/sensor_updates", live))
        self._ingest = self._ingest_routes(api)
        inner = with_cors(cast(Any, self._ingest), system.config.cors_origins)
        proxied = cast(AsgiApp, ProxyHeadersMiddleware(cast(Any, inner), list(system.config.trusted_proxies)))
        shell = RequestMiddleware(proxied, system.metrics, system.clock, system.ids, access_log)
        shell.express = self._express_lane(shell)
        return shell

    def api(self, operations: list[APIRouter], metrics: APIRouter) -> FastAPI:
        """The documented routes; `operations` are those under /api/v1 that every kind of process has."""
        api = FastAPI(
            title="Sensorkeep",
            version=__version__,
            description="Keeps every sensor reading: durable ingest, exact rollups, live streams.",
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
        )
        for router in (*self._routers(), *operations):
            api.include_router(router, prefix="/api/v1")
        api.include_router(metrics)
        document_ingest(api)
        document_problems(api)
        install_docs(api)
        install_problem_handlers(api)
        return api

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        self._gatherer.start(loop)
        self._waiters.start(loop)
        try:
            yield
        finally:
            self._hub.close()
            await asyncio.to_thread(self._gatherer.close)
            await asyncio.to_thread(self._ingest.close)
            self._waiters.close()

    def _upkeep(self) -> None:
        """Once a minute: note the use of keys, forget what has expired."""
        system = self._system
        while not self._upkeep_stop.wait(UPKEEP_SECONDS):
            now_us = system.clock.now_us()
            try:
                system.auth.authenticator.save_usage()
                system.accounts.purge(now_us)
                system.idempotency.purge(now_us)
            except SensorkeepError as error:
                log.warning("upkeep_waits", code=error.code, detail=error.detail)
        try:
            system.auth.authenticator.save_usage()
        except SensorkeepError as error:
            log.warning("upkeep_not_saved", code=error.code, detail=error.detail)

    def _routers(self) -> list[APIRouter]:
        system = self._system
        requires = Requires(system.auth.gate)
        service = QueryService(
            system.backends.store,
            system.inventory,
            system.latest,
            system.ledger,
            system.clock,
            display_timezone=self._display_zone,
            raw_retention_days=system.config.raw_retention_days,
        )
        return [
            batches_router(
                ledger=system.ledger,
                registry=system.registry,
                acceptor=self._acceptor,
                clock=system.clock,
                requires=requires,
            ),
            query_router(service, requires),
            auth_router(system.auth, requires),
        ]

    def _express_lane(self, shell: RequestMiddleware) -> ExpressLane:
        return ExpressLane(
            acceptor=self._acceptor,
            gatherer=self._gatherer,
            gate=self._system.auth.gate,
            clock=self._system.clock,
            display_time=LocalTime(self._display_zone),
            new_request_id=shell.new_request_id,
            report=shell.report,
            problem=problem_response,
            header_lines=EXPRESS_HEADERS,
        )

    def _ingest_routes(self, api: AsgiApp) -> IngestRoutes:
        system = self._system
        return IngestRoutes(
            api,
            acceptor=self._acceptor,
            gatherer=self._gatherer,
            waiters=self._waiters,
            ledger=system.ledger,
            idempotency=system.idempotency,
            gate=system.auth.gate,
            clock=system.clock,
            display_time=LocalTime(self._display_zone),
        )


def _make_acceptor(system: System, handoff: Handoff) -> Acceptor:
    config, backends = system.config, system.backends
    return Acceptor(
        object_store=backends.object_store,
        queue=backends.queue,
        ledger=system.ledger,
        latest=system.latest,
        announcer=Announcer(backends.pubsub, encode_batch),
        handoff=handoff,
        clock=system.clock,
        ids=system.ids,
        metrics=system.metrics,
        decoders=config.ingest_threads,
        settings=IngestSettings(
            naive_timezone=config.naive_timezone,
            raw_retention_days=config.raw_retention_days,
            max_wire_bytes=config.max_wire_bytes,
            max_inflated_bytes=config.max_inflated_bytes,
            max_inflate_ratio=config.max_inflate_ratio,
            max_equipment=config.max_equipment,
            max_readings=config.max_readings,
        ),
    )
