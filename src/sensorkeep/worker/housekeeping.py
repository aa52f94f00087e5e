"""What is done once in a while: old payloads and old ledger entries go, and batches whose claim is gone end."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, takewhile

import structlog

from sensorkeep import limits
from sensorkeep.catalog.base import Batch, BatchLedger, Settlement
from sensorkeep.clock import DAY_US, MICROSECONDS, Clock
from sensorkeep.model import Claim, Counts, Rejections, WireFormat
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.queue.base import ClaimQueue

log = structlog.get_logger(__name__)


class Housekeeper:
    """Applies the retention of payloads, batches and quarantine; call it often, it works once an hour.

    A claim that was damaged on the disk is no longer in the queue. Its batch would be pending for ever, and no answer
    complete: it ends as a dead letter, which can be replayed while its payload is kept.
    """

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
        if self._clock.monotonic() < self._due_at:
            return
        self._due_at = self._clock.monotonic() + limits.HOUSEKEEPING_SECONDS
        now_us = self._clock.now_us()
        oldest_us = self._queue.depth().oldest_us
        # What was received before this waits no more.
        worked_off_us = (now_us if oldest_us is None else oldest_us) - limits.CLAIM_DISORDER_SECONDS_MAX * MICROSECONDS
        self._bury_abandoned(worked_off_us)
        if self._retention_days:
            # A payload that a waiting claim names must stay, however old.
            before_us = min(now_us - self._retention_days * DAY_US, worked_off_us)
            self._delete_payloads(before_us)
            self._ledger.purge(before_us)

    def _bury_abandoned(self, before_us: int) -> None:
        """End the batches received before `before_us` that never ended: their claims are gone."""
        pending = self._ledger.batches("accepted", limits.ABANDONED_AT_ONCE_MAX, (before_us, ""))
        abandoned = [batch for batch in pending if batch.stored_us is None]  # else a replay of it runs
        if abandoned:
            self._ledger.settle([_dead_letter(batch) for batch in abandoned])
            for batch in abandoned:
                log.error("dead_letter", batch_id=batch.batch_id, detail=_GONE)

    def _delete_payloads(self, before_us: int) -> None:
        moment = datetime.fromtimestamp(before_us // MICROSECONDS, UTC)
        end = f"telemetry/{moment:%Y-%m-%d-%H-%M-%S}"
        # Keys begin with their time, so what comes after the first newer one is newer.
        old = takewhile(lambda stored: stored.key < end, self._object_store.list("telemetry/"))
        while keys := [stored.key for stored in islice(old, limits.PAYLOADS_DELETED_AT_ONCE)]:
            self._object_store.delete(*keys)


_GONE = "its claim is gone from the queue, or did not read back"


def _dead_letter(batch: Batch) -> Settlement:
    """The end of a batch of which only the ledger's entry is left."""
    claim = Claim(
        batch_id=batch.batch_id,
        wire_format=WireFormat(batch.wire_format),
        received_us=batch.received_us,
        readings=batch.readings,
        quarantined=batch.quarantined,
        object_key=batch.object_key,
    )
    return Settlement(claim, Counts(), Rejections(), dead_letter=_GONE)
