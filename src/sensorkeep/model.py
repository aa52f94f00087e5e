"""The words of the domain: readings in columns, what describes them, claims, counts.

Times are integers named `*_us`: microseconds since 1970-01-01T00:00:00Z. UUIDs are canonical lower-case strings.
"""

from __future__ import annotations

import enum
import uuid
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from sensorkeep.limits import EXCERPT_CHARS_MAX, EXCERPTS_KEPT_MAX

NAMESPACE = uuid.UUID("38193ea9-c75e-5832-9006-3f0ec7d45151")
"""uuid5(NAMESPACE_DNS, "sensorkeep"): the namespace of every external id (SPEC section 2). It must never change."""

_READING_FIELDS: list[pa.Field[Any]] = [
    pa.field("series", pa.int32(), nullable=False),  # index into DecodedBatch.sensors
    pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("value", pa.float64()),  # finite or null
    pa.field("status", pa.dictionary(pa.int32(), pa.string())),
    pa.field("battery", pa.float32()),  # percent
    pa.field("rssi", pa.int16()),  # dBm
    pa.field("lqi", pa.int16()),  # 0..255
    pa.field("battery_voltage", pa.float32()),  # volt
]
READINGS_SCHEMA = pa.schema(_READING_FIELDS)
"""One row a reading, in the order accepted. `value` and `status` are never both null."""


def external_uuid(external_id: str) -> str:
    """The stable UUID of an external id: uuid5(NAMESPACE, external_id)."""
    return str(uuid.uuid5(NAMESPACE, external_id))


def canonical_uuid(text: str) -> str:
    """The canonical form of `text` where it is a UUID, else the stable UUID of `text` as an external id."""
    if len(text) == 36:
        try:
            return str(uuid.UUID(text))
        except ValueError:
            pass
    return external_uuid(text)


def quantity_id(external_id: str, quantity: str) -> str:
    """The external id of one quantity of an external equipment: `sensor_id/quantity`."""
    return f"{external_id}/{quantity}"


class Equipment(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True):
    """What is known of an equipment. None: not said, keep what was known."""

    uuid: str
    external_id: str | None = None
    name: str | None = None
    location: str | None = None
    status: str | None = None
    interval_seconds: int | None = None
    siren_active: bool | None = None
    siren_seconds: int | None = None


class Sensor(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True):
    """What is known of a sensor. None: not said, keep what was known."""

    uuid: str
    equipment_uuid: str
    external_id: str | None = None
    name: str | None = None
    type: str | None = None
    unit: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    firmware: str | None = None
    hardware_id: str | None = None
    via_hub: str | None = None


class Reason(enum.StrEnum):
    """Why a reading was quarantined."""

    BAD_TIMESTAMP = "bad_timestamp"
    TOO_OLD = "too_old"
    IN_FUTURE = "in_future"
    NO_VALUE = "no_value"
    MISSING_EQUIPMENT = "missing_equipment"
    MISSING_SENSOR = "missing_sensor"
    BAD_READING = "bad_reading"
    """The element is not an object, or a field the decoder needs has another type."""
    DEAD_LETTER = "dead_letter"
    """The whole batch was set aside; see its errors."""


_REASONS = list(Reason)


class Rejection(NamedTuple):
    """One unusable reading: its position in the request, why, and what it said (cut, None past a bound)."""

    equipment: int
    sensor: int
    reason: Reason
    excerpt: str | None


