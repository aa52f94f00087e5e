"""The fields of the Easy Smart Monitor form that are read, and what to do where their types are unexpected.

This is the only place that knows the form's Portuguese names.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from sensorkeep.limits import EXCERPT_CHARS_MAX, TEXT_CHARS_MAX
from sensorkeep.model import Equipment, Sensor

Scalar = str | float | bool | None
Number = str | float | None
"""A field that should be a number. Not a bool: Arrow would take it for 0 or 1."""

_READING_NAMES = {
    "sensor_id": "sensor_uuid",
    "number": "valor",
    "telemetry": "sensor_telemetria",
    "status": "status",
    "sensor_status": "sensor_status",
    "collected": "sensor_datahora_coleta",
    "timestamp": "timestamp",
    "battery": "sensor_bateria_pct",
    "rssi": "sensor_sinal_rssi",
    "lqi": "sensor_sinal_lqi",
    "battery_voltage": "sensor_voltagem_bateria",
    "name": "sensor_nome",
    "type": "sensor_tipo",
    "unit": "sensor_unidade",
    "manufacturer": "sensor_fabricante",
    "model": "sensor_modelo",
    "firmware": "sensor_firmware",
    "hardware_id": "sensor_id_hardware",
    "via_hub": "sensor_via_hub",
}
_NEEDED = ("sensor_id", "telemetry", "status", "sensor_status", "collected", "timestamp")
"""A list or object in one of these makes the reading bad; in any other it counts as not said."""
_NUMBERS = ("number", "telemetry", "battery", "rssi", "lqi", "battery_voltage")
OTHER = object()
EXCERPT_BYTES = 4 * EXCERPT_CHARS_MAX

_EQUIPMENT_NAMES = {
    "equipment_id": "equip_uuid",
    "name": "equip_nome",
    "location": "equip_local",
    "status": "equip_status",
    "interval": "equip_intervalo_coleta",
    "siren_active": "equip_sirene_ativa",
    "siren_seconds": "equip_sirete_tempo",
    "readings": "sensor",
}
EQUIPMENT_FIELDS = {wire: field for field, wire in _EQUIPMENT_NAMES.items()}
"""Field of EsmEquipment by its name on the wire."""


class EsmReading(msgspec.Struct, gc=False, omit_defaults=True, rename=_READING_NAMES):
    """One element of `sensor`."""

    sensor_id: Scalar = None
    number: Number = None
    telemetry: Number = None
    status: Scalar = None
    sensor_status: Scalar = None
    collected: Scalar = None
    timestamp: Scalar = None
    battery: Number = None
    rssi: Number = None
    lqi: Number = None
    battery_voltage: Number = None
    name: Scalar = None
    type: Scalar = None
    unit: Scalar = None
    manufacturer: Scalar = None
    model: Scalar = None
    firmware: Scalar = None
    hardware_id: Scalar = None
    via_hub: Scalar = None


class EsmEquipment(msgspec.Struct, gc=False, rename=_EQUIPMENT_NAMES):
    """One element of the body."""

    equipment_id: Scalar = None
    name: Scalar = None
    location: Scalar = None
    status: Scalar = None
    interval: Scalar = None
    siren_active: Scalar = None
    siren_seconds: Scalar = None
    readings: EsmReading | list[EsmReading] | None = None


_RawReading = msgspec.defstruct(
    "_RawReading",
    [(field, msgspec.Raw, msgspec.Raw(b"null")) for field in _READING_NAMES],
    rename=_READING_NAMES,
    gc=False,
)

_RawEquipment = msgspec.defstruct(
    "_RawEquipment",
    [(field, msgspec.Raw, msgspec.Raw(b"null")) for field in _EQUIPMENT_NAMES],
    rename=_EQUIPMENT_NAMES,
    gc=False,
)

decode_equipment = msgspec.json.Decoder(EsmEquipment).decode
decode_readings = msgspec.json.Decoder(list[EsmReading]).decode
_split_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_reading = msgspec.json.Decoder(EsmReading).decode
_decode_raw_reading = msgspec.json.Decoder(_RawReading).decode
_decode_raw_equipment = msgspec.json.Decoder(_RawEquipment).decode
_decode_scalar = msgspec.json.Decoder(Scalar).decode
encode_reading = msgspec.json.Encoder().encode


def read_equipment(content: bytes | memoryview) -> tuple[EsmEquipment, list[EsmReading], dict[int, bytes]]:
    """A well-formed equipment object whose fields may have any type: (its fields, its readings, the bad ones)."""
    raw: Any = _decode_raw_equipment(content)
    fields = {field: read_scalar(getattr(raw, field)) for field in _EQUIPMENT_NAMES if field != "readings"}
    equipment = EsmEquipment(**{field: None if value is OTHER else value for field, value in fields.items()})
    return equipment, *read_readings(raw.readings)


def read_readings(content: bytes | memoryview | msgspec.Raw) -> tuple[list[EsmReading], dict[int, bytes]]:
    """The value of `sensor`, a list or a single object: (readings, text of the bad ones by index).

    A bad reading is in both: in the list there is an empty one in its place.
    """
    first = bytes(memoryview(content)[:1])
    if first == b"n":
        return [], {}
    elements = _split_elements(content) if first == b"[" else [content]
    readings: list[EsmReading] = []
    bad: dict[int, bytes] = {}
    for element in elements:
        reading = read_element(element)
        if reading is None:
            bad[len(readings)] = bytes(memoryview(element)[:EXCERPT_BYTES])
            reading = EsmReading()
        readings.append(reading)
    return readings, bad


def read_element(element: bytes | memoryview | msgspec.Raw) -> EsmReading | None:
    """A reading of well-formed JSON whose fields may have any type; None where it is a bad reading."""
    try:
        return _decode_reading(element)
    except msgspec.ValidationError:
        pass
    try:
        raw = _decode_raw_reading(element)
    except msgspec.ValidationError:
        return None
    fields: dict[str, Any] = {}
    for field in _READING_NAMES:
        value = read_scalar(getattr(raw, field))
        if value is OTHER or (type(value) is bool and field in _NUMBERS):
            if field == "number":
                value = bytes(memoryview(getattr(raw, field))[:EXCERPT_BYTES]).decode("utf-8", "replace")  # no number
            elif field in _NEEDED:
                return None
            else:
                value = None
        fields[field] = value
    return EsmReading(**fields)


def read_scalar(content: bytes | msgspec.Raw) -> Any:
    """A scalar of well-formed JSON; OTHER for a list, an object, or a number that no float holds."""
    if bytes(memoryview(content)[:1]) in (b"[", b"{"):
        return OTHER
    try:
        return _decode_scalar(content)
    except msgspec.ValidationError:
        return OTHER


def describe_equipment(uuid: str, text: str, fields: EsmEquipment) -> Equipment:
    """What `fields` say of the equipment `uuid`, which the body calls `text`."""
    return Equipment(
        uuid=uuid,
        external_id=None if text.lower() == uuid else text,
        name=_text(fields.name),
        location=_text(fields.location),
        status=_text(fields.status),
        interval_seconds=_whole(fields.interval),
        siren_active=_yes_or_no(fields.siren_active),
        siren_seconds=_whole(fields.siren_seconds),
    )


def describe_sensor(uuid: str, text: str, equipment_uuid: str, reading: EsmReading) -> Sensor:
    """What `reading` says of its sensor `uuid`, which the body calls `text`."""
    return Sensor(
        uuid=uuid,
        equipment_uuid=equipment_uuid,
        external_id=None if text.lower() == uuid else text,
        name=_text(reading.name),
        type=_text(reading.type),
        unit=_text(reading.unit),
        manufacturer=_text(reading.manufacturer),
        model=_text(reading.model),
        firmware=_text(reading.firmware),
        hardware_id=_text(reading.hardware_id),
        via_hub=_text(reading.via_hub),
    )


def _text(value: Scalar) -> str | None:
    if type(value) is str and value:
        return value if len(value) <= TEXT_CHARS_MAX else value[:TEXT_CHARS_MAX]
    return None


def _whole(value: Scalar) -> int | None:
    """A whole number of seconds from a number or its text; None for nonsense."""
    try:
        number = float(value) if isinstance(value, (str, float)) else math.nan
    except ValueError:
        return None
    return int(number) if 0 <= number < 2**31 else None


def _yes_or_no(value: Scalar) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"SIM": True, "NÃO": False, "NAO": False}.get(value.strip().upper())
    return None
