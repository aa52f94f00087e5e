"""The small forms, gathered requests, claims, the newest readings and the hand-over."""

from __future__ import annotations

import gzip
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from sensorkeep.clock import MICROSECONDS, to_us
from sensorkeep.decode.claim import decode_claim
from sensorkeep.decode.gathered import (
    READINGS,
    TEMPERATURE,
    Entry,
    decode_gathered,
    encode_gathered,
    gather,
    gather_each,
)
from sensorkeep.decode.handoff import Handoff
from sensorkeep.decode.newest import newest_of, newest_readings
from sensorkeep.decode.options import DecodeOptions, time_range
from sensorkeep.decode.readings import decode_readings, parse_reading
from sensorkeep.decode.temperature import check_time, parse_temperature
from sensorkeep.errors import InvalidInput, LimitExceeded, Poisoned
from sensorkeep.model import Claim, DecodedBatch, LatestReading, LatestRecord, Reason, WireFormat, external_uuid

NOW_US = to_us(datetime(2026, 1, 15, 12, 0, tzinfo=UTC))
OLDEST_US = to_us(datetime(2026, 1, 1, tzinfo=UTC))
OPTIONS = DecodeOptions(received_us=NOW_US, oldest_allowed_us=OLDEST_US)


def rows(batch: DecodedBatch) -> list[tuple[Any, ...]]:
    return [
        (batch.sensors[row["series"]].external_id, to_us(row["time"]), row["value"], row["status"])
        for row in batch.readings.to_pylist()
    ]


def problems(caught: pytest.ExceptionInfo[InvalidInput]) -> list[str]:
    assert caught.value.code == "invalid_fields"
    return [error["path"] for error in caught.value.extra["errors"]]


# --- temperature --------------------------------------------------------------------------------------------------


