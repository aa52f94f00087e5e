"""Single readings: requests per CPU-second of the server with a durable answer, against a plain FastAPI handler of
the same route that stores nothing, in the same run.

    python -m bench.single [--seconds 5] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import psutil
import uvloop

from bench.server import API_KEY, bench_server, quantile_ms, summary

CONNECTIONS = (1, 64, 256)
_BODY = b'{"temperature":25.5,"humidity":60.2,"pressure":1012.5,"sensor_id":"sensor_%06d"}'

PLAIN = """
import itertools, datetime, uvicorn, sys
from fastapi import FastAPI, Depends, Header, HTTPException, Request
from pydantic import BaseModel, Field
app, ids = FastAPI(), itertools.count(1)
class Reading(BaseModel):
    temperature: float
    humidity: float | None = None
    pressure: float | None = None
    sensor_id: str = Field(min_length=1, max_length=128)
class Record(Reading):
    id: int
    date_recorded: str
    time_recorded: str
    client_ip: str
async def key(x_api_key: str = Header()):
    if x_api_key != sys.argv[2]: raise HTTPException(401)
@app.post("/api/v1/temperature_reading", status_code=201, response_model=Record, dependencies=[Depends(key)])
async def post(reading: Reading, request: Request):
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    date, time, fields = now[:10], now[11:19], reading.model_dump()
    return Record(id=next(ids), date_recorded=date, time_recorded=time, client_ip=request.client.host, **fields)
uvicorn.run(app, port=int(sys.argv[1]), http="httptools", loop="uvloop", access_log=False, log_level="warning")
"""


class SingleResult(NamedTuple):
    """One run of one server at one number of connections."""

    requests_per_cpu_second: float
    requests_per_second: float
    p50_ms: float
    p99_ms: float


class _Client(asyncio.Protocol):
    """One connection: sends the next request when the answer to the last is there."""

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
            body = _BODY % number
            head = (
                f"POST /api/v1/temperature_reading HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {API_KEY}\r\n"
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


def measure(port: int, pid: int, connections: int, seconds: float) -> SingleResult:
    """Drive one server from a child process. Raises RuntimeError for an answer that is not 201."""
    results: Any = multiprocessing.get_context("spawn").Queue()
    child = multiprocessing.get_context("spawn").Process(target=_drive, args=(port, connections, seconds, results))
    server = psutil.Process(pid)
    before, started = server.cpu_times(), time.perf_counter()
    child.start()
    count, failed, p50, p99 = results.get(timeout=seconds + 60)
    wall, after = time.perf_counter() - started, server.cpu_times()
    child.join()
    if failed:
        raise RuntimeError(f"{failed} of {count} requests were not answered with 201")
    cpu = after.user + after.system - before.user - before.system
    return SingleResult(count / cpu, count / min(wall, seconds), p50, p99)


def plain_server() -> tuple[subprocess.Popen[bytes], int]:
    """The peer: FastAPI as its documentation has it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", PLAIN, str(port), API_KEY], env=os.environ)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process, port


def compare(seconds: float, rounds: int) -> Iterator[tuple[int, list[SingleResult], list[SingleResult]]]:
    """(connections, our results, those of the plain server), the two measured in turn."""
    peer, peer_port = plain_server()
    try:
        with tempfile.TemporaryDirectory() as folder, bench_server(Path(folder)) as server:
            for connections in CONNECTIONS:
                ours, plain = [], []
                for _ in range(rounds):
                    plain.append(measure(peer_port, peer.pid, connections, seconds))
                    ours.append(measure(server.port, server.pid, connections, seconds))
                yield connections, ours, plain
    finally:
        peer.send_signal(signal.SIGTERM)
        peer.wait(30)


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    for connections, ours, plain in compare(options.seconds, options.rounds):
        for name in SingleResult._fields:
            print(f"{connections} connections, {name}: {summary([getattr(r, name) for r in ours])}")
        ratios = [a.requests_per_cpu_second / b.requests_per_cpu_second for a, b in zip(ours, plain, strict=True)]
        print(f"{connections} connections, plain FastAPI: {summary([p.requests_per_cpu_second for p in plain])}")
        print(f"{connections} connections, ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
