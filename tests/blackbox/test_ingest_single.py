"""POST /temperature_reading: SensorFlow's form, its answer, and what its clients see next."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from harness import API_KEY, API_KEY_WS, Server, hours_ago, new_uuid, problem, running, stamp

CURL_BODY = """{
    "temperature": 25.5,
    "humidity": 60.2, 
    "pressure": 1012.5,
    "sensor_id": "sensor_001"
  }"""  # noqa: W291 - as SensorFlow's README has it
ANSWER = {
    "id", "temperature", "humidity", "pressure", "date_recorded", "time_recorded", "sensor_id", "client_ip",
}  # fmt: skip
ID_BOUND = 2**53


def send(server: Server, prefer: str | None = None, **fields: object) -> dict[str, Any]:
    answer = server.client.post(
        "/temperature_reading", json=fields, headers={} if prefer is None else {"Prefer": prefer}
    )
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_the_curl_line_of_sensorflow_works_as_it_stands(server: Server) -> None:
    before = hours_ago(0)
    answer = httpx.post(
        f"{server.url}/api/v1/temperature_reading",
        content=CURL_BODY,
        headers={"X-API-Key": API_KEY, "Content-Type": "application/json"},
    )
    assert answer.status_code == 201, answer.text
    document = answer.json()
    assert document.keys() == ANSWER
    assert type(document["id"]) is int
    assert 0 < document["id"] < ID_BOUND
    assert (document["temperature"], document["humidity"], document["pressure"]) == (25.5, 60.2, 1012.5)
    assert (document["sensor_id"], document["client_ip"]) == ("sensor_001", "127.0.0.1")
    recorded = datetime.fromisoformat(f"{document['date_recorded']}T{document['time_recorded']}+00:00")
    assert before <= recorded <= before + timedelta(minutes=5)

    latest = httpx.get(f"{server.url}/api/v1/sensor/sensor_001/latest", headers={"X-API-Key": API_KEY})
    assert latest.status_code == 200, latest.text
    assert latest.json().keys() == ANSWER | {"timestamp"}
    assert document.items() <= latest.json().items()
    health = httpx.get(f"{server.url}/api/v1/health", headers={"X-API-Key": API_KEY})
    assert health.status_code == 200
    ping = httpx.get(f"{server.url}/api/v1/ping")
    assert ping.json()["status"] == "ok"


def test_latest_sees_a_reading_the_moment_its_post_was_answered(server: Server) -> None:
    name = f"latest-{new_uuid()}"
    for temperature in (1.5, 2.5, 3.5):
        sent = send(server, sensor_id=name, temperature=temperature)
        assert sent.items() <= server.get(f"/sensor/{name}/latest").items()


def test_a_late_or_repeated_reading_does_not_replace_a_newer_latest(server: Server) -> None:
    name, moment = f"late-{new_uuid()}", hours_ago(1)
    newest = send(server, sensor_id=name, temperature=20.0, timestamp=stamp(moment))
    send(server, sensor_id=name, temperature=10.0, timestamp=stamp(moment - timedelta(hours=3)))
    latest = server.get(f"/sensor/{name}/latest")
    assert (latest["id"], latest["temperature"], latest["timestamp"]) == (newest["id"], 20.0, stamp(moment))


def test_ids_increase_over_a_restart_and_the_wall_clock_is_that_of_the_display_time_zone(data_dir: Path) -> None:
    moment = hours_ago(5)
    ids: list[int] = []
    for _ in range(2):
        with running(data_dir, SENSORKEEP_DISPLAY_TIMEZONE="Asia/Kolkata") as server:
            for i in range(3):
                sent = send(server, sensor_id="s", temperature=i, timestamp=stamp(moment + timedelta(seconds=i)))
                shown = (moment + timedelta(seconds=i)).astimezone(ZoneInfo("Asia/Kolkata"))
                assert (sent["date_recorded"], sent["time_recorded"]) == (f"{shown:%Y-%m-%d}", f"{shown:%H:%M:%S}")
                ids.append(sent["id"])
            latest = server.get("/sensor/s/latest")
            assert (latest["id"], latest["time_recorded"]) == (ids[-1], f"{shown:%H:%M:%S}")
            server.stop()
    assert ids == sorted(set(ids))
    assert max(ids) < ID_BOUND


def test_humidity_and_pressure_are_optional_and_then_null(server: Server) -> None:
    name = f"bare-{new_uuid()}"
    sent = send(server, sensor_id=name, temperature=21)
    assert sent.keys() == ANSWER
    assert (sent["humidity"], sent["pressure"]) == (None, None)
    sent = send(server, sensor_id=name, temperature=21.5, humidity=None, pressure=1000)
    assert (sent["humidity"], sent["pressure"]) == (None, 1000)


def test_a_further_number_is_one_more_quantity(server: Server) -> None:
    name = f"extra-{new_uuid()}"
    sent = send(server, "wait=30", sensor_id=name, temperature=21.5, radon=48, note="ignored")
    assert sent["radon"] == 48
    assert "note" not in sent
    assert server.get(f"/sensor/{name}/latest")["radon"] == 48
    rows = server.get(f"/analytics/equipment/{name}/history", period="raw")["data"]
    assert {row["sensor_type"]: row["value"] for row in rows} == {"temperature": 21.5, "radon": 48.0}
    (hour,) = server.get(f"/analytics/sensor/{name}/radon/history")["data"]
    assert (hour["avg_value"], hour["sample_count"]) == (48.0, 1)


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({"sensor_id": "s"}, ["temperature"]),
        ({"temperature": "warm", "sensor_id": "s"}, ["temperature"]),
        ({"temperature": None, "sensor_id": "s"}, ["temperature"]),
        ({"temperature": True, "sensor_id": "s"}, ["temperature"]),
        ({"temperature": 1.0}, ["sensor_id"]),
        ({"temperature": 1.0, "sensor_id": ""}, ["sensor_id"]),
        ({"temperature": 1.0, "sensor_id": 7}, ["sensor_id"]),
        ({"temperature": 1.0, "sensor_id": "x" * 129}, ["sensor_id"]),
        ({"temperature": 1.0, "sensor_id": "s", "humidity": "60", "pressure": []}, ["humidity", "pressure"]),
        ({"temperature": 1.0, "sensor_id": "s", "timestamp": 12}, ["timestamp"]),
        ({"temperature": 1.0, "sensor_id": "s", "timestamp": "noon"}, ["timestamp"]),
        ({"temperature": 1.0, "sensor_id": "s", "timestamp": "2001-01-01T00:00:00Z"}, ["timestamp"]),
        ({"temperature": 1.0, "sensor_id": "s", "timestamp": "2999-01-01T00:00:00Z"}, ["timestamp"]),
        ({"temperature": 1.0, "sensor_id": "s"} | {f"q{i}": i for i in range(64)}, [""]),
        ([{"temperature": 1.0, "sensor_id": "s"}], [""]),
    ],
)
def test_bad_fields_are_a_422_that_names_them(server: Server, body: object, paths: list[str]) -> None:
    document = problem(server.client.post("/temperature_reading", json=body), 422, "invalid_fields")
    assert [error["path"] for error in document["errors"]] == paths
    assert all(error["message"] for error in document["errors"])


@pytest.mark.parametrize(
    ("content", "code"), [(b"{", "not_json"), (b"", "empty_body"), (b'{"temperature": NaN}', "not_json")]
)
def test_a_body_that_is_no_json_is_a_400(server: Server, content: bytes, code: str) -> None:
    answer = server.client.post("/temperature_reading", content=content, headers={"Content-Type": "application/json"})
    problem(answer, 400, code)


def test_a_wrong_key_is_a_401_and_a_live_key_a_403(server: Server) -> None:
    def with_key(key: str) -> httpx.Response:
        body = json.loads(CURL_BODY)
        return server.anonymous.post("/temperature_reading", json=body, headers={"X-API-Key": key})

    problem(with_key(API_KEY[:-1]), 401, "unauthenticated")
    problem(server.anonymous.post("/temperature_reading", json={}), 401, "unauthenticated")
    problem(with_key(API_KEY_WS), 403, "forbidden")


def test_a_body_over_64_kib_is_a_413_and_a_get_a_405(server: Server) -> None:
    body = {"temperature": 1.0, "sensor_id": "s", "note": "x" * 65536}
    problem(server.client.post("/temperature_reading", json=body), 413, "too_large")
    problem(server.client.get("/temperature_reading"), 405, "method_not_allowed")