class Rejections:
    """The unusable readings of a batch, compact: nine bytes each, with the first EXCERPTS_KEPT_MAX excerpts."""

    def __init__(self) -> None:
        self._equipment = array("I")
        self._sensor = array("I")
        self._reason = array("B")
        self._excerpts: list[str] = []

    def add(self, equipment: int, sensor: int, reason: Reason, content: str = "") -> None:
        """Append one. `equipment` and `sensor` are the indexes in the request (0 where it has no such level)."""
        self._equipment.append(equipment)
        self._sensor.append(sensor)
        self._reason.append(_REASONS.index(reason))
        if len(self._excerpts) < EXCERPTS_KEPT_MAX:
            self._excerpts.append(content[:EXCERPT_CHARS_MAX])

    def __len__(self) -> int:
        return len(self._equipment)

    def __iter__(self) -> Iterator[Rejection]:
        for i in range(len(self)):
            yield self[i]

    def __getitem__(self, i: int) -> Rejection:
        excerpt = self._excerpts[i] if i < len(self._excerpts) else None
        return Rejection(self._equipment[i], self._sensor[i], _REASONS[self._reason[i]], excerpt)


class LatestReading(msgspec.Struct, frozen=True, gc=False):
    """The newest reading of a sensor by reading time."""

    sensor_uuid: str
    time_us: int
    value: float | None = None
    status: str | None = None
    battery: float | None = None
    rssi: int | None = None
    lqi: int | None = None
    battery_voltage: float | None = None


class LatestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The newest single-reading request of an external equipment: what its POST was answered with."""

    equipment_uuid: str
    sensor_id: str
    time_us: int
    id: int
    client_ip: str
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """A request in columns. `readings` has READINGS_SCHEMA; its `series` indexes `sensors`.

    Every sensor's equipment is in `equipment`; each uuid appears once in either tuple (the last description wins).
    """

    equipment: tuple[Equipment, ...]
    sensors: tuple[Sensor, ...]
    readings: pa.Table
    rejections: Rejections = field(default_factory=Rejections)
    records: tuple[LatestRecord, ...] = ()
    """The single-reading requests in it, in order."""
    objects: int = 0
    """Top-level objects in the request (equipment objects of the bulk form)."""
    newest: Sequence[LatestReading] | None = None
    """The newest reading of each sensor, where they are picked already; see `decode/newest.py`."""

    @property
    def received(self) -> int:
        """Readings received: usable and rejected."""
        return self.readings.num_rows + len(self.rejections)


class Counts(msgspec.Struct, frozen=True):
    """What became of the readings of a batch that were not quarantined."""

    stored: int = 0
    updated: int = 0
    duplicate: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.stored + other.stored, self.updated + other.updated, self.duplicate + other.duplicate)

    @property
    def total(self) -> int:
        """Readings counted."""
        return self.stored + self.updated + self.duplicate


class WireFormat(enum.StrEnum):
    """How a payload is read back; one decoder each."""

    ESM_BULK = "esm-bulk"
    """The Easy Smart Monitor array of equipment objects (JSON)."""
    READINGS = "readings"
    """The body of POST /readings: one object or an array (JSON)."""
    GATHERED = "gathered"
    """Several small requests in one payload; see decode/gathered.py."""


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The small message that stands for one accepted batch. Payload: inline, or an object named by `object_key`.

    It carries all that decoding needs, so that a second decode gives the same result whatever the settings are then.
    """

    batch_id: str
    wire_format: WireFormat
    received_us: int
    readings: int
    """Usable and quarantined."""
    quarantined: int = 0
    credential: str = ""
    """Id of the credential that sent it, for the audit and for ordering by source."""
    object_key: str | None = None
    payload: bytes | None = None
    naive_timezone: str = "UTC"
    oldest_allowed_us: int | None = None
    """Readings before this are too_old; None allows all (backfill, or raw kept for ever)."""
    newest_allowed_us: int | None = None
    """Readings after this are in_future; None: received_us + FUTURE_TOLERANCE_SECONDS. A replay sets it later."""
    oldest_us: int | None = None
    newest_us: int | None = None
    """Earliest and latest reading time in it."""
    urgent: bool = False
    """Somebody waits for it (`Prefer: wait`): do not gather."""
    replay_of: str | None = None
    """Set on a replay: the batch whose quarantined readings are tried again."""
