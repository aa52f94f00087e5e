"""What one live delivery costs the serving process: CPU microseconds for each message and client.

A real server (uvicorn, the live endpoint) feeds clients in a child process. Beside it, in the same run: a plain ASGI
handler that awaits `send` for each client, and the floor, a bare `socket.send` of each message to each client. At a low
rate each message is a write of its own; at a higher one the hub's pacing lets messages share writes.

Some of the clients can be slow: they stop reading for good after the handshake, and the others must not notice.

    python -m bench.live [--clients 500] [--slow 0] [--rate 100] [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
import uvicorn

from sensorkeep.auth.credentials import Authenticator, Credential
from sensorkeep.auth.gate import Gate
from sensorkeep.auth.limiter import RateLimiter
from sensorkeep.auth.tickets import Tickets
from sensorkeep.auth.tokens import TokenIssuer
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.database import open_database
from sensorkeep.clock import SystemClock
from sensorkeep.live.hub import Hub
from sensorkeep.live.messages import LiveMessage, seal
from sensorkeep.live.protocol import uvicorn_settings
from sensorkeep.live.websocket import LiveEndpoint
from sensorkeep.metrics import Metrics
from sensorkeep.model import external_uuid
from sensorkeep.pubsub.base import READINGS_CHANNEL
from sensorkeep.pubsub.memory import MemoryPubSub

BODY = (
    b'{"temperature":21.5,"humidity":60.2,"pressure":1012.5,"sensor_id":"bench_%06d",'
    b'"timestamp":"2026-01-15T10:00:00.123456Z"}'
)
HANDSHAKE = (
    "GET /ws/sensor_updates?ticket={} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class _CountingClient(asyncio.Protocol):
    """Reads frames without looking at them: the child must not be what limits the run."""

    def __init__(self) -> None:
        self.received = 0

    def data_received(self, data: bytes) -> None:
        self.received += len(data)


def _run_clients(port: int, tickets: list[str], slow: int, ready: Any, stop: Any, bytes_received: Any) -> None:
    async def listen() -> None:
        loop = asyncio.get_running_loop()
        clients = []
        for ticket in tickets:
            transport, client = await loop.create_connection(_CountingClient, "127.0.0.1", port)
            transport.write(HANDSHAKE.format(ticket).encode())
            clients.append((transport, client))
        while any(client.received == 0 for _, client in clients):
            await asyncio.sleep(0.01)
        for transport, _ in clients[:slow]:
            transport.pause_reading()
        for _, client in clients:
            client.received = 0
        ready.set()
        await loop.run_in_executor(None, stop.wait)
        bytes_received.value = sum(client.received for _, client in clients[slow:])
        for transport, _ in clients:
            transport.close()

    asyncio.run(listen())


class _PlainApplication:
    """The peer: an ASGI handler that awaits `send` for each client, as most servers do it."""

    def __init__(self) -> None:
        self._sends: list[Any] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one client."""
        self.loop = asyncio.get_running_loop()
        await receive()
        await send({"type": "websocket.accept"})
        self._sends.append(send)
        while (await receive())["type"] != "websocket.disconnect":
            pass
        self._sends.remove(send)

    def publish(self, body: bytes) -> None:
        """From any thread: send `body` to every client."""
        assert self.loop is not None
        asyncio.run_coroutine_threadsafe(self._send_to_all(body.decode()), self.loop)

    async def _send_to_all(self, text: str) -> None:
        for send in list(self._sends):
            await send({"type": "websocket.send", "text": text})


