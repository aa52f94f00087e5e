"""Hands decoded batches, and parsed single readings, to the worker of the same process, within a memory bound."""

from __future__ import annotations

import threading

from sensorkeep.decode.gathered import Entry
from sensorkeep.limits import HANDOFF_BYTES_MAX
from sensorkeep.model import DecodedBatch

_DESCRIPTION_BYTES = 600  # a Sensor or Equipment with its texts, about
_RECORD_BYTES = 500
_BATCH_BYTES = 4_000
_ENTRY_BYTES = 1_000  # a parsed request with its body and dictionary, about

Handed = DecodedBatch | tuple[Entry, ...]


class Handoff:
    """Batches by id. Thread-safe.

    A batch that does not fit is refused, never another one dropped: its worker decodes it again from storage.
    """

    def __init__(self, max_bytes: int = HANDOFF_BYTES_MAX) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._batches: dict[str, tuple[Handed, int]] = {}
        self._lock = threading.Lock()

    def offer(self, batch_id: str, batch: Handed) -> bool:
        """Keep the batch until it is taken; False where there is no room for it, or one of this id is kept."""
        size = _size(batch)
        with self._lock:
            if batch_id in self._batches or self._bytes + size > self._max_bytes:
                return False
            self._batches[batch_id] = (batch, size)
            self._bytes += size
            return True

    def take(self, batch_id: str) -> Handed | None:
        """The batch, which is kept no longer; None where it is not kept."""
        with self._lock:
            kept = self._batches.pop(batch_id, None)
            if kept is None:
                return None
            self._bytes -= kept[1]
            return kept[0]


def _size(batch: Handed) -> int:
    """Bytes of memory, about."""
    if isinstance(batch, tuple):
        return len(batch) * _ENTRY_BYTES
    return (
        batch.readings.get_total_buffer_size()
        + (len(batch.sensors) + len(batch.equipment)) * _DESCRIPTION_BYTES
        + len(batch.records) * _RECORD_BYTES
        + len(batch.rejections) * 9
        + _BATCH_BYTES
    )
