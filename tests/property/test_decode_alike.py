"""Equipment objects that are written alike are read all at once, and that gives what reading them one by one gives."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.decode import esm, esm_regular
from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.lockstep import Reader, form_of
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.errors import SensorkeepError

OPTIONS = DecodeOptions(received_us=1_775_000_000_000_000, oldest_allowed_us=1_765_000_000_000_000)

numbers = st.sampled_from([0, -1, 7, 1.5, -0.25, 20.49, 1e21, 1e-7, -0.0, 2**53 + 1, 12345678901234567890, 0.1 + 0.2])
any_numbers = numbers | st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6)
texts = st.sampled_from(["25.5", "on", "", "1,5", "é", "x" * 40, "y" * 200, "a]}b", '{"', "nan", "12", "3.25"])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "sensor_uuid": st.sampled_from(["s1", "s2", "550E8400-e29b-41d4-a716-446655440000", "", "x" * 129]),
    "valor": any_numbers | st.none(),
    "timestamp": st.sampled_from(["2026-03-20T10:00:00Z", "2026-03-20T10:00:00.5Z", "yesterday", "2026-03-20"]),
    "sensor_telemetria": texts,
    "status": st.sampled_from(["ok", "fault", ""]),
    "sensor_status": st.just("ATIVO"),
    "sensor_bateria_pct": st.sampled_from([50, 12.25, 101]) | st.none(),
    "sensor_sinal_lqi": st.integers(0, 300),
    "sensor_nome": st.sampled_from(["Temp", "T\u00e9mp 2"]),
    "unknown": st.sampled_from([True, 3, None, "text"]),
}
ODD = ["s", 1.5, None, True, [], {}, 2**70]


@st.composite
def regular_bodies(draw: st.DrawFn) -> bytes:
    """Objects of one form, with an odd value here and there, or a byte changed."""
    source = random.Random(draw(st.integers(0, 2**32)))
    keys = draw(st.lists(st.sampled_from([*VALUES][1:]), unique=True, min_size=1, max_size=5))
    keys.insert(source.randrange(len(keys) + 1), "sensor_uuid")
    objects: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 3))):
        readings = draw(st.lists(st.fixed_dictionaries({key: VALUES[key] for key in keys}), min_size=1, max_size=6))
        objects.append({"equip_uuid": f"e{number}", "equip_nome": draw(st.sampled_from(["F", '"[', "é"]))})
        objects[-1]["sensor"] = readings
    if draw(st.booleans()):
        reading = source.choice(source.choice(objects)["sensor"])
        reading[source.choice(keys)] = draw(st.sampled_from(ODD))
    compact = draw(st.booleans())
    body = json.dumps(objects, ensure_ascii=draw(st.booleans()), separators=(",", ":") if compact else None).encode()
    if draw(st.booleans()):
        at = source.randrange(len(body))
        body = (
            body[:at]
            + draw(st.sampled_from([b"", b'"', b"}", b"]", b",", b"0", b"\\", b" ", b"\xff", b"-"]))
            + body[at + 1 :]
        )
    return body


@contextlib.contextmanager
def alike(tries: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(esm, "DECODE_ALIKE_TRIES_MAX", tries)
        patch.setattr(esm, "DECODE_ALIKE_BYTES_MIN", 1)
        patch.setattr(esm_regular, "DECODE_ALIKE_READINGS_MIN", 1)
        patch.setattr(esm_regular, "DECODE_ALIKE_READING_BYTES_MAX", 10_000)
        yield


def outcome(body: bytes, tries: int) -> object:
    with alike(tries):
        decoder = EsmBulkDecoder(OPTIONS)
        try:
            decoder.feed(body)
            batch = decoder.finish()
        except SensorkeepError as error:
            return error.code, error.extra.get("position")
    readings = [
        {**row, "series": batch.sensors[row["series"]], "value": repr(row["value"])}
        for row in batch.readings.to_pylist()
    ]
    return batch.equipment, batch.sensors, readings, list(batch.rejections), batch.objects


@given(body=regular_bodies())
@settings(max_examples=1000, deadline=None)
def test_reading_all_at_once_gives_what_reading_one_by_one_gives(body: bytes) -> None:
    assert outcome(body, tries=1_000) == outcome(body, tries=0)


def test_a_regular_body_is_read_all_at_once() -> None:
    readings = [{"sensor_uuid": f"s{i % 3}", "valor": i / 4, "timestamp": "2026-03-20T10:00:00Z"} for i in range(90)]
    objects = [{"equip_uuid": f"e{i}", "sensor": readings} for i in range(3)]
    for separators in ((",", ":"), None):
        found = esm_regular.read_alike(json.dumps(objects, separators=separators).encode(), 1)
        assert found is not None
        assert [item.count for item in found.objects] == [90, 90, 90]
        assert found.columns["number"].to_pylist() == [i / 4 for i in range(90)] * 3
        assert not found.describes


@given(value=any_numbers | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70))
@settings(deadline=None)
def test_a_number_that_is_read_is_the_one_that_json_reads(value: float) -> None:
    text = json.dumps({"a": value}).encode()
    form = form_of(text)
    if form is None:
        return
    other = json.dumps({"a": 0.5}).encode()
    reader = Reader(form.comma.join([other, text]))
    assert reader.step(form.members[0].prefix)
    found = reader.bare(b"0.5")
    if found is not None:
        assert repr(found.to_pylist()[1]) == repr(float(value))


@pytest.mark.parametrize(
    "written", ["01", "1.", ".5", "-", "+1", "1e", "0x1", "nan", "inf", "1.2.3", "1-2", "--1", "-.5", "00"]
)
def test_what_is_no_number_of_json_is_left_to_the_parser(written: str) -> None:
    reader = Reader(b'{"a":0.5},{"a":' + written.encode() + b"}")
    assert reader.step(b'{"a":')
    assert reader.bare(b"0.5") is None
