"""A tiny real HTTP server for the command line's tests: it answers by script, or keeps what it is sent."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Request:
    """One request as it arrived; `content` is inflated."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Reply:
    """What to answer; `hang_up` closes the connection instead."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False


Script = Callable[[Request], Reply]


class Server:
    """Requests in order, and the URL."""

    def __init__(self, script: Script) -> None:
        self.requests: list[Request] = []
        self.broken = 0
        """Requests whose body did not arrive whole."""
        self.url = ""
        self.script = script
        self._lock = threading.Lock()

    def handle(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            return self.script(request)

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


def replies(*answers: Reply) -> Script:
    """Answers in order; the last one stays."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """A server on a free port of the loopback."""
    server = Server(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            content = self.rfile.read(length)
            if len(content) < length:
                server.broken += 1
                self.close_connection = True
                return
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = None
            if headers.get("content-encoding") == "gzip":
                try:
                    content = gzip.decompress(content)
                except (EOFError, OSError):
                    reply = Reply(400, {"code": "bad_encoding", "detail": "truncated"})
            request = Request(self.command, parts.path, dict(parse_qsl(parts.query)), headers, content)
            reply = reply or server.handle(request)
            if reply.hang_up:
                self.close_connection = True
                return
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # a client that did not stay for the answer

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


class Ingest:
    """A script that takes readings as the real server does: it counts, and tells of its batches."""

    def __init__(self) -> None:
        self.readings: list[Any] = []
        """Objects of POST /readings."""
        self.equipment: list[Any] = []
        """Objects of POST /telemetry/bulk."""
        self.prefer: list[str | None] = []
        self.next: list[Reply] = []
        """Answers given before anything is taken again."""
        self._batches: dict[str, int] = {}

    def __call__(self, request: Request) -> Reply:
        if request.path.startswith("/api/v1/telemetry/batches/"):
            count = self._batches[request.path.rpartition("/")[2]]
            return Reply(200, {"state": "stored", "stored": count, "updated": 0, "duplicate": 0, "quarantined": 0})
        if self.next:
            return self.next.pop(0)
        self.prefer.append(request.headers.get("prefer"))
        objects = request.json()
        if request.path == "/api/v1/readings":
            self.readings += objects
            count = sum(len(one["values"]) for one in objects)
        else:
            self.equipment += objects
            count = sum(len(one["sensor"]) for one in objects)
        batch = f"b{len(self._batches)}"
        self._batches[batch] = count
        answer = {"status": "accepted", "readings": count, "quarantined": 0, "batch_id": batch, "errors": []}
        if "wait" in (self.prefer[-1] or ""):
            answer |= {"stored": count, "updated": 0, "duplicate": 0}
        return Reply(201, answer)
