"""The short cut of a plain temperature reading answers as the general route does, and gives way where it must."""

from __future__ import annotations

import json
import socket

import pytest
from harness import API_KEY, Server

PATH = "/api/v1/temperature_reading"


def request(body: bytes, *headers: str, key: str = API_KEY) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", f"X-API-Key: {key}", "Content-Type: application/json"]
    head = "\r\n".join([*lines, *headers, f"Content-Length: {len(body)}"])
    return head.encode() + b"\r\n\r\n" + body


def reading(sensor_id: str) -> bytes:
    return json.dumps({"temperature": 21.5, "humidity": 40, "sensor_id": sensor_id}).encode()


class Raw:
    """A connection on which the bytes are ours."""

    def __init__(self, server: Server) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.buffer = b""

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer on the connection."""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        while len(self.buffer) < length:
            self._more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(first.split()[1]), headers, body

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, "the server closed the connection"
        self.buffer += data


def test_the_express_and_the_general_answer_have_the_same_form(server: Server) -> None:
    raw = Raw(server)
    raw.socket.sendall(request(reading("express-1")))
    express = raw.answer()
    raw.socket.sendall(request(reading("express-1"), "X-Request-Id: given"))  # not plain: the general way
    general = raw.answer()
    assert express[0] == general[0] == 201
    assert set(express[1]) == set(general[1])
    fixed = {"content-type", "x-content-type-options", "x-frame-options", "content-security-policy", "cache-control"}
    assert {name: express[1][name] for name in fixed} == {name: general[1][name] for name in fixed}
    one, two = json.loads(express[2]), json.loads(general[2])
    assert list(one) == list(two)
    assert one["id"] < two["id"]
    assert {**one, "id": 0, "time_recorded": ""} == {**two, "id": 0, "time_recorded": ""}


@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_request_that_arrives_in_pieces_is_served(server: Server, size: int) -> None:
    raw = Raw(server)
    data = request(reading(f"express-pieces-{size}"))
    for start in range(0, len(data), size):
        raw.socket.sendall(data[start : start + size])
    assert raw.answer()[0] == 201
    latest = server.client.get(f"/sensor/express-pieces-{size}/latest")
    assert latest.json()["temperature"] == 21.5


def test_many_requests_on_one_connection_are_answered_in_order(server: Server) -> None:
    raw = Raw(server)
    ids = []
    for number in range(30):
        headers = ["X-Request-Id: general"] if number % 3 == 0 else []
        raw.socket.sendall(request(reading("express-order"), *headers))
        status, _, body = raw.answer()
        assert status == 201
        ids.append(json.loads(body)["id"])
    assert ids == sorted(set(ids))


def test_errors_are_those_of_the_general_route(server: Server) -> None:
    raw = Raw(server)
    for body, key, status, code in (
        (b"{", API_KEY, 400, "not_json"),
        (b"", API_KEY, 400, "empty_body"),
        (b'{"temperature": "warm", "sensor_id": "a"}', API_KEY, 422, "invalid_fields"),
        (reading("express-2"), "no-such-key-at-all", 401, "unauthenticated"),
    ):
        raw.socket.sendall(request(body, key=key))
        answer = raw.answer()
        assert (answer[0], json.loads(answer[2])["code"]) == (status, code)
        assert answer[1]["content-type"] == "application/problem+json"


def test_a_pipelined_request_is_never_answered_out_of_order(server: Server) -> None:
    raw = Raw(server)
    raw.socket.sendall(request(reading("express-pipe-1")) + request(reading("express-pipe-2")))
    status, headers, body = raw.answer()
    assert status == 201
    assert json.loads(body)["sensor_id"] == "express-pipe-1"
    assert headers["connection"] == "close", "the second is to be sent again on a new connection"
    assert raw.socket.recv(1) == b""


def test_express_requests_are_in_the_metrics_by_route(server: Server) -> None:
    raw = Raw(server)
    raw.socket.sendall(request(reading("express-3")))
    assert raw.answer()[0] == 201
    text = server.anonymous.get(server.url + "/metrics").text
    wanted = f'sensorkeep_request_seconds_count{{method="POST",route="{PATH}",status="201"}}'
    assert any(line.startswith(wanted) for line in text.splitlines())
