"""The parts of this folder, put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from argon2 import Parameters
from argon2.profiles import RFC_9106_LOW_MEMORY

from sensorkeep.auth.administration import Administration
from sensorkeep.auth.counters import CounterStorage
from sensorkeep.auth.credentials import Authenticator, static_keys
from sensorkeep.auth.gate import Gate
from sensorkeep.auth.limiter import RateLimiter, counted_on_the_event_loop
from sensorkeep.auth.passwords import Passwords
from sensorkeep.auth.sessions import Sessions
from sensorkeep.auth.shared_counters import SharedCounters
from sensorkeep.auth.shared_tickets import SharedTickets
from sensorkeep.auth.tickets import Tickets
from sensorkeep.auth.tokens import TokenIssuer, signing_secret
from sensorkeep.catalog.base import Accounts, Registry
from sensorkeep.clock import Clock, IdSource
from sensorkeep.limits import ACCESS_TOKEN_SECONDS, REFRESH_TOKEN_SECONDS, WS_CONNECTIONS_PER_KEY_MAX
from sensorkeep.pubsub.base import AUTH_CHANNEL, PubSub
from sensorkeep.valkey import Valkey


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
    counters: CounterStorage

    def close(self) -> None:
        """End what runs on threads. Idempotent."""
        self.counters.close()


def open_auth(
    accounts: Accounts,
    registry: Registry,
    clock: Clock,
    ids: IdSource,
    settings: AuthSettings,
    *,
    pubsub: PubSub | None = None,
    valkey: Valkey | None = None,
) -> Auth:
    """Put the parts together. Raises BadConfig for a weak secret or key, and Unavailable.

    By `pubsub` gateways tell each other of credentials that were changed or revoked; in `valkey` they share rate limits
    and tickets. The caller calls `authenticator.save_usage` about once a minute and at the end.
    """
    static = static_keys(settings.api_key, settings.api_key_ws, demo=settings.demo)
    secret = signing_secret(registry, settings.secret_key, demo=settings.demo)
    issuer = TokenIssuer(secret, clock, settings.access_token_seconds, settings.refresh_token_seconds, ids)
    passwords = Passwords(settings.password_parameters)
    authenticator = Authenticator(accounts, issuer, clock, static, settings.max_ws_connections)
    counters = CounterStorage(clock)
    tickets = Tickets(clock)
    if valkey is not None:
        counters = SharedCounters(clock, valkey, counted_on_the_event_loop)
        shared = SharedTickets(valkey)
        tickets = Tickets(clock, shared)
        authenticator.on_change(shared.revoke)
    authenticator.on_forget(tickets.forget)
    if pubsub is not None:
        _tell_of_changes(authenticator, pubsub)
    limiter = RateLimiter(clock, settings.requests_per_minute, counters)
    administration = Administration(accounts, registry, passwords, authenticator, clock, ids, demo=settings.demo)
    sessions = Sessions(accounts, administration, passwords, issuer, limiter)
    gate = Gate(authenticator, limiter)
    return Auth(authenticator, limiter, gate, sessions, administration, tickets, passwords, counters)


def _tell_of_changes(authenticator: Authenticator, pubsub: PubSub) -> None:
    authenticator.on_change(lambda credential_id: pubsub.publish(AUTH_CHANNEL, credential_id.encode()))
    pubsub.subscribe(AUTH_CHANNEL, lambda message: authenticator.forget_here(message.decode("utf-8", "replace")))
