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
    """A ClaimQueue around `inner`.

    With a probability of `rate` a fetch delivers some claims of the last hours once more, behind the others: they may
    be out still, or acknowledged. Such a copy is owed, like every claim, until it is acknowledged.
    """

    def __init__(self, inner: ClaimQueue, clock: Clock, source: random.Random, rate: float = 0.0) -> None:
        self.rate = rate
        self.redelivered = 0
        """Copies made so far."""
        self.on_publish: Callable[[Sequence[Claim]], None] = lambda _: None
        """Called with the claims that the queue has taken, whatever their publisher is told then."""
        self._inner = inner
        self._clock = clock
        self._source = source
        self._delivered: deque[Claim] = deque(maxlen=REMEMBERED_MAX)
        self._numbers = count(-1, -1)
        self._copies: dict[int, Claim] = {}
        """Copies that are owed, by their token."""
        self._out: set[int] = set()
        """Those of them that are taken."""

    def reopen(self, inner: ClaimQueue) -> None:
        """The queue was opened anew, as `inner`: what was taken and not acknowledged is delivered again."""
        self._inner = inner
        self._out.clear()

    def publish(self, claims: Sequence[Claim]) -> None:
        """See ClaimQueue."""
        self._inner.publish(claims)
        self.on_publish(claims)

    def fetch(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Delivery]:
        """See ClaimQueue."""
        taken = self._inner.fetch(max_claims, max_readings, wait_seconds)
        self._copy_some()
        self._delivered.extend(delivery.claim for delivery in taken)
        due = [token for token in self._copies if token not in self._out]
        self._out.update(due)
        return taken + [Delivery(self._copies[token], token, 1) for token in due]

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See ClaimQueue."""
        self._inner.ack([delivery for delivery in deliveries if delivery.token >= 0])
        for delivery in deliveries:
            self._copies.pop(delivery.token, None)
            self._out.discard(delivery.token)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """See ClaimQueue."""
        self._inner.release([delivery for delivery in deliveries if delivery.token >= 0])
        self._out.difference_update(delivery.token for delivery in deliveries)

    def depth(self) -> QueueDepth:
        """See ClaimQueue."""
        claims, oldest_us = self._inner.depth()
        return QueueDepth(claims + len(self._copies), oldest_us)

    def wake(self) -> None:
        """See ClaimQueue."""
        self._inner.wake()

    def check(self) -> None:
        """See ClaimQueue."""
        self._inner.check()

    def close(self) -> None:
        """See ClaimQueue."""
        self._inner.close()

    def _copy_some(self) -> None:
        if self._source.random() >= self.rate:
            return
        since_us = self._clock.now_us() - AGAIN_SECONDS_MAX * MICROSECONDS
        recent = [claim for claim in self._delivered if claim.received_us >= since_us]
        for claim in self._source.sample(recent, min(len(recent), self._source.randint(1, 3))):
            self._copies[next(self._numbers)] = claim
            self.redelivered += 1


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
