"""POST /telemetry/bulk: every error of SPEC section 3, its status, its code and its problem document.

Not here: 408 takes BODY_IDLE_SECONDS_MAX of silence, and 503 a full disk.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import zstandard
from harness import API_KEY, API_KEY_WS, Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, running

JSON_TYPE = {"Content-Type": "application/json"}
GZIP = JSON_TYPE | {"Content-Encoding": "gzip"}
ZSTD = JSON_TYPE | {"Content-Encoding": "zstd"}
LIMITS = {
    "SENSORKEEP_MAX_WIRE_BYTES": 256 * 1024,
    "SENSORKEEP_MAX_INFLATED_BYTES": 1536 * 1024,
    "SENSORKEEP_MAX_INFLATE_RATIO": 50,
    "SENSORKEEP_MAX_EQUIPMENT": 5,
    "SENSORKEEP_MAX_READINGS": 50,
    "RATE_LIMIT_PER_MINUTE": 200,
}


def usable(readings: int = 1) -> list[dict[str, Any]]:
    sensor = new_uuid()
    return [esm_equipment(new_uuid(), [esm_reading(sensor, i, hours_ago(i / 60 + 1)) for i in range(readings)])]


def noise(size: int) -> str:
    """Text that hardly compresses."""
    return os.urandom(size // 2).hex()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with small limits."""
    with running(tmp_path_factory.mktemp("small") / "data", **LIMITS) as server:
        yield server


WHOLE = gzip.compress(
    json.dumps([{"equip_uuid": "a", "sensor": [{"sensor_uuid": "b", "valor": i}]} for i in range(20)]).encode(), mtime=0
)
CORRUPT = WHOLE[:40] + bytes([WHOLE[40] ^ 0xFF]) + WHOLE[41:]


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (b'[{"equip_uuid": ', JSON_TYPE, "not_json"),
        (b"value: 21", JSON_TYPE, "not_json"),
        (b'[{"equip_uuid": "a", "sensor": []}] and more', JSON_TYPE, "not_json"),
        (b"\xff\xfe[\x00]\x00", JSON_TYPE, "not_json"),
        (b'{"equip_uuid": "a", "sensor": []}', JSON_TYPE, "not_an_array"),
        (b'"text"', JSON_TYPE, "not_an_array"),
        (b"[1, 2]", JSON_TYPE, "not_an_array"),
        (b"", JSON_TYPE, "empty_body"),
        (b"  \n", JSON_TYPE, "empty_body"),
        (b"[]", JSON_TYPE, "empty_body"),
        (gzip.compress(b""), GZIP, "empty_body"),
        (gzip.compress(b"[]"), GZIP, "empty_body"),
        (b"", GZIP, "bad_encoding"),
        (WHOLE[: len(WHOLE) // 2], GZIP, "bad_encoding"),
        (WHOLE[:-1], GZIP, "bad_encoding"),
        (WHOLE[:-8] + bytes(8), GZIP, "bad_encoding"),
        (CORRUPT, GZIP, "bad_encoding"),
        (b"[{}]", GZIP, "bad_encoding"),
        (zstandard.compress(b"[{}]")[:-2], ZSTD, "bad_encoding"),
        (b"[{}]", ZSTD, "bad_encoding"),
    ],
    ids=[str(number) for number in range(20)],
)
def test_a_malformed_body_is_a_400(server: Server, content: bytes, headers: dict[str, str], code: str) -> None:
    problem(server.client.post("/telemetry/bulk", content=content, headers=headers), 400, code)


def test_a_broken_body_leaves_nothing_behind(server: Server) -> None:
    before = server.settled()
    body = json.dumps(usable(30)).encode()
    truncated = gzip.compress(body)[:-5]
    problem(server.client.post("/telemetry/bulk", content=truncated, headers=GZIP), 400, "bad_encoding")
    assert server.settled() == before


def test_a_large_body_that_is_broken_in_its_middle_is_a_400(server: Server) -> None:
    before = server.settled()
    good = json.dumps(usable(3000)).encode()
    content = good[:-1] + b"," + b" " * (1 << 20) + b"}]"
    problem(server.client.post("/telemetry/bulk", content=content, headers=JSON_TYPE), 400, "not_json")
    many = [usable(10)[0] | {"filler": noise(500 * 1024)} for _ in range(4)]
    compressed = gzip.compress(json.dumps(many).encode())
    problem(server.client.post("/telemetry/bulk", content=compressed[:-3], headers=GZIP), 400, "bad_encoding")
    assert server.settled() == before


def test_without_a_credential_it_is_a_401(server: Server) -> None:
    answer = server.anonymous.post("/telemetry/bulk", json=usable())
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].lower().startswith("bearer")
    for headers in ({"X-API-Key": API_KEY + "x"}, {"Authorization": "Bearer not.a.token"}):
        problem(server.anonymous.post("/telemetry/bulk", json=usable(), headers=headers), 401, "unauthenticated")


