"""The rate limit counters of one process. The `limits` library has a storage for that, too, but it starts a thread per
burst and cannot be bounded."""

from __future__ import annotations

import threading

from limits.storage import Storage

from sensorkeep.clock import MICROSECONDS, Clock
from sensorkeep.limits import RATE_COUNTERS_MAX

WINDOW_SECONDS = 60


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

    def close(self) -> None:
        """End what runs on threads: nothing here. Idempotent."""

    def _make_room(self, now: float) -> None:
        """Drop windows that are over, two at a time so that no hit pays for many, and the oldest where it is full."""
        for _ in range(2):
            oldest = next(iter(self._counters), None)
            if oldest is None:
                return
            if len(self._counters) < RATE_COUNTERS_MAX and now < self._counters[oldest][1]:
                return
            del self._counters[oldest]
