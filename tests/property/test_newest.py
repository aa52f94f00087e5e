"""The newest reading of each sensor, of batches that were made and picked in any way."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from sensorkeep.clock import MINUTE_US, to_us
from sensorkeep.decode.gathered import READINGS, Entry, gather_each
from sensorkeep.decode.newest import newest_of, with_newest
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.readings import decode_readings, parse_reading
from sensorkeep.model import DecodedBatch

BEGIN_US = to_us(datetime(2026, 3, 20, 10, tzinfo=UTC))
OPTIONS = DecodeOptions(received_us=BEGIN_US + 60 * MINUTE_US)
Reading = tuple[str, int, int]
"""(sensor, minute, value)."""

readings = st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 9))


def body(reading: Reading) -> bytes:
    sensor, minute, value = reading
    time = f"2026-03-20T10:0{minute}:00Z"
    return json.dumps({"sensor_id": sensor, "values": {"x": value}, "timestamp": time}).encode()


def sharing_sensors(groups: list[list[Reading]]) -> list[DecodedBatch]:
    return gather_each([[entry(reading) for reading in group] for group in groups])


def entry(reading: Reading) -> Entry:
    return Entry(READINGS, 1, 0, "", body(reading), parse_reading(body(reading)), BEGIN_US + reading[1] * MINUTE_US)


def apart(groups: list[list[Reading]]) -> list[DecodedBatch]:
    return [decode_readings(b"[" + b",".join(map(body, group)) + b"]", OPTIONS) for group in groups]


@given(
    groups=st.lists(st.lists(readings, min_size=1, max_size=5), max_size=8),
    make=st.sampled_from([sharing_sensors, apart]),
    picked=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_of_one_time_the_last_reading_of_the_last_batch_stands(
    groups: list[list[Reading]], make: Callable[[list[list[Reading]]], list[DecodedBatch]], picked: list[bool]
) -> None:
    batches = [with_newest(batch) if already else batch for batch, already in zip(make(groups), picked, strict=False)]
    expected: dict[str, tuple[int, int]] = {}
    for sensor, minute, value in (reading for group in groups for reading in group):
        if minute >= expected.get(sensor, (-1, 0))[0]:
            expected[sensor] = minute, value
    newest = newest_of(batches)
    assert len({reading.sensor_uuid for reading in newest}) == len(newest)
    found = [((reading.time_us - BEGIN_US) // MINUTE_US, reading.value) for reading in newest]
    assert sorted(found) == sorted(expected.values())
