"""Rate limits: who may ask how often, and the header fields that say so.

Fixed windows of a minute that begin with the first request, on the `limits` library, with counters of our own: those of
one process (module counters), or of all gateways (module shared_counters).
"""

from __future__ import annotations

import functools
import ipaddress
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from sensorkeep.auth.counters import WINDOW_SECONDS, CounterStorage
from sensorkeep.clock import MICROSECONDS, Clock
from sensorkeep.errors import RateLimited, Unavailable
from sensorkeep.limits import (
    CREDENTIAL_FAILURES_PER_MINUTE_PER_IP,
    LOGIN_FAILURES_PER_MINUTE_PER_IP,
    LOGIN_FAILURES_PER_MINUTE_PER_USERNAME,
)

Kind = Literal["request", "login-ip", "login-username", "credential-failure", "audit"]
"""What is counted, and the name of its policy: requests by credential id; failed logins by network and by username;
refused credentials by network; audit entries about somebody being over a limit, so that a flood of logins is not a
flood of entries."""


class RateState(NamedTuple):
    """Where somebody stands under a limit."""

    policy: str
    quota: int
    remaining: int
    reset_seconds: int

    @property
    def headers(self) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit` by draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4."""
        return {
            "RateLimit-Policy": f'"{self.policy}";q={self.quota};w={WINDOW_SECONDS}',
            "RateLimit": f'"{self.policy}";r={self.remaining};t={self.reset_seconds}',
        }


class RateLimiter:
    """Counts and refuses. Thread-safe. Requests are counted without waiting for anybody; with shared counters the other
    kinds block for a round trip."""

    def __init__(self, clock: Clock, requests_per_minute: int, storage: Storage | None = None) -> None:
        """`requests_per_minute`: by credential; 0 sets no limit (setting RATE_LIMIT_PER_MINUTE)."""
        self._clock = clock
        self._windows = FixedWindowRateLimiter(storage or CounterStorage(clock))
        quotas: Mapping[Kind, int] = {
            "request": requests_per_minute,
            "login-ip": LOGIN_FAILURES_PER_MINUTE_PER_IP,
            "login-username": LOGIN_FAILURES_PER_MINUTE_PER_USERNAME,
            "credential-failure": CREDENTIAL_FAILURES_PER_MINUTE_PER_IP,
            "audit": 1,
        }
        self._items = {kind: _PerMinute(quota, 1, kind) for kind, quota in quotas.items() if quota > 0}

    def hit(self, kind: Kind, identity: str) -> RateState | None:
        """Count one, and say what is left; None where there is no limit.

        Raises RateLimited with `retry_after_seconds` and the header fields, and Unavailable where a shared storage
        does not answer.
        """
        item = self._items.get(kind)
        if item is None:
            return None
        try:
            allowed = self._windows.hit(item, identity)
            return self._state(item, identity, allowed)
        except StorageError as error:
            raise Unavailable("The rate limits cannot be checked.", code="dependency_down") from error

    def give_back(self, kind: Kind, identity: str) -> None:
        """Take one hit back: it turned out to be none of those that are limited."""
        item = self._items.get(kind)
        if item is None:
            return
        try:
            self._windows.hit(item, identity, cost=-1)
        except StorageError as error:
            raise Unavailable("The rate limits cannot be checked.", code="dependency_down") from error

    def _state(self, item: _PerMinute, identity: str, allowed: bool) -> RateState:
        ends, remaining = self._windows.get_window_stats(item, identity)
        left = math.ceil(ends - self._clock.now_us() / MICROSECONDS)
        # A count that ran out between the two calls is over: a second at least, a window at most.
        reset_seconds = min(max(left, 1), WINDOW_SECONDS)
        state = RateState(item.namespace, item.amount, remaining, reset_seconds)
        if allowed:
            return state
        raise RateLimited(
            f"More than {item.amount} in a minute; try again in {reset_seconds} s.",
            retry_after_seconds=reset_seconds,
            extra={"violated-policies": [item.namespace]},
            headers=state.headers,
        )


def counted_on_the_event_loop(key: str) -> bool:
    """Whether the counter `key` of a storage is hit where nobody may wait: that of requests."""
    return key.startswith("request/")


class _PerMinute(RateLimitItemPerMinute):
    """A limit whose keys are made in one step: the library's way takes a third of the time a hit may take."""

    __slots__ = ()

    def key_for(self, *identifiers: bytes | str | int | float) -> str:
        return f"{self.namespace}/{identifiers[0]!s}"


@functools.lru_cache(maxsize=4096)
def network_of(client_ip: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 one, since a household has all of that."""
    try:
        address = ipaddress.ip_address(client_ip.partition("%")[0])
    except ValueError:
        return client_ip[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
