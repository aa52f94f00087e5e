"""The answers of the query API, field by field: what is encoded, and what the OpenAPI document says.

A field with a default is left out while it has it; every other field is always there, null where nothing is known.
Times are RFC 3339 UTC with `Z`.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from sensorkeep.query.plan import HistoryPeriod, StatsPeriod

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Row = TypeVar("Row")
State = Literal["online", "offline", "never_seen"]
Approximate = Annotated[
    bool, Meta(description="True where percentiles come from the mergeable form; left out where all is exact.")
]
Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
NextCursor = Annotated[str | None, Meta(description="Repeat the call with it as `cursor`; null on the last page.")]
CompleteUntil = Annotated[
    Time, Meta(description="Every accepted reading before this time is in the answer; later ones may be on their way.")
]


class SensorBucket(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An hour or a day of one sensor. `time` is its start; numbers are null where no reading had a value."""

    time: Time
    avg_value: float | None
    max_value: float | None
    min_value: float | None
    sample_count: int
    active_minutes: int
    stddev_value: float | None
    median_value: float | None
    p95_value: float | None
    p99_value: float | None
    approximate: Approximate = False


class EquipmentBucket(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An hour or a day of one sensor of an equipment; see the fields of SensorBucket."""

    time: Time
    sensor_uuid: Uuid
    sensor_name: str | None
    sensor_type: str | None
    sensor_unit: str | None
    avg_value: float | None
    max_value: float | None
    min_value: float | None
    sample_count: int
    active_minutes: int
    stddev_value: float | None
    median_value: float | None
    p95_value: float | None
    p99_value: float | None
    approximate: Approximate = False


Metadata = Annotated[
    dict[str, int | float] | None,
    Meta(description="Those known of battery (%), rssi (dBm), lqi, battery_voltage (V); null where none is."),
]


class SensorReading(msgspec.Struct, frozen=True, gc=False):
    """One reading of one sensor."""

    time: Time
    value: float | None
    status: str | None
    metadata: Metadata


class EquipmentReading(msgspec.Struct, frozen=True, gc=False):
    """One reading of one sensor of an equipment."""

    time: Time
    sensor_uuid: Uuid
    sensor_name: str | None
    sensor_type: str | None
    sensor_unit: str | None
    value: float | None
    status: str | None
    metadata: Metadata


class EquipmentHistory(msgspec.Struct, Generic[Row], frozen=True):
    """A page of history of an equipment, by time, then sensor uuid."""

    equipment_uuid: Uuid
    period: HistoryPeriod
    start_date: Time
    end_date: Time
    complete_until: CompleteUntil
    data: list[Row]
    next_cursor: NextCursor


class SensorHistory(msgspec.Struct, Generic[Row], frozen=True):
    """A page of history of a sensor, by time."""

    sensor_uuid: Uuid
    period: HistoryPeriod
    start_date: Time
    end_date: Time
    complete_until: CompleteUntil
    data: list[Row]
    next_cursor: NextCursor


class SensorStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sensor over the whole range. `overall_avg` is weighted by samples."""

    sensor_uuid: Uuid
    sensor_name: str | None
    sensor_type: str | None
    sensor_unit: str | None
    overall_avg: float | None
    overall_max: float | None
    overall_min: float | None
    total_samples: int
    active_periods: Annotated[int, Meta(description="Hours with a reading (24h, 7d) or days with one (30d, 1y).")]
    median: float | None
    p95: float | None
    approximate: Approximate = False


class EquipmentStats(msgspec.Struct, frozen=True):
    """Statistics of the sensors that have readings in the range."""

    equipment_uuid: Uuid
    period: StatsPeriod
    start_date: Annotated[
        Time, Meta(description="Moved back to an hour boundary for 7d, to a day boundary (UTC) for 30d and 1y.")
    ]
    end_date: Time
    sensors: list[SensorStats]


class HomeAssistantHour(msgspec.Struct, frozen=True, gc=False):
    """One hour of one sensor; `value` is the average."""

    time: Time
    sensor_uuid: Uuid
    sensor_name: str | None
    sensor_type: str | None
    unit: str | None
    value: float | None
    max: float | None
    min: float | None
    samples: int


class HomeAssistant(msgspec.Struct, frozen=True):
    """The last hours of an equipment, the open hour included, by time, then sensor uuid."""

    equipment_uuid: Uuid
    period_hours: int
    data: list[HomeAssistantHour]


class LatestSingle(msgspec.Struct, frozen=True):
    """The last single-reading request of a sensor_id, as its POST was answered. Further quantities are members too."""

    id: int
    temperature: float | None
    humidity: float | None
    pressure: float | None
    date_recorded: Annotated[str, Meta(description="In the display time zone.", extra_json_schema={"format": "date"})]
    time_recorded: Annotated[str, Meta(description="In the display time zone, HH:MM:SS.")]
    sensor_id: str
    client_ip: str
    timestamp: Time


class LatestOfSensor(msgspec.Struct, frozen=True):
    """The newest reading of one sensor, asked for by its uuid or its external id."""

    sensor_id: Annotated[str, Meta(description="The identifier asked for; a uuid in its canonical form.")]
    sensor_uuid: Uuid
    value: float | None
    status: str | None
    metadata: Metadata
    date_recorded: str
    time_recorded: str
    timestamp: Time


class LatestValue(msgspec.Struct, frozen=True):
    """The newest reading of one sensor of an equipment."""

    sensor_uuid: Uuid
    sensor_name: str | None
    sensor_type: str | None
    sensor_unit: str | None
    value: float | None
    status: str | None
    metadata: Metadata
    timestamp: Time


class LatestOfEquipment(msgspec.Struct, frozen=True):
    """The newest readings of an equipment that was not fed by single readings; `timestamp` is the newest of them."""

    sensor_id: str
    equipment_uuid: Uuid
    date_recorded: str
    time_recorded: str
    timestamp: Time
    sensors: list[LatestValue]


LastSeen = Annotated[Time | None, Meta(description="Time of the newest reading; null before the first one.")]
Online = Annotated[
    bool,
    Meta(description="Whether the newest reading is at most `online_within_seconds` old; false before the first one."),
]
OnlineWithin = Annotated[
    float,
    Meta(description="2.5 times the expected interval of the equipment (interval_seconds, 300 where it is unknown)."),
]


class CatalogSensor(msgspec.Struct, frozen=True, kw_only=True):
    """A sensor, its newest value, and whether it is heard of as often as expected."""

    sensor_uuid: Uuid
    equipment_uuid: Uuid
    external_id: str | None
    sensor_name: str | None
    sensor_type: str | None
    sensor_unit: str | None
    manufacturer: str | None
    model: str | None
    firmware: str | None
    hardware_id: str | None
    via_hub: str | None
    last_seen: LastSeen
    last_value: float | None
    last_status: str | None
    state: State
    online: Online
    online_within_seconds: OnlineWithin


class CatalogEquipment(msgspec.Struct, frozen=True, kw_only=True):
    """An equipment and its sensors. It is online where one of its sensors is."""

    equipment_uuid: Uuid
    external_id: str | None
    name: str | None
    location: str | None
    status: str | None
    interval_seconds: int | None
    siren_active: bool | None
    siren_seconds: int | None
    last_seen: LastSeen
    last_value: Annotated[float | None, Meta(description="Value of the sensor that was seen last.")]
    state: State
    online: Online
    online_within_seconds: OnlineWithin
    sensors: list[CatalogSensor]


class EquipmentList(msgspec.Struct, frozen=True):
    """A page of the equipment, by uuid."""

    equipment: list[CatalogEquipment]
    next_cursor: NextCursor


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of an answer with every reference written out, so that it stands alone in the document."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template="{name}")
    inlined: dict[str, Any] = _inline(schema, components)
    return inlined


def _inline(node: Any, components: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inline(part, components) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return _inline(components[node["$ref"]], components) | rest
    return {key: _inline(value, components) for key, value in node.items()}
