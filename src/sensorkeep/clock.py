"""Time and identifiers, injected so that tests and simulations decide both."""

from __future__ import annotations

import random
import threading
import time
import uuid
from datetime import UTC, datetime, tzinfo
from typing import Protocol

MICROSECONDS = 1_000_000
MINUTE_US = 60 * MICROSECONDS
HOUR_US = 3600 * MICROSECONDS
DAY_US = 24 * HOUR_US


class Clock(Protocol):
    """Wall time and monotonic time. Thread-safe."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01T00:00:00Z."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us
        self._elapsed = 0.0

    def now_us(self) -> int:
        return self._now_us

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now_us += int(seconds * MICROSECONDS)
        self._elapsed += seconds

    def set_wall(self, now_us: int) -> None:
        """Set the wall clock, forward or back, as a person or a time server does; monotonic time does not notice."""
        self._now_us = now_us


class IdSource:
    """Makes UUID version 7 strings (RFC 9562 section 5.7): 48 bits of milliseconds, then random bits. Thread-safe."""

    def __init__(self, clock: Clock, source: random.Random | None = None) -> None:
        self._clock = clock
        self._random = source or random.SystemRandom()
        self._lock = threading.Lock()

    def new(self) -> str:
        """A new identifier; ids made in different milliseconds sort by time."""
        with self._lock:
            tail = self._random.getrandbits(74)
        milliseconds = self._clock.now_us() // 1000
        number = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | (tail >> 62) << 64 | 0b10 << 62 | tail & (2**62 - 1)
        return str(uuid.UUID(int=number))


def rfc3339(time_us: int) -> str:
    """`time_us` (microseconds since the epoch) as RFC 3339 UTC with `Z`, e.g. 2024-01-15T10:00:00Z."""
    moment = datetime.fromtimestamp(time_us // MICROSECONDS, UTC).replace(
        microsecond=time_us % MICROSECONDS, tzinfo=None
    )
    return moment.isoformat() + "Z"


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch of an aware datetime, exactly."""
    delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * MICROSECONDS + delta.microseconds


class LocalTime:
    """Dates and times as a clock on the wall of `zone` shows them. Remembers the second it told last."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._last: tuple[int, str, str] = (-1, "", "")

    def date_and_time(self, time_us: int) -> tuple[str, str]:
        """`time_us` as ("2025-08-16", "14:30:45")."""
        second = time_us // MICROSECONDS
        last = self._last
        if last[0] != second:
            moment = datetime.fromtimestamp(second, self._zone)
            self._last = last = (second, moment.strftime("%Y-%m-%d"), moment.strftime("%H:%M:%S"))
        return last[1], last[2]
