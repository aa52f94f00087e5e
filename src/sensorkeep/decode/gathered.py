"""Several small requests in one payload: a MessagePack list of `[kind, received_us, record_id, client_ip, body]`.

Each request was checked before it was accepted, its time too, so every reading is usable.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import msgspec

from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.quantities import NO_METADATA, QuantityColumns, describe_equipment
from sensorkeep.decode.readings import GeneralReading, parse_reading
from sensorkeep.decode.temperature import TemperatureReading, parse_temperature
from sensorkeep.decode.times import parse_time
from sensorkeep.errors import InvalidInput
from sensorkeep.model import DecodedBatch, LatestRecord

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
    return columns.finish(objects=len(entries), records=tuple(records))


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