def test_with_a_key_of_another_scope_it_is_a_403(server: Server) -> None:
    answer = server.anonymous.post("/telemetry/bulk", json=usable(), headers={"X-API-Key": API_KEY_WS})
    problem(answer, 403, "forbidden")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_any_method_but_post_is_a_405(server: Server, method: str) -> None:
    answer = server.client.request(method, "/telemetry/bulk")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        JSON_TYPE | {"Content-Encoding": "br"},
        JSON_TYPE | {"Content-Encoding": "gzip, gzip"},
    ],
)
def test_an_unknown_type_or_encoding_is_a_415(server: Server, headers: dict[str, str]) -> None:
    content = json.dumps(usable()).encode()
    problem(server.client.post("/telemetry/bulk", content=content, headers=headers), 415, "unsupported_media_type")


def test_a_content_type_with_parameters_is_taken(server: Server) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = server.client.post("/telemetry/bulk", content=json.dumps(usable()).encode(), headers=headers)
    assert answer.status_code == 201, answer.text


def test_without_a_usable_reading_it_is_a_422_with_the_first_twenty(server: Server) -> None:
    before = server.settled()
    readings = [esm_reading(new_uuid(), 1.0, "never") for _ in range(25)]
    body = [esm_equipment(new_uuid(), readings[:5]), esm_equipment(new_uuid(), readings[5:])]
    document = problem(server.bulk(body), 422, "no_usable_reading")
    assert document["errors"] == [
        {"equipment": int(i >= 5), "sensor": i - 5 * (i >= 5), "reason": "bad_timestamp"} for i in range(20)
    ]
    assert server.settled() == before, "a refused request counts nothing"


@pytest.mark.parametrize("body", [[{}], [{"equip_uuid": "x", "sensor": []}], [{"equip_uuid": "x"}]])
def test_a_batch_without_readings_is_a_422(server: Server, body: list[object]) -> None:
    assert problem(server.bulk(body), 422, "no_usable_reading")["errors"] == []


def too_large(answer: httpx.Response, setting: str) -> None:
    assert setting in problem(answer, 413, "too_large")["detail"]


def test_a_body_over_the_wire_limit_is_a_413_by_its_declared_length_and_by_its_real_one(small: Server) -> None:
    content = json.dumps([esm_equipment(noise(300 * 1024), [])]).encode()
    too_large(small.client.post("/telemetry/bulk", content=content, headers=JSON_TYPE), "SENSORKEEP_MAX_WIRE_BYTES")
    pieces = (content[i : i + 65536] for i in range(0, len(content), 65536))
    too_large(small.client.post("/telemetry/bulk", content=pieces, headers=JSON_TYPE), "SENSORKEEP_MAX_WIRE_BYTES")


@pytest.mark.parametrize(("headers", "compress"), [(GZIP, gzip.compress), (ZSTD, zstandard.compress)])
def test_a_body_over_the_inflated_limit_or_ratio_is_a_413(
    small: Server, headers: dict[str, str], compress: Callable[[bytes], bytes]
) -> None:
    fillers = [{"equip_uuid": "x", "sensor": [], "filler": " " * (500 * 1024)} for _ in range(4)]
    dense = compress(json.dumps([{"equip_nome": noise(120 * 1024), "sensor": []}, *fillers]).encode())
    assert len(dense) < LIMITS["SENSORKEEP_MAX_WIRE_BYTES"]
    answer = small.client.post("/telemetry/bulk", content=dense, headers=headers)
    too_large(answer, "SENSORKEEP_MAX_INFLATED_BYTES")
    bomb = compress(b"[" + b" " * (1400 * 1024) + b"{}]")
    too_large(small.client.post("/telemetry/bulk", content=bomb, headers=headers), "SENSORKEEP_MAX_INFLATE_RATIO")


def test_more_equipment_than_the_limit_is_a_413(small: Server) -> None:
    body = [esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, hours_ago(1))]) for _ in range(6)]
    too_large(small.bulk(body), "SENSORKEEP_MAX_EQUIPMENT")
    assert small.stored(body[:5])["stored"] == 5


def test_more_readings_than_the_limit_are_a_413(small: Server) -> None:
    before = small.settled()
    too_large(small.bulk(usable(51)), "SENSORKEEP_MAX_READINGS")
    assert small.settled() == before
    assert small.stored(usable(50))["stored"] == 50


def test_answers_say_how_much_of_the_rate_is_left(small: Server) -> None:
    answer = small.bulk(usable())
    assert answer.status_code == 201, answer.text
    assert answer.headers["ratelimit-policy"] == '"request";q=200;w=60'
    assert answer.headers["ratelimit"].startswith('"request";r=')


def test_over_the_rate_it_is_a_429_that_says_when_to_come_back(small: Server) -> None:
    """With a key of its own, so that the other tests keep theirs."""
    with small.login() as admin:
        secret = admin.post("/keys", json={"name": "fast", "scopes": ["ingest"]}).json()["secret"]
    with httpx.Client(base_url=small.url, headers={"X-API-Key": secret}) as client:
        for _ in range(201):
            answer = client.post("/api/v1/telemetry/bulk", content=b"[]", headers=JSON_TYPE)
            if answer.status_code != 400:
                break
    document = problem(answer, 429, "rate_limited")
    assert document["violated-policies"] == ["request"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["ratelimit-policy"] == '"request";q=200;w=60'
    assert answer.headers["ratelimit"].startswith('"request";r=0;t=')
