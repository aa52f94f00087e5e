"""Idempotency-Key: the first answer again, over a restart too; never two requests for one key at a time."""

from __future__ import annotations

import base64
import gzip
import json
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import zstandard
from harness import API_KEY, Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, wait_until

from sensorkeep.limits import BULK_WHOLE_BYTES_MAX, GENERAL_BODY_BYTES_MAX, SMALL_BODY_BYTES_MAX


def batch() -> list[object]:
    return [esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, hours_ago(1))])]


def send(server: Server, key: str, body: object, client: httpx.Client | None = None) -> httpx.Response:
    return (client or server.client).post("/telemetry/bulk", json=body, headers={"Idempotency-Key": key})


def same(first: httpx.Response, again: httpx.Response) -> None:
    assert first.status_code == again.status_code == 201, again.text
    assert again.content == first.content
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"


def packed(content: bytes) -> list[tuple[str, bytes]]:
    """(encoding, body): one content as different clients send it, or one client that packs it anew to send it again."""
    return [
        ("gzip", gzip.compress(content, 9, mtime=0)),
        ("gzip", gzip.compress(content, 9, mtime=1)),
        ("x-gzip", gzip.compress(content[:10]) + gzip.compress(content[10:])),
        ("zstd", zstandard.compress(content)),
        ("identity", content),
    ]


