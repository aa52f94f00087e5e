"""Readings of external equipment (`sensor_id` with named quantities): what describes them, and their columns."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sensorkeep.decode.series import StatusIndex, readings_batch
from sensorkeep.limits import EXTERNAL_ID_CHARS_MAX, NAME_CHARS_MAX, QUANTITIES_PER_READING_MAX
from sensorkeep.model import (
    READINGS_SCHEMA,
    DecodedBatch,
    Equipment,
    LatestRecord,
    Rejections,
    Sensor,
    canonical_uuid,
    quantity_id,
)

UNITS = {"temperature": "°C", "humidity": "%", "pressure": "hPa"}
"""Units of the quantities that have one by convention (SensorFlow's)."""
STATUS_QUANTITY = "status"
"""The quantity of a reading that has a status and no value."""


class Metadata(NamedTuple):
    """What may be said of a reading beside its value: percent, dBm, 0..255, volt."""

    battery: float | None = None
    rssi: float | None = None
    lqi: float | None = None
    battery_voltage: float | None = None


NO_METADATA = Metadata()
METADATA_RANGES = {"battery": (0, 100), "rssi": (-200, 100), "lqi": (0, 255), "battery_voltage": (0, 1000)}
"""From least to most of what is believed, in the order of Metadata."""


@lru_cache(maxsize=65_536)
def describe_equipment(sensor_id: str) -> Equipment:
    """The equipment that the external id `sensor_id` stands for."""
    uuid = canonical_uuid(sensor_id)
    return Equipment(uuid=uuid, external_id=None if sensor_id.lower() == uuid else sensor_id)


@lru_cache(maxsize=65_536)
def describe_quantity(sensor_id: str, quantity: str) -> Sensor:
    """The sensor that measures `quantity` at `sensor_id`."""
    external_id = quantity_id(sensor_id, quantity)
    return Sensor(
        uuid=canonical_uuid(external_id),
        equipment_uuid=describe_equipment(sensor_id).uuid,
        external_id=external_id,
        name=quantity,
        type=quantity,
        unit=UNITS.get(quantity),
    )


def sensor_id_problem(value: object) -> str | None:
    """What is wrong with a sensor_id; None where nothing is."""
    if type(value) is str and 0 < len(value) <= EXTERNAL_ID_CHARS_MAX:
        return None
    return f"must be a text of 1 to {EXTERNAL_ID_CHARS_MAX} characters"


def quantity_problem(name: str) -> str | None:
    """What is wrong with the name of a quantity; None where nothing is."""
    if 0 < len(name) <= NAME_CHARS_MAX and "/" not in name:
        return None
    return f"the name of a quantity must have 1 to {NAME_CHARS_MAX} characters and no '/'"


def number_problem(value: object) -> str | None:
    """What is wrong with a number of a JSON document; None where nothing is."""
    if type(value) is float or (type(value) is int and abs(value) < _FLOAT_BOUND):
        return None
    return "must be a finite number"


def count_problem(count: int) -> str | None:
    """What is wrong with the number of quantities in a reading; None where nothing is."""
    if count <= QUANTITIES_PER_READING_MAX:
        return None
    return f"must hold at most {QUANTITIES_PER_READING_MAX} quantities"


_FLOAT_BOUND = 10**308


class QuantityColumns:
    """Collects readings of external equipment, one row for each quantity."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], int] = {}
        self._sensors: dict[str, Sensor] = {}
        self._equipment: dict[str, Equipment] = {}
        self._rows: list[int] = []
        self._times: list[int] = []
        self._values: list[float] = []
        self._statuses: list[str | None] = []
        self._metadata: list[Metadata] = []

    def add(
        self,
        sensor_id: str,
        quantity: str,
        time_us: int,
        value: float,
        status: str | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> None:
        """Append a row. A `value` of NaN means that there is none."""
        series = self._series.get((sensor_id, quantity))
        if series is None:
            series = self._enter(sensor_id, quantity)
        self._rows.append(series)
        self._times.append(time_us)
        self._values.append(value)
        self._statuses.append(status)
        self._metadata.append(metadata)

    @property
    def row_count(self) -> int:
        """Rows appended so far."""
        return len(self._rows)

    def finish(
        self, *, objects: int, rejections: Rejections | None = None, records: tuple[LatestRecord, ...] = ()
    ) -> DecodedBatch:
        """All of it."""
        statuses = StatusIndex()
        metadata = None
        if self._metadata.count(NO_METADATA) < len(self._metadata):
            metadata = [np.array([m[i] for m in self._metadata], np.float64) for i in range(len(NO_METADATA))]
        chunk = readings_batch(
            np.array(self._rows, np.int32),
            np.array(self._times, np.int64),
            np.array(self._values, np.float64),
            statuses.codes(pa.array(self._statuses, pa.string())),
            metadata,
        )
        table = pa.Table.from_batches([statuses.complete(chunk)], READINGS_SCHEMA)
        return DecodedBatch(
            tuple(self._equipment.values()),
            tuple(self._sensors.values()),
            table,
            Rejections() if rejections is None else rejections,
            records,
            objects,
        )

    def _enter(self, sensor_id: str, quantity: str) -> int:
        sensor = describe_quantity(sensor_id, quantity)
        self._equipment.setdefault(sensor.equipment_uuid, describe_equipment(sensor_id))
        if sensor.uuid not in self._sensors:
            self._sensors[sensor.uuid] = sensor
            series = len(self._sensors) - 1
        else:  # another spelling of the same UUID
            series = list(self._sensors).index(sensor.uuid)
        self._series[sensor_id, quantity] = series
        return series
