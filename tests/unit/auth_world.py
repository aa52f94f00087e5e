"""The parts of auth on a real catalog in memory, with a clock that moves when told and cheap password hashes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from argon2.profiles import CHEAPEST
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from sensorkeep.auth.administration import Actor, ensure_admin
from sensorkeep.auth.http import Requires, auth_router
from sensorkeep.auth.scopes import Scope
from sensorkeep.auth.setup import Auth, AuthSettings, open_auth
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.database import Database, open_database
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import IdSource, ManualClock
from sensorkeep.errors import SensorkeepError

NOW_US = 1_790_000_000_000_000
PASSWORD = "correct horse battery"
API_KEY = "a-static-key-of-32-characters-00"
API_KEY_WS = "a-live-key-of-32-characters-0000"
OPERATOR = Actor("cli", "local")


@dataclass
class World:
    database: Database
    accounts: CatalogAccounts
    registry: CatalogRegistry
    clock: ManualClock
    settings: AuthSettings
    auth: Auth

    def another_process(self) -> Auth:
        """Auth as a second process has it on the same catalog."""
        return open_auth(self.accounts, self.registry, self.clock, IdSource(self.clock), self.settings)

    def audited(self) -> list[tuple[str, str, str]]:
        """(actor, action, subject), oldest first."""
        entries = self.registry.audit_log(1000)[::-1]
        return [(entry.actor, entry.action, entry.subject) for entry in entries]

    def client(self, client_ip: str = "192.0.2.1", auth: Auth | None = None) -> TestClient:
        """A client of an app that has the routes of auth and one route for each scope."""
        return TestClient(make_app(auth or self.auth), client=(client_ip, 1), raise_server_exceptions=True)

    def access_token(self, username: str = "admin", password: str = PASSWORD) -> str:
        return self.auth.sessions.login(username, password, "192.0.2.200").access_token


def make_world(settings: AuthSettings | None = None) -> World:
    """A world whose first user is admin/PASSWORD."""
    settings = replace(settings or AuthSettings(api_key=API_KEY, api_key_ws=API_KEY_WS), password_parameters=CHEAPEST)
    clock = ManualClock(NOW_US)
    database = open_database("sqlite://")
    accounts, registry = CatalogAccounts(database, clock), CatalogRegistry(database)
    auth = open_auth(accounts, registry, clock, IdSource(clock), settings)
    ensure_admin(accounts, registry, PASSWORD, settings.demo, passwords=auth.passwords, clock=clock)
    return World(database, accounts, registry, clock, settings, auth)


def make_app(auth: Auth) -> FastAPI:
    """The routes of auth under /api/v1, GET /only/<scope>, and errors as JSON."""
    app = FastAPI()
    requires = Requires(auth.gate)
    app.include_router(auth_router(auth, requires), prefix="/api/v1")
    for scope in Scope:
        app.add_api_route(f"/only/{scope}", lambda: {"ok": True}, dependencies=[Depends(requires(scope))])

    async def answer(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, SensorkeepError)
        headers = dict(error.headers)
        if error.retry_after_seconds is not None:
            headers["Retry-After"] = str(error.retry_after_seconds)
        content = {"code": error.code, "detail": error.detail, **error.extra}
        return JSONResponse(content, error.status, headers)

    app.add_exception_handler(SensorkeepError, answer)
    return app
