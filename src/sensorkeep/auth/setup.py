"""The parts of this folder, put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from argon2 import Parameters
from argon2.profiles import RFC_9106_LOW_MEMORY

from sensorkeep.auth.administration import Administration
from sensorkeep.auth.credentials import Authenticator, static_keys
from sensorkeep.auth.gate import Gate
from sensorkeep.auth.limiter import RateLimiter
from sensorkeep.auth.passwords import Passwords
from sensorkeep.auth.sessions import Sessions
from sensorkeep.auth.tickets import Tickets
from sensorkeep.auth.tokens import TokenIssuer, signing_secret
from sensorkeep.catalog.base import Accounts, Registry
from sensorkeep.clock import Clock, IdSource
from sensorkeep.limits import ACCESS_TOKEN_SECONDS, REFRESH_TOKEN_SECONDS, WS_CONNECTIONS_PER_KEY_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """What the configuration decides here. Secrets stay out of its repr."""

    demo: bool = False
    secret_key: str | None = field(default=None, repr=False)
    """SECRET_KEY; None has one generated and kept in the catalog."""
    api_key: str | None = field(default=None, repr=False)
    api_key_ws: str | None = field(default=None, repr=False)
    access_token_seconds: int = ACCESS_TOKEN_SECONDS
    refresh_token_seconds: int = REFRESH_TOKEN_SECONDS
    requests_per_minute: int = 0
    """RATE_LIMIT_PER_MINUTE, by credential; 0 sets no limit."""
    max_ws_connections: int = WS_CONNECTIONS_PER_KEY_MAX
    """MAX_WS_CONNECTIONS_PER_KEY, where a key has no limit of its own."""
    password_parameters: Parameters = field(default_factory=lambda: RFC_9106_LOW_MEMORY)


@dataclass(frozen=True, slots=True)
class Auth:
    """Everything other parts need of this folder."""

    authenticator: Authenticator
    limiter: RateLimiter
    gate: Gate
    sessions: Sessions
    administration: Administration
    tickets: Tickets
    passwords: Passwords


def open_auth(accounts: Accounts, registry: Registry, clock: Clock, ids: IdSource, settings: AuthSettings) -> Auth:
    """Put the parts together. Raises BadConfig for a weak secret or key, and Unavailable.

    The caller calls `authenticator.save_usage` about once a minute and at the end.
    """
    static = static_keys(settings.api_key, settings.api_key_ws, demo=settings.demo)
    secret = signing_secret(registry, settings.secret_key, demo=settings.demo)
    issuer = TokenIssuer(secret, clock, settings.access_token_seconds, settings.refresh_token_seconds, ids)
    passwords = Passwords(settings.password_parameters)
    authenticator = Authenticator(accounts, issuer, clock, static, settings.max_ws_connections)
    limiter = RateLimiter(clock, settings.requests_per_minute)
    administration = Administration(accounts, registry, passwords, authenticator, clock, ids, demo=settings.demo)
    sessions = Sessions(accounts, administration, passwords, issuer, limiter)
    tickets = Tickets(clock)
    authenticator.on_forget(tickets.forget)
    return Auth(authenticator, limiter, Gate(authenticator, limiter), sessions, administration, tickets, passwords)
