"""Equipment and sensors in the catalog's database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa
from msgspec.structs import astuple
from sqlalchemy.dialects import sqlite

from sensorkeep.catalog.database import AnyRow, Database
from sensorkeep.catalog.prepared import Prepared
from sensorkeep.catalog.schema import equipment as equipment_table
from sensorkeep.catalog.schema import sensors as sensors_table
from sensorkeep.errors import NotFound
from sensorkeep.limits import DESCRIPTIONS_CACHED_MAX, DESCRIPTIONS_TRUSTED_SECONDS
from sensorkeep.model import Equipment, Sensor, canonical_uuid

_Described = TypeVar("_Described", Equipment, Sensor)


class _Remembered:
    """Hashes of the descriptions stored last, by uuid, in two generations: a full one becomes the old one and what
    is still used moves over, so that bounding it costs nothing per look-up.

    With `trusted_seconds` each is forgotten once in that time, at a moment of its own: another process may have stored
    something else meanwhile.
    """

    def __init__(self, entries_max: int, trusted_seconds: int | None) -> None:
        self._generation_max = max(1, entries_max // 2)
        self._trusted_seconds = trusted_seconds
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def holds(self, description: Equipment | Sensor, now: float) -> bool:
        """Whether exactly this was the last description stored under its uuid. `now`: a monotonic clock's seconds."""
        uuid = description.uuid
        known = self._young.get(uuid)
        if known is None:
            known = self._old.get(uuid)
            if known is None:
                return False
            self._put(uuid, known)
        return known == self._mark(description, now)

    def add(self, description: Equipment | Sensor, now: float) -> None:
        """Remember a description that was stored."""
        self._put(description.uuid, self._mark(description, now))

    def _mark(self, description: Equipment | Sensor, now: float) -> int:
        if self._trusted_seconds is None:
            return hash(description)
        # Another number each time the uuid's own moment has passed.
        period = int(now + hash(description.uuid) % self._trusted_seconds) // self._trusted_seconds
        return hash((description, period))

    def _put(self, uuid: str, mark: int) -> None:
        if len(self._young) >= self._generation_max:
            self._old = self._young
            self._young = {}
        self._young[uuid] = mark


