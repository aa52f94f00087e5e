"""Pure: a decoded batch as live messages (SPEC section 3, Live), and the envelope they travel in over pub/sub.

An envelope is a msgpack array [messages left out, [page, ...]]; a page is a msgpack array of [equipment uuid, sensor
uuid or nil, JSON bytes]. The uuids stand beside the JSON so that the receiver filters without parsing it; an external
id needs no place of its own, for its uuid follows from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from sensorkeep.clock import rfc3339
from sensorkeep.errors import Corrupt
from sensorkeep.limits import WS_BATCH_MESSAGES_MAX, WS_PAGE_MESSAGES_MAX
from sensorkeep.model import DecodedBatch, LatestRecord, quantity_id

RECORD_QUANTITIES = ("temperature", "humidity", "pressure")
"""Quantities that the SensorFlow form always names, null where the request had none."""


class LiveMessage(NamedTuple):
    """One message to the listeners. `sensor_uuid` is None where it speaks of several sensors of the equipment."""

    equipment_uuid: str
    sensor_uuid: str | None
    body: bytes
    """JSON, UTF-8."""


class _Reading(msgspec.Struct, frozen=True):
    """The form of Easy Smart Monitor and general readings."""

    equipment_uuid: str
    sensor_uuid: str
    sensor_type: str | None
    value: float | None
    status: str | None
    timestamp: str


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """What one batch says to its listeners: pages of at most WS_PAGE_MESSAGES_MAX messages, see `open_page`."""

    left_out: int
    pages: list[bytes]


_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_page_decoder = msgspec.msgpack.Decoder(list[LiveMessage])


def encode_batch(batch: DecodedBatch) -> bytes:
    """The envelope of a batch. Of more than WS_BATCH_MESSAGES_MAX messages the first are left out and counted."""
    left_out = max(0, batch.readings.num_rows - WS_BATCH_MESSAGES_MAX)
    return seal(live_messages(batch, left_out), left_out)


def live_messages(batch: DecodedBatch, first_row: int = 0) -> Iterator[LiveMessage]:
    """One message for each single-reading record, then one for each reading that no record speaks of, in order.

    Readings before `first_row` are left out.
    """
    for record in batch.records:
        yield _record_message(record)
    announced = _announced(batch.records)
    for start in range(first_row, batch.readings.num_rows, WS_PAGE_MESSAGES_MAX):
        yield from _reading_messages(batch, batch.readings.slice(start, WS_PAGE_MESSAGES_MAX), announced)


def _record_message(record: LatestRecord) -> LiveMessage:
    """The SensorFlow form: the three usual quantities, then any other, the sensor_id and the time."""
    body: dict[str, float | str | None] = {name: record.values.get(name) for name in RECORD_QUANTITIES}
    body.update(record.values)
    # Last, so that a quantity that bears one of these names cannot hide whose reading it is.
    body["sensor_id"] = record.sensor_id
    body["timestamp"] = rfc3339(record.time_us)
    return LiveMessage(record.equipment_uuid, None, _json.encode(body))


def _announced(records: Sequence[LatestRecord]) -> set[tuple[str, int]]:
    """The (external id of the sensor, time) of every reading that a record's message already tells."""
    return {
        (quantity_id(record.sensor_id, quantity), record.time_us) for record in records for quantity in record.values
    }


def _reading_messages(batch: DecodedBatch, rows: pa.Table, announced: set[tuple[str, int]]) -> Iterator[LiveMessage]:
    columns: list[list[Any]] = [
        rows.column("series").to_pylist(),
        rows.column("time").to_numpy().astype("int64").tolist(),
        rows.column("value").to_pylist(),
        rows.column("status").to_pylist(),
    ]
    for series, time_us, value, status in zip(*columns, strict=True):
        sensor = batch.sensors[series]
        if announced and (sensor.external_id, time_us) in announced:
            continue
        reading = _Reading(sensor.equipment_uuid, sensor.uuid, sensor.type, value, status, rfc3339(time_us))
        yield LiveMessage(sensor.equipment_uuid, sensor.uuid, _json.encode(reading))


def seal(messages: Iterable[LiveMessage], left_out: int = 0) -> bytes:
    """The messages in an envelope, in order."""
    pages: list[bytes] = []
    page: list[LiveMessage] = []
    for message in messages:
        page.append(message)
        if len(page) == WS_PAGE_MESSAGES_MAX:
            pages.append(_msgpack.encode(page))
            page = []
    if page:
        pages.append(_msgpack.encode(page))
    return _msgpack.encode(Envelope(left_out, pages))


def open_envelope(envelope: bytes) -> Envelope:
    """What `seal` packed. Raises Corrupt where it is no envelope."""
    try:
        return _envelope_decoder.decode(envelope)
    except msgspec.DecodeError as error:
        raise Corrupt(f"a live envelope cannot be read: {error}") from None


def open_page(page: bytes) -> list[LiveMessage]:
    """The messages of a page. Raises Corrupt where it is none."""
    try:
        return _page_decoder.decode(page)
    except msgspec.DecodeError as error:
        raise Corrupt(f"a live message cannot be read: {error}") from None
