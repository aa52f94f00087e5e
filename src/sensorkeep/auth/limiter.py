"""Rate limits: who may ask how often, and the header fields that say so.

Fixed windows of a minute that begin with the first request, on the `limits` library; its own memory storage starts a
thread per burst and cannot be bounded, so the counters of one process are kept here. Another storage of that library
(`limits.storage.storage_from_string("redis://…", wrap_exceptions=True)`) shares them between processes.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import threading
from collections.abc import Mapping
from typing import Literal, NamedTuple

from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from sensorkeep.clock import MICROSECONDS, Clock
from sensorkeep.errors import RateLimited, Unavailable
from sensorkeep.limits import (
    CREDENTIAL_FAILURES_PER_MINUTE_PER_IP,
    LOGIN_FAILURES_PER_MINUTE_PER_IP,
    LOGIN_FAILURES_PER_MINUTE_PER_USERNAME,
    RATE_COUNTERS_MAX,
)

WINDOW_SECONDS = 60

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
    """Counts and refuses. Thread-safe; never blocks with the counters in memory."""

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


class _PerMinute(RateLimitItemPerMinute):
    """A limit whose keys are made in one step: the library's way takes a third of the time a hit may take."""

    __slots__ = ()

    def key_for(self, *identifiers: bytes | str | int | float) -> str:
        return f"{self.namespace}/{identifiers[0]!s}"


class CounterStorage(Storage):
    """The counters of one process, RATE_COUNTERS_MAX at most: past it the oldest window ends early."""

    STORAGE_SCHEME = ["sensorkeep-memory"]  # noqa: RUF012 - the library's own form

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        # key -> [count, end of the window in seconds since the epoch]; all windows are as long, so the first ends first
        self._counters: dict[str, tuple[int, float]] = {}

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        return ()

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = self._clock.now_us() / MICROSECONDS
        with self._lock:
            count, ends = self._counters.get(key, (0, 0.0))
            # The second comparison: a clock set back must not keep somebody out for hours.
            if not now < ends <= now + expiry:
                self._counters.pop(key, None)
                self._make_room(now)
                count, ends = 0, now + expiry
            count = max(count + amount, 0)
            self._counters[key] = (count, ends)
        return count

    def get(self, key: str) -> int:
        count, ends = self._counters.get(key, (0, 0.0))
        return count if self._clock.now_us() / MICROSECONDS < ends else 0

    def get_expiry(self, key: str) -> float:
        return self._counters.get(key, (0, 0.0))[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        with self._lock:
            count = len(self._counters)
            self._counters.clear()
        return count

    def clear(self, key: str) -> None:
        with self._lock:
            self._counters.pop(key, None)

    def _make_room(self, now: float) -> None:
        """Drop windows that are over, two at a time so that no hit pays for many, and the oldest where it is full."""
        for _ in range(2):
            oldest = next(iter(self._counters), None)
            if oldest is None:
                return
            if len(self._counters) < RATE_COUNTERS_MAX and now < self._counters[oldest][1]:
                return
            del self._counters[oldest]


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
