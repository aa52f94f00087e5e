"""POST /readings: the general form, one object or an array, for sensors of any kind."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from harness import Server, hours_ago, new_uuid, problem, stamp

ANSWER = {"status", "received", "readings", "quarantined", "batch_id", "claim_check", "message", "errors"}


def post(server: Server, body: object, **headers: str) -> httpx.Response:
    return server.client.post("/readings", json=body, headers=headers)


def stored(server: Server, body: object) -> dict[str, Any]:
    answer = post(server, body, Prefer="wait=30")
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    assert "stored" in document, document
    return document


def raw(server: Server, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = server.get(f"/analytics/equipment/{name}/history", period="raw")["data"]
    return rows


def test_one_object_is_answered_with_the_fields_of_the_bulk_form(server: Server) -> None:
    name = f"one-{new_uuid()}"
    answer = post(server, {"sensor_id": name, "values": {"temperature": 21.3, "co2": 415}})
    assert answer.status_code == 201, answer.text
    document = answer.json()
    assert document.keys() == ANSWER
    assert (document["received"], document["readings"], document["quarantined"]) == (1, 2, 0)
    assert answer.headers["location"] == f"/api/v1/telemetry/batches/{document['batch_id']}"
    assert server.client.get(server.url + answer.headers["location"]).status_code == 200


def test_a_new_kind_of_quantity_needs_no_code(server: Server) -> None:
    name, moment = f"kind-{new_uuid()}", hours_ago(1)
    values = {"temperature": 21.3, "co2": 415, "água/nível".replace("/", " "): 0.25}
    document = stored(server, {"sensor_id": name, "timestamp": stamp(moment), "values": values})
    assert (document["readings"], document["stored"]) == (3, 3)
    rows = raw(server, name)
    assert {row["sensor_type"]: row["value"] for row in rows} == values
    assert {row["time"] for row in rows} == {stamp(moment)}
    (row,) = server.get(f"/analytics/sensor/{name}%2Fco2/history", period="raw")["data"]
    assert row == {"time": stamp(moment), "value": 415.0, "status": None, "metadata": None}


def test_an_array_is_stored_whole_and_its_repetition_counts_as_duplicates(server: Server) -> None:
    name, start = f"array-{new_uuid()}", hours_ago(2)
    body = [
        {"sensor_id": name, "timestamp": stamp(start + timedelta(seconds=i)), "values": {"level": i}}
        for i in range(100)
    ]
    first, second = stored(server, body), stored(server, body)
    assert (first["received"], first["readings"], first["stored"]) == (100, 100, 100)
    assert (second["stored"], second["updated"], second["duplicate"]) == (0, 0, 100)
    assert [row["value"] for row in raw(server, name)] == list(range(100))


def test_a_status_without_values_is_a_reading(server: Server) -> None:
    name = f"status-{new_uuid()}"
    assert stored(server, {"sensor_id": name, "status": "offline"})["stored"] == 1
    (row,) = raw(server, name)
    assert (row["value"], row["status"], row["sensor_type"]) == (None, "offline", "status")
    latest = server.get(f"/sensor/{name}/status/latest")
    assert (latest["value"], latest["status"]) == (None, "offline")


def test_status_and_metadata_are_kept_with_every_value(server: Server) -> None:
    name = f"metadata-{new_uuid()}"
    metadata = {"battery": 91, "rssi": -60, "lqi": 200, "battery_voltage": 3.1}
    body = {"sensor_id": name, "values": {"a": 1, "b": 2}, "status": "ok", "metadata": metadata}
    assert stored(server, body)["stored"] == 2
    assert [(row["status"], row["metadata"]) for row in raw(server, name)] == [("ok", metadata)] * 2


def test_a_gzip_body_is_taken(server: Server) -> None:
    name = f"gzip-{new_uuid()}"
    content = gzip.compress(json.dumps({"sensor_id": name, "values": {"a": 1}}).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json", "Prefer": "wait=30"}
    assert server.client.post("/readings", content=content, headers=headers).json()["stored"] == 1
    problem(server.client.post("/readings", content=content[:-3], headers=headers), 400, "bad_encoding")


def test_readings_of_an_array_that_cannot_be_used_for_their_time_are_quarantined(server: Server) -> None:
    name, moment = f"partly-{new_uuid()}", hours_ago(1)
    body = [
        {"sensor_id": name, "timestamp": stamp(moment), "values": {"a": 1, "b": 2}},
        {"sensor_id": name, "timestamp": "soon", "values": {"a": 3, "b": 4}},
        {"sensor_id": name, "timestamp": stamp(moment + timedelta(days=2)), "values": {"a": 5}},
        {"sensor_id": name, "timestamp": stamp(moment - timedelta(days=90)), "values": {"a": 6}},
    ]
    document = stored(server, body)
    assert (document["readings"], document["quarantined"], document["stored"]) == (6, 4, 2)
    assert document["errors"] == [
        {"equipment": 1, "sensor": 0, "reason": "bad_timestamp"},
        {"equipment": 1, "sensor": 1, "reason": "bad_timestamp"},
        {"equipment": 2, "sensor": 0, "reason": "in_future"},
        {"equipment": 3, "sensor": 0, "reason": "too_old"},
    ]
    assert server.get(f"/telemetry/batches/{document['batch_id']}")["state"] == "partial"
    assert [row["value"] for row in raw(server, name)] in ([1.0, 2.0], [2.0, 1.0])


def test_an_array_without_a_usable_reading_is_a_422(server: Server) -> None:
    body = [{"sensor_id": "s", "timestamp": "soon", "values": {"a": 1}}]
    document = problem(post(server, body), 422, "no_usable_reading")
    assert document["errors"] == [{"equipment": 0, "sensor": 0, "reason": "bad_timestamp"}]


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({"values": {"a": 1}}, ["sensor_id"]),
        ({"sensor_id": "s"}, ["values"]),
        ({"sensor_id": "s", "values": {}}, ["values"]),
        ({"sensor_id": "s", "values": {"a": "1", "b": 2, "c/d": 3}}, ["values.a", "values.c/d"]),
        ({"sensor_id": "s", "values": {f"q{i}": i for i in range(65)}}, ["values"]),
        ({"sensor_id": "s", "values": {"a": 1}, "metadata": {"battery": 101}}, ["metadata.battery"]),
        ({"sensor_id": "s", "values": {"a": 1}, "status": 5}, ["status"]),
        ([{"sensor_id": "s", "values": {"a": 1}}, {"sensor_id": "s", "values": {"a": None}}], ["[1].values.a"]),
        ([{"sensor_id": "s", "values": {"a": 1}}, 5], ["[1]"]),
    ],
)
def test_bad_fields_refuse_the_whole_body_and_are_named(server: Server, body: object, paths: list[str]) -> None:
    before = server.settled()
    document = problem(post(server, body), 422, "invalid_fields")
    assert [error["path"] for error in document["errors"]][: len(paths)] == paths
    assert server.settled() == before


def test_more_than_10000_objects_are_a_413_and_10000_are_taken(server: Server) -> None:
    name, start = f"many-{new_uuid()}", hours_ago(4)
    body = [
        {"sensor_id": name, "timestamp": stamp(start + timedelta(seconds=i)), "values": {"a": i}} for i in range(10_001)
    ]
    problem(post(server, body), 413, "too_large")
    assert stored(server, body[:10_000])["stored"] == 10_000


@pytest.mark.parametrize(("content", "code"), [(b"", "empty_body"), (b"[]", "empty_body"), (b"[{", "not_json")])
def test_a_body_without_an_object_is_a_400(server: Server, content: bytes, code: str) -> None:
    answer = server.client.post("/readings", content=content, headers={"Content-Type": "application/json"})
    problem(answer, 400, code)
