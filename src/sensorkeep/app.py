"""The composition root: from the settings to a running system. The only file that names a concrete backend."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import structlog
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr
from starlette.routing import WebSocketRoute
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from sensorkeep import __version__
from sensorkeep.auth.administration import Administration, ensure_admin
from sensorkeep.auth.http import Requires, auth_router
from sensorkeep.auth.setup import AuthSettings, open_auth
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.database import Database, open_database
from sensorkeep.catalog.idempotency import CatalogIdempotencyKeys
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import MICROSECONDS, Clock, IdSource, LocalTime, SystemClock
from sensorkeep.config import Config
from sensorkeep.data_dir import DataDir
from sensorkeep.decode.handoff import Handoff
from sensorkeep.errors import BadConfig, SensorkeepError, Unavailable
from sensorkeep.ingest.accept import Acceptor, IngestSettings
from sensorkeep.ingest.announce import Announcer, SettledWaiters
from sensorkeep.ingest.batches import batches_router
from sensorkeep.ingest.express import ExpressLane
from sensorkeep.ingest.gather import Gatherer
from sensorkeep.ingest.http import AsgiApp, IngestRoutes
from sensorkeep.ingest.openapi import document_ingest
from sensorkeep.limits import DISK_FREE_BYTES_MIN, HANDOFF_BYTES_MAX, START_CATCH_UP_SECONDS_MAX, UPKEEP_SECONDS
from sensorkeep.live.hub import Hub
from sensorkeep.live.messages import encode_batch
from sensorkeep.live.websocket import LiveEndpoint
from sensorkeep.metrics import Metrics
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.pubsub.base import PubSub
from sensorkeep.pubsub.memory import MemoryPubSub
from sensorkeep.query.http import query_router
from sensorkeep.query.service import QueryService
from sensorkeep.queue.base import ClaimQueue
from sensorkeep.queue.sqlite import SqliteClaimQueue
from sensorkeep.tsdb.base import TimeSeriesStore
from sensorkeep.tsdb.duckdb import DuckDBStore
from sensorkeep.web.docs import install_docs
from sensorkeep.web.health import Check, Figures, HealthMonitor
from sensorkeep.web.logs import Access
from sensorkeep.web.middleware import EXPRESS_HEADERS, RequestMiddleware, with_cors
from sensorkeep.web.operations import health_router, metrics_router
from sensorkeep.web.problems import install_problem_handlers, problem_response
from sensorkeep.worker.housekeeping import Housekeeper
from sensorkeep.worker.load import Loader
from sensorkeep.worker.loop import Worker, WorkerSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backends:
    """The concrete backends, opened."""

    object_store: ObjectStore
    queue: ClaimQueue
    store: TimeSeriesStore
    database: Database
    pubsub: PubSub


def open_backends(config: Config, data_dir: DataDir, clock: Clock) -> Backends:
    """Open what the URLs of the settings name. Raises BadConfig, Corrupt, DataDirInUse, Unavailable."""
    return Backends(
        object_store=FilesystemObjectStore(_path(config, "object_store_url", "file", data_dir / "payloads")),
        queue=SqliteClaimQueue(_path(config, "queue_url", "sqlite", data_dir / "queue.sqlite"), clock),
        store=DuckDBStore(
            _path(config, "tsdb_url", "duckdb", data_dir / "readings.duckdb"),
            clock=clock,
            raw_retention_days=config.raw_retention_days,
            memory_limit_bytes=config.tsdb_memory_bytes,
            threads=config.tsdb_threads,
        ),
        database=open_database(f"sqlite:///{_path(config, 'catalog_url', 'sqlite', data_dir / 'catalog.sqlite')}"),
        pubsub=_pubsub(config.pubsub_url),
    )


def _path(config: Config, setting: str, scheme: str, default: Path) -> Path:
    """The path of an embedded backend's URL, or the default in the data directory."""
    url: str = getattr(config, setting)
    if not url:
        return default
    prefix = scheme + "://"
    if not url.startswith(prefix) or len(url) == len(prefix):
        name = f"SENSORKEEP_{setting.upper()}"
        raise BadConfig(f"{name}: that kind of URL is not served here; use {prefix}/path, or leave it empty")
    path = url.removeprefix(prefix)
    return Path("/" + path.lstrip("/") if path.startswith("/") else path)


def _pubsub(url: str) -> PubSub:
    if url != "memory://":
        raise BadConfig("SENSORKEEP_PUBSUB_URL: only memory:// is served here")
    return MemoryPubSub()


