"""The compiled reader gives what reading one by one gives, whatever the body."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep import limits
from sensorkeep.decode import esm, scan
from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.errors import SensorkeepError

pytestmark = pytest.mark.compiled

OPTIONS = DecodeOptions(received_us=1_775_000_000_000_000, oldest_allowed_us=1_765_000_000_000_000)

numbers = st.sampled_from(
    [
        -0.30000000000000004,
        10**25,
        0,
        -1,
        7,
        1.5,
        -0.25,
        20.49,
        1e21,
        1e-7,
        -0.0,
        2**53 + 1,
        12345678901234567890,
        0.1 + 0.2,
    ]
)
any_numbers = numbers | st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6)
more_texts = ["-.5", "5.", "+5", " 5 ", "-0", "1e3", "1e999", "0" * 30, "\\", "\t", "\U0001f321"]
texts = st.sampled_from(
    [*more_texts, "25.5", "on", "", "1,5", "é", "x" * 40, "y" * 200, "a]}b", '{"', "nan", "12", "3.25"]
)
usual_times = st.sampled_from(["2026-03-20T10:00:00Z", "2026-03-20T10:00:00.5Z", "2026-03-31 23:59:59.123456789"])
offsets = st.sampled_from(["", "Z", "z", "+03:00", "-0330", "+01", "+24:00", "+1", " ", "Zz"])
times = (
    usual_times
    | st.builds(lambda time, offset: time.isoformat() + offset, st.datetimes(), offsets)
    | st.sampled_from(["yesterday", "2026-03-20", "2026-02-30T10:00:00", "2024-02-29t10:00:00Z", "2026-03-20T10:00Z"])
    | st.sampled_from(["2026-03-20T24:00:00", "2026-03-20T10:00:60", "0000-01-01T00:00:00", "2026-03-20T10:00:00."])
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "sensor_uuid": st.sampled_from(["s1", "s2", "550E8400-e29b-41d4-a716-446655440000", "", "x" * 129]),
    "valor": any_numbers | st.none(),
    "timestamp": times | st.none(),
    "sensor_datahora_coleta": times | st.none(),
    "sensor_telemetria": texts | any_numbers,
    "status": st.sampled_from(["ok", "fault", ""]),
    "sensor_status": st.just("ATIVO"),
    "sensor_bateria_pct": st.sampled_from([50, 12.25, 101, "50", "full", True]) | st.none(),
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
        if draw(st.integers(0, 9)) == 0:
            objects[-1][draw(st.sampled_from(["equip_local", "unknown", "equip_uuid"]))] = draw(st.sampled_from(ODD))
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
def scanning(asked: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(esm, "SCAN_UNUSUAL_MAX", 1_000 if asked else -1_000)
        patch.setattr(esm, "SCAN_BYTES_MIN", 1)
        yield


def outcome(body: bytes, scanned: bool, options: DecodeOptions = OPTIONS) -> object:
    with scanning(scanned):
        decoder = EsmBulkDecoder(options)
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
@settings(max_examples=1500, deadline=None)
def test_reading_at_once_gives_what_reading_one_by_one_gives(body: bytes) -> None:
    assert outcome(body, scanned=True) == outcome(body, scanned=False)
    assert outcome(body, scanned=True) == outcome(body, scanned=False)


@given(body=regular_bodies(), zone=st.sampled_from(["America/Sao_Paulo", "Europe/Lisbon"]))
@settings(deadline=None)
def test_times_without_an_offset_are_those_of_the_zone(body: bytes, zone: str) -> None:
    options = DecodeOptions(received_us=OPTIONS.received_us, naive_timezone=zone)
    assert outcome(body, True, options) == outcome(body, False, options)


@pytest.mark.parametrize("chars", [1, 250, 300, 350, 1000])
def test_equipment_with_a_name_of_any_length_is_described(chars: int) -> None:
    sensor = [{"sensor_uuid": "s", "valor": 1}]
    objects = [{"equip_uuid": f"e{i % 2}", "equip_nome": chr(97 + i) * chars, "sensor": sensor} for i in range(3)]
    body = json.dumps([*objects, objects[0]]).encode()
    assert outcome(body, scanned=True) == outcome(body, scanned=False)


def read(body: bytes) -> scan.Scanned:
    assert scan.SCANNER is not None
    return scan.SCANNER.scan(body, 1)


@pytest.mark.parametrize("separators", [(",", ":"), None, (" ,\n", "\t: ")])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_usual_body_is_read_at_once(separators: tuple[str, str] | None, ascii_only: bool) -> None:
    readings = [
        {"sensor_uuid": f"s{i % 3}", "sensor_nome": "T\u00e9mp", "valor": i / 4, "timestamp": "2026-03-20T10:00:00Z"}
        for i in range(90)
    ]
    objects = [{"equip_uuid": f"e{i}", "sensor": readings if i else []} for i in range(3)]
    found = read(json.dumps(objects, separators=separators, ensure_ascii=ascii_only).encode())
    assert [count for *_, count in found.objects] == [0, 90, 90]
    assert found.values.tolist() == [i / 4 for i in range(90)] * 2
    assert [found.sensor_ids[i] for i in found.sensors.tolist()] == [f"s{i % 3}" for i in range(90)] * 2
    assert (found.describes, found.unusual) == (True, False)
    assert found.metadata is None


def test_metadata_has_rows_where_any_reading_says_some() -> None:
    readings = [{"valor": 1, "sensor_bateria_pct": said, "sensor_sinal_lqi": None} for said in (None, "", "88", 7)]
    found = read(json.dumps([{"sensor": readings}]).encode())
    assert found.metadata is not None
    battery, *others = found.metadata
    np.testing.assert_array_equal(battery, [np.nan, np.nan, 88, 7])
    assert np.isnan(others).all()
    assert read(json.dumps([{"sensor": readings[:2]}]).encode()).metadata is None


def test_a_body_that_ends_anywhere_is_read_up_to_its_last_whole_object() -> None:
    """And nothing beyond its end is looked at: each cut is a buffer of its own."""
    reading = {"sensor_uuid": "s", "sensor_telemetria": "on", "valor": -1.5e3, "other": "\n\u00e9", "timestamp": None}
    objects = [{"equip_uuid": f"e{i}", "n": [None, True, False][i % 3], "sensor": [reading] * 2} for i in range(3)]
    body = json.dumps(objects)
    ends = [at + 2 for at in range(len(body)) if body.startswith("]}", at)]
    for cut in range(1, len(body)):
        found = read(body[:cut].encode())
        assert [end for _, end, *_ in found.objects] == [end for end in ends if end <= cut]
        assert len(found.sensors) == 2 * len(found.objects)
        assert found.incomplete != body[:cut].rstrip(", ").endswith("]}")
        assert not found.unusual


@given(value=any_numbers | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70))
@settings(deadline=None, max_examples=1000)
def test_a_number_that_is_read_is_the_one_that_json_reads(value: float) -> None:
    for reading in ({"valor": value}, {"sensor_telemetria": str(value)}):
        found = read(json.dumps([{"sensor": [reading]}]).encode())
        if found.objects:
            assert repr(found.values[0].item()) == repr(float(value))


@pytest.mark.parametrize(
    "written",
    ["01", "1.", ".5", "-", "+1", "1e", "0x1", "nan", "inf", "1.2.3", "1-2", "--1", "-.5", "00", "-0", "1e999"],
)
def test_what_is_no_number_of_json_is_left_to_the_parser(written: str) -> None:
    found = read(b'[{"sensor":[{"valor":%s}]}]' % written.encode())
    assert (found.objects, found.unusual) == ([], True)


@pytest.mark.parametrize("odd", ['"\\ud800"', '"\\u12"', '"\\x"', '"\n"', "nul ", "[]", "{}", "tru\x00"])
def test_what_is_no_scalar_is_left_to_the_parser(odd: str) -> None:
    for body in (b'[{"sensor":[{"other":%s}]}]', b'[{"other":%s,"sensor":[]}]'):
        found = read(body % odd.encode())
        assert (found.objects, found.unusual) == ([], True)


def test_columns_and_objects_have_an_end() -> None:
    many = [{"sensor": [{"valor": 1}] * (limits.SCAN_READINGS_MAX // 2)}] * 3
    found = read(json.dumps(many).encode())
    assert ([count for *_, count in found.objects], found.unusual) == ([limits.SCAN_READINGS_MAX // 2] * 2, False)
    found = read(json.dumps([{"sensor": []}] * (limits.SCAN_OBJECTS_MAX + 1)).encode())
    assert len(found.objects) == limits.SCAN_OBJECTS_MAX