class CatalogInventory:
    """The Inventory of the catalog."""

    def __init__(
        self,
        database: Database,
        descriptions_cached_max: int = DESCRIPTIONS_CACHED_MAX,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._monotonic = monotonic
        self._lock = threading.Lock()
        # A catalog in a file has one process that describes.
        trusted_seconds = None if database.is_sqlite else DESCRIPTIONS_TRUSTED_SECONDS
        self._equipment_stored = _Remembered(descriptions_cached_max // 4, trusted_seconds)
        self._sensors_stored = _Remembered(descriptions_cached_max, trusted_seconds)
        self._put_equipment = self._merge(equipment_table, Equipment)
        self._put_sensor = self._merge(sensors_table, Sensor)
        self._put_unknown_equipment = database.prepare_insert(
            equipment_table, ["uuid"], lambda insert: insert.on_conflict_do_nothing()
        )

    def describe(self, equipment: Iterable[Equipment], sensors: Iterable[Sensor]) -> None:
        # Held over the write: what is remembered last must be what was stored last.
        with self._lock:
            now = self._monotonic()
            new_equipment = [item for item in equipment if not self._equipment_stored.holds(item, now)]
            new_sensors = [item for item in sensors if not self._sensors_stored.holds(item, now)]
            if new_equipment or new_sensors:
                self._store(new_equipment, new_sensors)
                for item in new_equipment:
                    self._equipment_stored.add(item, now)
                for sensor in new_sensors:
                    self._sensors_stored.add(sensor, now)

    def equipment(self, identifier: str) -> Equipment:
        return self._find(_FIND_EQUIPMENT, Equipment, identifier, "equipment")

    def sensor(self, identifier: str) -> Sensor:
        return self._find(_FIND_SENSOR, Sensor, identifier, "sensor")

    def sensors_of(self, equipment_uuid: str, sensor_type: str | None = None) -> list[Sensor]:
        statement = _SENSORS_OF
        if sensor_type is not None:
            statement = statement.where(sensors_table.c.type == sensor_type)
        with self._database.read() as connection:
            found = [_from_row(Sensor, row) for row in connection.execute(statement, {"wanted_uuid": equipment_uuid})]
        # Sorted here, since databases disagree about nulls and about the order of letters.
        return sorted(found, key=_by_name)

    def sensors_of_each(self, equipment_uuids: Sequence[str]) -> dict[str, list[Sensor]]:
        found: dict[str, list[Sensor]] = {}
        with self._database.read() as connection:
            for row in connection.execute(_SENSORS_OF_EACH, {"wanted_uuids": list(equipment_uuids)}):
                sensor = _from_row(Sensor, row)
                found.setdefault(sensor.equipment_uuid, []).append(sensor)
        for sensors in found.values():
            sensors.sort(key=_by_name)
        return found

    def list_equipment(self, limit: int, after_uuid: str = "") -> list[Equipment]:
        statement = (
            sa.select(equipment_table)
            .where(equipment_table.c.uuid > after_uuid)
            .order_by(equipment_table.c.uuid)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_from_row(Equipment, row) for row in connection.execute(statement)]

    def _store(self, equipment: Sequence[Equipment], sensors: Sequence[Sensor]) -> None:
        owners = sorted({sensor.equipment_uuid for sensor in sensors} - {item.uuid for item in equipment})
        # By uuid: two processes take their row locks in the same order. Of one uuid the last one still stands last.
        by_uuid = [
            [astuple(item) for item in sorted(items, key=lambda item: item.uuid)] for items in (equipment, sensors)
        ]

        def put(connection: sa.Connection) -> None:
            if equipment:
                self._put_equipment.run(connection, by_uuid[0])
            if owners:
                self._put_unknown_equipment.run(connection, [(uuid,) for uuid in owners])
            if sensors:
                self._put_sensor.run(connection, by_uuid[1])

        self._database.transact(put)

    def _merge(self, table: sa.Table, kind: type[Equipment] | type[Sensor]) -> Prepared:
        names = kind.__struct_fields__

        def keep_what_is_not_said(insert: sqlite.Insert) -> sa.Insert:
            said = {name: sa.func.coalesce(insert.excluded[name], table.c[name]) for name in names if name != "uuid"}
            if self._database.is_sqlite:
                return insert.on_conflict_do_update(index_elements=["uuid"], set_=said)
            # What is stored again because it is no longer trusted is mostly the same: PostgreSQL would write it anew.
            news = sa.or_(*(table.c[name].is_distinct_from(value) for name, value in said.items()))
            return insert.on_conflict_do_update(index_elements=["uuid"], set_=said, where=news)

        return self._database.prepare_insert(table, names, keep_what_is_not_said)

    def _find(self, statement: sa.Select[Any], kind: type[_Described], identifier: str, what: str) -> _Described:
        wanted = {"wanted_uuid": canonical_uuid(identifier), "wanted_external_id": identifier}
        with self._database.read() as connection:
            row = connection.execute(statement, wanted).one_or_none()
        return _missing(what, identifier) if row is None else _from_row(kind, row)


def _by_identifier(table: sa.Table) -> sa.Select[Any]:
    """One row by uuid or external id. An external id that looks like a UUID is found by its text; the uuid goes
    first where both match."""
    uuid = sa.bindparam("wanted_uuid", type_=sa.Text)
    by_uuid = table.c.uuid == uuid
    by_external_id = table.c.external_id == sa.bindparam("wanted_external_id", type_=sa.Text)
    return sa.select(table).where(sa.or_(by_uuid, by_external_id)).order_by(sa.case((by_uuid, 0), else_=1)).limit(1)


def _by_name(sensor: Sensor) -> tuple[str, str]:
    return sensor.name or "", sensor.uuid


def _missing(what: str, identifier: str) -> NoReturn:
    raise NotFound(f"there is no {what} {identifier!r}")


def _from_row(kind: type[_Described], row: AnyRow) -> _Described:
    return kind(**dict(zip(kind.__struct_fields__, row, strict=True)))


# Built once: building a statement costs more than running it.
_FIND_EQUIPMENT = _by_identifier(equipment_table)
_FIND_SENSOR = _by_identifier(sensors_table)
_SENSORS_OF = sa.select(sensors_table).where(
    sensors_table.c.equipment_uuid == sa.bindparam("wanted_uuid", type_=sa.Text)
)
_SENSORS_OF_EACH = sa.select(sensors_table).where(
    sensors_table.c.equipment_uuid.in_(sa.bindparam("wanted_uuids", expanding=True))
)
