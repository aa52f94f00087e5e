"""What a batch says to its listeners, the envelope, and the frames."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from sensorkeep.decode.quantities import describe_quantity
from sensorkeep.errors import Corrupt
from sensorkeep.limits import WS_BATCH_MESSAGES_MAX, WS_PAGE_MESSAGES_MAX
from sensorkeep.live.frames import payloads, text_frame
from sensorkeep.live.messages import (
    LiveMessage,
    encode_batch,
    live_messages,
    open_envelope,
    open_page,
    seal,
)
from sensorkeep.model import (
    READINGS_SCHEMA,
    DecodedBatch,
    Equipment,
    LatestRecord,
    Sensor,
    external_uuid,
)

EQUIPMENT = "550e8400-e29b-41d4-a716-446655440000"
SENSOR = "660e8400-e29b-41d4-a716-446655440001"
TIME_US = 1_705_312_800_000_000  # 2024-01-15T10:00:00Z


def _batch(
    sensors: list[Sensor], rows: list[tuple[int, int, float | None, str | None]], records: list[LatestRecord]
) -> DecodedBatch:
    columns = {name: pa.nulls(len(rows), READINGS_SCHEMA.field(name).type) for name in READINGS_SCHEMA.names}
    columns["series"] = pa.array([row[0] for row in rows], pa.int32())
    columns["time"] = pa.array([row[1] for row in rows], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    columns["value"] = pa.array([row[2] for row in rows], pa.float64())
    columns["status"] = pa.array([row[3] for row in rows], pa.string()).dictionary_encode()
    equipment = {sensor.equipment_uuid: Equipment(uuid=sensor.equipment_uuid) for sensor in sensors}
    readings = pa.table(columns, schema=READINGS_SCHEMA)
    return DecodedBatch(tuple(equipment.values()), tuple(sensors), readings, records=tuple(records))


def _record(sensor_id: str, values: dict[str, float], time_us: int = TIME_US) -> LatestRecord:
    return LatestRecord(
        equipment_uuid=external_uuid(sensor_id),
        sensor_id=sensor_id,
        time_us=time_us,
        id=1,
        client_ip="127.0.0.1",
        values=values,
    )


def _quantities(sensor_id: str, *names: str) -> list[Sensor]:
    """As module decode.quantities describes them."""
    return [describe_quantity(sensor_id, name) for name in names]


def _bodies(batch: DecodedBatch) -> list[dict[str, Any]]:
    return [json.loads(message.body) for message in live_messages(batch)]


def test_a_single_reading_record_is_one_message_in_the_sensorflow_form() -> None:
    batch = _batch(
        _quantities("sensor_001", "temperature", "co2"),
        [(0, TIME_US, 25.5, None), (1, TIME_US, 415.0, None)],
        [_record("sensor_001", {"temperature": 25.5, "co2": 415.0})],
    )
    (message,) = live_messages(batch)
    assert message.equipment_uuid == external_uuid("sensor_001")
    assert message.sensor_uuid is None
    assert list(json.loads(message.body).items()) == [
        ("temperature", 25.5),
        ("humidity", None),
        ("pressure", None),
        ("co2", 415.0),
        ("sensor_id", "sensor_001"),
        ("timestamp", "2024-01-15T10:00:00Z"),
    ]


def test_a_bulk_reading_is_one_message_with_its_value_status_and_type() -> None:
    sensor = Sensor(uuid=SENSOR, equipment_uuid=EQUIPMENT, type="temperatura")
    batch = _batch([sensor], [(0, TIME_US, -18.4, None), (0, TIME_US + 1, None, "unavailable")], [])
    first, second = live_messages(batch)
    assert (first.equipment_uuid, first.sensor_uuid) == (EQUIPMENT, SENSOR)
    assert json.loads(first.body) == {
        "equipment_uuid": EQUIPMENT,
        "sensor_uuid": SENSOR,
        "sensor_type": "temperatura",
        "value": -18.4,
        "status": None,
        "timestamp": "2024-01-15T10:00:00Z",
    }
    assert json.loads(second.body)["status"] == "unavailable"
    assert json.loads(second.body)["timestamp"] == "2024-01-15T10:00:00.000001Z"


def test_readings_that_no_record_speaks_of_are_told_beside_the_records_of_the_same_batch() -> None:
    sensors = [*_quantities("a", "temperature"), *_quantities("b", "door")]
    batch = _batch(
        sensors,
        [(0, TIME_US, 1.0, None), (0, TIME_US + 5, 2.0, None), (1, TIME_US, None, "open")],
        [_record("a", {"temperature": 1.0})],
    )
    record, later, door = _bodies(batch)
    assert record["sensor_id"] == "a"
    assert (later["sensor_uuid"], later["value"]) == (sensors[0].uuid, 2.0)
    assert (door["sensor_uuid"], door["status"]) == (sensors[1].uuid, "open")


def test_a_quantity_cannot_hide_whose_reading_it_is() -> None:
    record = _record("s1", {"temperature": 1.0, "sensor_id": 7.0, "timestamp": 8.0})
    (body,) = _bodies(_batch([], [], [record]))
    assert (body["sensor_id"], body["timestamp"]) == ("s1", "2024-01-15T10:00:00Z")


def test_of_a_huge_batch_the_last_messages_are_kept_and_the_others_counted() -> None:
    sensor = Sensor(uuid=SENSOR, equipment_uuid=EQUIPMENT)
    rows: list[tuple[int, int, float | None, str | None]] = [
        (0, TIME_US + i, float(i), None) for i in range(WS_BATCH_MESSAGES_MAX + 7)
    ]
    envelope = open_envelope(encode_batch(_batch([sensor], rows, [])))
    messages = [message for page in envelope.pages for message in open_page(page)]
    assert envelope.left_out == 7
    assert [json.loads(message.body)["value"] for message in messages] == [float(i) for i in range(7, len(rows))]
    assert max(len(open_page(page)) for page in envelope.pages) == WS_PAGE_MESSAGES_MAX


_messages = st.lists(
    st.builds(LiveMessage, st.uuids().map(str), st.none() | st.uuids().map(str), st.binary(max_size=40)), max_size=600
)


@settings(max_examples=30, deadline=None)
@given(_messages, st.integers(0, 2**40))
def test_an_envelope_gives_back_what_was_sealed(messages: list[LiveMessage], left_out: int) -> None:
    envelope = open_envelope(seal(messages, left_out))
    assert envelope.left_out == left_out
    assert [message for page in envelope.pages for message in open_page(page)] == messages


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_foreign_bytes_raise_nothing_but_corrupt(data: bytes) -> None:
    for read in (open_envelope, open_page):
        with contextlib.suppress(Corrupt):
            read(data)


def test_what_is_no_envelope_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        open_envelope(b"\xc1")
    with pytest.raises(Corrupt):
        open_page(b'{"a":1}')


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_frame_is_byte_for_byte_what_the_websockets_library_sends(length: int) -> None:
    payload = b"x" * length
    assert text_frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=70_000), max_size=5))
def test_payloads_come_back_out_of_joined_frames(bodies: list[bytes]) -> None:
    assert list(payloads(b"".join(text_frame(body) for body in bodies))) == bodies
