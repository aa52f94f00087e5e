"""From the settings to a running system in one process."""

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
from sensorkeep.app.accounts import auth_settings
from sensorkeep.app.backends import open_backends
from sensorkeep.app.checks import Checks
from sensorkeep.auth.administration import ensure_admin
from sensorkeep.auth.http import Requires, auth_router
from sensorkeep.auth.setup import open_auth
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.idempotency import CatalogIdempotencyKeys
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import Clock, IdSource, LocalTime, SystemClock
from sensorkeep.config import Config
from sensorkeep.data_dir import DataDir
from sensorkeep.decode.handoff import Handoff
from sensorkeep.errors import SensorkeepError
from sensorkeep.ingest.accept import Acceptor, IngestSettings
from sensorkeep.ingest.announce import Announcer, SettledWaiters
from sensorkeep.ingest.batches import batches_router
from sensorkeep.ingest.express import ExpressLane
from sensorkeep.ingest.gather import Gatherer
from sensorkeep.ingest.http import AsgiApp, IngestRoutes
from sensorkeep.ingest.openapi import document_ingest
from sensorkeep.limits import HANDOFF_BYTES_MAX, START_CATCH_UP_SECONDS_MAX, UPKEEP_SECONDS
from sensorkeep.live.hub import Hub
from sensorkeep.live.messages import encode_batch
from sensorkeep.live.websocket import LiveEndpoint
from sensorkeep.metrics import Metrics
from sensorkeep.query.http import query_router
from sensorkeep.query.service import QueryService
from sensorkeep.web.docs import install_docs
from sensorkeep.web.health import HealthMonitor
from sensorkeep.web.logs import Access
from sensorkeep.web.middleware import EXPRESS_HEADERS, RequestMiddleware, with_cors
from sensorkeep.web.operations import health_router, metrics_router
from sensorkeep.web.problems import install_problem_handlers, problem_response
from sensorkeep.worker.housekeeping import Housekeeper
from sensorkeep.worker.load import Loader
from sensorkeep.worker.loop import Worker, WorkerSettings

log = structlog.get_logger(__name__)


