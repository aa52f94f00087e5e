"""Many small POSTs on some connections: `wrk` where it is installed, else a client of our own in a process of its own.

Each connection sends the next request when it has the answer to the last.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import shutil
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvloop

from bench.processes import ProcessTree
from bench.server import API_KEY, quantile_ms

ROUTE = "/api/v1/temperature_reading"
_BODY = '{"temperature":25.5,"humidity":60.2,"pressure":1012.5,"sensor_id":"sensor_%06d"}'
_SENSORS = 250
_LUA = """
local number = 0
wrk.method = "POST"
wrk.headers["X-API-Key"] = "{key}"
wrk.headers["Content-Type"] = "application/json"
function request()
    number = (number + 1) % {sensors}
    return wrk.format(nil, nil, nil, string.format('{body}', number))
end

function done(summary, latency, requests)
    local errors = summary.errors
    local bad = errors.status + errors.connect + errors.read + errors.write + errors.timeout
    print(string.format("figures %d %d %.3f %.3f", summary.requests, bad,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


class LoadResult(NamedTuple):
    """One run against one server."""

    requests_per_cpu_second: float
    requests_per_second: float
    p50_ms: float
    p99_ms: float


def drive(port: int, tree: ProcessTree, connections: int, seconds: float) -> LoadResult:
    """Load one server and read what its processes used. Raises RuntimeError for an answer that is no success."""
    cpu, started = tree.cpu_seconds(), time.perf_counter()
    run = _wrk if shutil.which("wrk") else _own
    count, failed, p50_ms, p99_ms = run(port, connections, seconds)
    wall, cpu = time.perf_counter() - started, tree.cpu_seconds() - cpu
    if failed or not count:
        raise RuntimeError(f"{failed} of {count} requests were not answered with success")
    return LoadResult(count / cpu, count / min(wall, seconds), p50_ms, p99_ms)


def tool() -> str:
    """What makes the load."""
    return "wrk" if shutil.which("wrk") else "a Python client"


def _wrk(port: int, connections: int, seconds: float) -> tuple[int, int, float, float]:
    script = _LUA.format(key=API_KEY, sensors=_SENSORS, body=_BODY)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "post.lua"
        file.write_text(script, "utf-8")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(file)]
        command.append(f"http://127.0.0.1:{port}{ROUTE}")
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"figures (\d+) (\d+) ([\d.]+) ([\d.]+)", answer.stdout)
    if found is None:
        raise RuntimeError(f"wrk said {answer.stdout[-300:]!r}")
    return int(found[1]), int(found[2]), float(found[3]), float(found[4])


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self._request = request
        self._latencies = latencies
        self.running = True
        self.failed = 0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self._latencies.append(time.perf_counter() - self._sent)
        self.failed += not head.startswith(b"HTTP/1.1 201")
        self._answer = b""
        if self.running:
            self._send()
        else:
            self._transport.close()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)


def _drive(port: int, connections: int, seconds: float, results: Any) -> None:
    latencies: list[float] = []

    async def drive() -> int:
        loop = asyncio.get_running_loop()
        clients = []
        for number in range(connections):
            body = (_BODY % number).encode()
            head = (
                f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {API_KEY}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            make = partial(_Client, head.encode() + body, latencies)
            _, client = await loop.create_connection(make, "127.0.0.1", port)
            clients.append(client)
        await asyncio.sleep(seconds)
        for client in clients:
            client.running = False
        await asyncio.sleep(0.2)
        return sum(client.failed for client in clients)

    failed = uvloop.run(drive())
    results.put((len(latencies), failed, quantile_ms(latencies, 0.5), quantile_ms(latencies, 0.99)))


def _own(port: int, connections: int, seconds: float) -> tuple[int, int, float, float]:
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    child = context.Process(target=_drive, args=(port, connections, seconds, results))
    child.start()
    count, failed, p50_ms, p99_ms = results.get(timeout=seconds + 60)
    child.join()
    return count, failed, p50_ms, p99_ms
