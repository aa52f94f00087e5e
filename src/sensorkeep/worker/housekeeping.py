"""What is done once in a while: old payloads and old ledger entries go."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, takewhile

from sensorkeep import limits
from sensorkeep.catalog.base import BatchLedger
from sensorkeep.clock import DAY_US, MICROSECONDS, Clock
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.queue.base import ClaimQueue


class Housekeeper:
    """Applies the retention of payloads, batches and quarantine; call it often, it works once an hour."""

    def __init__(
        self, *, object_store: ObjectStore, queue: ClaimQueue, ledger: BatchLedger, clock: Clock, retention_days: int
    ) -> None:
        self._object_store = object_store
        self._queue = queue
        self._ledger = ledger
        self._clock = clock
        self._retention_days = retention_days
        self._due_at = clock.monotonic()

    def __call__(self) -> None:
        """Work if an hour has passed. Raises Unavailable."""
        if not self._retention_days or self._clock.monotonic() < self._due_at:
            return
        self._due_at = self._clock.monotonic() + limits.HOUSEKEEPING_SECONDS
        before_us = self._clock.now_us() - self._retention_days * DAY_US
        oldest_us = self._queue.depth().oldest_us
        if oldest_us is not None:  # a payload that a waiting claim names must stay, however old
            before_us = min(before_us, oldest_us - limits.CLAIM_DISORDER_SECONDS_MAX * MICROSECONDS)
        self._delete_payloads(before_us)
        self._ledger.purge(before_us)

    def _delete_payloads(self, before_us: int) -> None:
        moment = datetime.fromtimestamp(before_us // MICROSECONDS, UTC)
        end = f"telemetry/{moment:%Y-%m-%d-%H-%M-%S}"
        # Keys begin with their time, so what comes after the first newer one is newer.
        old = takewhile(lambda stored: stored.key < end, self._object_store.list("telemetry/"))
        while keys := [stored.key for stored in islice(old, limits.PAYLOADS_DELETED_AT_ONCE)]:
            self._object_store.delete(*keys)