def test_a_temperature_reading_holds_every_numeric_field_and_ignores_the_others() -> None:
    body = b'{"temperature":25,"humidity":null,"pressure":1012.5,"co2":415,"sensor_id":"s","note":"x","ok":true}'
    parsed = parse_temperature(body)
    assert (parsed.sensor_id, parsed.values, parsed.timestamp) == (
        "s", {"temperature": 25.0, "pressure": 1012.5, "co2": 415.0}, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ("{}", ["temperature", "sensor_id"]),
        ('{"temperature":"25","sensor_id":"s"}', ["temperature"]),
        ('{"temperature":true,"sensor_id":"s"}', ["temperature"]),
        ('{"temperature":null,"sensor_id":"s"}', ["temperature"]),
        ('{"temperature":1,"humidity":"x","pressure":[],"sensor_id":"s"}', ["humidity", "pressure"]),
        ('{"temperature":1,"sensor_id":""}', ["sensor_id"]),
        ('{"temperature":1,"sensor_id":5}', ["sensor_id"]),
        ('{"temperature":1,"sensor_id":"%s"}' % ("x" * 129), ["sensor_id"]),
        ('{"temperature":1,"sensor_id":"s","timestamp":1768478400}', ["timestamp"]),
        ('{"temperature":1,"sensor_id":"s","a/b":1}', ["a/b"]),
        ('{"temperature":%s,"sensor_id":"s"}' % ("9" * 400), ["temperature"]),
        ("[1]", [""]),
    ],
)
def test_bad_fields_of_a_temperature_reading_are_named(body: str, paths: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_temperature(body.encode())
    assert problems(caught) == paths


@pytest.mark.parametrize(("body", "code"), [(b"", "empty_body"), (b"{", "not_json"), (b"\xff", "not_json")])
def test_a_small_body_that_is_no_json_is_refused(body: bytes, code: str) -> None:
    for parse in (parse_temperature, parse_reading, lambda b: decode_readings(b, OPTIONS)):
        with pytest.raises(InvalidInput) as caught:
            parse(body)
        assert caught.value.code == code


def test_the_time_of_a_single_reading_is_checked() -> None:
    assert check_time(None, OPTIONS) == NOW_US
    assert check_time("2026-01-15T13:00:00+01:00", OPTIONS) == NOW_US
    for text, reason in (("x", "bad_timestamp"), ("2025-12-31", "bad_timestamp"), ("2025-12-31T00:00Z", "too_old"),
                         ("2026-01-15T12:10:01Z", "in_future")):  # fmt: skip
        with pytest.raises(InvalidInput) as caught:
            check_time(text, OPTIONS)
        assert caught.value.extra["reason"] == reason


# --- POST /readings -----------------------------------------------------------------------------------------------


def test_each_quantity_is_a_reading_and_a_status_alone_is_one() -> None:
    body = json.dumps([
        {"sensor_id": "a", "values": {"temperature": 21.5, "co2": 415}, "status": "ok", "metadata": {"battery": 91}},
        {"sensor_id": "b", "timestamp": "2026-01-15T10:00:00Z", "status": "open"},
    ]).encode()  # fmt: skip
    batch = decode_readings(body, OPTIONS)
    assert rows(batch) == [
        ("a/temperature", NOW_US, 21.5, "ok"),
        ("a/co2", NOW_US, 415.0, "ok"),
        ("b/status", to_us(datetime(2026, 1, 15, 10, tzinfo=UTC)), None, "open"),
    ]
    assert batch.readings["battery"].to_pylist() == [91.0, 91.0, None]
    assert [sensor.unit for sensor in batch.sensors] == ["°C", None, None]
    assert [item.uuid for item in batch.equipment] == [external_uuid("a"), external_uuid("b")]
    assert batch.objects == 2
    assert decode_readings(b'{"sensor_id":"a","values":{"x":1}}', OPTIONS).readings.num_rows == 1


def test_bad_fields_refuse_the_whole_body_and_are_all_named() -> None:
    body = json.dumps([
        {"sensor_id": "a", "values": {"x": 1}},
        {"values": {"": 1, "a/b": 1, "y": "1", "z": None}, "status": 5, "timestamp": 1},
        {"sensor_id": "a"},
        {"sensor_id": "a", "values": [1], "metadata": {"battery": 101, "rssi": True, "other": 1}},
        7,
    ]).encode()  # fmt: skip
    with pytest.raises(InvalidInput) as caught:
        decode_readings(body, OPTIONS)
    assert problems(caught) == [
        "[1].sensor_id", "[1].timestamp", "[1].status", "[1].values", "[1].values.a/b", "[1].values.y", "[1].values.z",
        "[2].values", "[3].values", "[3].metadata.battery", "[3].metadata.rssi", "[4]",
    ]  # fmt: skip


def test_times_that_cannot_be_stored_become_rejections() -> None:
    body = json.dumps([
        {"sensor_id": "a", "values": {"x": 1, "y": 2}, "timestamp": "soon"},
        {"sensor_id": "a", "values": {"x": 1}},
        {"sensor_id": "a", "values": {"x": 1}, "timestamp": "2020-01-01T00:00:00Z"},
    ]).encode()  # fmt: skip
    batch = decode_readings(body, OPTIONS)
    assert [(r.equipment, r.sensor, r.reason) for r in batch.rejections] == [
        (0, 0, Reason.BAD_TIMESTAMP), (0, 1, Reason.BAD_TIMESTAMP), (2, 0, Reason.TOO_OLD),
    ]  # fmt: skip
    assert batch.received == 4
    again = decode_readings(body, OPTIONS, only={(0, 1), (1, 0)})
    assert ([(r.equipment, r.sensor) for r in again.rejections], len(rows(again))) == ([(0, 1)], 1)


def test_more_objects_than_allowed_are_refused() -> None:
    body = b"[" + b",".join([b'{"sensor_id":"a","status":"x"}'] * 10_001) + b"]"
    with pytest.raises(LimitExceeded):
        decode_readings(body, OPTIONS)


# --- gathered -----------------------------------------------------------------------------------------------------


def entries() -> list[Entry]:
    bodies = [
        (TEMPERATURE, b'{"temperature":1.5,"humidity":60,"sensor_id":"a"}'),
        (READINGS, b'{"sensor_id":"b","values":{"co2":400},"status":"ok","metadata":{"rssi":-60}}'),
        (TEMPERATURE, b'{"temperature":2.5,"sensor_id":"a","timestamp":"2026-01-15T11:00:00Z"}'),
        (READINGS, b'{"sensor_id":"b","status":"open"}'),
    ]
    result = []
    for i, (kind, body) in enumerate(bodies):
        parsed = parse_temperature(body) if kind == TEMPERATURE else parse_reading(body)
        options = DecodeOptions(received_us=NOW_US + i)
        result.append(
            Entry(kind, options.received_us, 10 + i, "192.0.2.1", body, parsed, check_time(parsed.timestamp, options))
        )
    return result


def test_gathered_requests_read_back_as_they_were_gathered() -> None:
    batch = gather(entries(), OPTIONS)
    again = decode_gathered(encode_gathered(entries()), OPTIONS)
    assert (again.equipment, again.sensors, again.records) == (batch.equipment, batch.sensors, batch.records)
    assert again.readings.equals(batch.readings)
    assert rows(batch) == [
        ("a/temperature", NOW_US, 1.5, None),
        ("a/humidity", NOW_US, 60.0, None),
        ("b/co2", NOW_US + 1, 400.0, "ok"),
        ("a/temperature", NOW_US - 3600 * MICROSECONDS, 2.5, None),
        ("b/status", NOW_US + 3, None, "open"),
    ]
    assert batch.records[1] == LatestRecord(
        equipment_uuid=external_uuid("a"),
        sensor_id="a",
        time_us=NOW_US - 3600 * MICROSECONDS,
        id=12,
        client_ip="192.0.2.1",
        values={"temperature": 2.5},
    )
    assert [entry.readings for entry in entries()] == [2, 1, 1, 1]


# --- newest, time range -------------------------------------------------------------------------------------------


def test_the_newest_reading_is_the_last_one_of_the_greatest_time() -> None:
    body = json.dumps([
        {"sensor_id": "a", "values": {"x": value}, "timestamp": f"2026-01-15T10:0{minute}:00Z"}
        for value, minute in ((1, 1), (2, 3), (3, 3), (4, 2))
    ]).encode()  # fmt: skip
    batch = decode_readings(body, OPTIONS)
    at = to_us(datetime(2026, 1, 15, 10, 3, tzinfo=UTC))
    assert newest_readings(batch) == [LatestReading(sensor_uuid=batch.sensors[0].uuid, time_us=at, value=3.0)]
    assert time_range(batch) == (at - 120 * MICROSECONDS, at)


def test_a_batch_without_usable_reading_has_no_newest_and_no_time_range() -> None:
    batch = decode_readings(b'{"sensor_id":"a","values":{"x":1},"timestamp":"x"}', OPTIONS)
    assert (newest_readings(batch), time_range(batch)) == ([], None)


# --- claims -------------------------------------------------------------------------------------------------------


def claim(wire_format: WireFormat) -> Claim:
    return Claim(
        batch_id="b", wire_format=wire_format, received_us=NOW_US, readings=1, oldest_allowed_us=OLDEST_US,
        naive_timezone="America/Sao_Paulo",
    )  # fmt: skip


ESM_BODY = json.dumps([
    {"equip_uuid": "e", "sensor": [
        {"sensor_uuid": "s", "valor": 1, "timestamp": "2026-01-15T08:00:00"},
        {"sensor_uuid": "s", "valor": 1, "timestamp": "x"},
    ]}
]).encode()  # fmt: skip


@pytest.mark.parametrize("stored", [True, False])
def test_a_claim_is_decoded_by_its_own_rules_from_gzip_or_plain_bytes(stored: bool) -> None:
    payload = gzip.compress(ESM_BODY) if stored else ESM_BODY
    chunks = [payload[:1], payload[1:50], payload[50:]]
    batch = decode_claim(claim(WireFormat.ESM_BULK), chunks)
    assert rows(batch) == [("s", to_us(datetime(2026, 1, 15, 11, tzinfo=UTC)), 1.0, None)]
    assert len(batch.rejections) == 1
    only = decode_claim(claim(WireFormat.ESM_BULK), chunks, only={(0, 1)})
    assert (only.readings.num_rows, len(only.rejections)) == (0, 1)


def test_a_claim_accepted_under_wider_limits_still_decodes() -> None:
    body = b"[" + b",".join([b'{"equip_uuid":"e","sensor":[]}'] * 20_000) + b"]"
    assert decode_claim(claim(WireFormat.ESM_BULK), [gzip.compress(body)]).objects == 20_000


@pytest.mark.parametrize("wire_format", WireFormat)
def test_a_payload_that_cannot_be_used_is_poisoned(wire_format: WireFormat) -> None:
    for payload in (b"\x00nonsense", gzip.compress(ESM_BODY)[:20], b""):
        with pytest.raises(Poisoned):
            decode_claim(claim(wire_format), [payload])


def test_claims_of_the_small_forms_are_decoded() -> None:
    body = b'[{"sensor_id":"a","values":{"x":1}}]'
    assert decode_claim(claim(WireFormat.READINGS), [body]).readings.num_rows == 1
    assert decode_claim(claim(WireFormat.READINGS), [gzip.compress(body)]).readings.num_rows == 1
    assert decode_claim(claim(WireFormat.GATHERED), [encode_gathered(entries())]).readings.num_rows == 5


def test_the_newest_of_many_claims_that_share_their_statuses_take_linear_time() -> None:
    def seconds_of(claims: int) -> float:
        bodies = [b'{"sensor_id":"s%d","values":{"t":1},"status":"%d"}' % (i // 20, i) for i in range(20 * claims)]
        all_entries = [Entry(READINGS, 1, 0, "", body, parse_reading(body), 1 + i) for i, body in enumerate(bodies)]
        batches = gather_each([tuple(all_entries[i : i + 20]) for i in range(0, len(bodies), 20)])
        best = math.inf
        for _ in range(3):
            start = time.process_time()
            assert len(newest_of(batches)) == claims
            best = min(best, time.process_time() - start)
        return best

    assert seconds_of(1600) < 3 * 8 * seconds_of(200)


# --- hand-over ----------------------------------------------------------------------------------------------------


def test_a_batch_is_handed_over_once() -> None:
    handoff, batch = Handoff(1_000_000), gather(entries(), OPTIONS)
    assert handoff.offer("1", batch)
    assert not handoff.offer("1", batch)
    assert handoff.take("1") is batch
    assert handoff.take("1") is None


def test_the_hand_over_keeps_to_its_bound_and_frees_what_is_taken() -> None:
    batch = gather(entries() * 100, OPTIONS)
    handoff = Handoff(300_000)
    kept = [i for i in range(50) if handoff.offer(str(i), batch)]
    assert 0 < len(kept) < 50
    assert handoff.take(str(kept[0])) is batch
    assert handoff.offer("again", batch)
    assert not handoff.offer("too many", batch)


def test_who_is_patient_waits_for_room_while_batches_are_taken() -> None:
    batch = gather(entries() * 100, OPTIONS)
    handoff = Handoff(300_000, patience_seconds=3600.0)
    assert not handoff.offer("too large", gather(entries() * 10_000, OPTIONS), patient=True)
    kept = [i for i in range(50) if handoff.offer(str(i), batch)]
    assert not handoff.offer("nobody takes any", batch, patient=True)
    assert handoff.take(str(kept[0])) is batch
    assert handoff.offer("again", batch)
    with ThreadPoolExecutor(1) as thread:
        patient = thread.submit(handoff.offer, "patient", batch, patient=True)
        assert handoff.take("again") is batch
        assert patient.result()


def test_what_was_never_kept_gives_no_hope_to_who_is_patient() -> None:
    batch = gather(entries() * 100, OPTIONS)
    handoff = Handoff(300_000, patience_seconds=3600.0)
    kept = [i for i in range(50) if handoff.offer(str(i), batch)]
    assert handoff.take("unknown") is None
    handoff.withdraw("unknown")
    handoff.withdraw(str(kept[0]))
    assert handoff.take(str(kept[0])) is None
    assert handoff.offer("in its place", batch)
    assert not handoff.offer("patient", batch, patient=True)


def test_who_is_patient_does_not_wait_for_ever() -> None:
    batch = gather(entries() * 100, OPTIONS)
    handoff = Handoff(300_000, patience_seconds=0.01)
    kept = [i for i in range(50) if handoff.offer(str(i), batch)]
    assert handoff.take(str(kept[0])) is batch
    assert handoff.offer("again", batch)
    assert not handoff.offer("patient", batch, patient=True)


def test_of_many_threads_one_gets_the_batch() -> None:
    handoff, batch = Handoff(100_000_000), gather(entries(), OPTIONS)
    for i in range(200):
        assert handoff.offer(str(i), batch)
    got: list[int] = []

    def take_all() -> None:
        got.extend(i for i in range(200) if handoff.take(str(i)) is not None)

    threads = [threading.Thread(target=take_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(200))
