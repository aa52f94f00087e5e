"""The claim queue in memory, for tests."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sensorkeep.clock import Clock
from sensorkeep.errors import Unavailable
from sensorkeep.limits import FETCH_BYTES_MAX
from sensorkeep.model import Claim
from sensorkeep.queue.base import Delivery, QueueDepth


class MemoryClaimQueue:
    """A ClaimQueue whose claims live as long as it does; `restarted` gives what a new process would find."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._state = threading.Condition()
        self._claims: dict[int, Claim] = {}
        """By token, in order."""
        self._attempts: dict[int, int] = {}
        self._taken: set[int] = set()
        self._last_token = 0
        self._wakes = 0
        self._closed = False

    def restarted(self) -> MemoryClaimQueue:
        """Close this queue and return it as after a restart: all that is not acknowledged is delivered again."""
        self.close()
        fresh = MemoryClaimQueue(self._clock)
        fresh._claims = dict(sorted(self._claims.items()))
        fresh._attempts = dict(self._attempts)
        fresh._last_token = self._last_token
        return fresh

    def publish(self, claims: Sequence[Claim]) -> None:
        with self._state:
            self._check_open()
            for claim in claims:
                self._last_token += 1
                self._claims[self._last_token] = claim
            self._state.notify_all()

    def fetch(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Delivery]:
        with self._state:
            wakes = self._wakes
            self._state.wait_for(
                lambda: self._closed or self._wakes != wakes or len(self._taken) < len(self._claims), wait_seconds
            )
            return [] if self._closed else self._take(max_claims, max_readings)

    def _take(self, max_claims: int, max_readings: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        readings = size = 0
        for token, claim in self._claims.items():
            if token in self._taken:
                continue
            readings += claim.readings
            size += len(claim.payload or b"")
            fits = len(deliveries) < max_claims and readings <= max_readings and size <= FETCH_BYTES_MAX
            if deliveries and not fits:
                break
            self._attempts[token] = self._attempts.get(token, 0) + 1
            deliveries.append(Delivery(claim, token, self._attempts[token]))
        self._taken.update(delivery.token for delivery in deliveries)
        return deliveries

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        with self._state:
            self._check_open()
            for delivery in deliveries:
                self._claims.pop(delivery.token, None)
                self._attempts.pop(delivery.token, None)
                self._taken.discard(delivery.token)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        with self._state:
            self._taken.difference_update(delivery.token for delivery in deliveries)
            self._state.notify_all()

    def depth(self) -> QueueDepth:
        with self._state:
            self._check_open()
            oldest = next(iter(self._claims.values()), None)
            return QueueDepth(len(self._claims), oldest.received_us if oldest else None)

    def wake(self) -> None:
        with self._state:
            self._wakes += 1
            self._state.notify_all()

    def check(self) -> None:
        with self._state:
            self._check_open()

    def close(self) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the queue is closed")
