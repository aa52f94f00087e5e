"""A claim queue that does what its contract allows and the embedded one never does: it delivers claims again."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from sensorkeep.clock import MICROSECONDS, Clock
from sensorkeep.model import Claim
from sensorkeep.queue.base import ClaimQueue, Delivery, QueueDepth

REMEMBERED_MAX = 50
"""Deliveries that may come again."""
AGAIN_SECONDS_MAX = 4 * 3600
"""A claim comes again within this time of its receipt: who must know what is done remembers it for some days."""


class RedeliveringQueue:
    """A ClaimQueue around `inner`, which may be replaced by another one on the same claims.

    With a probability of `rate` a fetch delivers some claims of the last hours once more, behind the others: they may
    be out still, or acknowledged. Acknowledging and releasing those copies does nothing.
    """

    def __init__(self, inner: ClaimQueue, clock: Clock, source: random.Random, rate: float = 0.0) -> None:
        self.inner = inner
        self.rate = rate
        self.redelivered = 0
        self.on_publish: Callable[[Sequence[Claim]], None] = lambda _: None
        """Called with the claims that the queue has taken, whatever their publisher is told then."""
        self._clock = clock
        self._source = source
        self._delivered: deque[Claim] = deque(maxlen=REMEMBERED_MAX)
        self._copies = count(-1, -1)

    def publish(self, claims: Sequence[Claim]) -> None:
        """See ClaimQueue."""
        self.inner.publish(claims)
        self.on_publish(claims)

    def fetch(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Delivery]:
        """See ClaimQueue."""
        taken = self.inner.fetch(max_claims, max_readings, wait_seconds)
        again = self._again()
        self._delivered.extend(delivery.claim for delivery in taken)
        return taken + again

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See ClaimQueue."""
        self.inner.ack(_originals(deliveries))

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """See ClaimQueue."""
        self.inner.release(_originals(deliveries))

    def depth(self) -> QueueDepth:
        """See ClaimQueue."""
        return self.inner.depth()

    def wake(self) -> None:
        """See ClaimQueue."""
        self.inner.wake()

    def check(self) -> None:
        """See ClaimQueue."""
        self.inner.check()

    def close(self) -> None:
        """See ClaimQueue."""
        self.inner.close()

    def _again(self) -> list[Delivery]:
        if self._source.random() >= self.rate:
            return []
        since_us = self._clock.now_us() - AGAIN_SECONDS_MAX * MICROSECONDS
        recent = [claim for claim in self._delivered if claim.received_us >= since_us]
        chosen = self._source.sample(recent, min(len(recent), self._source.randint(1, 3)))
        self.redelivered += len(chosen)
        return [Delivery(claim, next(self._copies), 1) for claim in chosen]


def reorder_sources(source: random.Random, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Deliveries as they may come where many machines share the queue: in order for each source alone."""
    credentials = [delivery.claim.credential for delivery in deliveries]
    source.shuffle(credentials)
    waiting: dict[str, deque[Delivery]] = {}
    for delivery in deliveries:
        waiting.setdefault(delivery.claim.credential, deque()).append(delivery)
    return [waiting[credential].popleft() for credential in credentials]


def reorder_list(source: random.Random, answer: Iterable[Any]) -> list[Any]:
    """An answer whose order means nothing, in another one."""
    mixed = list(answer)
    source.shuffle(mixed)
    return mixed


def _originals(deliveries: Sequence[Delivery]) -> list[Delivery]:
    return [delivery for delivery in deliveries if delivery.token >= 0]
