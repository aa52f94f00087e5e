"""Valkey (or Redis), as everything that shares facts of the moment uses it: bounded waits, and what an outage means.

Nothing that must not be lost is kept there (docs/decisions/0010-what-valkey-holds.md). The client library is imported
where a client is made, so that the embedded form starts without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from sensorkeep.breaker import Breaker
from sensorkeep.clock import Clock, SystemClock
from sensorkeep.errors import BadConfig, Unavailable
from sensorkeep.limits import VALKEY_CONNECTIONS_MAX, VALKEY_PAUSE_SECONDS, VALKEY_SECONDS_MAX

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

Client = Any
"""redis.Redis: its own types say that every answer may have to be awaited."""


class Valkey:
    """A client of one server. Thread-safe; it connects when it is used, so that an outage heals by itself.

    While the server is down one call in VALKEY_PAUSE_SECONDS waits for it (VALKEY_SECONDS_MAX), and the others fail at
    once.
    """

    def __init__(self, url: str, *, prefix: str = "sensorkeep", clock: Clock | None = None) -> None:
        """`url`: `redis://[user:password@]host[:port][/database]`, `rediss://` for TLS. `prefix` begins every name of
        this installation. Raises BadConfig."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._lost: tuple[type[Exception], ...] = (redis.ConnectionError, redis.TimeoutError, OSError)
        self._all_in_use = redis.exceptions.MaxConnectionsError
        self._prefix = prefix
        self._closed = False
        self._on_return: list[Callable[[], None]] = []
        try:
            self._client = redis.Redis.from_url(
                url,
                protocol=2,
                socket_timeout=VALKEY_SECONDS_MAX,
                socket_connect_timeout=VALKEY_SECONDS_MAX,
                socket_keepalive=True,
                max_connections=VALKEY_CONNECTIONS_MAX,
                # A connection that ended while idle is replaced; a server that does not answer is not asked twice.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
                client_name="sensorkeep",
            )
        except (ValueError, TypeError):
            # No part of the URL is shown: what does not read as one may hold a password anywhere.
            raise BadConfig(
                "the URL of Valkey (SENSORKEEP_PUBSUB_URL) cannot be used; it is redis://host:6379, or rediss:// for"
                " TLS, with %XX for special characters in a password"
            ) from None
        self._breaker = Breaker(
            (clock or SystemClock()).monotonic,
            pause_seconds=VALKEY_PAUSE_SECONDS,
            try_seconds_max=4 * VALKEY_SECONDS_MAX,
        )

    @property
    def up(self) -> bool:
        """Whether the server answered when it was asked last."""
        return self._breaker.closed

    def name(self, *parts: str) -> str:
        """The name of a key or channel of this installation."""
        return ":".join((self._prefix, *parts))

    def run(self, work: Callable[[Client], Result]) -> Result:
        """Do `work` with the client and return what it returns. Raises Unavailable."""
        if self._closed:
            raise Unavailable("the client of Valkey is closed", code="dependency_down")
        if not self._breaker.admit():
            raise Unavailable("Valkey cannot be reached", code="dependency_down")
        try:
            result = work(self._client)
        except self._lost as error:
            # Where all connections are in use, that says nothing of the server.
            if isinstance(error, self._all_in_use) and self._breaker.closed:
                raise Unavailable("all connections to Valkey are in use", code="dependency_down") from error
            if self._breaker.failed():
                log.warning("valkey_lost", cause=str(error))
            raise Unavailable("Valkey cannot be reached", code="dependency_down") from error
        except self._errors as error:  # it answers, and cannot do it: out of memory, or a replica
            if self._breaker.succeeded():
                log.info("valkey_reached_again")
            raise Unavailable(f"Valkey refused: {error}", code="dependency_down") from error
        except Exception as error:
            # Its connection was closed under it: of that the driver says what the parts of it say that it met.
            if self._closed:
                raise Unavailable("the client of Valkey is closed", code="dependency_down") from error
            raise
        if self._breaker.succeeded():
            log.info("valkey_reached_again")
            threading.Thread(target=self._tell_return, name="valkey-return", daemon=True).start()
        return result

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the server answers again after an outage, on a thread of its own. It must not
        raise."""
        self._on_return.append(callback)

    def check(self) -> None:
        """Raises Unavailable where the server does not answer."""
        self.run(lambda client: client.ping())

    def connection(self) -> Any:
        """A connection of one's own (redis.Connection), not connected yet. Its methods raise what `is_error` knows.

        It is none of the pool's: whoever makes one after the other during an outage uses up none of those."""
        if self._closed:
            raise Unavailable("the client of Valkey is closed", code="dependency_down")
        pool = self._client.connection_pool
        return pool.connection_class(**pool.connection_kwargs)

    def is_error(self, error: Exception) -> bool:
        """Whether the driver or the network raised it."""
        return isinstance(error, self._errors)

    def close(self) -> None:
        """Release every connection. Idempotent."""
        self._closed = True
        self._client.close()

    def _tell_return(self) -> None:
        for callback in self._on_return:
            callback()