def _measure(
    application: Any,
    publish: Callable[[bytes], None],
    tickets: list[str],
    slow: int,
    rate: int,
    seconds: float,
    **settings: Any,
) -> dict[str, float]:
    """Serve `application` in this process, publish at `rate`, and answer CPU per delivery to a client that reads."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(application, lifespan="off", log_level="error", access_log=False, **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    context = multiprocessing.get_context("spawn")
    ready, stop, received = context.Event(), context.Event(), context.Value("q", 0)
    child = context.Process(target=_run_clients, args=(listener.getsockname()[1], tickets, slow, ready, stop, received))
    child.start()
    if not ready.wait(60):
        raise SystemExit("the clients did not connect")
    body = BODY % 1
    try:
        cpu, messages = _publish_evenly(publish, body, rate, seconds)
    finally:
        stop.set()
        child.join(30)
        server.should_exit = True
        thread.join(30)
    deliveries = received.value / (len(body) + (2 if len(body) < 126 else 4))
    return {
        "messages": messages,
        "deliveries": round(deliveries),
        "complete": round(deliveries / (messages * (len(tickets) - slow)), 4),
        "microseconds_per_delivery": round(cpu / deliveries * 1e6, 2),
    }


def _drain_sockets(port: int, clients: int) -> None:
    selector = selectors.DefaultSelector()
    for _ in range(clients):
        selector.register(socket.create_connection(("127.0.0.1", port)), selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if not key.fileobj.recv(65536):  # type: ignore[union-attr]
                return


def _floor(clients: int) -> float:
    """CPU seconds of one bare send of a message to one client, the operating system's part of a delivery."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    child = multiprocessing.get_context("spawn").Process(
        target=_drain_sockets, args=(listener.getsockname()[1], clients), daemon=True
    )
    child.start()
    connections = [listener.accept()[0] for _ in range(clients)]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message, rounds, cpu = BODY % 1, 200, time.process_time()
    for _ in range(rounds):
        for connection in connections:
            connection.send(message)
        time.sleep(0.005)
    seconds = (time.process_time() - cpu) / (rounds * clients)
    for connection in connections:
        connection.close()
    child.join(10)
    return seconds


def _publish_evenly(publish: Callable[[bytes], None], body: bytes, rate: int, seconds: float) -> tuple[float, int]:
    """Publish one message each 1/rate seconds; (CPU seconds of this process, messages)."""
    messages = int(rate * seconds)
    started, cpu = time.perf_counter(), time.process_time()
    for i in range(messages):
        publish(body)
        time.sleep(max(0.0, started + (i + 1) / rate - time.perf_counter()))
    time.sleep(0.2)
    return time.process_time() - cpu, messages


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--slow", type=int, default=0, help="of them, stop reading")
    parser.add_argument("--rate", type=int, default=100, help="messages a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.clients, arguments.slow, arguments.rate, arguments.seconds)))


def run(clients: int, slow: int, rate: int, seconds: float) -> dict[str, Any]:
    """Measure both servers and the floor. A plain server would hold what slow clients do not read: it gets none."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    pubsub, clock = MemoryPubSub(), SystemClock()
    issued = Tickets(clock)
    credential = Credential("key:bench", "key", "bench", frozenset({"live"}), clients)
    tickets = [issued.issue(credential) for _ in range(clients)]
    accounts = CatalogAccounts(open_database("sqlite://"), clock)
    authenticator = Authenticator(accounts, TokenIssuer("b" * 40, clock), clock)
    endpoint = LiveEndpoint(Hub(pubsub, Metrics()), Gate(authenticator, RateLimiter(clock, 0)), issued)

    def publish(body: bytes) -> None:
        pubsub.publish(READINGS_CHANNEL, seal([LiveMessage(external_uuid("bench"), None, body)]))

    ours = _measure(endpoint, publish, tickets, slow, rate, seconds, **uvicorn_settings())
    plain = _PlainApplication()
    settings = {"ws": "websockets-sansio", "ws_per_message_deflate": False}
    peer = _measure(plain, plain.publish, tickets, 0, rate, seconds, **settings)
    return {
        "clients": clients,
        "slow": slow,
        "rate": rate,
        "cores": os.cpu_count(),
        "sensorkeep": ours,
        "plain_asgi": peer,
        "floor_microseconds": round(_floor(clients) * 1e6, 2),
    }


def run_apart(clients: int, slow: int, rate: int, seconds: float) -> dict[str, Any]:
    """`run` in a process of its own, so that nothing else is in its CPU time."""
    options = {"clients": clients, "slow": slow, "rate": rate, "seconds": seconds}
    command = [sys.executable, "-m", "bench.live", *(f"--{name}={value}" for name, value in options.items())]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