@contextmanager
def open_administration(config: Config) -> Iterator[Administration]:
    """Users and keys alone, for the command line; works beside a running server. Raises BadConfig, Unavailable."""
    path = _path(config, "catalog_url", "sqlite", config.data_dir.resolve() / "catalog.sqlite")
    if not path.parent.is_dir():
        raise BadConfig(f"there is no data directory {path.parent}; name it with SENSORKEEP_DATA_DIR or --data-dir")
    clock = SystemClock()
    database = open_database(f"sqlite:///{path}")
    try:
        accounts, registry = CatalogAccounts(database, clock), CatalogRegistry(database)
        yield open_auth(accounts, registry, clock, IdSource(clock), auth_settings(config)).administration
    finally:
        database.close()


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
                self.metrics, self.auth.gate, refresh=self.refresh_gauges, open_to_all=self.config.metrics_open
            )
        )
        document_ingest(api)
        install_docs(api)
        install_problem_handlers(api)
        live = LiveEndpoint(self.hub, self.auth.gate, self.auth.tickets)
        api.router.routes.append(WebSocketRoute("/ws/sensor_updates", live))
        self._ingest = self._ingest_routes(api)
        inner: AsgiApp = self._ingest
        if self.config.cors_origins:
            inner = with_cors(inner, self.config.cors_origins)
        proxied = cast(AsgiApp, ProxyHeadersMiddleware(cast(Any, inner), list(self.config.trusted_proxies)))
        shell = RequestMiddleware(proxied, self.metrics, self.clock, self.ids, access_log)
        shell.express = self._express_lane(shell)
        return shell

    def checks(self) -> dict[str, Check]:
        """How each dependency proves that it works."""
        backends = self.backends
        return {
            "object_store": backends.object_store.check,
            "queue": self._check_queue,
            "tsdb": self._check_store,
            "catalog": backends.database.check,
            "pubsub": backends.pubsub.check,
            "worker": self._check_worker,
            "disk": self._check_disk,
        }

    def refresh_gauges(self) -> None:
        """Bring the gauges up to date that nobody else does. Blocking."""
        depth = self.backends.queue.depth()
        self.metrics.queue_depth.set(depth.claims)
        age_us = 0 if depth.oldest_us is None else max(0, self.clock.now_us() - depth.oldest_us)
        self.metrics.queue_oldest_seconds.set(age_us / MICROSECONDS)
        self.metrics.readings_pending.set(self.ledger.accounting()[1].pending)
        self.metrics.disk_free_bytes.set(shutil.disk_usage(self.data_dir.path).free)
        for part, size in self._disk_use().items():
            self.metrics.disk_bytes.labels(part).set(size)

    def _check_queue(self) -> Figures:
        self.backends.queue.check()
        depth = self.backends.queue.depth()
        oldest_us = self.clock.now_us() if depth.oldest_us is None else depth.oldest_us
        return {"claims": depth.claims, "lag_seconds": max(0, self.clock.now_us() - oldest_us) / MICROSECONDS}

    def _check_store(self) -> Figures:
        status = self.backends.store.status()
        return {
            "disk_bytes": status.disk_bytes,
            "raw_readings": status.raw_readings,
            "staged_readings": status.staged_readings,
        }

    def _check_worker(self) -> Figures:
        if self.worker.stopped_because is not None:
            raise SensorkeepError(f"the worker stopped: {self.worker.stopped_because}; the log has the details")
        if self._worker_thread.ident is not None and not self._worker_thread.is_alive():
            raise SensorkeepError("the worker has ended; restart the server")
        return {"pending_readings": self.ledger.accounting()[1].pending}

    def _check_disk(self) -> Figures:
        free = shutil.disk_usage(self.data_dir.path).free
        if free < DISK_FREE_BYTES_MIN:
            raise Unavailable(f"only {free} bytes are free on the disk of the data directory", code="disk_full")
        return {"free_bytes": free}

    def _disk_use(self) -> dict[str, int]:
        """Bytes of the database files by what they are; the payload archive is not walked."""
        names = {"queue": "queue.sqlite", "catalog": "catalog.sqlite", "tsdb": "readings.duckdb"}
        return {
            part: sum(file.stat().st_size for file in self.data_dir.path.glob(name + "*") if file.is_file())
            for part, name in names.items()
        }

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
            except Unavailable as error:
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
        monitor = HealthMonitor(self.checks(), ("object_store", "queue", "catalog"), self.clock)
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


def auth_settings(config: Config) -> AuthSettings:
    """What auth needs of the settings."""

    def text(secret: SecretStr | None) -> str | None:
        return None if secret is None else secret.get_secret_value()

    return AuthSettings(
        demo=config.demo,
        secret_key=text(config.secret_key),
        api_key=text(config.api_key),
        api_key_ws=text(config.api_key_ws),
        access_token_seconds=config.access_token_seconds,
        refresh_token_seconds=config.refresh_token_seconds,
        requests_per_minute=config.rate_limit_per_minute,
        max_ws_connections=config.max_ws_connections_per_key,
    )
