"""The newest reading of every sensor and the newest record of every external equipment, in one process."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from sensorkeep.catalog.database import Database
from sensorkeep.catalog.latest_table import LatestTable
from sensorkeep.model import LatestReading, LatestRecord

_Latest = TypeVar("_Latest", bound=LatestReading | LatestRecord)


class CatalogLatestReadings:
    """The LatestReadings of one process: two maps in memory, read at the start and saved now and then."""

    in_memory = True

    def __init__(self, database: Database) -> None:
        self._table = LatestTable(database)
        self._lock = threading.Lock()
        # Held over a save, so that an older save never overtakes a newer one.
        self._saving = threading.Lock()
        readings, records = self._table.all()
        self._readings: _Newest[LatestReading] = _Newest({reading.sensor_uuid: reading for reading in readings})
        self._records: _Newest[LatestRecord] = _Newest({record.equipment_uuid: record for record in records})

    def offer(
        self,
        readings: Iterable[LatestReading],
        records: Iterable[LatestRecord] = (),
        *,
        batch_ids: Collection[str] = (),
        again: bool = False,
    ) -> None:
        with self._lock:
            self._readings.offer(((reading.sensor_uuid, reading) for reading in readings), batch_ids, again)
            self._records.offer(((record.equipment_uuid, record) for record in records), batch_ids, again)

    def reading(self, sensor_uuid: str) -> LatestReading | None:
        return self._readings.known.get(sensor_uuid)

    def record(self, equipment_uuid: str) -> LatestRecord | None:
        return self._records.known.get(equipment_uuid)

    def find(
        self, sensor_uuids: Sequence[str], equipment_uuids: Sequence[str] = ()
    ) -> tuple[dict[str, LatestReading], dict[str, LatestRecord]]:
        return _those(self._readings.known, sensor_uuids), _those(self._records.known, equipment_uuids)

    def save(self) -> None:
        with self._saving:
            with self._lock:
                changed_readings, self._readings.changed = self._readings.changed, set()
                changed_records, self._records.changed = self._records.changed, set()
                readings = [self._readings.known[key] for key in changed_readings]
                records = [self._records.known[key] for key in changed_records]
            try:
                self._table.put(readings, records)
            except BaseException:
                with self._lock:
                    self._readings.changed |= changed_readings
                    self._records.changed |= changed_records
                raise


class _Newest(Generic[_Latest]):
    """The newest value by uuid."""

    def __init__(self, known: dict[str, _Latest]) -> None:
        self.known = known
        self.changed: set[str] = set()
        """Whose value is not saved yet."""
        self._corrected_by: dict[str, str] = {}
        """By uuid, the batch whose accepted value replaced one of the same time. Until the worker comes to that batch,
        what it finds in the batches before it is older news."""

    def offer(self, values: Iterable[tuple[str, _Latest]], batch_ids: Collection[str], again: bool) -> None:
        """See LatestReadings."""
        corrected_by = self._corrected_by
        for uuid, offered in values:
            present = self.known.get(uuid)
            if present is None or offered.time_us > present.time_us:
                corrected_by.pop(uuid, None)
            elif offered.time_us < present.time_us:
                continue
            elif again:
                if uuid in corrected_by:
                    if corrected_by[uuid] not in batch_ids:
                        continue
                    del corrected_by[uuid]
            elif offered != present:
                corrected_by.update((uuid, batch_id) for batch_id in batch_ids)
            if offered != present:
                self.known[uuid] = offered
                self.changed.add(uuid)


def _those(known: Mapping[str, _Latest], uuids: Sequence[str]) -> dict[str, _Latest]:
    return {uuid: found for uuid in uuids if (found := known.get(uuid)) is not None}
