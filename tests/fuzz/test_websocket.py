"""WebSocket frames as no client should send them: the connection ends with the right code, and nobody else notices."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import struct
from collections.abc import Iterator

import psutil
import pytest
from harness import API_KEY_WS, Server, wait_until
from raw_client import HOST, connect, receive

from sensorkeep.limits import MIB, WS_INCOMING_BYTES_MAX, WS_INCOMING_PER_MINUTE_MAX

PATH = b"/ws/sensor_updates?api-key=" + API_KEY_WS.encode()
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PROTOCOL_ERROR, NO_TEXT, POLICY, TOO_BIG = 1002, 1007, 1008, 1009
FLOOD_BYTES = 16 * MIB
GROWTH_BYTES_MAX = 24 * MIB


def handshake(*fields: bytes, path: bytes = PATH) -> bytes:
    """The request that opens a WebSocket."""
    key = base64.b64encode(os.urandom(16))
    head = [b"GET %s HTTP/1.1" % path, HOST[:-2], b"Connection: Upgrade", b"Upgrade: websocket"]
    return b"\r\n".join([*head, b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + key, *fields, b"", b""])


def frame(
    kind: int, content: bytes = b"", *, final: bool = True, masked: bool = True, length: int | None = None
) -> bytes:
    """A frame; `length` is what it says of its content."""
    size = len(content) if length is None else length
    first = (0x80 if final else 0) | kind
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, mask_bit | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, size)
    if not masked:
        return head + content
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(content))


@pytest.fixture
def listener(victim: Server) -> Iterator[socket.socket]:
    """A connection whose handshake is done."""
    with connect(victim) as connection:
        opened(connection)
        yield connection


def opened(connection: socket.socket) -> None:
    connection.sendall(handshake())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer


def close_code(connection: socket.socket) -> int | None:
    """The code of the close frame with which the server ends; None where it just ends."""
    content = receive(connection)
    assert content.closed
    rest = content.content
    while len(rest) >= 2:
        kind, size = rest[0] & 0x0F, rest[1] & 0x7F
        start = 2
        if size == 126:
            size, start = struct.unpack("!H", rest[2:4])[0], 4
        if kind == CLOSE:
            return int(struct.unpack("!H", rest[2:4])[0]) if size >= 2 else 1005
        rest = rest[start + size :]
    return None


BAD = {
    "a frame without a mask": (frame(TEXT, b"{}", masked=False), PROTOCOL_ERROR),
    "an unknown kind of frame": (frame(3, b"{}"), PROTOCOL_ERROR),
    "a reserved bit": (bytes([0xC0 | TEXT]) + frame(TEXT, b"{}")[1:], PROTOCOL_ERROR),
    "a continuation of nothing": (frame(0, b"{}"), PROTOCOL_ERROR),
    "a message within another": (frame(TEXT, b"a", final=False) + frame(TEXT, b"b"), PROTOCOL_ERROR),
    "a ping in two frames": (frame(PING, b"a", final=False), PROTOCOL_ERROR),
    "a ping that is too long": (frame(PING, b"a" * 126), PROTOCOL_ERROR),
    "a close frame of one byte": (frame(CLOSE, b"a"), PROTOCOL_ERROR),
    "a close code that nobody may send": (frame(CLOSE, struct.pack("!H", 1005)), PROTOCOL_ERROR),
    "a reason that is no text": (frame(CLOSE, struct.pack("!H", 1000) + b"\xff\xfe"), NO_TEXT),
    "a text that is none": (frame(TEXT, b"\xff\xfe\xfd"), NO_TEXT),
    "a message that is too long": (frame(TEXT, b"x" * (WS_INCOMING_BYTES_MAX + 1)), TOO_BIG),
    "a message that says to be endless": (frame(BINARY, length=2**62), TOO_BIG),
    "a length past 63 bits": (frame(BINARY, length=2**63 + 1), TOO_BIG),
    "a message too long in parts": (
        b"".join(frame(TEXT if i == 0 else 0, b"x" * 1_000, final=False) for i in range(8)), TOO_BIG,
    ),
    "noise": (random.Random(1).randbytes(4_000), None),
    "HTTP after the handshake": (b"GET /api/v1/ping HTTP/1.1\r\nHost: x\r\n\r\n", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_frame_ends_the_connection_with_its_code(victim: Server, listener: socket.socket, name: str) -> None:
    content, expected = BAD[name]
    listener.sendall(content)
    code = close_code(listener)
    if expected is not None:
        assert code == expected
    assert victim.anonymous.get("/ping").status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        (b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99999",),
        (b"Sec-WebSocket-Extensions: " + b"x" * 20_000,),
        (b"Sec-WebSocket-Protocol: \xff\xfe",),
        (b"Origin: http://elsewhere.test",),
        tuple(b"A%d: x" % i for i in range(1_000)),
    ],
)
def test_an_odd_handshake_is_answered_or_refused_and_never_a_5xx(victim: Server, fields: tuple[bytes, ...]) -> None:
    with connect(victim) as connection:
        connection.sendall(handshake(*fields))
        answer = connection.recv(65_536)
        if answer.startswith(b"HTTP/1.1 101 "):
            connection.sendall(frame(CLOSE, struct.pack("!H", 1000)))
        else:
            assert answer.startswith(b"HTTP/1.1 4"), answer
        assert receive(connection).closed


@pytest.mark.parametrize("missing", [b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Upgrade:"])
def test_an_incomplete_handshake_is_refused(victim: Server, missing: bytes) -> None:
    lines = [line for line in handshake(b"Content-Length: 0").split(b"\r\n") if not line.startswith(missing)]
    with connect(victim) as connection:
        connection.sendall(b"\r\n".join(lines))
        connection.shutdown(socket.SHUT_WR)
        statuses = receive(connection).statuses
    assert 101 not in statuses
    assert all(400 <= status < 500 for status in statuses)


def test_a_flood_of_messages_is_cut_off(victim: Server, listener: socket.socket) -> None:
    before = victim.resident_bytes()
    listener.sendall(frame(TEXT, b"x" * 1_000) * 2 * WS_INCOMING_PER_MINUTE_MAX)
    assert close_code(listener) == POLICY
    assert victim.resident_bytes() - before < GROWTH_BYTES_MAX


def test_a_flood_of_pings_by_one_who_never_reads_takes_no_memory(victim: Server, listener: socket.socket) -> None:
    before = victim.resident_bytes()
    flood = frame(PING, b"x" * 125) * 400
    listener.settimeout(2)
    sent = 0
    try:
        while sent < FLOOD_BYTES:
            sent += listener.send(flood)
    except (TimeoutError, OSError):
        pass  # it reads no more before its answers are read, or it has closed
    assert victim.resident_bytes() - before < GROWTH_BYTES_MAX
    assert victim.anonymous.get("/ping").status_code == 200


def test_bad_clients_cost_a_good_one_nothing(victim: Server) -> None:
    from websockets.sync.client import connect as listen

    url = victim.url.replace("http", "ws", 1) + PATH.decode() + "&sensor_id=good"
    with listen(url, compression=None) as good:
        for content, _ in BAD.values():
            with connect(victim) as bad:
                opened(bad)
                bad.sendall(content)
        answer = victim.client.post("/temperature_reading", json={"sensor_id": "good", "temperature": 7})
        assert answer.status_code == 201
        assert json.loads(good.recv(20))["temperature"] == 7


def test_bad_connections_leave_no_file_open(victim: Server) -> None:
    process = psutil.Process(victim.process.pid)
    files = process.num_fds()
    for content, _ in BAD.values():
        with connect(victim) as bad:
            bad.sendall(handshake() + content)
    wait_until(lambda: process.num_fds() <= files + 2)
