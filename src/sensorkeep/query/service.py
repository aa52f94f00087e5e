"""The questions of the query API, answered from the store and the catalog. Blocking and thread-safe, like its parts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import UTC, tzinfo
from typing import Any, Literal

import pyarrow as pa

from sensorkeep.catalog.base import BatchLedger, Inventory, LatestReadings
from sensorkeep.clock import MICROSECONDS, Clock, LocalTime, rfc3339
from sensorkeep.errors import InvalidInput, NotFound
from sensorkeep.limits import (
    EXTERNAL_ID_CHARS_MAX,
    INTERVAL_SECONDS_DEFAULT,
    NAME_CHARS_MAX,
    ONLINE_INTERVALS,
    PAGE_ROWS_MAX,
    RAW_RETENTION_DAYS,
)
from sensorkeep.model import Equipment, LatestReading, LatestRecord, Sensor, canonical_uuid, external_uuid
from sensorkeep.query.answers import (
    CatalogEquipment,
    CatalogSensor,
    EquipmentList,
    EquipmentStats,
    HomeAssistant,
    HomeAssistantHour,
    LatestOfEquipment,
    LatestOfSensor,
    LatestValue,
    SensorStats,
    State,
)
from sensorkeep.query.formats import (
    HistoryPage,
    empty_rows,
    metadata_of,
    numbers,
    rfc3339_texts,
    sensor_columns,
    shortest,
)
from sensorkeep.query.plan import (
    EquipmentPosition,
    HistoryPlan,
    encode_cursor,
    plan_equipment,
    plan_history,
    plan_hours,
    plan_stats,
    raw_kept_from,
    wanted_sensor_type,
)
from sensorkeep.tsdb.base import TimeSeriesStore

_IDENTIFIER_CHARS_MAX = EXTERNAL_ID_CHARS_MAX + 1 + NAME_CHARS_MAX  # the longest external id: sensor_id/quantity
_SINGLE_VALUES = ("temperature", "humidity", "pressure")


class QueryService:
    """Every read of the API.

    `identifier` is a uuid or an external id; an unknown one raises NotFound. `parameters` are query parameters as
    text (module plan says which); what cannot be served raises InvalidInput (`bad_parameter`).
    """

    def __init__(
        self,
        store: TimeSeriesStore,
        inventory: Inventory,
        latest: LatestReadings,
        ledger: BatchLedger,
        clock: Clock,
        *,
        display_timezone: tzinfo = UTC,
        raw_retention_days: int = RAW_RETENTION_DAYS,
    ) -> None:
        self._store = store
        self._inventory = inventory
        self._latest = latest
        self._ledger = ledger
        self._clock = clock
        self._display_time = LocalTime(display_timezone)
        self._raw_retention_days = raw_retention_days

    # --- history --------------------------------------------------------------------------------------------------

    def equipment_history(self, identifier: str, parameters: Mapping[str, str]) -> HistoryPage:
        """A page of the sensors of an equipment, by (time, sensor uuid)."""
        equipment = self._equipment(identifier)
        wanted = wanted_sensor_type(parameters)
        plan = self._plan_history(parameters, f"equipment/{equipment.uuid}/{wanted or ''}")
        return self._history("equipment", equipment.uuid, self._sensors_of(equipment.uuid, wanted), plan)

    def sensor_history(self, identifier: str, parameters: Mapping[str, str]) -> HistoryPage:
        """A page of one sensor, by time."""
        sensor = self._sensor(identifier)
        plan = self._plan_history(parameters, f"sensor/{sensor.uuid}")
        return self._history("sensor", sensor.uuid, [sensor], plan)

    def _plan_history(self, parameters: Mapping[str, str], subject: str) -> HistoryPlan:
        now_us = self._clock.now_us()
        return plan_history(parameters, subject, now_us, raw_kept_from(now_us, self._raw_retention_days))

    def _history(
        self, about: Literal["equipment", "sensor"], uuid: str, sensors: Sequence[Sensor], plan: HistoryPlan
    ) -> HistoryPage:
        # Read before the store is: a batch that settles in between is then promised too little, never too much.
        complete_until_us = self._complete_until_us()
        uuids = [sensor.uuid for sensor in sensors]
        after = None
        if plan.after:
            # The cursor names the sensor, for its index moves when the equipment gets another one between pages.
            after = (plan.after.time_us, bisect_right(uuids, plan.after.sensor_uuid) - 1)
        if not uuids:
            return HistoryPage(about, uuid, plan, sensors, empty_rows(plan.period), complete_until_us, None)
        bounds = (uuids, plan.start_us, plan.end_us, plan.limit + 1, after)
        rows = self._store.read_raw(*bounds) if plan.period == "raw" else self._store.read_rollup(plan.period, *bounds)
        next_cursor = None
        if rows.num_rows > plan.limit:
            rows = rows.slice(0, plan.limit)
            last_us = rows["time"][-1].cast(pa.int64()).as_py()
            next_cursor = plan.cursor(last_us, uuids[rows["sensor"][-1].as_py()])
        return HistoryPage(about, uuid, plan, sensors, rows, complete_until_us, next_cursor)

    def _complete_until_us(self) -> int:
        now_us = self._clock.now_us()
        pending_us = self._ledger.oldest_pending_us()
        return now_us if pending_us is None else min(now_us, pending_us)

    # --- statistics -----------------------------------------------------------------------------------------------

    def equipment_stats(self, identifier: str, parameters: Mapping[str, str]) -> EquipmentStats:
        """Statistics of each sensor of an equipment that has readings in the range, by sensor uuid."""
        equipment = self._equipment(identifier)
        wanted = wanted_sensor_type(parameters)
        plan = plan_stats(parameters, self._clock.now_us())
        sensors = self._sensors_of(equipment.uuid, wanted)
        answers: list[SensorStats] = []
        if sensors:
            rows = self._store.summarize([sensor.uuid for sensor in sensors], plan.start_us, plan.end_us)
            answers = [_sensor_stats(sensors[row["sensor"]], row) for row in rows.sort_by("sensor").to_pylist()]
        return EquipmentStats(equipment.uuid, plan.period, rfc3339(plan.start_us), rfc3339(plan.end_us), answers)

    def home_assistant(self, identifier: str, parameters: Mapping[str, str]) -> HomeAssistant:
        """The last hours of an equipment, the open one included, by (time, sensor uuid)."""
        equipment = self._equipment(identifier)
        wanted = wanted_sensor_type(parameters)
        plan = plan_hours(parameters, self._clock.now_us())
        sensors = self._sensors_of(equipment.uuid, wanted)
        if not sensors:
            return HomeAssistant(equipment.uuid, plan.hours, [])
        uuids = [sensor.uuid for sensor in sensors]
        rows = self._store.read_rollup("hour", uuids, plan.start_us, plan.end_us, PAGE_ROWS_MAX + 1)
        if rows.num_rows > PAGE_ROWS_MAX:
            raise InvalidInput(
                f"hours cannot be served: more than {PAGE_ROWS_MAX} rows; ask for fewer hours or for one sensor_type",
                code="bad_parameter",
                extra={"parameter": "hours"},
            )
        hours = map(
            HomeAssistantHour,
            rfc3339_texts(rows["time"]),
            *sensor_columns(rows, sensors),
            *(numbers(rows[name]) for name in ("average", "max", "min")),
            rows["count"].to_pylist(),
        )
        return HomeAssistant(equipment.uuid, plan.hours, list(hours))

    # --- the latest values ----------------------------------------------------------------------------------------

    @property
    def latest_is_in_memory(self) -> bool:
        """Whether `latest_known` never blocks, so that the event loop may call it."""
        return self._latest.in_memory

    def latest(self, identifier: str) -> dict[str, Any] | LatestOfSensor | LatestOfEquipment:
        """The newest of a sensor_id, a sensor or an equipment. Raises NotFound where there is none."""
        return self.latest_known(identifier) or self.latest_of_equipment(identifier)

    def latest_known(self, identifier: str) -> dict[str, Any] | LatestOfSensor | None:
        """The last single-reading request of a sensor_id, else the newest reading of a sensor; None where neither is
        known.

        Where an equipment and a quantity of another one share the external id, the equipment wins.
        """
        # An external id may look like a UUID; then its own UUID is another one.
        candidates = (canonical_uuid(identifier), external_uuid(identifier))
        readings, records = self._latest.find(candidates, candidates)
        for uuid in candidates:
            if record := records.get(uuid):
                return self._latest_single(record)
        for uuid in candidates:
            if reading := readings.get(uuid):
                return self._latest_of_sensor(identifier, reading)
        return None

    def latest_of_equipment(self, identifier: str) -> LatestOfEquipment:
        """The newest readings of an equipment without single readings. Raises NotFound where there are none."""
        try:
            equipment = self._equipment(identifier)
        except NotFound:
            raise NotFound(f"there is no sensor or equipment {identifier!r} with readings") from None
        sensors = self._sensors_of(equipment.uuid, None)
        readings, _ = self._latest.find([sensor.uuid for sensor in sensors])
        if not readings:
            raise NotFound(f"there is no reading of {identifier!r} yet")
        values = [_latest_value(sensor, readings[sensor.uuid]) for sensor in sensors if sensor.uuid in readings]
        newest_us = max(reading.time_us for reading in readings.values())
        date, time = self._display_time.date_and_time(newest_us)
        return LatestOfEquipment(_shown(identifier), equipment.uuid, date, time, rfc3339(newest_us), values)

    def _latest_single(self, record: LatestRecord) -> dict[str, Any]:
        date, time = self._display_time.date_and_time(record.time_us)
        answer: dict[str, Any] = {"id": record.id}
        answer |= dict.fromkeys(_SINGLE_VALUES)
        # Further quantities come before the rest, so that one that is called like a member cannot replace it.
        answer |= record.values
        answer |= {
            "id": record.id,
            "date_recorded": date,
            "time_recorded": time,
            "sensor_id": record.sensor_id,
            "client_ip": record.client_ip,
            "timestamp": rfc3339(record.time_us),
        }
        return answer

    def _latest_of_sensor(self, identifier: str, reading: LatestReading) -> LatestOfSensor:
        date, time = self._display_time.date_and_time(reading.time_us)
        return LatestOfSensor(
            _shown(identifier),
            reading.sensor_uuid,
            reading.value,
            reading.status,
            _metadata(reading),
            date,
            time,
            rfc3339(reading.time_us),
        )

    # --- the catalog ----------------------------------------------------------------------------------------------

    def equipment_list(self, parameters: Mapping[str, str]) -> EquipmentList:
        """A page of the equipment with their sensors, by uuid."""
        plan = plan_equipment(parameters)
        found = self._inventory.list_equipment(plan.limit + 1, plan.after_uuid)
        page = found[: plan.limit]
        next_cursor = encode_cursor("equipment", EquipmentPosition(page[-1].uuid)) if len(found) > plan.limit else None
        return EquipmentList(self._catalog_equipment(page), next_cursor)

    def equipment(self, identifier: str) -> CatalogEquipment:
        """One equipment with its sensors, by name."""
        (answer,) = self._catalog_equipment([self._equipment(identifier)])
        return answer

    def sensor(self, identifier: str) -> CatalogSensor:
        """One sensor."""
        sensor = self._sensor(identifier)
        readings, _ = self._latest.find([sensor.uuid])
        within_seconds = _online_within_seconds(self._equipment(sensor.equipment_uuid))
        return self._catalog_sensor(sensor, readings.get(sensor.uuid), within_seconds)

    def _catalog_equipment(self, equipment: Sequence[Equipment]) -> list[CatalogEquipment]:
        """With two look-ups for all of them together."""
        sensors = self._inventory.sensors_of_each([item.uuid for item in equipment])
        readings, _ = self._latest.find([sensor.uuid for of_one in sensors.values() for sensor in of_one])
        return [self._with_sensors(item, sensors.get(item.uuid, []), readings) for item in equipment]

    def _with_sensors(
        self, equipment: Equipment, sensors: Sequence[Sensor], readings: Mapping[str, LatestReading]
    ) -> CatalogEquipment:
        within_seconds = _online_within_seconds(equipment)
        known = [reading for sensor in sensors if (reading := readings.get(sensor.uuid))]
        newest = max(known, key=lambda reading: reading.time_us, default=None)
        state = self._state(newest, within_seconds)
        return CatalogEquipment(
            equipment_uuid=equipment.uuid,
            external_id=equipment.external_id,
            name=equipment.name,
            location=equipment.location,
            status=equipment.status,
            interval_seconds=equipment.interval_seconds,
            siren_active=equipment.siren_active,
            siren_seconds=equipment.siren_seconds,
            last_seen=rfc3339(newest.time_us) if newest else None,
            last_value=newest.value if newest else None,
            state=state,
            online=state == "online",
            online_within_seconds=within_seconds,
            sensors=[self._catalog_sensor(sensor, readings.get(sensor.uuid), within_seconds) for sensor in sensors],
        )

    def _catalog_sensor(self, sensor: Sensor, reading: LatestReading | None, within_seconds: float) -> CatalogSensor:
        state = self._state(reading, within_seconds)
        return CatalogSensor(
            sensor_uuid=sensor.uuid,
            equipment_uuid=sensor.equipment_uuid,
            external_id=sensor.external_id,
            sensor_name=sensor.name,
            sensor_type=sensor.type,
            sensor_unit=sensor.unit,
            manufacturer=sensor.manufacturer,
            model=sensor.model,
            firmware=sensor.firmware,
            hardware_id=sensor.hardware_id,
            via_hub=sensor.via_hub,
            last_seen=rfc3339(reading.time_us) if reading else None,
            last_value=reading.value if reading else None,
            last_status=reading.status if reading else None,
            state=state,
            online=state == "online",
            online_within_seconds=within_seconds,
        )

    def _state(self, newest: LatestReading | None, within_seconds: float) -> State:
        if newest is None:
            return "never_seen"
        age_us = self._clock.now_us() - newest.time_us
        return "online" if age_us <= within_seconds * MICROSECONDS else "offline"

    # --- look-ups -------------------------------------------------------------------------------------------------

    def _equipment(self, identifier: str) -> Equipment:
        return self._inventory.equipment(_possible(identifier))

    def _sensor(self, identifier: str) -> Sensor:
        return self._inventory.sensor(_possible(identifier))

    def _sensors_of(self, equipment_uuid: str, sensor_type: str | None) -> list[Sensor]:
        """By uuid: an order that renaming does not change, which a cursor can rely on."""
        return sorted(self._inventory.sensors_of(equipment_uuid, sensor_type), key=lambda sensor: sensor.uuid)


def _possible(identifier: str) -> str:
    # Not every database takes a NUL or any length in a text; none of them is an id anyway.
    if not identifier or len(identifier) > _IDENTIFIER_CHARS_MAX or "\x00" in identifier:
        raise NotFound("There is nothing with this id")
    return identifier


def _shown(identifier: str) -> str:
    """The identifier as it is answered: a UUID in its canonical form, an external id as it is."""
    uuid = canonical_uuid(identifier)
    return uuid if uuid == identifier.lower() else identifier


def _metadata(reading: LatestReading) -> dict[str, int | float] | None:
    battery, voltage = (
        None if value is None else shortest(value) for value in (reading.battery, reading.battery_voltage)
    )
    return metadata_of(battery, reading.rssi, reading.lqi, voltage)


def _latest_value(sensor: Sensor, reading: LatestReading) -> LatestValue:
    time = rfc3339(reading.time_us)
    return LatestValue(
        sensor.uuid, sensor.name, sensor.type, sensor.unit, reading.value, reading.status, _metadata(reading), time
    )


def _online_within_seconds(equipment: Equipment) -> float:
    interval_seconds = equipment.interval_seconds
    if interval_seconds is None or interval_seconds <= 0:
        interval_seconds = INTERVAL_SECONDS_DEFAULT
    return ONLINE_INTERVALS * interval_seconds


def _sensor_stats(sensor: Sensor, row: Mapping[str, Any]) -> SensorStats:
    return SensorStats(
        sensor_uuid=sensor.uuid,
        sensor_name=sensor.name,
        sensor_type=sensor.type,
        sensor_unit=sensor.unit,
        overall_avg=row["average"],
        overall_max=row["max"],
        overall_min=row["min"],
        total_samples=row["count"],
        active_periods=row["active_periods"],
        median=row["median"],
        p95=row["p95"],
        approximate=bool(row["approximate"]),
    )
