"""Any seam object with seeded faults: calls that fail, take long, happen twice, answer in another order, or end the
process."""

from __future__ import annotations

import enum
import random
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from sensorkeep.errors import Unavailable, Uncertain

Backend = TypeVar("Backend")


class Crashed(BaseException):
    """The process would have died here. Not an Exception: nothing may handle it but the simulation."""


class Fault(enum.StrEnum):
    """What can go wrong with a call, in the order in which it is decided."""

    DELAY = "delay"
    """It takes long: the callback is told for how many seconds."""
    FAIL_BEFORE = "fail_before"
    """Nothing is done; Unavailable."""
    CRASH_BEFORE = "crash_before"
    """Nothing is done; Crashed."""
    DUPLICATE = "duplicate"
    """It is done twice, as by a retry whose first answer was lost; the second answer counts."""
    FAIL_AFTER = "fail_after"
    """It is done and reported as failed; Uncertain."""
    CRASH_AFTER = "crash_after"
    """It is done and nobody learns of it; Crashed."""
    REORDER = "reorder"
    """It is done and answered in another order, one that the contract allows as well."""


Reorder = Callable[[random.Random, Any], Any]
"""Makes an answer of the same things in another order."""


class Faults:
    """Which faults hit which methods how often, and how often they did.

    `rates`: probability of each fault per call. `methods`: those that are hit. `idempotent`: those of them that
    DUPLICATE may hit. `reorder`: those that REORDER may hit, and how. `spared`: faults that never hit a method.
    `delay` takes seconds, 0 to `delay_seconds_max`; a simulation moves its clock by them.
    The same seed gives the same faults for the same sequence of calls. Thread-safe; then the order of the calls is
    the threads' affair.
    """

    def __init__(
        self,
        source: random.Random,
        rates: Mapping[Fault, float],
        methods: Collection[str],
        *,
        idempotent: Collection[str] = (),
        reorder: Mapping[str, Reorder] | None = None,
        spared: Mapping[str, Collection[Fault]] | None = None,
        delay: Callable[[float], None] | None = None,
        delay_seconds_max: float = 1.0,
        code: str = "dependency_down",
    ) -> None:
        if Fault.DELAY in rates and delay is None:
            raise ValueError("the fault delay needs a callback")
        self.active = True
        """Set to False to let every call through, for instance to let a simulation come to rest."""
        self.counts: Counter[tuple[str, Fault]] = Counter()
        """Faults that happened, by (method, fault)."""
        self.calls: Counter[str] = Counter()
        """Calls of the methods while active, with or without a fault."""
        self.methods = frozenset(methods)
        self._source = source
        self._rates = dict(rates)
        self._idempotent = frozenset(idempotent)
        self._reorder = dict(reorder or {})
        self._spared = dict(spared or {})
        self._delay = delay
        self._delay_seconds_max = delay_seconds_max
        self._code = code
        self._lock = threading.Lock()

    def total(self, fault: Fault) -> int:
        """How often the fault happened, over all methods."""
        return sum(count for (_, happened), count in self.counts.items() if happened is fault)

    def call(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `method` with the faults that chance decides."""
        if not self.active:
            return method(*args, **kwargs)
        drawn, seconds, order = self._draw(name)
        if self._happens(name, Fault.DELAY, drawn) and self._delay is not None:
            self._delay(seconds)
        self._end(name, drawn, Fault.FAIL_BEFORE, Fault.CRASH_BEFORE)
        if self._happens(name, Fault.DUPLICATE, drawn):
            method(*args, **kwargs)
        answer = method(*args, **kwargs)
        self._end(name, drawn, Fault.FAIL_AFTER, Fault.CRASH_AFTER)
        if self._happens(name, Fault.REORDER, drawn):
            return self._reorder[name](random.Random(order), answer)  # noqa: S311 - a seeded simulation
        return answer

    def _draw(self, name: str) -> tuple[set[Fault], float, float]:
        """The faults of one call, its delay, and the seed of its order. Always as many random numbers, so that one
        rate does not shift the others."""
        with self._lock:
            self.calls[name] += 1
            drawn = {fault for fault in Fault if self._source.random() < self._rates.get(fault, 0.0)}
            seconds = self._source.uniform(0.0, self._delay_seconds_max)
            order = self._source.random()
        if name not in self._idempotent:
            drawn.discard(Fault.DUPLICATE)
        if name not in self._reorder:
            drawn.discard(Fault.REORDER)
        return drawn.difference(self._spared.get(name, ())), seconds, order

    def _happens(self, name: str, fault: Fault, drawn: set[Fault]) -> bool:
        if fault not in drawn:
            return False
        with self._lock:
            self.counts[name, fault] += 1
        return True

    def _end(self, name: str, drawn: set[Fault], failure: Fault, crash: Fault) -> None:
        if self._happens(name, failure, drawn):
            kind = Uncertain if failure is Fault.FAIL_AFTER else Unavailable
            raise kind(f"injected fault: {failure} of {name}", code=self._code)
        if self._happens(name, crash, drawn):
            raise Crashed(f"injected fault: {crash} of {name}")


def faulty(backend: Backend, faults: Faults) -> Backend:
    """`backend` with `faults`. What a method returns, an iterator for instance, is the backend's own.

    Raises AttributeError where the backend lacks one of the methods.
    """
    for name in faults.methods:
        getattr(backend, name)
    return cast(Backend, _Faulty(backend, faults))


class _Faulty:
    def __init__(self, backend: object, faults: Faults) -> None:
        self._backend = backend
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._backend, name)
        if name not in self._faults.methods:
            return attribute

        def method(*args: Any, **kwargs: Any) -> Any:
            return self._faults.call(name, attribute, *args, **kwargs)

        return method
