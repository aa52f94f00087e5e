"""Several small requests in one payload: a MessagePack list of `[kind, received_us, record_id, client_ip, body]`.

Each request was checked before it was accepted, its time too, so every reading is usable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import msgspec

from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.quantities import NO_METADATA, QuantityColumns, describe_equipment, describe_quantity
from sensorkeep.decode.readings import GeneralReading, parse_reading
from sensorkeep.decode.temperature import TemperatureReading, parse_temperature
from sensorkeep.decode.times import parse_time
from sensorkeep.errors import InvalidInput
from sensorkeep.model import DecodedBatch, LatestReading, LatestRecord, Rejections

TEMPERATURE = "temperature"
READINGS = "readings"

Parsed = TemperatureReading | GeneralReading


class Entry(msgspec.Struct, gc=False):
    """One accepted request. `record_id` may be set later, but before it is encoded."""

    kind: str
    """TEMPERATURE or READINGS."""
    received_us: int
    record_id: int
    client_ip: str
    body: bytes
    """The JSON as sent, inflated."""
    parsed: Parsed
    """What `parse_temperature` or `parse_reading` made of `body`."""
    time_us: int
    """What `check_time` made of its timestamp."""

    @property
    def readings(self) -> int:
        """Readings in it."""
        return len(self.parsed.values) or 1


class _Stored(msgspec.Struct, array_like=True, gc=False):
    kind: str
    received_us: int
    record_id: int
    client_ip: str
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Stored]).decode


def encode_gathered(entries: Sequence[Entry]) -> bytes:
    """The payload of a claim for these requests."""
    return _encode([_Stored(e.kind, e.received_us, e.record_id, e.client_ip, e.body) for e in entries])


def decode_gathered(payload: bytes, options: DecodeOptions, only: Set[tuple[int, int]] | None = None) -> DecodedBatch:
    """The readings of a payload; `only` keeps just those at these (index of the request, of the quantity) positions.

    Raises InvalidInput where the payload is not one of `encode_gathered`.
    """
    try:
        stored = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the payload of gathered requests is damaged: {error}") from error
    return gather([_parse(item, options) for item in stored], options, only)


def gather(entries: Sequence[Entry], options: DecodeOptions, only: Set[tuple[int, int]] | None = None) -> DecodedBatch:
    """The readings of parsed requests; equal to `decode_gathered` of what `encode_gathered` makes of them."""
    columns = QuantityColumns()
    records = _add(columns, entries, only)
    return columns.finish(objects=len(entries), records=records)


def gather_each(groups: Sequence[Sequence[Entry]]) -> list[DecodedBatch]:
    """`gather` of each group, from one set of columns: the batches share `equipment` and `sensors` (the same tuples),
    which hold those of all groups."""
    columns = QuantityColumns()
    parts = []
    for group in groups:
        start = columns.row_count
        records = _add(columns, group, None)
        parts.append((start, columns.row_count - start, records, len(group)))
    whole = columns.finish(objects=0)
    return [
        DecodedBatch(whole.equipment, whole.sensors, whole.readings.slice(start, rows), Rejections(), records, objects)
        for start, rows, records, objects in parts
    ]


def newest_of(entries: Sequence[Entry]) -> tuple[list[LatestReading], list[LatestRecord]]:
    """What a look-up must see as soon as the requests are answered: the record of a temperature request, and each
    reading of another. (The single readings of a temperature request follow when the worker has them.)"""
    readings: list[LatestReading] = []
    records: list[LatestRecord] = []
    for entry in entries:
        parsed = entry.parsed
        if isinstance(parsed, TemperatureReading):
            records.append(_record(entry, parsed))
        else:
            readings += _newest_general(entry, parsed)
    return readings, records


def _newest_general(entry: Entry, parsed: GeneralReading) -> list[LatestReading]:
    said = parsed.metadata
    return [
        LatestReading(
            sensor_uuid=describe_quantity(parsed.sensor_id, quantity).uuid,
            time_us=entry.time_us,
            value=None if math.isnan(value) else value,
            status=parsed.status,
            battery=said.battery,
            rssi=None if said.rssi is None else round(said.rssi),
            lqi=None if said.lqi is None else round(said.lqi),
            battery_voltage=said.battery_voltage,
        )
        for quantity, value in parsed.quantities().items()
    ]


def _add(
    columns: QuantityColumns, entries: Sequence[Entry], only: Set[tuple[int, int]] | None
) -> tuple[LatestRecord, ...]:
    """Append the readings of the requests, and answer their records."""
    records: list[LatestRecord] = []
    for index, entry in enumerate(entries):
        parsed = entry.parsed
        if isinstance(parsed, TemperatureReading):
            quantities, status, metadata = parsed.values, None, NO_METADATA
            records.append(_record(entry, parsed))
        else:
            quantities, status, metadata = parsed.quantities(), parsed.status, parsed.metadata
        for position, (quantity, value) in enumerate(quantities.items()):
            if only is None or (index, position) in only:
                columns.add(parsed.sensor_id, quantity, entry.time_us, value, status, metadata)
    return tuple(records)


def _record(entry: Entry, parsed: TemperatureReading) -> LatestRecord:
    return LatestRecord(
        equipment_uuid=describe_equipment(parsed.sensor_id).uuid,
        sensor_id=parsed.sensor_id,
        time_us=entry.time_us,
        id=entry.record_id,
        client_ip=entry.client_ip,
        values=parsed.values,
    )


def _parse(item: _Stored, options: DecodeOptions) -> Entry:
    parsed: Parsed
    if item.kind == TEMPERATURE:
        parsed = parse_temperature(item.body)
    elif item.kind == READINGS:
        parsed = parse_reading(item.body)
    else:
        raise InvalidInput(f"a gathered request is of the unknown kind {item.kind[:40]!r}")
    time_us: int | None = item.received_us
    if parsed.timestamp is not None:
        time_us = parse_time(parsed.timestamp, options.naive_timezone)
    if time_us is None:
        raise InvalidInput("a gathered request holds a timestamp that is none")
    return Entry(item.kind, item.received_us, item.record_id, item.client_ip, item.body, parsed, time_us)
