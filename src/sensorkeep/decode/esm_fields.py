"""The fields of the Easy Smart Monitor form that are read, and what to do where their types are unexpected.

This is the only place that knows the form's Portuguese names.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sensorkeep.limits import EXCERPT_CHARS_MAX

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
_READING_FIELDS = {wire: field for field, wire in _READING_NAMES.items()}
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


class EsmMeasurement(msgspec.Struct, gc=False, omit_defaults=True, rename=_READING_NAMES):
    """What one element of `sensor` measured."""

    sensor_id: Scalar = None
    sensor_status: Scalar = None
    telemetry: Number = None
    collected: Scalar = None
    battery: Number = None
    lqi: Number = None
    rssi: Number = None
    battery_voltage: Number = None
    number: Number = None
    timestamp: Scalar = None
    status: Scalar = None


class EsmReading(EsmMeasurement, gc=False, omit_defaults=True, rename=_READING_NAMES):
    """One element of `sensor`, with the description of the sensor that it carries."""

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


class MeasuredEquipment(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename=_EQUIPMENT_NAMES):
    """As EsmEquipment, of the usual form: nothing but these fields, and a list of readings."""

    readings: list[EsmMeasurement]
    equipment_id: Scalar = None
    name: Scalar = None
    location: Scalar = None
    status: Scalar = None
    interval: Scalar = None
    siren_active: Scalar = None
    siren_seconds: Scalar = None


EquipmentFields = EsmEquipment | MeasuredEquipment


class SlimReading(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename=_READING_NAMES):
    """An element of `sensor` that says no more than this."""

    sensor_id: Scalar = None
    number: Number = None
    timestamp: Scalar = None


class _SlimEquipment(MeasuredEquipment, gc=False, forbid_unknown_fields=True, rename=_EQUIPMENT_NAMES):
    readings: list[SlimReading]  # type: ignore[assignment]


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
decode_slim_equipment = msgspec.json.Decoder(_SlimEquipment).decode
"""Raises ValidationError where the object is not of the slim form."""
decode_measured_equipment = msgspec.json.Decoder(MeasuredEquipment).decode
"""Two thirds of the time of `decode_equipment`. Raises ValidationError where the object is not of the usual form."""
decode_readings = msgspec.json.Decoder(list[EsmReading]).decode
_split_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_reading = msgspec.json.Decoder(EsmReading).decode
_decode_raw_reading = msgspec.json.Decoder(_RawReading).decode
_decode_raw_equipment = msgspec.json.Decoder(_RawEquipment).decode
_decode_scalar = msgspec.json.Decoder(Scalar).decode
encode_reading = msgspec.json.Encoder().encode


def reading_field(wire: str) -> str | None:
    """The field of EsmReading by its name on the wire; None for one that is not read."""
    return _READING_FIELDS.get(wire)


def decode_last_readings(data: bytes, start: int, end: int, count: int) -> list[EsmReading]:
    """The last `count` readings of the equipment object data[start:end], which ends with `]}`.

    `decode_measured_equipment` must have taken it. From a brace on, the rest of such an object without its own last
    brace is the end of a JSON list if and only if the brace opens a reading: the bracket closes `sensor`, no other
    field being a list; within a text the rest holds an odd number of quotes; and within a reading more is closed than
    opened. So wrong guesses are found out.
    """
    brace = end
    for _ in range(count):
        brace = data.rfind(b"{", start, brace)
        if brace < 0:
            break
    else:
        try:
            readings = decode_readings(b"[" + data[brace : end - 1])
        except (msgspec.DecodeError, RecursionError):
            readings = []
        if len(readings) == count:
            return readings
    return _all_readings(data[start:end])[-count:]


def decode_spans(data: bytes, spans: npt.NDArray[np.uint32], count: int) -> list[EsmReading]:
    """The last `count` readings of well-formed JSON data; `spans` has where each starts and ends, one after the other
    but for commas."""
    content = b"[%s]" % data[spans[-count, 0] : spans[-1, 1]]
    try:
        return decode_readings(content)
    except msgspec.ValidationError:
        return read_readings(content)[0]


def decode_fields(head: bytes) -> EsmEquipment:
    """What an equipment object says but for its readings, from all that comes before the first of them."""
    content = head + b"]}"
    try:
        return decode_equipment(content)
    except msgspec.ValidationError:
        return read_equipment(content)[0]


def _all_readings(content: bytes) -> list[EsmReading]:
    """The readings of a well-formed equipment object; an empty one in place of a bad one."""
    try:
        readings = decode_equipment(content).readings
    except msgspec.ValidationError:
        return read_equipment(content)[1]
    return as_list(readings)


def as_list(readings: EsmReading | list[EsmReading] | None) -> list[EsmReading]:
    """The readings as a list. Old clients send a single one as an object."""
    if isinstance(readings, list):
        return readings
    return [] if readings is None else [readings]


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
