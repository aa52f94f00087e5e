"""Whether the parts this process depends on work: asked in threads, with a time limit, and not too often."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sensorkeep.clock import Clock
from sensorkeep.errors import SensorkeepError, Unavailable
from sensorkeep.limits import HEALTH_CACHED_SECONDS, HEALTH_CHECK_SECONDS
from sensorkeep.web.problems import report_problem

Figures = Mapping[str, float | int | str | None]
Check = Callable[[], Figures | None]
"""Proves that a dependency works: blocking, raises where it does not. May answer figures, such as its lag, which only
the detailed health tells."""


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """One dependency at one moment. `error` is None where it works."""

    latency_seconds: float
    error: SensorkeepError | None = None
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """All of them. `accepting`: those that ingest needs work."""

    services: Mapping[str, ServiceHealth]
    accepting: bool

    @property
    def healthy(self) -> bool:
        """Whether everything works."""
        return all(service.error is None for service in self.services.values())


class HealthMonitor:
    """Runs the checks. On the event loop.

    An answer is shared for HEALTH_CACHED_SECONDS and among all who ask meanwhile. A check that hangs counts as down and
    is not started again before it has returned, so that a stuck dependency costs one thread.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        needed_to_accept: Collection[str],
        clock: Clock,
        *,
        timeout_seconds: float = HEALTH_CHECK_SECONDS,
        cached_seconds: float = HEALTH_CACHED_SECONDS,
    ) -> None:
        unknown = set(needed_to_accept) - set(checks)
        if unknown:
            raise ValueError(f"no check is named {sorted(unknown)[0]!r}")
        self._checks = dict(checks)
        self._needed = frozenset(needed_to_accept)
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._cached_seconds = cached_seconds
        self._running: dict[str, asyncio.Future[ServiceHealth]] = {}
        self._round: asyncio.Task[Health] | None = None
        self._known: tuple[float, Health] | None = None

    async def health(self) -> Health:
        """The health now, or as of a moment ago."""
        if self._known is not None and self._clock.monotonic() - self._known[0] < self._cached_seconds:
            return self._known[1]
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._ask_all())
        # Shielded: one who stops waiting must not take the answer from the others.
        return await asyncio.shield(self._round)

    async def _ask_all(self) -> Health:
        answers = await asyncio.gather(*(self._ask(name) for name in self._checks))
        services = dict(zip(self._checks, answers, strict=True))
        health = Health(services, all(services[name].error is None for name in self._needed))
        self._known = (self._clock.monotonic(), health)
        return health

    async def _ask(self, name: str) -> ServiceHealth:
        running = self._running.get(name)
        if running is None or running.done():
            running = self._running[name] = self._start(name, self._checks[name])
        done, _ = await asyncio.wait([running], timeout=self._timeout_seconds)
        if not done:
            late = Unavailable(f"{name} did not answer within {self._timeout_seconds} s", code="dependency_down")
            return ServiceHealth(self._timeout_seconds, late)
        return running.result()

    def _start(self, name: str, check: Check) -> asyncio.Future[ServiceHealth]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ServiceHealth] = loop.create_future()

        def run() -> None:
            answer = _time(check, self._clock)
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future, answer)

        # A thread of its own, as a daemon: an executor would make the end of the process wait for a check that hangs.
        threading.Thread(target=run, name=f"health-{name}", daemon=True).start()
        return future


def _time(check: Check, clock: Clock) -> ServiceHealth:
    started = clock.monotonic()
    error: SensorkeepError | None = None
    figures: Figures | None = None
    try:
        figures = check()
    except SensorkeepError as raised:
        error = raised
    except Exception as raised:  # noqa: BLE001  The outermost frame of its thread: reported, and told as down.
        report_problem(raised)
        error = SensorkeepError("the check failed unexpectedly; the log has the details", code="internal")
    return ServiceHealth(clock.monotonic() - started, error, figures or {})


def _resolve(future: asyncio.Future[Any], answer: ServiceHealth) -> None:
    if not future.done():
        future.set_result(answer)
