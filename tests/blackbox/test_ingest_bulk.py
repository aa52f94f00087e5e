"""POST /telemetry/bulk: what is accepted, what is answered, and what became of it."""

from __future__ import annotations

import gzip
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, stamp

RECORDED = Path(__file__).parent.parent / "data" / "home_assistant_batch.json"
ANSWER = {"status", "received", "readings", "quarantined", "batch_id", "claim_check", "message", "errors"}
COUNTS = {"stored", "updated", "duplicate"}
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
DOOR = "660e8400-e29b-41d4-a716-446655440003"


def raw(server: Server, equipment: str, **parameters: object) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = server.get(f"/analytics/equipment/{equipment}/history", period="raw", **parameters)[
        "data"
    ]
    return rows


def tenths(sensor: str, count: int) -> list[dict[str, Any]]:
    start = hours_ago(2)
    return [esm_reading(sensor, i / 10, start + timedelta(seconds=i)) for i in range(count)]


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
def test_a_body_larger_than_what_is_received_whole_is_streamed(server: Server, encoding: str) -> None:
    sensor, start = new_uuid(), hours_ago(6)
    filler = [new_uuid() for _ in range(10_000)]  # so that it stays large when compressed
    readings = [esm_reading(sensor, i / 8, start + timedelta(seconds=i), unknown=filler[i]) for i in range(len(filler))]
    content = json.dumps([esm_equipment(new_uuid(), readings)]).encode()
    if encoding != "identity":
        content = gzip.compress(content, 1) if encoding == "gzip" else zstandard.compress(content)
    assert len(content) > 256 * 1024
    pieces = (content[i : i + 50_000] for i in range(0, len(content), 50_000))
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding, "Prefer": "wait=30"}
    answer = server.client.post("/telemetry/bulk", content=pieces, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.json()["stored"] == len(filler)
    (total,) = server.get(f"/analytics/equipment/{equipment_of(server, sensor)}/stats")["sensors"]
    assert total["total_samples"] == len(filler)


def equipment_of(server: Server, sensor: str) -> str:
    equipment: str = server.get(f"/sensors/{sensor}")["equipment_uuid"]
    return equipment


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd", None])
@pytest.mark.parametrize("path", ["/api/v1/telemetry/bulk", "/api/v1/telemetria/bulk", "/api/telemetria/bulk"])
def test_every_alias_takes_every_encoding(server: Server, path: str, encoding: str | None) -> None:
    equipment, sensor = new_uuid(), new_uuid()
    content = json.dumps([esm_equipment(equipment, tenths(sensor, 3))]).encode()
    if encoding == "gzip":
        content = gzip.compress(content)
    elif encoding == "zstd":
        content = zstandard.compress(content)
    headers = {"Content-Type": "application/json", "Prefer": "wait=30"}
    if encoding is not None:
        headers["Content-Encoding"] = encoding
    answer = server.client.post(server.url + path, content=content, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.json()["stored"] == 3
    assert [row["value"] for row in raw(server, equipment)] == [0.0, 0.1, 0.2]


def test_the_answer_has_the_promised_fields_and_its_location_resolves(server: Server) -> None:
    body = [esm_equipment(new_uuid(), tenths(new_uuid(), 2)), esm_equipment(new_uuid(), tenths(new_uuid(), 1))]
    answer = server.bulk(body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document.keys() == ANSWER
    assert document["status"] == "accepted"
    assert (document["received"], document["readings"], document["quarantined"]) == (2, 3, 0)
    assert document["errors"] == []
    assert re.fullmatch(UUID, document["batch_id"])
    assert re.fullmatch(rf"telemetry/\d{{4}}(-\d\d){{5}}/{UUID}\.json\.gz", document["claim_check"])
    assert answer.headers["location"] == f"/api/v1/telemetry/batches/{document['batch_id']}"
    found = server.client.get(server.url + answer.headers["location"])
    assert found.status_code == 200, found.text
    assert found.json()["batch_id"] == document["batch_id"]
    assert found.json()["readings"] == 3


def test_prefer_wait_holds_the_answer_until_the_readings_are_stored(server: Server) -> None:
    equipment = new_uuid()
    answer = server.bulk([esm_equipment(equipment, tenths(new_uuid(), 4))], prefer="wait=30")
    assert answer.json().keys() == ANSWER | COUNTS
    assert answer.headers["preference-applied"] == "wait=30"
    batch = server.get(f"/telemetry/batches/{answer.json()['batch_id']}")
    assert batch["state"] == "stored"
    assert batch["stored_at"] >= batch["received_at"]
    assert len(raw(server, equipment)) == 4


def test_the_same_batch_again_stores_nothing_and_is_counted_as_duplicates(server: Server) -> None:
    body = [esm_equipment(new_uuid(), tenths(new_uuid(), 5))]
    first, second = server.stored(body), server.stored(body)
    assert [first[name] for name in ("stored", "updated", "duplicate")] == [5, 0, 0]
    assert [second[name] for name in ("stored", "updated", "duplicate")] == [0, 0, 5]
    assert second["batch_id"] != first["batch_id"]
    assert len(raw(server, body[0]["equip_uuid"])) == 5


def test_a_correction_replaces_the_value_and_is_counted_as_updated(server: Server) -> None:
    equipment, sensor = new_uuid(), new_uuid()
    readings = tenths(sensor, 3)
    server.stored([esm_equipment(equipment, readings)])
    readings[1]["valor"] = 99.5
    again = server.stored([esm_equipment(equipment, readings)])
    assert [again[name] for name in ("stored", "updated", "duplicate")] == [0, 1, 2]
    assert [row["value"] for row in raw(server, equipment)] == [0.0, 99.5, 0.2]


def test_of_two_values_for_one_time_in_a_batch_the_last_one_stands(server: Server) -> None:
    equipment, sensor, moment = new_uuid(), new_uuid(), hours_ago(1)
    readings = [esm_reading(sensor, value, moment) for value in (1.0, 2.0, 3.0)]
    answer = server.stored([esm_equipment(equipment, readings)])
    assert answer["stored"] == 1
    assert answer["stored"] + answer["updated"] + answer["duplicate"] == 3
    assert [row["value"] for row in raw(server, equipment)] == [3.0]


def test_an_old_client_may_send_a_single_reading_as_an_object(server: Server) -> None:
    equipment = new_uuid()
    body = {"equip_uuid": equipment, "sensor": esm_reading(new_uuid(), 7.5, hours_ago(1)), "unknown_field": [1]}
    assert server.stored([body])["stored"] == 1
    assert [row["value"] for row in raw(server, equipment)] == [7.5]


def test_a_reading_without_a_time_gets_the_time_of_receipt(server: Server) -> None:
    equipment = new_uuid()
    answer = server.stored([esm_equipment(equipment, [esm_reading(new_uuid(), 1.5, None)])])
    (row,) = raw(server, equipment)
    assert row["time"] == server.get(f"/telemetry/batches/{answer['batch_id']}")["received_at"]


def test_partial_acceptance_stores_the_good_and_quarantines_the_rest_by_position(server: Server) -> None:
    first, second = new_uuid(), new_uuid()
    moment = hours_ago(1)
    body = [
        esm_equipment(
            first,
            [
                esm_reading(new_uuid(), 1.0, moment),
                esm_reading(new_uuid(), 2.0, "yesterday"),
                esm_reading(new_uuid(), 3.0, moment - timedelta(days=40)),
            ],
        ),
        esm_equipment(
            second,
            [
                esm_reading(new_uuid(), 4.0, moment + timedelta(hours=2)),
                esm_reading(new_uuid(), 5.0, moment),
                {"sensor_uuid": new_uuid(), "timestamp": stamp(moment)},
            ],
        ),
    ]
    answer = server.stored(body)
    expected = [
        {"equipment": 0, "sensor": 1, "reason": "bad_timestamp"},
        {"equipment": 0, "sensor": 2, "reason": "too_old"},
        {"equipment": 1, "sensor": 0, "reason": "in_future"},
        {"equipment": 1, "sensor": 2, "reason": "no_value"},
    ]
    assert (answer["readings"], answer["quarantined"], answer["stored"]) == (6, 4, 2)
    assert answer["errors"] == expected
    batch = server.get(f"/telemetry/batches/{answer['batch_id']}")
    assert batch["state"] == "partial"
    assert batch["readings"] == batch["stored"] + batch["updated"] + batch["duplicate"] + batch["quarantined"]
    assert sorted(batch["errors"], key=lambda e: (e["equipment"], e["sensor"])) == expected
    listed = server.get("/telemetry/quarantine", batch_id=answer["batch_id"])["readings"]
    assert {(item["equipment"], item["sensor"], item["reason"]) for item in listed} == {
        (item["equipment"], item["sensor"], item["reason"]) for item in expected
    }
    assert "yesterday" in next(item["excerpt"] for item in listed if item["reason"] == "bad_timestamp")
    assert [row["value"] for row in raw(server, first) + raw(server, second)] == [1.0, 5.0]


def test_backfill_asks_for_the_admin_scope_and_then_takes_old_readings(server: Server, admin: httpx.Client) -> None:
    equipment, moment = new_uuid(), hours_ago(24 * 90)
    body = [esm_equipment(equipment, [esm_reading(new_uuid(), 3.5, moment)])]
    problem(server.bulk(body, prefer="backfill"), 403, "forbidden")
    answer = server.stored(body, client=admin, prefer="backfill, wait=30")
    assert (answer["stored"], answer["quarantined"]) == (1, 0)
    hours = server.get(
        f"/analytics/equipment/{equipment}/history",
        start_date=stamp(moment - timedelta(hours=1)),
        end_date=stamp(moment + timedelta(hours=1)),
    )["data"]
    assert [(row["avg_value"], row["sample_count"]) for row in hours] == [(3.5, 1)]


@pytest.fixture(scope="module")
def recorded(archive: Server) -> dict[str, Any]:
    """The recorded batch of the deployed client in the archive, and what was answered."""
    return archive.stored(json.loads(RECORDED.read_text("utf-8")))


def recorded_rows(archive: Server) -> dict[str, dict[str, Any]]:
    bounds = {"start_date": "2024-01-15T12:00:00Z", "end_date": "2024-01-15T14:00:00Z"}
    first = raw(archive, "550e8400-e29b-41d4-a716-446655440000", **bounds)
    second = raw(archive, "550e8400-e29b-41d4-a716-446655440010", **bounds)
    rows = {row["sensor_uuid"]: row for row in first + second}
    assert len(rows) == len(first) + len(second) == 7
    return rows


def test_the_recorded_batch_comes_back_with_values_and_naive_times(archive: Server, recorded: dict[str, Any]) -> None:
    assert (recorded["received"], recorded["readings"], recorded["quarantined"]) == (2, 7, 0)
    rows = recorded_rows(archive)
    assert {uuid[-2:]: (row["value"], row["time"]) for uuid, row in rows.items()} == {
        "01": (-18.4, "2024-01-15T13:00:00.123456Z"),
        "02": (25.5, "2024-01-15T13:00:00.250000Z"),
        "03": (None, "2024-01-15T12:58:41.000001Z"),
        "04": (312.0, "2024-01-15T13:00:01.999999Z"),
        "11": (None, "2024-01-15T13:00:00.500000Z"),
        "12": (None, "2024-01-15T13:00:00.500000Z"),
        "13": (0.0, "2024-01-15T13:00:02Z"),
    }


@pytest.mark.usefixtures("recorded")
def test_the_recorded_batch_comes_back_with_its_metadata(archive: Server) -> None:
    rows = recorded_rows(archive)
    assert {uuid[-2:]: row["metadata"] for uuid, row in rows.items()} == {
        "01": {"battery": 91, "rssi": -57, "lqi": 172, "battery_voltage": 2.9},
        "02": {"battery": 88, "rssi": -61, "lqi": 165, "battery_voltage": 2.8},
        "03": None,
        "04": {"rssi": -40, "lqi": 255},
        "11": {"battery": 3, "rssi": -94, "lqi": 12, "battery_voltage": 2.1},
        "12": {"battery": 3, "rssi": -94, "lqi": 12, "battery_voltage": 2.1},
        "13": {"battery": 100, "rssi": -1, "lqi": 0, "battery_voltage": 3.3},
    }
    assert rows[DOOR]["sensor_name"] == "Porta"
    assert rows[DOOR]["sensor_type"] == "porta"


@pytest.mark.usefixtures("recorded")
def test_the_recorded_texts_come_back_as_statuses(archive: Server) -> None:
    rows = recorded_rows(archive)
    texts = {uuid[-2:]: row["status"] for uuid, row in rows.items() if row["value"] is None}
    assert texts == {"03": "on", "11": "unavailable", "12": "unknown"}


@pytest.mark.usefixtures("recorded")
def test_the_recorded_batch_describes_equipment_and_sensors(archive: Server) -> None:
    found = archive.get("/equipment/550E8400-E29B-41D4-A716-446655440010")
    names = ("name", "location", "status", "interval_seconds", "siren_active", "siren_seconds")
    assert [found[name] for name in names] == ["Freezer 2", "Depósito", "ATIVO", 300, True, 60]
    sensor = archive.get("/sensors/660e8400-e29b-41d4-a716-446655440001")
    facts = ("manufacturer", "model", "firmware", "hardware_id", "via_hub", "sensor_unit")
    assert [sensor[name] for name in facts] == [
        "SONOFF", "SNZB-02D", "2.1.0", "0x00124b0029abcd01", "zigbee2mqtt", "°C",
    ]  # fmt: skip
