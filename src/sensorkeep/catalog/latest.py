"""The newest reading of every sensor and the newest record of every external equipment, in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TypeVar

from sensorkeep.catalog.database import Database
from sensorkeep.catalog.latest_table import LatestTable
from sensorkeep.model import LatestReading, LatestRecord

_Latest = TypeVar("_Latest", LatestReading, LatestRecord)


class CatalogLatestReadings:
    """The LatestReadings of one process: two maps in memory, read at the start and saved now and then."""

    in_memory = True

    def __init__(self, database: Database) -> None:
        self._table = LatestTable(database)
        self._lock = threading.Lock()
        # Held over a save, so that an older save never overtakes a newer one.
        self._saving = threading.Lock()
        readings, records = self._table.all()
        self._readings = {reading.sensor_uuid: reading for reading in readings}
        self._records = {record.equipment_uuid: record for record in records}
        self._changed_readings: set[str] = set()
        self._changed_records: set[str] = set()

    def offer(
        self, readings: Iterable[LatestReading], records: Iterable[LatestRecord] = (), *, again: bool = False
    ) -> None:
        with self._lock:
            for reading in readings:
                _take(reading.sensor_uuid, reading, self._readings, self._changed_readings)
            for record in records:
                _take(record.equipment_uuid, record, self._records, self._changed_records)

    def reading(self, sensor_uuid: str) -> LatestReading | None:
        return self._readings.get(sensor_uuid)

    def record(self, equipment_uuid: str) -> LatestRecord | None:
        return self._records.get(equipment_uuid)

    def find(
        self, sensor_uuids: Sequence[str], equipment_uuids: Sequence[str] = ()
    ) -> tuple[dict[str, LatestReading], dict[str, LatestRecord]]:
        readings = {uuid: found for uuid in sensor_uuids if (found := self._readings.get(uuid)) is not None}
        return readings, {uuid: one for uuid in equipment_uuids if (one := self._records.get(uuid)) is not None}

    def save(self) -> None:
        with self._saving:
            with self._lock:
                changed_readings, self._changed_readings = self._changed_readings, set()
                changed_records, self._changed_records = self._changed_records, set()
                readings = [self._readings[key] for key in changed_readings]
                records = [self._records[key] for key in changed_records]
            try:
                self._table.put(readings, records)
            except BaseException:
                with self._lock:
                    self._changed_readings |= changed_readings
                    self._changed_records |= changed_records
                raise


def _take(key: str, offered: _Latest, known: dict[str, _Latest], changed: set[str]) -> None:
    """Replace what is known unless it is newer, or the same."""
    present = known.get(key)
    if (
        present is None
        or offered.time_us > present.time_us
        or (offered.time_us == present.time_us and offered != present)
    ):
        known[key] = offered
        changed.add(key)
