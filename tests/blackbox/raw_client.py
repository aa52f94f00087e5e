"""Bytes to a server and what it answers, without a library that would send only what is right."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

from harness import API_KEY, Server

ANSWER_SECONDS_MAX = 20.0
ANSWER_BYTES_MAX = 1 << 20
HOST = b"Host: sensorkeep.test\r\n"
KEY = b"X-API-Key: " + API_KEY.encode() + b"\r\n"


class Reply(NamedTuple):
    """What came back."""

    content: bytes
    closed: bool
    """Whether the server closed the connection, or broke it."""

    @property
    def statuses(self) -> list[int]:
        """Those of all answers in it."""
        return [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d{3}) ", self.content)]


def connect(server: Server) -> socket.socket:
    """A connection to the server."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), ANSWER_SECONDS_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(server: Server, content: bytes, *, ending: bool = True) -> Reply:
    """Send and read until the server closes. `ending`: then say that nothing more comes, so that it does."""
    with connect(server) as connection:
        try:
            connection.sendall(content)
            if ending:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has closed already; what it said before is still to be read
        return receive(connection)


def receive(connection: socket.socket) -> Reply:
    """Everything up to the end of the connection."""
    received = b""
    try:
        while len(received) < ANSWER_BYTES_MAX:
            part = connection.recv(65_536)
            if not part:
                return Reply(received, closed=True)
            received += part
    except TimeoutError:
        return Reply(received, closed=False)
    except OSError:
        return Reply(received, closed=True)
    raise AssertionError("the answer has no end")


def request(method: bytes, path: bytes, *fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A request of these header fields, taken as they are, with a credential and the body."""
    head = b"%s %s HTTP/%s\r\n" % (method, path, version)
    return head + HOST + KEY + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body
