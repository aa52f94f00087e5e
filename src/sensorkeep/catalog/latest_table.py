"""The tables of newest values in the catalog's database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import sqlalchemy as sa
from msgspec.structs import astuple

from sensorkeep.catalog.database import Database
from sensorkeep.catalog.prepared import Prepared
from sensorkeep.catalog.schema import latest_readings, latest_records
from sensorkeep.limits import LATEST_LOOKED_UP_ROWS
from sensorkeep.model import LatestReading, LatestRecord

_encode = msgspec.json.Encoder().encode
_decode_values = msgspec.json.Decoder(dict[str, float]).decode

_RECORD_COLUMNS = ("equipment_uuid", "sensor_id", "time_us", "id", "client_ip", "values_json")


class LatestTable:
    """Newest readings and records as they were saved. A row never gives way to an older one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._put_reading = self._newer_wins(latest_readings, LatestReading.__struct_fields__)
        self._put_record = self._newer_wins(latest_records, _RECORD_COLUMNS)

    def put(self, readings: Iterable[LatestReading], records: Iterable[LatestRecord]) -> None:
        """Enter those that are not older than what is there. Durable when it returns. Raises Unavailable."""
        # By key: neighbours share pages, and two processes take their row locks in the same order.
        reading_rows = sorted((astuple(reading) for reading in readings), key=lambda row: row[0])
        record_rows = sorted(
            ((*astuple(record)[:5], _encode(record.values).decode()) for record in records), key=lambda row: row[0]
        )
        if not reading_rows and not record_rows:
            return

        def put(connection: sa.Connection) -> None:
            if reading_rows:
                self._put_reading.run(connection, reading_rows)
            if record_rows:
                self._put_record.run(connection, record_rows)

        self._database.transact(put)

    def all(self) -> tuple[list[LatestReading], list[LatestRecord]]:
        """Every row."""
        with self._database.read() as connection:
            return (
                list(_readings(connection.execute(sa.select(latest_readings)))),
                list(_records(connection.execute(sa.select(latest_records)))),
            )

    def find(
        self, sensor_uuids: Sequence[str], equipment_uuids: Sequence[str]
    ) -> tuple[list[LatestReading], list[LatestRecord]]:
        """The rows of these sensors and of this equipment; those there are. Raises Unavailable."""
        readings: list[LatestReading] = []
        records: list[LatestRecord] = []
        with self._database.read() as connection:
            for portion in _portions(sensor_uuids):
                of_sensors = sa.select(latest_readings).where(latest_readings.c.sensor_uuid.in_(portion))
                readings += _readings(connection.execute(of_sensors))
            for portion in _portions(equipment_uuids):
                of_equipment = sa.select(latest_records).where(latest_records.c.equipment_uuid.in_(portion))
                records += _records(connection.execute(of_equipment))
        return readings, records

    def _newer_wins(self, table: sa.Table, names: tuple[str, ...]) -> Prepared:
        return self._database.prepare_insert(
            table,
            names,
            lambda insert: insert.on_conflict_do_update(
                index_elements=[names[0]],
                set_={name: insert.excluded[name] for name in names[1:]},
                where=insert.excluded.time_us >= table.c.time_us,
            ),
        )


def _portions(uuids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(uuids), LATEST_LOOKED_UP_ROWS):
        yield uuids[start : start + LATEST_LOOKED_UP_ROWS]


def _readings(rows: Iterable[sa.Row[*tuple[object, ...]]]) -> Iterator[LatestReading]:
    for row in rows:
        yield LatestReading(**dict(zip(LatestReading.__struct_fields__, row, strict=True)))  # type: ignore[arg-type]


def _records(rows: Iterable[sa.Row[*tuple[object, ...]]]) -> Iterator[LatestRecord]:
    for row in rows:
        yield LatestRecord(
            equipment_uuid=row.equipment_uuid,
            sensor_id=row.sensor_id,
            time_us=row.time_us,
            id=row.id,
            client_ip=row.client_ip,
            values=_decode_values(row.values_json),
        )