@contextmanager
def slow_request(server: Server, key: str, body: bytes) -> Iterator[socket.socket]:
    """A request whose body the server waits for; its key is taken once the server has said "100 Continue"."""
    address = urlsplit(server.url)
    head = (
        "POST /api/v1/telemetry/bulk HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\nX-API-Key: {API_KEY}\r\nIdempotency-Key: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    assert address.hostname is not None
    assert address.port is not None
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        yield connection


def test_the_same_key_and_body_give_the_first_answer_again_and_store_nothing(server: Server) -> None:
    key, body = new_uuid(), batch()
    first = send(server, key, body)
    before = server.settled()
    same(first, send(server, key, body))
    assert server.settled() == before


def streamed_batch() -> bytes:
    """A body that the server does not read at once, packed either."""
    noise = base64.b64encode(random.Random(7).randbytes(2 * BULK_WHOLE_BYTES_MAX)).decode()
    return json.dumps([*batch(), {"noise": noise, "sensor": []}]).encode()


CONTENTS = {
    "bulk": ("/telemetry/bulk", json.dumps(batch()).encode()),
    "bulk, streamed": ("/telemetry/bulk", streamed_batch()),
    "readings": ("/readings", b'{"sensor_id": "packed", "values": {"a": 1}}'),
    "temperature": ("/temperature_reading", b'{"sensor_id": "packed", "temperature": 1.0}'),
}


def send_packed(server: Server, path: str, key: str, encoding: str, body: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding, "Idempotency-Key": key}
    return server.client.post(path, content=body, headers=headers)


@pytest.mark.parametrize(("path", "content"), CONTENTS.values(), ids=CONTENTS)
def test_the_same_content_is_the_same_body_however_it_is_packed(server: Server, path: str, content: bytes) -> None:
    key = new_uuid()
    first, *again = (send_packed(server, path, key, encoding, body) for encoding, body in packed(content))
    assert first.status_code == 201, first.text
    assert {(answer.status_code, answer.content) for answer in again} == {(201, first.content)}, again[0].text


@pytest.mark.parametrize(("path", "content"), CONTENTS.values(), ids=CONTENTS)
def test_a_body_sent_again_is_checked_like_the_first(server: Server, path: str, content: bytes) -> None:
    key, body = new_uuid(), gzip.compress(content)
    assert send_packed(server, path, key, "gzip", body).status_code == 201
    problem(send_packed(server, path, key, "gzip", gzip.compress(content + b" ")), 422, "idempotency_mismatch")
    problem(send_packed(server, path, key, "gzip", body[:-5]), 400, "bad_encoding")
    assert send_packed(server, path, key, "gzip", body).status_code == 201


@pytest.mark.parametrize(
    ("form", "size"), [("readings", GENERAL_BODY_BYTES_MAX), ("temperature", SMALL_BODY_BYTES_MAX)]
)
def test_a_body_sent_again_has_the_limits_of_its_route_not_those_of_bulk_bodies(
    data_dir: Path, form: str, size: int
) -> None:
    path, content = CONTENTS[form]
    content, key = content.ljust(5_000), new_uuid()
    spaces = random.Random(7).randbytes(size).translate(b" \n\t\r" * 64)  # they are no bomb by their ratio
    too_long = content + spaces
    server = Server(data_dir, SENSORKEEP_MAX_INFLATED_BYTES=1_024).start()
    try:
        for body, status in [(too_long, 413), (content, 201), (content, 201), (too_long, 413)]:
            answer = send_packed(server, path, key, "gzip", gzip.compress(body, 1))
            assert answer.status_code == status, answer.text
            assert status == 201 or f"more than {size} bytes (send larger bodies to" in answer.json()["detail"]
    finally:
        server.stop()


def test_the_same_key_with_another_body_is_a_422(server: Server) -> None:
    key = new_uuid()
    assert send(server, key, batch()).status_code == 201
    before = server.settled()
    problem(send(server, key, batch()), 422, "idempotency_mismatch")
    assert server.settled() == before


def test_single_readings_are_answered_with_their_first_id(server: Server) -> None:
    body = {"temperature": 25.5, "sensor_id": f"idempotent-{new_uuid()}"}
    headers = {"Idempotency-Key": new_uuid()}
    first, again = (server.client.post("/temperature_reading", json=body, headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert again.json() == first.json()
    other = server.client.post("/temperature_reading", json=body)
    assert other.json()["id"] > first.json()["id"]


def test_the_general_form_honours_keys_too(server: Server) -> None:
    body = {"values": {"a": 1}, "sensor_id": f"idempotent-{new_uuid()}"}
    headers = {"Idempotency-Key": new_uuid()}
    first, again = (server.client.post("/readings", json=body, headers=headers) for _ in range(2))
    same(first, again)


def test_the_first_answer_is_given_again_after_a_restart_and_after_kill_9(data_dir: Path) -> None:
    key, body = new_uuid(), batch()
    server = Server(data_dir).start()
    try:
        first = send(server, key, body)
        server.kill()
        server.start()
        same(first, send(server, key, body))
        problem(send(server, key, batch()), 422, "idempotency_mismatch")
        assert server.settled()["received"] == 1
    finally:
        server.stop()


def test_while_the_first_request_runs_a_second_one_is_a_409(server: Server) -> None:
    key, body = new_uuid(), batch()
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    with slow_request(server, key, content) as connection:
        connection.sendall(content[:10])
        problem(send(server, key, body), 409, "idempotency_in_progress")
        connection.sendall(content[10:])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 201 "), answer
    again = send(server, key, body)
    assert again.status_code == 201, again.text
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["batch_id"].encode() in answer


def test_a_refused_request_frees_its_key(server: Server) -> None:
    key, body = new_uuid(), batch()
    problem(send(server, key, {"not": "an array"}), 400, "not_an_array")
    answer = send(server, key, body)
    assert answer.status_code == 201, answer.text
    same(answer, send(server, key, body))


def test_a_client_that_leaves_amid_its_body_frees_its_key(server: Server) -> None:
    key, body = new_uuid(), batch()
    with slow_request(server, key, b" " * 1000) as connection:
        connection.sendall(b"[")
        problem(send(server, key, body), 409, "idempotency_in_progress")

    def accepted() -> bool:
        answer = send(server, key, body)
        if answer.status_code == 409:
            return False
        assert answer.status_code == 201, answer.text
        return True

    wait_until(accepted)


def test_keys_belong_to_their_credential(server: Server, admin: httpx.Client) -> None:
    key = new_uuid()
    first, second = send(server, key, batch()), send(server, key, batch(), client=admin)
    assert first.status_code == second.status_code == 201
    assert first.json()["batch_id"] != second.json()["batch_id"]


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_of_no_or_too_many_characters_is_a_400(server: Server, key: str) -> None:
    problem(send(server, key, batch()), 400, "bad_request")


def test_a_key_of_255_characters_is_taken(server: Server) -> None:
    assert send(server, new_uuid().ljust(255, "x"), batch()).status_code == 201
