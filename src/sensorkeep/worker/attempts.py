"""Keeps a batch whose write ends the process (no memory, a fault in a driver) from ending every process after it.

An attempt is noted before the write and crossed out after it, whatever came of it: an attempt that is still noted ended
its process. That costs nothing while all goes well: attempts are noted only where a process has just started or a claim
comes again. A batch that was in the middle of such an end is written alone from then on, so that the guilty one is
found, and after some more ends it is given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sensorkeep.catalog.base import Attempts
from sensorkeep.errors import Unavailable
from sensorkeep.queue.base import Delivery


class Portion(NamedTuple):
    """Deliveries to write together."""

    deliveries: list[Delivery]
    deaths: int
    """Processes that ended in the middle of it; only a portion of one batch has any."""

    @property
    def batch_ids(self) -> list[str]:
        """The batches in it."""
        return [delivery.claim.batch_id for delivery in self.deliveries]


class AttemptKeeper:
    """Notes attempts for one worker."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._left: set[str] = set()
        """Batches whose attempts this process outlived and could not cross out."""

    def portions(self, deliveries: Sequence[Delivery]) -> list[Portion]:
        """The deliveries in their order, those that ended a process alone. Raises Unavailable."""
        self._cross_out()
        deaths = self._attempts.unfinished([delivery.claim.batch_id for delivery in deliveries])
        portions: list[Portion] = []
        for delivery in deliveries:
            own = deaths.get(delivery.claim.batch_id, 0)
            if own or not portions or portions[-1].deaths:
                portions.append(Portion([], own))
            portions[-1].deliveries.append(delivery)
        return portions

    @contextmanager
    def noted(self, portion: Portion) -> Iterator[None]:
        """Note the attempt for the time of the block. Raises Unavailable where it cannot be noted."""
        try:
            self._attempts.begin(portion.batch_ids)
            yield
        finally:
            self.forget(portion.batch_ids)

    def forget(self, batch_ids: Sequence[str]) -> None:
        """Cross out the attempts of batches that ended no process, or are given up."""
        self._left.update(batch_ids)
        with suppress(Unavailable):  # before the next portions it is tried again
            self._cross_out()

    def _cross_out(self) -> None:
        if self._left:
            self._attempts.end(sorted(self._left))
            self._left.clear()