class Application:
    """A whole system in one process. `open` it, run its worker, serve `asgi`, then `close`."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.ids = IdSource(self.clock)
        self.metrics = Metrics()
        self.data_dir = DataDir(config.data_dir)
        self.backends = open_backends(config, self.data_dir, self.clock)
        database = self.backends.database
        self.accounts = CatalogAccounts(database, self.clock)
        self.registry = CatalogRegistry(database)
        self.inventory = CatalogInventory(database)
        self.latest = CatalogLatestReadings(database)
        self.ledger = CatalogLedger(database, self.clock)
        self.idempotency = CatalogIdempotencyKeys(database)
        self.auth = open_auth(self.accounts, self.registry, self.clock, self.ids, auth_settings(config))
        self.handoff = Handoff(HANDOFF_BYTES_MAX)
        self.acceptor = self._make_acceptor()
        self.worker = self._make_worker()
        self._worker_thread = threading.Thread(target=self.worker.run, name="worker", daemon=True)
        self.checks = Checks(
            backends=self.backends,
            ledger=self.ledger,
            worker=self.worker,
            worker_has_ended=lambda: self._worker_thread.ident is not None and not self._worker_thread.is_alive(),
            metrics=self.metrics,
            clock=self.clock,
            data_dir=self.data_dir.path,
        )
        self._upkeep_stop = threading.Event()
        self._upkeep_thread = threading.Thread(target=self._upkeep, name="upkeep", daemon=True)
        self.hub = Hub(self.backends.pubsub, self.metrics)
        self.auth.authenticator.on_forget(self.hub.revoke)
        self._gatherer = Gatherer(self.acceptor, self.registry)
        self._waiters = SettledWaiters(self.backends.pubsub)

    def first_start(self) -> str | None:
        """Create the user `admin` where there is no user; the password where one was generated. Raises BadConfig."""
        password = self.config.admin_password
        return ensure_admin(
            self.accounts,
            self.registry,
            None if password is None else password.get_secret_value(),
            self.config.demo,
            passwords=self.auth.passwords,
            clock=self.clock,
        )

    def start(self) -> None:
        """Start the worker, and wait until it has written what an earlier end left in the queue (bounded)."""
        self._worker_thread.start()
        self._upkeep_thread.start()
        self.worker.caught_up.wait(START_CATCH_UP_SECONDS_MAX)

    def close(self) -> None:
        """End the worker after the round it is in, and close the backends. Nothing accepted is lost. Idempotent."""
        self.worker.stop()
        self._upkeep_stop.set()
        for thread in (self._worker_thread, self._upkeep_thread):
            if thread.is_alive():
                thread.join()
        backends = self.backends
        for part in (backends.queue, backends.store, backends.object_store, backends.pubsub, backends.database):
            part.close()
        self.data_dir.close()

    def asgi(self, access_log: Callable[[Access], None] | None = None) -> AsgiApp:
        """The ASGI application. Requests are served between its lifespan's startup and shutdown."""
        api = self._api()
        live = LiveEndpoint(self.hub, self.auth.gate, self.auth.tickets)
        api.router.routes.append(WebSocketRoute("/ws/sensor_updates", live))
        self._ingest = self._ingest_routes(api)
        inner = with_cors(cast(Any, self._ingest), self.config.cors_origins)
        proxied = cast(AsgiApp, ProxyHeadersMiddleware(cast(Any, inner), list(self.config.trusted_proxies)))
        shell = RequestMiddleware(proxied, self.metrics, self.clock, self.ids, access_log)
        shell.express = self._express_lane(shell)
        return shell

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        return self._api().openapi()

    def _api(self) -> FastAPI:
        api = FastAPI(
            title="Sensorkeep",
            version=__version__,
            description="Keeps every sensor reading: durable ingest, exact rollups, live streams.",
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
        )
        for router in self._routers():
            api.include_router(router, prefix="/api/v1")
        api.include_router(
            metrics_router(
                self.metrics, self.auth.gate, refresh=self.checks.refresh_gauges, open_to_all=self.config.metrics_open
            )
        )
        document_ingest(api)
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
            self.hub.close()
            await asyncio.to_thread(self._gatherer.close)
            await asyncio.to_thread(self._ingest.close)
            self._waiters.close()

    def _upkeep(self) -> None:
        """Once a minute: note the use of keys, forget what has expired."""
        while not self._upkeep_stop.wait(UPKEEP_SECONDS):
            now_us = self.clock.now_us()
            try:
                self.auth.authenticator.save_usage()
                self.accounts.purge(now_us)
                self.idempotency.purge(now_us)
            except SensorkeepError as error:
                log.warning("upkeep_waits", code=error.code, detail=error.detail)
        self.auth.authenticator.save_usage()

    def _make_acceptor(self) -> Acceptor:
        config = self.config
        return Acceptor(
            object_store=self.backends.object_store,
            queue=self.backends.queue,
            ledger=self.ledger,
            latest=self.latest,
            announcer=Announcer(self.backends.pubsub, encode_batch),
            handoff=self.handoff,
            clock=self.clock,
            ids=self.ids,
            metrics=self.metrics,
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

    def _make_worker(self) -> Worker:
        backends = self.backends
        return Worker(
            queue=backends.queue,
            store=backends.store,
            loader=Loader(
                object_store=backends.object_store, ledger=self.ledger, latest=self.latest, handoff=self.handoff
            ),
            inventory=self.inventory,
            latest=self.latest,
            ledger=self.ledger,
            pubsub=backends.pubsub,
            clock=self.clock,
            metrics=self.metrics,
            housekeep=Housekeeper(
                object_store=backends.object_store,
                queue=backends.queue,
                ledger=self.ledger,
                clock=self.clock,
                retention_days=self.config.payload_retention_days,
            ),
            settings=WorkerSettings(gather_seconds=self.config.gather_seconds),
        )

    def _routers(self) -> list[APIRouter]:
        requires = Requires(self.auth.gate)
        service = QueryService(
            self.backends.store,
            self.inventory,
            self.latest,
            self.ledger,
            self.clock,
            display_timezone=ZoneInfo(self.config.display_timezone),
            raw_retention_days=self.config.raw_retention_days,
        )
        monitor = HealthMonitor(self.checks.by_name(), ("object_store", "queue", "catalog"), self.clock)
        return [
            batches_router(
                ledger=self.ledger, registry=self.registry, acceptor=self.acceptor, clock=self.clock, requires=requires
            ),
            query_router(service, requires),
            auth_router(self.auth, requires),
            health_router(monitor, self.auth.gate, self.clock, __version__),
        ]

    def _express_lane(self, shell: RequestMiddleware) -> ExpressLane:
        return ExpressLane(
            acceptor=self.acceptor,
            gatherer=self._gatherer,
            gate=self.auth.gate,
            clock=self.clock,
            display_time=LocalTime(ZoneInfo(self.config.display_timezone)),
            new_request_id=shell.new_request_id,
            report=shell.report,
            problem=problem_response,
            header_lines=EXPRESS_HEADERS,
        )

    def _ingest_routes(self, api: AsgiApp) -> IngestRoutes:
        return IngestRoutes(
            api,
            acceptor=self.acceptor,
            gatherer=self._gatherer,
            waiters=self._waiters,
            ledger=self.ledger,
            idempotency=self.idempotency,
            gate=self.auth.gate,
            clock=self.clock,
            display_time=LocalTime(ZoneInfo(self.config.display_timezone)),
        )
