"""The newest reading of every sensor and the newest record of every external equipment."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TypeVar

import msgspec
import sqlalchemy as sa
from msgspec.structs import astuple

from sensorkeep.catalog.database import Database, Prepared
from sensorkeep.catalog.schema import latest_readings, latest_records
from sensorkeep.model import LatestReading, LatestRecord

_Latest = TypeVar("_Latest", LatestReading, LatestRecord)

_encode = msgspec.json.Encoder().encode
_decode_values = msgspec.json.Decoder(dict[str, float]).decode


class CatalogLatestReadings:
    """The LatestReadings of the catalog: two maps in memory, read at the start and saved now and then."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        # Held over a save, so that an older save never overtakes a newer one.
        self._saving = threading.Lock()
        self._readings: dict[str, LatestReading] = {}
        self._records: dict[str, LatestRecord] = {}
        self._changed_readings: set[str] = set()
        self._changed_records: set[str] = set()
        self._put_reading = self._newer_wins(latest_readings, LatestReading.__struct_fields__)
        record_columns = ("equipment_uuid", "sensor_id", "time_us", "id", "client_ip", "values_json")
        self._put_record = self._newer_wins(latest_records, record_columns)
        self._load()

    def offer(self, readings: Iterable[LatestReading], records: Iterable[LatestRecord] = ()) -> None:
        with self._lock:
            for reading in readings:
                _take(reading.sensor_uuid, reading, self._readings, self._changed_readings)
            for record in records:
                _take(record.equipment_uuid, record, self._records, self._changed_records)

    def reading(self, sensor_uuid: str) -> LatestReading | None:
        return self._readings.get(sensor_uuid)

    def record(self, equipment_uuid: str) -> LatestRecord | None:
        return self._records.get(equipment_uuid)

    def save(self) -> None:
        with self._saving:
            with self._lock:
                changed_readings, self._changed_readings = self._changed_readings, set()
                changed_records, self._changed_records = self._changed_records, set()
                # By key: neighbours share pages, and two processes take their row locks in the same order.
                readings = [self._readings[key] for key in sorted(changed_readings)]
                records = [self._records[key] for key in sorted(changed_records)]
            try:
                self._store(readings, records)
            except BaseException:
                with self._lock:
                    self._changed_readings |= changed_readings
                    self._changed_records |= changed_records
                raise

    def _store(self, readings: list[LatestReading], records: list[LatestRecord]) -> None:
        if not readings and not records:
            return

        def put(connection: sa.Connection) -> None:
            if readings:
                self._put_reading.run(connection, [astuple(reading) for reading in readings])
            if records:
                self._put_record.run(
                    connection, [(*astuple(record)[:5], _encode(record.values).decode()) for record in records]
                )

        self._database.transact(put)

    def _newer_wins(self, table: sa.Table, names: tuple[str, ...]) -> Prepared:
        statement = self._database.insert(table)
        replace = statement.on_conflict_do_update(
            index_elements=[names[0]],
            set_={name: statement.excluded[name] for name in names[1:]},
            where=statement.excluded.time_us >= table.c.time_us,
        )
        return self._database.prepare(replace, names)

    def _load(self) -> None:
        with self._database.read() as connection:
            for row in connection.execute(sa.select(latest_readings)):
                uuid, time_us, value, status, battery, rssi, lqi, battery_voltage = row
                self._readings[uuid] = LatestReading(
                    sensor_uuid=uuid,
                    time_us=time_us,
                    value=value,
                    status=status,
                    battery=battery,
                    rssi=rssi,
                    lqi=lqi,
                    battery_voltage=battery_voltage,
                )
            for row in connection.execute(sa.select(latest_records)):
                self._records[row.equipment_uuid] = LatestRecord(
                    equipment_uuid=row.equipment_uuid,
                    sensor_id=row.sensor_id,
                    time_us=row.time_us,
                    id=row.id,
                    client_ip=row.client_ip,
                    values=_decode_values(row.values_json),
                )


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
