"""Spares callers the wait for a service that is down."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Breaker:
    """Remembers that a service failed. Thread-safe, and nearly free while the service works.

    After a failure nobody need try for `pause_seconds`; then one caller at a time does, and the others are spared until
    that one has told how it went (or `try_seconds_max` later, where it never does).
    """

    def __init__(self, monotonic: Callable[[], float], *, pause_seconds: float, try_seconds_max: float) -> None:
        self._monotonic = monotonic
        self._pause_seconds = pause_seconds
        self._try_seconds_max = try_seconds_max
        self._lock = threading.Lock()
        self._next_try: float | None = None
        """None while the service works."""

    @property
    def closed(self) -> bool:
        """Whether the service worked when it was used last."""
        return self._next_try is None

    def admit(self) -> bool:
        """Whether to try now. Who was admitted must call `succeeded` or `failed`."""
        if self._next_try is None:
            return True
        with self._lock:
            now = self._monotonic()
            if self._next_try is not None and now < self._next_try:
                return False
            if self._next_try is not None:
                self._next_try = now + self._try_seconds_max
            return True

    def succeeded(self) -> bool:
        """The service answered. True where it was down before."""
        if self._next_try is None:
            return False
        with self._lock:
            was_down, self._next_try = self._next_try is not None, None
            return was_down

    def failed(self) -> bool:
        """The service did not answer. True where it worked before."""
        with self._lock:
            worked = self._next_try is None
            self._next_try = self._monotonic() + self._pause_seconds
            return worked
