"""What the Easy Smart Monitor form says of equipment and sensors.

The same few thousand come every minute, mostly with the same words, so what was made of these is remembered.
"""

from __future__ import annotations

import math
from functools import lru_cache
from operator import attrgetter
from typing import Any

from sensorkeep.decode.esm_fields import EquipmentFields, EsmReading, Scalar, decode_fields
from sensorkeep.limits import (
    DESCRIPTION_REMEMBERED_CHARS_MAX,
    DESCRIPTIONS_REMEMBERED,
    EXTERNAL_ID_CHARS_MAX,
    TEXT_CHARS_MAX,
)
from sensorkeep.model import Equipment, Sensor, canonical_uuid

_sensor_fields = attrgetter("name", "type", "unit", "manufacturer", "model", "firmware", "hardware_id", "via_hub")
_equipment_fields = attrgetter("name", "location", "status", "interval", "siren_active", "siren_seconds")


class _TooLongError(Exception):
    """Too long to remember: the memory that takes must be bounded."""


def describe_equipment(fields: EquipmentFields) -> Equipment | None:
    """What `fields` say of their equipment; None where it has no usable identity."""
    text = fields.equipment_id
    if type(text) is not str or not 0 < len(text) <= EXTERNAL_ID_CHARS_MAX:
        return None
    said = _equipment_fields(fields)
    try:
        return _remembered_equipment(text, *said)
    except _TooLongError:
        return _equipment(text, *said)


def describe_equipment_of(head: bytes) -> Equipment | None:
    """The same of an equipment object, from all that comes before the first of its readings."""
    if len(head) <= DESCRIPTION_REMEMBERED_CHARS_MAX:
        return _remembered_equipment_of(head)
    return describe_equipment(decode_fields(head))


@lru_cache(DESCRIPTIONS_REMEMBERED)
def _remembered_equipment_of(head: bytes) -> Equipment | None:
    return describe_equipment(decode_fields(head))


def describe_sensor(uuid: str, text: str, equipment_uuid: str, reading: EsmReading) -> Sensor:
    """What `reading` says of its sensor `uuid`, which the body calls `text`."""
    said = _sensor_fields(reading)
    try:
        return _remembered_sensor(uuid, text, equipment_uuid, *said)
    except _TooLongError:
        return _sensor(uuid, text, equipment_uuid, *said)


@lru_cache(DESCRIPTIONS_REMEMBERED)
def plain_sensor(identity: tuple[str, str], equipment_uuid: str) -> Sensor:
    """The sensor with that identity of a SeriesIndex, of which the body says nothing else."""
    return _sensor(*identity, equipment_uuid, *[None] * 8)


def _equipment(
    text: str,
    name: Scalar,
    location: Scalar,
    status: Scalar,
    interval: Scalar,
    siren_active: Scalar,
    siren_seconds: Scalar,
) -> Equipment:
    uuid = canonical_uuid(text)
    return Equipment(
        uuid=uuid,
        external_id=None if text.lower() == uuid else text,
        name=_text(name),
        location=_text(location),
        status=_text(status),
        interval_seconds=_whole(interval),
        siren_active=_yes_or_no(siren_active),
        siren_seconds=_whole(siren_seconds),
    )


def _sensor(
    uuid: str,
    text: str,
    equipment_uuid: str,
    name: Scalar,
    kind: Scalar,
    unit: Scalar,
    manufacturer: Scalar,
    model: Scalar,
    firmware: Scalar,
    hardware_id: Scalar,
    via_hub: Scalar,
) -> Sensor:
    return Sensor(
        uuid=uuid,
        equipment_uuid=equipment_uuid,
        external_id=None if text == uuid or text.lower() == uuid else text,
        name=_text(name),
        type=_text(kind),
        unit=_text(unit),
        manufacturer=_text(manufacturer),
        model=_text(model),
        firmware=_text(firmware),
        hardware_id=_text(hardware_id),
        via_hub=_text(via_hub),
    )


@lru_cache(DESCRIPTIONS_REMEMBERED, typed=True)  # typed: true is not 1
def _remembered_equipment(text: str, *said: Any) -> Equipment:
    _refuse_long(said)
    return _equipment(text, *said)


@lru_cache(DESCRIPTIONS_REMEMBERED)
def _remembered_sensor(uuid: str, text: str, equipment_uuid: str, *said: Any) -> Sensor:
    _refuse_long(said)
    return _sensor(uuid, text, equipment_uuid, *said)


def _refuse_long(said: tuple[Scalar, ...]) -> None:
    if len("%s" * len(said) % said) > DESCRIPTION_REMEMBERED_CHARS_MAX:
        raise _TooLongError


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
