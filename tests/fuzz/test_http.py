"""What is no HTTP, or hardly, at the socket: a 4xx or a closed connection, and a server that stays as it was."""

from __future__ import annotations

import random
import socket
import threading

import psutil
import pytest
from harness import Server, wait_until
from raw_client import HOST, KEY, connect, exchange, receive, request

from sensorkeep.limits import HTTP_HEAD_BYTES_MAX, KIB, MIB

PING = b"/api/v1/ping"
SINGLE = b"/api/v1/temperature_reading"
READINGS = b"/api/v1/readings"
BULK = b"/api/v1/telemetry/bulk"
READING = b'{"temperature":1,"sensor_id":"raw"}'
LENGTH = b"Content-Length: %d" % len(READING)
CHUNKED = b"Transfer-Encoding: chunked"
GROWTH_BYTES_MAX = 24 * MIB
"""Resident memory that a storm of bad requests may leave behind: caches and fragments, and no more the second time."""


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


NO_HTTP = {
    "noise": bytes(range(256)) * 8 + b"\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another version": b"GET /api/v1/ping HTTP/3.7\r\n" + HOST + b"\r\n",
    "a method with a NUL": request(b"G\x00T", PING),
    "a method that nobody knows": request(b"FROBNICATE", PING),
    "CONNECT": request(b"CONNECT", b"elsewhere.test:443"),
    "a path that is no text": request(b"GET", b"/api/v1/\xff\xfe"),
    "a NUL in a header": request(b"GET", PING, b"A: b\x00c"),
    "a lone CR in a header": request(b"GET", PING, b"A: b\rX: y"),
    "a folded header": request(b"GET", PING, b"A: b\r\n  c"),
    "a space before the colon": request(b"POST", SINGLE, b"Content-Length : 35", body=READING),
    "line feeds alone": request(b"GET", PING).replace(b"\r\n", b"\n"),
    "a negative length": request(b"POST", SINGLE, b"Content-Length: -5", body=READING),
    "a length with a sign": request(b"POST", SINGLE, b"Content-Length: +35", body=READING),
    "a length in hex": request(b"POST", SINGLE, b"Content-Length: 0x23", body=READING),
    "a length past all bounds": request(b"POST", SINGLE, b"Content-Length: " + b"9" * 40, body=READING),
    "two lengths": request(b"POST", SINGLE, LENGTH, b"Content-Length: 5", body=READING),
    "a list of lengths": request(b"POST", SINGLE, b"Content-Length: 35, 35", body=READING),
    "a length and chunks": request(b"POST", SINGLE, LENGTH, CHUNKED, body=chunked(READING)),
    "chunks and a length": request(b"POST", SINGLE, CHUNKED, LENGTH, body=chunked(READING)),
    "an encoding that nobody knows": request(b"POST", SINGLE, b"Transfer-Encoding: xchunked", body=chunked(READING)),
    "two transfer encodings": request(b"POST", SINGLE, CHUNKED, b"Transfer-Encoding: identity", body=chunked(READING)),
    "a chunk without a size": request(b"POST", READINGS, CHUNKED, body=b"zz\r\nabc\r\n0\r\n\r\n"),
    "a chunk of a negative size": request(b"POST", READINGS, CHUNKED, body=b"-5\r\nabc\r\n0\r\n\r\n"),
    "a chunk past all bounds": request(b"POST", READINGS, CHUNKED, body=b"f" * 20 + b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than it says": request(b"POST", READINGS, CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n"),
    "a bulk body that ends in noise": request(b"POST", BULK, CHUNKED, body=b"5\r\n[{\"eq\r\nQ\r\n"),
    "a header as long as a book": request(b"GET", PING, b"A: " + b"x" * (4 * HTTP_HEAD_BYTES_MAX + 256 * KIB)),
    "a path as long as a book": request(b"GET", b"/" + b"x" * (4 * HTTP_HEAD_BYTES_MAX + 256 * KIB)),
    "headers without number": request(b"GET", PING, *(b"A%d: x" % i for i in range(60_000))),
    "a trailer as long as a book": request(
        b"POST", READINGS, CHUNKED, body=b"0\r\nA: " + b"x" * (4 * HTTP_HEAD_BYTES_MAX + 256 * KIB) + b"\r\n\r\n"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_is_refused_and_the_connection_closed(victim: Server, name: str) -> None:
    reply = exchange(victim, NO_HTTP[name], ending=False)
    assert reply.closed
    assert set(reply.statuses) <= {400}, reply.content[:300]
    if reply.statuses:
        assert b"application/problem+json" in reply.content
        assert b'"code":"bad_request"' in reply.content
    assert victim.anonymous.get("/ping").status_code == 200


def last(method: bytes, path: bytes, *fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A request after which the server closes the connection."""
    if not any(field.startswith(b"Connection") for field in fields):
        fields = (*fields, b"Connection: close")
    return request(method, path, *fields, body=body, version=version)


ODD = {
    "HTTP/1.0": (last(b"GET", PING, version=b"1.0"), 200),
    "HTTP/1.0 with a reading": (last(b"POST", SINGLE, LENGTH, body=READING, version=b"1.0"), 201),
    "no version": (b"GET /api/v1/ping\r\n\r\n", 200),
    "empty lines before it": (b"\r\n\r\n" + last(b"GET", PING), 200),
    "an absolute target": (last(b"GET", b"http://elsewhere.test" + PING), 200),
    "headers that are no text": (last(b"GET", PING, b"X-Request-Id: \xff\xfe"), 200),
    "a path that is no text behind %": (last(b"GET", b"/api/v1/sensor/%ff%fe/latest"), 404),
    "a way out of the folder": (last(b"GET", b"/docs/assets/../../../etc/passwd"), 404),
    "a way out of the folder behind %": (last(b"GET", b"/docs/assets/..%2f..%2f..%2fetc%2fpasswd"), 404),
    "a NUL behind %": (last(b"GET", b"/api/v1/equipment/a%00b"), 404),
    "chunks": (last(b"POST", SINGLE, CHUNKED, body=chunked(READING[:9], READING[9:])), 201),
    "a body where none is wanted": (last(b"GET", PING, b"Content-Length: 5", body=b"abcde"), 200),
    "a wish to upgrade": (last(b"GET", PING, b"Connection: Upgrade, close", b"Upgrade: h2c"), 200),
    "a long extension of a chunk": (
        last(b"POST", SINGLE, CHUNKED, body=b"1;" + b"a" * 9_000 + b"\r\n{\r\n0\r\n\r\n"), 400,
    ),
    "a body that is compressed twice": (
        last(b"POST", SINGLE, LENGTH, b"Content-Encoding: gzip, gzip", body=READING), 415,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_and_allowed_is_answered(victim: Server, name: str) -> None:
    content, status = ODD[name]
    reply = exchange(victim, content, ending=False)
    assert reply.statuses == [status], reply.content[:500]


def test_a_trailer_is_no_header(victim: Server) -> None:
    body = chunked(READING)[: -len(b"\r\n")] + b"X-API-Key: another\r\nContent-Encoding: gzip\r\n\r\n"
    reply = exchange(victim, last(b"POST", SINGLE, CHUNKED, body=body), ending=False)
    assert reply.statuses == [201], reply.content[:500]


def test_a_request_hidden_in_the_body_of_another_is_not_served(victim: Server) -> None:
    hidden = b"DELETE /api/v1/users/admin HTTP/1.1\r\n" + HOST + b"\r\n"
    for body in (hidden, b"0\r\n\r\n" + hidden):
        reply = exchange(victim, last(b"POST", READINGS, b"Content-Length: %d" % len(body), body=body), ending=False)
        assert reply.statuses == [400], reply.content[:500]


def test_requests_sent_at_once_are_answered_in_order_or_not_at_all(victim: Server) -> None:
    sent = request(b"GET", PING) + request(b"GET", b"/api/v1/nothing") + last(b"GET", PING)
    reply = exchange(victim, sent, ending=False)
    assert reply.statuses == [200, 404, 200]
    single = request(b"POST", SINGLE, LENGTH, body=READING)
    reply = exchange(victim, single * 3 + last(b"GET", PING), ending=False)
    assert reply.closed
    assert reply.statuses[:1] == [201]
    assert set(reply.statuses) <= {201, 200}


@pytest.mark.parametrize("path", [SINGLE, READINGS, BULK])
def test_a_client_that_leaves_in_the_middle_of_a_body_leaves_nothing_behind(victim: Server, path: bytes) -> None:
    before = victim.settled()
    for sent in (0, 1, 20, len(READING) - 1):
        exchange(victim, request(b"POST", path, LENGTH, body=READING[:sent]))
    exchange(victim, request(b"POST", path, CHUNKED, body=b'5\r\n[{"eq'))
    large = request(b"POST", path, b"Content-Length: 60000000", body=b"[" + b" " * 400_000)
    with connect(victim) as connection:
        connection.sendall(large)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
    assert victim.settled() == before
    assert victim.anonymous.get("/health").status_code == 200


def test_connections_that_idle_do_not_keep_others_out(victim: Server) -> None:
    idle = [connect(victim) for _ in range(200)]
    try:
        for number, connection in enumerate(idle):
            connection.sendall(request(b"POST", SINGLE, LENGTH)[: number % 90])
        assert victim.anonymous.get("/health").status_code == 200
        assert victim.client.post("/temperature_reading", content=READING).status_code == 201
    finally:
        for connection in idle:
            connection.close()


def noise(chance: random.Random) -> bytes:
    """A bad request, or one that was good before it was damaged."""
    choices = [*NO_HTTP.values(), *(content for content, _ in ODD.values())]
    content = bytearray(chance.choice(choices)[: 100 * KIB])
    for _ in range(chance.randint(0, 4)):
        at = chance.randrange(len(content))
        content[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
    return bytes(content)


def storm(server: Server, seed: int, requests: int) -> None:
    """Bad requests over four connections at a time. None may be answered with a 5xx."""
    found: list[int] = []

    def attack(lane: int) -> None:
        chance = random.Random(f"{seed}/{lane}")
        for _ in range(requests // 4):
            found.extend(exchange(server, noise(chance)).statuses)

    threads = [threading.Thread(target=attack, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found
    assert max(found) < 500


def test_a_storm_of_bad_requests_leaves_no_file_open_and_no_memory_taken(
    victim: Server, seed: int, rounds: int
) -> None:
    process = psutil.Process(victim.process.pid)
    victim.anonymous.get("/ping")
    storm(victim, seed, 200)
    files = process.num_fds()
    before = victim.resident_bytes()
    storm(victim, seed + 1, 200 * rounds)
    wait_until(lambda: process.num_fds() <= files + 2)
    assert victim.resident_bytes() - before < GROWTH_BYTES_MAX
    assert victim.anonymous.get("/health").status_code == 200


def test_a_head_that_never_ends_does_not_fill_the_memory(victim: Server) -> None:
    before = victim.resident_bytes()
    sent = 0
    with connect(victim) as connection:
        connection.sendall(b"GET /api/v1/ping HTTP/1.1\r\n" + HOST + KEY + b"A: ")
        try:
            for _ in range(640):
                connection.sendall(b"x" * 100 * KIB)
                sent += 100 * KIB
        except OSError:
            pass
        reply = receive(connection)
    assert sent < 16 * MIB, "it took all of it"
    assert reply.closed
    assert victim.resident_bytes() - before < GROWTH_BYTES_MAX
