"""Laws of decoding: nothing but our errors, no influence of how a body is cut, and equality with a plain reading."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.clock import to_us
from sensorkeep.decode import esm, esm_parts, esm_rows, json_window
from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.gathered import decode_gathered
from sensorkeep.decode.inflate import make_inflater
from sensorkeep.decode.newest import newest_readings
from sensorkeep.decode.options import DecodeOptions, time_range
from sensorkeep.decode.readings import decode_readings
from sensorkeep.decode.temperature import parse_temperature
from sensorkeep.decode.times import parse_time, parse_times
from sensorkeep.decode.values import number_of_text, numbers_or_texts
from sensorkeep.errors import SensorkeepError
from sensorkeep.model import DecodedBatch, canonical_uuid

NOW_US = to_us(datetime(2026, 3, 29, 12, 0, tzinfo=UTC))
OPTIONS = DecodeOptions(
    received_us=NOW_US,
    naive_timezone="Europe/Lisbon",  # its clock skipped 01:00 to 02:00 on 2026-03-29
    oldest_allowed_us=to_us(datetime(2026, 3, 1, tzinfo=UTC)),
)

# --- a plain reading of the same rules ----------------------------------------------------------------------------

Row = tuple[Any, ...]
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(:\d\d)?(?:(?<=:\d\d)\.(\d{0,9}))?([Zz]|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)


def plain_time(said: object) -> int | None:
    match = _TIME.fullmatch(said) if isinstance(said, str) else None
    if match is None or (match[4] is not None and match[3] is None):
        return None
    zone = (match[5] or "").upper()
    if len(zone) in (3, 5):
        zone = zone[:3] + ":" + (zone[-2:] if len(zone) == 5 else "00")
    if zone[-2:].isdigit() and int(zone[-2:]) > 59:
        return None
    fraction = ((match[4] or "") + "000000")[:6]
    try:
        moment = datetime.fromisoformat(f"{match[1]}T{match[2]}{match[3] or ':00'}.{fraction}{zone}")
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(OPTIONS.naive_timezone))
    try:
        return to_us(moment)
    except OverflowError:
        return -(2**62) if moment.year == 1 else 2**62


def plain_number(said: object) -> float | None:
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        return None
    if isinstance(said, str):
        if not re.fullmatch(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?\s*", said, re.ASCII):
            return None
        said = said.replace(",", ".")
    try:
        number = float(said)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_no_scalar(said: object) -> bool:
    """A list, an object, or a number that no float holds."""
    return isinstance(said, list | dict) or (type(said) in (int, float) and plain_number(said) is None)


def plain_text(said: object) -> str | None:
    return said[:500] if isinstance(said, str) and said else None


def plain_reading(reading: Any, equipment: object) -> Row | str:  # noqa: C901 - the rules, in order
    if not isinstance(reading, dict):
        return "bad_reading"
    get = reading.get
    sensor, telemetry = get("sensor_uuid"), get("sensor_telemetria")
    if any(is_no_scalar(get(name)) for name in NEEDED) or isinstance(telemetry, bool):
        return "bad_reading"
    if not isinstance(equipment, str) or not 0 < len(equipment) <= 128:
        return "missing_equipment"
    if sensor is not None and (not isinstance(sensor, str) or len(sensor) > 128):
        return "bad_reading"
    if not sensor:
        return "missing_sensor"
    said_time = get("timestamp") if get("sensor_datahora_coleta") is None else get("sensor_datahora_coleta")
    time_us = NOW_US if said_time is None else plain_time(said_time)
    if time_us is None:
        return "bad_timestamp"
    if time_us < OPTIONS.earliest_us:
        return "too_old"
    if time_us > OPTIONS.latest_us:
        return "in_future"
    if any(get(name) is not None and not isinstance(get(name), str) for name in ("status", "sensor_status")):
        return "bad_reading"
    status = plain_text(get("status"))
    number = None if isinstance(get("valor"), str) else plain_number(get("valor"))
    if number is None:
        number = plain_number(telemetry)
        if number is None:
            status = status or plain_text(telemetry)
    status = status or plain_text(get("sensor_status"))
    if number is None and status is None:
        return "bad_reading" if get("valor") is not None else "no_value"
    return (
        canonical_uuid(sensor),
        canonical_uuid(equipment),
        time_us,
        number,
        status,
        *map(plain_metadata, METADATA, [reading] * 4),
    )


NEEDED = ("sensor_uuid", "sensor_telemetria", "status", "sensor_status", "sensor_datahora_coleta", "timestamp")
METADATA = (
    ("sensor_bateria_pct", 0, 100),
    ("sensor_sinal_rssi", -200, 100),
    ("sensor_sinal_lqi", 0, 255),
    ("sensor_voltagem_bateria", 0, 1000),
)


def plain_metadata(rule: tuple[str, int, int], reading: dict[str, Any]) -> float | None:
    name, low, high = rule
    number = plain_number(reading.get(name))
    if number is None or not low <= number <= high:
        return None
    return round(number) if "sinal" in name else number


def plain_decode(body: bytes) -> tuple[list[Row], list[tuple[int, int, str]]]:
    rows: list[Row] = []
    rejected: list[tuple[int, int, str]] = []
    for i, equipment in enumerate(json.loads(body)):
        readings = equipment.get("sensor")
        if not isinstance(readings, list):
            readings = [] if readings is None else [readings]
        for j, reading in enumerate(readings):
            result = plain_reading(reading, equipment.get("equip_uuid"))
            if isinstance(result, str):
                rejected.append((i, j, result))
            else:
                rows.append(result)
    return rows, rejected


# --- what is compared ---------------------------------------------------------------------------------------------


def columns_of(batch: DecodedBatch) -> tuple[list[Row], list[tuple[int, int, str]]]:
    rows = []
    for row in batch.readings.to_pylist():
        sensor = batch.sensors[row["series"]]
        row["time"] = to_us(row["time"])
        rows.append((sensor.uuid, row["time"], *list(row.values())[2:]))
    return rows, [(item.equipment, item.sensor, item.reason.value) for item in batch.rejections]


def decode(body: bytes, cuts: list[int] | None = None, options: DecodeOptions = OPTIONS) -> DecodedBatch:
    decoder = EsmBulkDecoder(options)
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts or []), len(body)]
    for start, end in itertools.pairwise(edges):
        decoder.feed(body[start:end])
    return decoder.finish()


def outcome(body: bytes, cuts: list[int] | None = None) -> object:
    """All that a decode answers, or the code of its error."""
    try:
        batch = decode(body, cuts)
    except SensorkeepError as error:
        return error.code
    return batch.equipment, batch.sensors, *columns_of(batch), list(batch.rejections), batch.objects


@contextlib.contextmanager
def bounds(size: str) -> Iterator[None]:
    """Tiny bounds drive small bodies through the ways of the long ones: objects in parts, many chunks."""
    with pytest.MonkeyPatch.context() as patch:
        if size == "tiny":
            for module in (json_window, esm, esm_parts):
                patch.setattr(module, "OBJECT_PART_BYTES", 64)
                patch.setattr(module, "OBJECT_BUFFER_BYTES", 700)
            patch.setattr(esm, "DECODE_ROWS_PER_CHUNK", 3)
            patch.setattr(esm, "DECODE_SKIM_BYTES_MIN", 0)
            patch.setattr(esm_rows, "DECODE_ROWS_HELD", 2)
        yield


both_bounds = pytest.mark.parametrize("size", ["usual", "tiny"])


# --- strategies ---------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
odd = st.sampled_from(
    [None, True, False, 0, -1, 2**70, 10**310, 1.5, "", "x", "]}", '"}],{"', [], [1], {}, {"a": "]}"}]
)
times = st.one_of(
    st.datetimes(min_value=datetime(2026, 2, 27), max_value=datetime(2026, 3, 30)).map(lambda d: d.isoformat()),  # noqa: DTZ001
    st.builds(
        "{}{}{}{}{}".format,
        st.sampled_from(["2026-03-28", "2026-03-29", "2026-02-30", "0000-01-01", "9999-12-31", "2026-3-1"]),
        st.sampled_from(["T", " ", "t", "", "x"]),
        st.sampled_from(["01:30:00", "00:59", "10", "23:59:60", "10:00:00.", "10:00:00.1234567", "100000", "24:00"]),
        st.sampled_from(["", ".5"]),
        st.sampled_from(["", "Z", "z", "+01:00", "-0300", "+24:00", "+01", "+00:60", " Z"]),
    ),
    odd,
)  # fmt: skip
number_texts = st.sampled_from(
    [
        "25.5",
        "-1",
        "1,5",
        "+2",
        ".5",
        "5.",
        " 7 ",
        "1e3",
        "1e999",
        "nan",
        "-inf",
        "1,000.5",
        "1_0",
        "on",
        "0x1",
        "\u0661",
    ]
)
readings = st.fixed_dictionaries(
    {},
    optional={
        "sensor_uuid": st.sampled_from(["s1", "s2", "550E8400-e29b-41d4-a716-446655440000", "x" * 129]) | odd,
        "valor": st.floats(allow_nan=False, allow_infinity=False) | odd,
        "sensor_telemetria": number_texts | st.floats(-50, 50) | odd,
        "status": st.sampled_from(["ok", "fault", "é" * 600]) | odd,
        "sensor_status": st.sampled_from(["ATIVO", "INATIVO"]) | odd,
        "sensor_datahora_coleta": times,
        "timestamp": times,
        "sensor_bateria_pct": st.sampled_from([50, 12.25, "88", "101", 101, -1]) | odd,
        "sensor_sinal_rssi": st.sampled_from([-70, "-60,4", 99999]) | odd,
        "sensor_sinal_lqi": st.sampled_from([0, 255, 256, 3.4]) | odd,
        "sensor_voltagem_bateria": st.sampled_from([3, "3.25", 2.5]) | odd,
        "sensor_nome": st.text(max_size=5) | odd,
        "unknown": json_values,
    },
)
likely = st.fixed_dictionaries(
    {
        "sensor_uuid": st.sampled_from(["s1", "s2", "s3"]),
        "valor": st.integers(-9, 9),
        "timestamp": st.just("2026-03-20T10:00:00Z"),
    }
)
equipment = st.fixed_dictionaries(
    {},
    optional={
        "equip_uuid": st.sampled_from(["e1", "e2"]) | odd,
        "sensor": st.lists(readings | likely, max_size=6) | readings | st.lists(odd, max_size=3) | odd,
        "equip_nome": st.text(max_size=5) | odd,
        "equip_sirene_ativa": st.sampled_from(["SIM", "NÃO"]) | odd,
        "equip_intervalo_coleta": odd,
        "unknown": json_values,
    },
)
usual = st.fixed_dictionaries(
    {"equip_uuid": st.sampled_from(["e1", "e2"]), "sensor": st.lists(readings | likely, max_size=8)}
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    objects = draw(st.lists(usual | equipment, min_size=1, max_size=4))
    shuffle = random.Random(draw(st.integers(0, 9))).shuffle

    def shuffled(item: dict[str, Any]) -> dict[str, Any]:
        members = list(item.items())
        shuffle(members)
        return dict(members)

    text = json.dumps(
        [shuffled(item) for item in objects],
        indent=draw(st.sampled_from([None, 0, 1])),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([None, (",", ":"), (" ,", " : ")])),
    )
    return text.encode()


cuts = st.lists(st.integers(0, 10_000), max_size=6)


# --- laws ---------------------------------------------------------------------------------------------------------


@both_bounds
@given(body=bodies(), cut=cuts)
@settings(max_examples=300, deadline=None)
def test_decode_equals_a_plain_reading_of_the_rules_however_the_body_is_cut(
    size: str, body: bytes, cut: list[int]
) -> None:
    rows, rejected = plain_decode(body)
    try:
        with bounds(size):
            batch = decode(body, cut)
    except SensorkeepError as error:
        # Only with tiny bounds can one field of these bodies be too long.
        assert (size, error.code) == ("tiny", "too_large")  # noqa: PT017
        return
    got_rows, got_rejected = columns_of(batch)
    assert got_rows == [(row[0], *row[2:]) for row in rows]
    assert got_rejected == rejected
    assert {s.uuid: s.equipment_uuid for s in batch.sensors} == {row[0]: row[1] for row in rows}
    assert batch.received == len(rows) + len(rejected)


@given(body=bodies(), seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_skimming_an_object_gives_what_decoding_all_of_it_gives(body: bytes, seed: int) -> None:
    whole = outcome(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(esm, "DECODE_SKIM_BYTES_MIN", 0)
        patch.setattr(esm_rows, "DECODE_ROWS_HELD", 1 + seed % 9)
        patch.setattr(esm, "DECODE_ROWS_PER_CHUNK", 1 + seed % 20)
        assert outcome(body) == whole


@both_bounds
@given(body=bodies(), cut=cuts, seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_a_mutated_body_raises_only_our_errors_and_its_cuts_change_nothing(
    size: str, body: bytes, cut: list[int], seed: int
) -> None:
    source = random.Random(seed)
    mutated = bytearray(body)
    for _ in range(source.randrange(1, 4)):
        at = source.randrange(len(mutated))
        mutated[at : at + source.randrange(3)] = source.choice(
            [
                b"",
                b'"',
                b"{",
                b"}",
                b"[",
                b"]",
                b",",
                b"\\",
                b"\xff",
                b"\xc3",
                b"\\ud800",
                b"1e999",
                b"\x00",
                b" ",
                b"]}",
            ]
        )
    with bounds(size):
        whole, in_pieces = outcome(bytes(mutated)), outcome(bytes(mutated), cut)
        # Of a body that is malformed and over-long too, the pieces decide which of the two is met first.
        both_faults = {"not_json", "too_large"}
        assert whole == in_pieces or {str(whole), str(in_pieces)} == both_faults


@both_bounds
@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()), cut=cuts)
@settings(max_examples=300, deadline=None)
def test_any_bytes_raise_only_our_errors_in_every_decoder(size: str, body: bytes, cut: list[int]) -> None:
    with bounds(size):
        assert outcome(body) == outcome(body, cut)
    for call in (
        lambda: decode_readings(body, OPTIONS),
        lambda: parse_temperature(body),
        lambda: decode_gathered(body, OPTIONS),
        lambda: [list(make_inflater(name, OPTIONS).feed(body)) for name in ("gzip", "zstd", "identity")],
    ):
        with contextlib.suppress(SensorkeepError):
            call()


@given(objects=st.lists(json_values, max_size=4) | json_values)
@settings(max_examples=200, deadline=None)
def test_any_json_raises_only_our_errors_as_general_readings(objects: object) -> None:
    with contextlib.suppress(SensorkeepError):
        decode_readings(json.dumps(objects).encode(), OPTIONS)


@given(texts=st.lists(times.filter(lambda t: t is None or isinstance(t, str)), max_size=20))
@settings(max_examples=300, deadline=None)
def test_a_column_of_times_equals_its_elements_one_by_one(texts: list[str | None]) -> None:
    got, missing, bad = parse_times(pa.array(texts, pa.string()), OPTIONS.naive_timezone)
    for i, text in enumerate(texts):
        expected = None if text is None else parse_time(text, OPTIONS.naive_timezone)
        assert missing[i] == (text is None)
        assert bad[i] == (text is not None and expected is None)
        if expected is not None:
            assert got[i] == expected


@given(column=st.lists(number_texts | st.text("0123456789.,+-eE naif", max_size=6) | st.none() | st.floats(-9, 9)))
@settings(max_examples=300, deadline=None)
def test_a_column_of_numbers_equals_its_elements_one_by_one(column: list[str | float | None]) -> None:
    expected = [math.nan if x is None else number_of_text(x) if isinstance(x, str) else x for x in column]
    assert list(map(repr, numbers_or_texts(column).tolist())) == list(map(repr, expected))


@given(data=st.binary(max_size=5000), members=st.integers(1, 4), cut=cuts, encoding=st.sampled_from(["gzip", "zstd"]))
@settings(max_examples=100, deadline=None)
def test_inflating_gives_what_was_compressed_however_it_is_cut(
    data: bytes, members: int, cut: list[int], encoding: str
) -> None:
    compress = gzip.compress if encoding == "gzip" else zstandard.compress
    wire = b"".join(compress(data) for _ in range(members))
    inflater = make_inflater(encoding, OPTIONS)
    edges = [0, *sorted(c % (len(wire) + 1) for c in cut), len(wire)]
    got = b"".join(piece for start, end in itertools.pairwise(edges) for piece in inflater.feed(wire[start:end]))
    assert got + b"".join(inflater.finish()) == data * members


@given(body=bodies())
@settings(max_examples=100, deadline=None)
def test_newest_and_time_range_equal_a_plain_scan(body: bytes) -> None:
    batch = decode(body)
    newest: dict[str, tuple[int, Any]] = {}
    all_times = []
    for row in columns_of(batch)[0]:
        all_times.append(row[1])
        if row[0] not in newest or row[1] >= newest[row[0]][0]:
            newest[row[0]] = (row[1], row[2:])
    got = {
        x.sensor_uuid: (x.time_us, (x.value, x.status, x.battery, x.rssi, x.lqi, x.battery_voltage))
        for x in newest_readings(batch)
    }
    assert got == newest
    assert time_range(batch) == ((min(all_times), max(all_times)) if all_times else None)
