"""The Easy Smart Monitor bulk decoder: its errors, limits and descriptions, and its bounds on memory and time."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from sensorkeep.clock import to_us
from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.errors import InvalidInput, LimitExceeded
from sensorkeep.limits import MIB, OBJECT_BUFFER_BYTES
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Equipment, Reason, Sensor, external_uuid

NOW_US = to_us(datetime(2026, 1, 15, 12, 0, tzinfo=UTC))
OPTIONS = DecodeOptions(received_us=NOW_US, oldest_allowed_us=to_us(datetime(2026, 1, 1, tzinfo=UTC)))
EQUIPMENT_UUID = "550e8400-e29b-41d4-a716-446655440000"
SENSOR_UUID = "660e8400-e29b-41d4-a716-446655440001"


def decode(
    body: bytes, options: DecodeOptions = OPTIONS, only: set[tuple[int, int]] | None = None, piece: int = 100_000
) -> DecodedBatch:
    decoder = EsmBulkDecoder(options, only)
    for start in range(0, len(body), piece):
        decoder.feed(body[start : start + piece])
    return decoder.finish()


def body_of(*readings: Any, **equipment: Any) -> bytes:
    return json.dumps([{"equip_uuid": EQUIPMENT_UUID, **equipment, "sensor": list(readings)}]).encode()


def reading(**fields: Any) -> dict[str, Any]:
    return {"sensor_uuid": SENSOR_UUID, "valor": 1, **fields}


def rows(batch: DecodedBatch) -> list[dict[str, Any]]:
    return [{**row, "time": to_us(row["time"])} for row in batch.readings.to_pylist()]


def reasons(batch: DecodedBatch) -> list[tuple[int, int, Reason]]:
    return [(item.equipment, item.sensor, item.reason) for item in batch.rejections]


def test_the_example_of_the_contract_becomes_a_reading_and_two_descriptions() -> None:
    body = json.dumps([{
        "equip_uuid": EQUIPMENT_UUID.upper(), "equip_nome": "Freezer 1", "equip_local": "Loja", "equip_status": "ATIVO",
        "equip_intervalo_coleta": 60, "equip_sirene_ativa": "NÃO", "equip_sirete_tempo": 120,
        "sensor": [{
            "sensor_uuid": SENSOR_UUID, "sensor_nome": "Temp", "sensor_tipo": "temperatura", "sensor_unidade": "°C",
            "valor": -18.4, "timestamp": "2026-01-15T10:00:00Z", "sensor_fabricante": "Acme", "sensor_modelo": "T1",
            "sensor_firmware": "1.2", "sensor_id_hardware": "00:11", "sensor_via_hub": "hub",
        }],
    }]).encode()  # fmt: skip
    batch = decode(body)
    assert batch.equipment == (
        Equipment(
            uuid=EQUIPMENT_UUID,
            name="Freezer 1",
            location="Loja",
            status="ATIVO",
            interval_seconds=60,
            siren_active=False,
            siren_seconds=120,
        ),
    )
    assert batch.sensors == (
        Sensor(
            uuid=SENSOR_UUID,
            equipment_uuid=EQUIPMENT_UUID,
            name="Temp",
            type="temperatura",
            unit="°C",
            manufacturer="Acme",
            model="T1",
            firmware="1.2",
            hardware_id="00:11",
            via_hub="hub",
        ),
    )
    assert batch.readings.schema == READINGS_SCHEMA
    assert [(r["value"], r["status"], r["time"]) for r in rows(batch)] == [
        (-18.4, None, to_us(datetime(2026, 1, 15, 10, tzinfo=UTC)))
    ]
    assert (batch.objects, batch.received) == (1, 1)


def test_an_identifier_that_is_no_uuid_is_kept_as_external_id() -> None:
    batch = decode(body_of(reading(sensor_uuid="freezer/temp"), equip_uuid="freezer"))
    assert (batch.equipment[0].uuid, batch.equipment[0].external_id) == (external_uuid("freezer"), "freezer")
    assert (batch.sensors[0].uuid, batch.sensors[0].external_id) == (external_uuid("freezer/temp"), "freezer/temp")


def test_old_clients_may_send_one_sensor_as_an_object() -> None:
    body = json.dumps([{"equip_uuid": EQUIPMENT_UUID, "sensor": reading()}]).encode()
    assert decode(body).readings.num_rows == 1


def test_the_last_description_of_a_sensor_wins() -> None:
    batch = decode(body_of(reading(sensor_nome="old", timestamp="2026-01-15T10:00:00Z"), reading(sensor_nome="new")))
    assert [sensor.name for sensor in batch.sensors] == ["new"]


@pytest.mark.parametrize(
    "tail",
    [
        [],
        [reading(sensor_nome="void", timestamp="no time")],
        [reading(sensor_nome="void", sensor_uuid="")],
        [reading(sensor_nome="void", valor=None)] * 3,
    ],
)
@pytest.mark.parametrize("unknown", ["x", '},{"sensor_uuid":"', "{", {"a": [{"b": "]}"}]}, [{}], "é\\"])
@pytest.mark.parametrize("last", [{}, {"extra": [reading(sensor_nome="other list")]}])
def test_of_a_long_object_too_the_description_in_the_last_usable_reading_wins(
    tail: list[dict[str, Any]], unknown: object, last: dict[str, Any]
) -> None:
    usable = [reading(sensor_nome=f"name {i}", sensor_uuid=f"s{i % 3}", x=unknown) for i in range(200)]
    item = {"equip_uuid": EQUIPMENT_UUID, "sensor": [*usable, *tail], **last}
    batch = decode(json.dumps([item], ensure_ascii=False).encode())
    assert [sensor.name for sensor in batch.sensors] == ["name 198", "name 199", "name 197"]
    assert (batch.readings.num_rows, len(batch.rejections)) == (200, len(tail))
    assert all(json.loads(item.excerpt or "")["sensor_nome"] == "void" for item in batch.rejections)


def test_what_is_remembered_of_one_equipment_is_not_taken_for_another_that_is_equal_in_python() -> None:
    siren = [decode(body_of(reading(), equip_sirene_ativa=value)).equipment[0].siren_active for value in (1, True, 1)]
    assert siren == [None, True, None]


def test_a_description_too_long_to_remember_is_the_same_each_time() -> None:
    bodies = [body_of(reading(sensor_nome="n" * 900, sensor_modelo=model)) for model in ("a", "b", "a")]
    described = [(decode(body).sensors[0].name, decode(body).sensors[0].model) for body in bodies]
    assert described == [("n" * 500, "a"), ("n" * 500, "b"), ("n" * 500, "a")]


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-03-28T12:00:00", "2026-03-28T11:00:00"),
        ("2026-03-29T02:30:00", "2026-03-29T01:30:00"),  # skipped by the clock
        ("2026-10-25T02:30:00", "2026-10-25T00:30:00"),  # twice: the first is meant
        ("2026-10-25T02:30:00+01:00", "2026-10-25T01:30:00"),
    ],
)
def test_a_time_without_zone_is_local_to_the_configured_zone(text: str, utc: str) -> None:
    moment = to_us(datetime.fromisoformat(utc + "+00:00"))
    options = DecodeOptions(received_us=moment, naive_timezone="Europe/Madrid")
    assert [row["time"] for row in rows(decode(body_of(reading(timestamp=text)), options))] == [moment]


def test_unusable_readings_are_rejected_with_position_and_reason_and_the_others_go_on() -> None:
    batch = decode(
        body_of(
            reading(),
            reading(timestamp="yesterday"),
            reading(timestamp=1_768_478_400),
            reading(timestamp="2025-12-31T23:59:59Z"),
            reading(timestamp="2026-01-15T12:10:01Z"),
            reading(timestamp="2026-01-15T12:10:00Z"),
            {"valor": 1},
            {"sensor_uuid": SENSOR_UUID},
            7,
            reading(sensor_uuid=5),
            reading(sensor_telemetria={}),
            reading(sensor_nome=[1], sensor_bateria_pct=True),
        )
    )
    assert batch.readings.num_rows == 3
    assert reasons(batch) == [
        (0, 1, Reason.BAD_TIMESTAMP), (0, 2, Reason.BAD_TIMESTAMP), (0, 3, Reason.TOO_OLD), (0, 4, Reason.IN_FUTURE),
        (0, 6, Reason.MISSING_SENSOR), (0, 7, Reason.NO_VALUE), (0, 8, Reason.BAD_READING), (0, 9, Reason.BAD_READING),
        (0, 10, Reason.BAD_READING),
    ]  # fmt: skip
    assert "yesterday" in (batch.rejections[0].excerpt or "")
    assert batch.received == 12


def test_only_keeps_just_the_readings_at_its_positions() -> None:
    body = body_of(reading(valor=0), reading(valor=1), reading(timestamp="x"), reading(timestamp="y"))
    batch = decode(body, only={(0, 1), (0, 2)})
    assert [row["value"] for row in rows(batch)] == [1.0]
    assert reasons(batch) == [(0, 2, Reason.BAD_TIMESTAMP)]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"), (b" \n", "empty_body"), (b"\xef\xbb\xbf", "empty_body"), (b"[]", "empty_body"),
        (b"{}", "not_an_array"), (b"[1]", "not_an_array"), (b"[[]]", "not_an_array"), (b"null", "not_an_array"),
        (b"x", "not_json"), (b"[", "not_json"), (b"[{}", "not_json"), (b"[{},]", "not_json"), (b"[{} {}]", "not_json"),
        (b"[{}] x", "not_json"), (b"[{}]]", "not_json"), (b'[{"a":"\xff"}]', "not_json"), (b"[{'a':1}]", "not_json"),
        (b'[{"sensor":[{"valor":NaN}]}]', "not_json"), (b'[{"equip_nome":"\\ud800"}]', "not_json"),
        (b'[{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "not_json"),
        (b'[{"equip_nome":"\xc3"}]', "not_json"), (b'[{"a":1', "not_json"), (b'[{"a":1}', "not_json"),
    ],
)  # fmt: skip
def test_a_broken_body_is_refused_with_its_code(body: bytes, code: str) -> None:
    for piece in (1, 100_000):
        with pytest.raises(InvalidInput) as caught:
            decode(body, piece=piece if len(body) < 1000 else 100_000)
        assert caught.value.code == code


def test_a_syntax_error_is_told_with_its_position_in_the_whole_body() -> None:
    start = body_of(reading())[:-1]
    with pytest.raises(InvalidInput) as caught:
        decode(start + b', {"a": nope}]')
    assert caught.value.extra["position"] == len(start) + len(', {"a": n')


def test_a_byte_order_mark_is_accepted() -> None:
    assert decode(b"\xef\xbb\xbf" + body_of(reading()), piece=1).readings.num_rows == 1


def test_the_limits_name_themselves_and_their_setting() -> None:
    with pytest.raises(LimitExceeded, match="SENSORKEEP_MAX_READINGS"):
        decode(body_of(reading(), reading()), DecodeOptions(received_us=NOW_US, max_readings=1))
    with pytest.raises(LimitExceeded, match="SENSORKEEP_MAX_EQUIPMENT"):
        decode(b"[{},{}]", DecodeOptions(received_us=NOW_US, max_objects=1))
    with pytest.raises(LimitExceeded, match="longer than"):
        decode(b'[{"note":"' + b"x" * (OBJECT_BUFFER_BYTES + 1) + b'"}]')


# --- one giant object ---------------------------------------------------------------------------------------------


def giant(count: int, before: bytes, after: bytes, extra: bytes = b"") -> Iterator[bytes]:
    """One equipment object of `count` readings, in pieces of about 100 KB."""
    yield b"[{" + before + b'"sensor":['
    for start in range(0, count, 500):
        yield b",".join(
            b'{"sensor_uuid":"s%d","sensor_telemetria":"%d.5","sensor_datahora_coleta":"2026-01-15T10:%02d:%02d.%06d"%s}'
            % (i % 50, i % 90, i // 60 % 60, i % 60, i, extra)
            for i in range(start, min(start + 500, count))
        ) + (b"," if start + 500 < count else b"")
    yield b"]" + after + b"}]"


def test_a_giant_object_is_read_whole_wherever_its_identity_stands() -> None:
    for before, after in ((b'"equip_uuid":"e",', b""), (b"", b',"equip_uuid":"e","equip_nome":"n"')):
        body = b"".join(giant(30_000, before, after))
        assert len(body) > 2 * OBJECT_BUFFER_BYTES
        batch = decode(body)
        assert batch.readings.num_rows == 30_000
        assert {sensor.equipment_uuid for sensor in batch.sensors} == {external_uuid("e")}
        assert len(batch.sensors) == 50


def test_a_giant_object_without_identity_rejects_each_of_its_readings() -> None:
    batch = decode(b"".join(giant(20_000, b"", b"")))
    assert batch.readings.num_rows == 0
    assert reasons(batch) == [(0, i, Reason.MISSING_EQUIPMENT) for i in range(20_000)]
    assert batch.sensors == ()


def test_a_giant_object_without_identity_says_so_of_readings_whose_sensor_has_none_either() -> None:
    batch = decode(body_of(*[reading(sensor_uuid=True), 7] * 15_000, equip_uuid=None))
    assert reasons(batch)[:2] == [(0, 0, Reason.MISSING_EQUIPMENT), (0, 1, Reason.BAD_READING)]


def test_of_a_repeated_sensor_list_the_last_counts_in_a_giant_object_too() -> None:
    body = b"".join(giant(20_000, b'"equip_uuid":"e",', b',"sensor":[{"sensor_uuid":"last","valor":1}]'))
    batch = decode(body)
    assert [sensor.external_id for sensor in batch.sensors] == ["last"]
    assert batch.readings.num_rows == 1


# --- bounds -------------------------------------------------------------------------------------------------------


def many(count: int, readings: int, filler: bytes) -> Iterator[bytes]:
    """`count` equipment objects."""
    for i in range(count):
        one = b",".join(
            b'{"sensor_uuid":"s%d","valor":%d,"timestamp":"2026-01-15T10:%02d:%02dZ"%s}'
            % (j, j, i % 60, j % 60, filler)
            for j in range(readings)
        )
        yield (b"," if i else b"[") + b'{"equip_uuid":"e%d","sensor":[%s]}' % (i % 100, one)
    yield b"]"


FILLER = b',"sensor_id_hardware":"00:12:4b","note":"' + b"n" * 900 + b'"'


@pytest.mark.parametrize("shape", ["one giant object", "many objects"])
def test_a_body_of_100_mb_stays_within_40_mib(shape: str) -> None:
    pieces = (
        giant(95_000, b'"equip_uuid":"e",', b"", FILLER) if shape == "one giant object" else many(1_000, 95, FILLER)
    )
    decoder = EsmBulkDecoder(OPTIONS)
    size = 0
    tracemalloc.start()
    try:
        for piece in pieces:
            size += len(piece)
            decoder.feed(piece)
        batch = decoder.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 95_000_000
    assert batch.readings.num_rows == 95_000
    # Arrow's own memory is not traced; it holds the columns, 40 bytes a reading.
    assert peak + batch.readings.get_total_buffer_size() < 40 * MIB


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "ends of objects inside texts": lambda n: body_of(*[reading(status="]}", sensor_nome='x]},{"equip_uuid":"')] * n),
    "ends of readings inside texts": lambda n: body_of(*[reading(status='"},{"valor":1},')] * n),
    "readings that are none": lambda n: b'[{"equip_uuid":"e","sensor":[' + b"1," * (n * 2) + b"1]}]",
    "empty readings": lambda n: b'[{"equip_uuid":"e","sensor":[' + b"{}," * (n * 3) + b"{}]}]",
    "nested lists": lambda n: body_of(*[{"x": [{"y": [[]]}, {}]}] * n),
    "white space": lambda n: b"[" + b" " * (n * 500) + b"{}" + b"\n" * (n * 500) + b"]",
    "objects of odd types": lambda n: b"[" + b",".join([b'{"equip_nome":[],"sensor":{"valor":[]}}'] * (n // 3)) + b"]",
    "brackets before braces": lambda n: b'[{"equip_uuid":"e","x":"' + b"] " * (n * 10) + b'"}]',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_takes_linear_time(name: str) -> None:
    seconds = []
    for count in (3_000, 24_000):
        body = HOSTILE[name](count)
        best = 1e9
        for _ in range(2):
            start = time.process_time()
            decode(body, piece=64_000)
            best = min(best, time.process_time() - start)
        seconds.append(best)
    # Eight times the input: quadratic would be 64 times the work.
    assert seconds[1] < 24 * max(seconds[0], 0.02)


def test_feeding_single_bytes_takes_linear_time() -> None:
    body = body_of(*[reading(sensor_nome="]}")] * 3_000)
    start = time.process_time()
    assert decode(body, piece=1).readings.num_rows == 3_000
    assert time.process_time() - start < 3
