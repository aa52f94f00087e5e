"""From the settings to a running process: a gateway, a worker, or both in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI

from sensorkeep import __version__
from sensorkeep.app.accounts import make_first_admin
from sensorkeep.app.backends import Role
from sensorkeep.app.checks import Checks
from sensorkeep.app.gateway import Gateway
from sensorkeep.app.system import System
from sensorkeep.app.urls import SCHEMES, is_embedded, shown
from sensorkeep.app.worker import WorkerThread
from sensorkeep.clock import Clock
from sensorkeep.config import Config
from sensorkeep.decode.handoff import Handoff
from sensorkeep.ingest.http import AsgiApp
from sensorkeep.limits import HANDOFF_BYTES_MAX, HANDOFF_PATIENCE_SECONDS, START_CATCH_UP_SECONDS_MAX
from sensorkeep.web.health import HealthMonitor
from sensorkeep.web.logs import Access
from sensorkeep.web.middleware import RequestMiddleware
from sensorkeep.web.operations import health_router, metrics_router
from sensorkeep.web.problems import install_problem_handlers

NEEDED_TO_ACCEPT = ("object_store", "queue", "catalog")
"""The dependencies without which a gateway cannot accept."""
NEEDED_TO_WORK = ("object_store", "queue", "tsdb", "catalog", "worker")
"""Those without which a worker cannot write."""


class Application:
    """A process. Open it, `start` it, serve `asgi`, then `close`. Raises what the opening of a backend can raise."""

    def __init__(self, config: Config, clock: Clock | None = None, role: Role = "serve") -> None:
        self.config = config
        self.role = role
        self.system = System(config, role, clock)
        # A gateway has no worker in its process that would take what it decoded.
        handoff = Handoff(HANDOFF_BYTES_MAX if role == "serve" else 0, HANDOFF_PATIENCE_SECONDS)
        self.gateway = None if role == "worker" else Gateway(self.system, handoff)
        self.worker = None if role == "gateway" else WorkerThread(self.system, handoff)
        self.checks = Checks(self.system, self.worker)

    @property
    def data_dir(self) -> Path | None:
        """The data directory; None where nothing is embedded."""
        data_dir = self.system.backends.data_dir
        return None if data_dir is None else data_dir.path

    def places(self) -> list[tuple[str, str]]:
        """Where the data is, for people: (what, where) without users and passwords."""
        places = [] if self.data_dir is None else [("data", str(self.data_dir))]
        services = (setting for setting in SCHEMES if not is_embedded(self.config, setting))
        return places + [(setting.removesuffix("_url"), shown(self.config, setting)) for setting in services]

    def first_start(self) -> str | None:
        """Create the user `admin` where there is no user; the password where one was generated. Raises BadConfig.

        Beside others only with a password from the settings: two gateways would generate two. There `sensorkeep
        migrate upgrade` makes the first start.
        """
        if self.role == "serve" or (self.role == "gateway" and self.config.admin_password is not None):
            return make_first_admin(self.config, self.system.accounts, self.system.registry, self.system.clock)
        return None

    def start(self) -> None:
        """Start the worker. With a gateway in the same process, wait (bounded) until it has written what an earlier
        end left in the queue, so that the newest values are right from the first answer."""
        if self.worker is not None:
            self.worker.start(START_CATCH_UP_SECONDS_MAX if self.gateway is not None else 0.0)
        if self.gateway is not None:
            self.gateway.start()

    def close(self) -> None:
        """End the worker after the round it is in, and close the backends. Nothing accepted is lost. Idempotent."""
        for side in (self.worker, self.gateway):
            if side is not None:
                side.close()
        self.system.close()

    def asgi(self, access_log: Callable[[Access], None] | None = None) -> AsgiApp:
        """The ASGI application. Requests are served between its lifespan's startup and shutdown."""
        if self.gateway is not None:
            return self.gateway.asgi(self._api(), access_log)
        system = self.system
        return RequestMiddleware(self._api(), system.metrics, system.clock, system.ids, access_log)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        return self._api().openapi()

    def _api(self) -> FastAPI:
        if self.gateway is not None:
            return self.gateway.api([self._health(NEEDED_TO_ACCEPT)], self._metrics())
        api = FastAPI(title="Sensorkeep worker", version=__version__, docs_url=None, redoc_url=None)
        api.include_router(self._health(NEEDED_TO_WORK), prefix="/api/v1")
        api.include_router(self._metrics())
        install_problem_handlers(api)
        return api

    def _health(self, needed: tuple[str, ...]) -> APIRouter:
        system = self.system
        monitor = HealthMonitor(self.checks.by_name(), needed, system.clock)
        return health_router(monitor, system.auth.gate, system.clock, __version__)

    def _metrics(self) -> APIRouter:
        return metrics_router(
            self.system.metrics,
            self.system.auth.gate,
            refresh=self.checks.refresh_gauges,
            open_to_all=self.config.metrics_open,
        )
