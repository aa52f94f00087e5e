"""Clients that are slow on purpose hold a connection for no longer than an idle one may be held."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from raw_client import receive

from sensorkeep.web.protocol import ExpressHttpProtocol

IDLE_SECONDS = 0.6
"""What a server of these tests allows; a real one HTTP_HEADER_SECONDS_MAX."""
PATIENCE_SECONDS = 15.0
DRIP_SECONDS = 0.1


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers once the body is there."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server with our HTTP protocol and little patience."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=ExpressHttpProtocol, lifespan="off", log_config=None)
    config.timeout_keep_alive = IDLE_SECONDS  # type: ignore[assignment]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def drip(connection: socket.socket, next_part: Callable[[int], bytes]) -> bytes:
    """Send a little every now and then until the server has had enough; what it said."""
    connection.settimeout(DRIP_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    said = b""
    number = 0
    while time.monotonic() < deadline:
        try:
            connection.sendall(next_part(number))
            number += 1
            part = connection.recv(4096)
        except TimeoutError:
            continue
        except OSError:
            return said
        if not part:
            return said
        said += part
    raise AssertionError("the server waits for ever")


HEAD = b"GET /a HTTP/1.1\r\nHost: x\r\nA: "


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    with connected(port) as connection:
        assert receive(connection).closed


def test_a_head_that_comes_byte_by_byte_is_given_up(port: int) -> None:
    with connected(port) as connection:
        said = drip(connection, lambda i: HEAD[i : i + 1] or b"x")
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in said


def test_the_second_head_of_a_connection_has_no_more_time_than_the_first(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        said = drip(connection, lambda i: HEAD[i : i + 1] or b"x")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in said


def test_empty_lines_keep_no_connection_open(port: int) -> None:
    for before in (b"", b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"):
        with connected(port) as connection:
            connection.sendall(before)
            # A lone line end now and then would else count as a sign of life.
            began = time.monotonic()
            sent = 0

            def line_end(_: int, began: float = began) -> bytes:
                nonlocal sent
                due = int((time.monotonic() - began) / (IDLE_SECONDS * 3))
                part = b"\r\n" if due > sent else b""
                sent = max(sent, due)
                return part

            drip(connection, line_end)


def test_a_client_that_is_slow_but_in_time_is_served(port: int) -> None:
    with connected(port) as connection:
        for part in (b"GET /a HT", b"TP/1.1\r\nHost: x\r\nConnection: cl", b"ose\r\n\r\n"):
            connection.sendall(part)
            threading.Event().wait(IDLE_SECONDS / 10)
        assert receive(connection).statuses == [200]


def test_a_connection_that_is_used_again_and_again_stays_open(port: int) -> None:
    with connected(port) as connection:
        for _ in range(6):
            connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).endswith(b"ok")
            threading.Event().wait(IDLE_SECONDS / 3)
