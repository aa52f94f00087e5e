"""Hands decoded batches, and parsed single readings, to the worker of the same process, within a memory bound."""

from __future__ import annotations

import math
import threading
import time

from sensorkeep.decode.gathered import Entry
from sensorkeep.limits import HANDOFF_BYTES_MAX
from sensorkeep.model import DecodedBatch

_DESCRIPTION_BYTES = 600  # a Sensor or Equipment with its texts, about
_RECORD_BYTES = 500
_NEWEST_BYTES = 200
_BATCH_BYTES = 4_000
_ENTRY_BYTES = 1_000  # a parsed request with its body and dictionary, about

Handed = DecodedBatch | tuple[Entry, ...]


class Handoff:
    """Batches by id. Thread-safe.

    A batch that does not fit is refused, never another one dropped: its worker decodes it again from storage.
    """

    def __init__(self, max_bytes: int = HANDOFF_BYTES_MAX, patience_seconds: float = 0.0) -> None:
        self._max_bytes = max_bytes
        self._patience_seconds = patience_seconds
        self._bytes = 0
        self._batches: dict[str, tuple[Handed, int]] = {}
        self._changed = threading.Condition()
        self._taken_at = -math.inf

    def offer(self, batch_id: str, batch: Handed, *, patient: bool = False) -> bool:
        """Keep the batch until it is taken; False where there is no room for it, or one of this id is kept.

        With `patient` it waits for room, at most `patience_seconds`, and only while the worker takes what is kept: who
        sends more than it can take is slowed down, rather than that it decodes all of it again.
        """
        size = _size(batch)
        asked_at = time.monotonic()
        with self._changed:
            if batch_id in self._batches or size > self._max_bytes:
                return False
            while self._bytes + size > self._max_bytes:
                left = min(asked_at, self._taken_at) + self._patience_seconds - time.monotonic()
                if not patient or left <= 0:
                    return False
                self._changed.wait(left)
            self._batches[batch_id] = (batch, size)
            self._bytes += size
            return True

    def take(self, batch_id: str) -> Handed | None:
        """The batch, which is kept no longer; None where it is not kept."""
        with self._changed:
            batch = self._remove(batch_id)
            if batch is not None:
                self._taken_at = time.monotonic()
            return batch

    def withdraw(self, batch_id: str) -> None:
        """Keep the batch no longer, if it is kept: its claim did not come about."""
        with self._changed:
            self._remove(batch_id)

    def _remove(self, batch_id: str) -> Handed | None:
        kept = self._batches.pop(batch_id, None)
        if kept is None:
            return None
        self._bytes -= kept[1]
        self._changed.notify_all()
        return kept[0]


def _size(batch: Handed) -> int:
    """Bytes of memory, about."""
    if isinstance(batch, tuple):
        return len(batch) * _ENTRY_BYTES
    return (
        batch.readings.get_total_buffer_size()
        + (len(batch.sensors) + len(batch.equipment)) * _DESCRIPTION_BYTES
        + len(batch.records) * _RECORD_BYTES
        + len(batch.newest or ()) * _NEWEST_BYTES
        + len(batch.rejections) * 9
        + _BATCH_BYTES
    )
