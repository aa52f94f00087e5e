"""The live stream through its real door: uvicorn on a loopback port, real keys, real WebSocket clients."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from sensorkeep.auth.credentials import Authenticator, StaticKey, secret_sha256
from sensorkeep.auth.gate import Gate
from sensorkeep.auth.limiter import RateLimiter
from sensorkeep.auth.tickets import Tickets
from sensorkeep.auth.tokens import TokenIssuer
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.base import ApiKey
from sensorkeep.catalog.database import open_database
from sensorkeep.clock import SystemClock
from sensorkeep.limits import (
    WS_CLOSE_SECONDS,
    WS_INCOMING_BYTES_MAX,
    WS_INCOMING_PER_MINUTE_MAX,
    WS_QUEUE_MESSAGES_MAX,
)
from sensorkeep.live.hub import Hub
from sensorkeep.live.messages import LiveMessage, seal
from sensorkeep.live.protocol import uvicorn_settings
from sensorkeep.live.websocket import LiveEndpoint
from sensorkeep.metrics import Metrics
from sensorkeep.model import external_uuid
from sensorkeep.pubsub.base import READINGS_CHANNEL
from sensorkeep.pubsub.memory import MemoryPubSub

LIVE_KEY = "live-key-0123456789abcdef"
INGEST_KEY = "ingest-key-0123456789abcdef"
CONNECTIONS_MAX = 3
PATH = "/ws/sensor_updates"


@dataclass
class Live:
    """A running server and what stands behind it."""

    port: int
    pubsub: MemoryPubSub
    hub: Hub
    metrics: Metrics
    authenticator: Authenticator
    tickets: Tickets
    accounts: CatalogAccounts
    app: Starlette
    server: uvicorn.Server | None = None

    def connect(self, query: str = f"?api-key={LIVE_KEY}", **arguments: Any) -> ClientConnection:
        arguments.setdefault("compression", None)
        client: ClientConnection = connect(f"ws://127.0.0.1:{self.port}{PATH}{query}", **arguments)
        return client

    def publish(self, number: int, equipment: str = "e", padding: int = 0) -> None:
        body = json.dumps({"n": number, "pad": "x" * padding}).encode()
        self.pubsub.publish(READINGS_CHANNEL, seal([LiveMessage(external_uuid(equipment), None, body)]))

    def total(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.005)


def _live(port: int = 0) -> Live:
    clock, metrics, pubsub = SystemClock(), Metrics(), MemoryPubSub()
    static = [
        StaticKey("API_KEY_WS", LIVE_KEY, frozenset({"live"})),
        StaticKey("API_KEY", INGEST_KEY, frozenset({"ingest", "read"})),
    ]
    accounts = CatalogAccounts(open_database("sqlite://"), clock)
    authenticator = Authenticator(accounts, TokenIssuer("s" * 40, clock), clock, static, CONNECTIONS_MAX)
    hub, tickets = Hub(pubsub, metrics), Tickets(clock)
    authenticator.on_forget(hub.revoke)
    endpoint = LiveEndpoint(hub, Gate(authenticator, RateLimiter(clock, 0)), tickets)
    app = Starlette(routes=[WebSocketRoute(PATH, endpoint)])
    return Live(port, pubsub, hub, metrics, authenticator, tickets, accounts, app)


@contextlib.contextmanager
def _serving(**settings: Any) -> Iterator[Live]:
    listener = socket.create_server(("127.0.0.1", 0))
    live = _live(listener.getsockname()[1])
    arguments: dict[str, Any] = {**uvicorn_settings(**settings), "lifespan": "off", "log_config": None}
    live.server = uvicorn.Server(uvicorn.Config(live.app, **arguments))
    thread = threading.Thread(target=live.server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield live
    finally:
        live.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[Live]:
    with _serving() as live:
        yield live


@pytest.fixture
def live(shared: Live) -> Live:
    """The shared server once the clients of the test before are gone."""
    _until(lambda: shared.hub.client_count == 0)
    return shared


def _receive(client: ClientConnection, seconds: float = 10) -> Any:
    return json.loads(client.recv(seconds))


def _refusal(live: Live, query: str, **arguments: Any) -> tuple[int, str]:
    with live.connect(query, **arguments) as client, pytest.raises(ConnectionClosed) as caught:
        client.recv(10)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


@pytest.mark.parametrize("way", ["api-key in the query", "X-API-Key header", "ticket"])
def test_a_client_is_let_in_by_each_way_to_show_a_key(live: Live, way: str) -> None:
    credential = live.authenticator.authenticate(None, LIVE_KEY)
    query, headers = {
        "api-key in the query": (f"?api-key={LIVE_KEY}", {}),
        "X-API-Key header": ("", {"X-API-Key": LIVE_KEY}),
        "ticket": (f"?ticket={live.tickets.issue(credential)}", {}),
    }[way]
    with live.connect(query, additional_headers=headers) as client:
        _until(lambda: live.hub.client_count == 1)
        live.publish(1)
        assert _receive(client)["n"] == 1


def test_a_bearer_token_is_taken_too_and_refused_with_a_reason_where_it_is_bad(live: Live) -> None:
    code, reason = _refusal(live, "", additional_headers={"Authorization": "Bearer not.a.token"})
    assert code == 1008
    assert reason


@pytest.mark.parametrize("query", ["", "?api-key=wrong", "?ticket=wrong", "?api-key=", f"?api-key={INGEST_KEY}"])
def test_a_refused_client_is_told_why_with_1008(live: Live, query: str) -> None:
    code, reason = _refusal(live, query)
    assert code == 1008
    assert "scope" in reason if INGEST_KEY in query else reason
    assert INGEST_KEY not in reason


def test_a_ticket_is_good_once(live: Live) -> None:
    ticket = live.tickets.issue(live.authenticator.authenticate(None, LIVE_KEY))
    with live.connect(f"?ticket={ticket}"):
        _until(lambda: live.hub.client_count == 1)
        assert _refusal(live, f"?ticket={ticket}")[0] == 1008


def test_the_connection_over_the_limit_is_closed_with_1008_and_the_limit_named(live: Live) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_MAX):
            stack.enter_context(live.connect())
        _until(lambda: live.hub.client_count == CONNECTIONS_MAX)
        code, reason = _refusal(live, f"?api-key={LIVE_KEY}")
    assert code == 1008
    assert f"{CONNECTIONS_MAX} live connections" in reason
    assert "MAX_WS_CONNECTIONS_PER_KEY" in reason
    _until(lambda: live.hub.client_count == 0)
    with live.connect():
        _until(lambda: live.hub.client_count == 1)


def test_filters_of_the_query_choose_what_is_received(live: Live) -> None:
    query = f"?api-key={LIVE_KEY}&sensor_id=a%20b&equipment={external_uuid('c')}"
    with live.connect(query) as client:
        _until(lambda: live.hub.client_count == 1)
        for number, equipment in enumerate(["x", "a b", "y", "c", "a b"]):
            live.publish(number, equipment)
        assert [_receive(client)["n"] for _ in range(3)] == [1, 3, 4]


@pytest.mark.parametrize("size", [1, 200, 70_000])
def test_messages_of_every_frame_length_arrive_whole(live: Live, size: int) -> None:
    with live.connect() as client:
        _until(lambda: live.hub.client_count == 1)
        live.publish(1, padding=size)
        assert len(_receive(client)["pad"]) == size


def test_compression_that_a_client_offers_is_declined(live: Live) -> None:
    with live.connect(compression="deflate") as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
        _until(lambda: live.hub.client_count == 1)
        live.publish(5)
        assert _receive(client)["n"] == 5


def test_a_client_that_stops_reading_loses_the_oldest_is_told_and_slows_nobody(live: Live) -> None:
    padding, messages = 2_000, 8_000
    before = live.total("sensorkeep_ws_dropped_total")
    with live.connect(ping_interval=None) as fast:
        slow = _raw_client(live.port, receive_buffer=4096)
        with contextlib.closing(slow):
            _until(lambda: live.hub.client_count == 2)
            for start in range(0, messages, 500):
                for i in range(start, start + 500):
                    live.publish(i, padding=padding)
                for i in range(start, start + 500):
                    assert _receive(fast)["n"] == i
            assert live.total("sensorkeep_ws_dropped_total") > before
            texts = _read_texts(slow, until=messages - 1)
    gaps = [item for item in texts if "type" in item]
    numbers = [item["n"] for item in texts if "n" in item]
    assert gaps
    assert gaps[0]["type"] == "gap"
    assert sum(gap["dropped"] for gap in gaps) + len(numbers) == messages
    at = texts.index(gaps[0])
    assert texts[at + 1]["n"] == texts[at - 1]["n"] + 1 + gaps[0]["dropped"]
    # Once it reads again it gets at least what its queue held.
    assert numbers[-WS_QUEUE_MESSAGES_MAX // 2 :] == list(range(messages - WS_QUEUE_MESSAGES_MAX // 2, messages))


def test_what_clients_say_is_ignored_but_bounded(live: Live) -> None:
    with live.connect() as client:
        _until(lambda: live.hub.client_count == 1)
        client.send("hello")
        live.publish(1)
        assert _receive(client)["n"] == 1
        for _ in range(WS_INCOMING_PER_MINUTE_MAX):
            client.send("{}")
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1008


def test_a_message_over_the_size_limit_ends_the_connection(live: Live) -> None:
    with live.connect() as client:
        client.send("x" * (WS_INCOMING_BYTES_MAX + 1))
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009


@pytest.mark.parametrize("name", ["sensor_id", "equipment"])
def test_too_many_or_too_long_filters_are_refused(live: Live, name: str) -> None:
    many = "&".join(f"{name}={i}" for i in range(105))
    assert _refusal(live, f"?api-key={LIVE_KEY}&{many}")[0] == 1008
    assert _refusal(live, f"?api-key={LIVE_KEY}&{name}={'x' * 2_000}")[0] == 1008


def test_a_revoked_credential_loses_its_open_connections(live: Live) -> None:
    with live.connect() as client:
        _until(lambda: live.hub.client_count == 1)
        live.authenticator.forget("static:api_key_ws")
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1008
    assert "revoked" in caught.value.rcvd.reason


def test_a_key_that_another_process_revoked_or_that_expired_loses_its_open_connections(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorkeep.live.websocket.CREDENTIAL_CACHE_SECONDS", 0.02)
    keys = [ApiKey(name, name, secret_sha256(f"sk_{name}"), frozenset({"live"}), 0) for name in ("revoked", "expired")]
    for key in keys:
        live.accounts.put_key(key)
    with contextlib.ExitStack() as opened:
        stays = opened.enter_context(live.connect())
        revoked, expired = (opened.enter_context(live.connect(f"?api-key=sk_{key.name}")) for key in keys)
        _until(lambda: live.hub.client_count == 3)
        live.accounts.delete_key("revoked")
        live.accounts.put_key(dataclasses.replace(keys[1], expires_us=1))
        for client in (revoked, expired):
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(10)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1008
        live.publish(1)
        assert _receive(stays)["n"] == 1


def test_the_client_can_close_cleanly(live: Live) -> None:
    with live.connect() as client:
        _until(lambda: live.hub.client_count == 1)
    assert client.close_code == 1000
    _until(lambda: live.hub.client_count == 0)


def test_no_key_reaches_the_log(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), live.connect() as client:
        _until(lambda: live.hub.client_count == 1)
        live.publish(1)
        _receive(client)
    assert LIVE_KEY not in "\n".join(
        record.getMessage() for record in caplog.records if record.name != "websockets.client"
    )


def test_a_shutdown_closes_with_1001() -> None:
    with _serving() as live, live.connect() as client:
        _until(lambda: live.hub.client_count == 1)
        assert live.server is not None
        live.server.should_exit = True
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(10)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001


def test_a_shutdown_does_not_wait_for_a_client_that_stopped_reading() -> None:
    with _serving() as live, contextlib.closing(_raw_client(live.port, receive_buffer=4096)):
        _until(lambda: live.hub.client_count == 1)
        _fill(live)
        assert live.server is not None
        live.server.should_exit = True
        state = live.server.server_state
        _until(lambda: not state.connections, seconds=WS_CLOSE_SECONDS + 3)


@pytest.mark.parametrize("with_unsent_data", [False, True])
def test_a_peer_that_never_answers_pings_is_gone(with_unsent_data: bool) -> None:
    settings = {"ping_seconds": 0.3, "pong_timeout_seconds": 0.3}
    with _serving(**settings) as live, contextlib.closing(_raw_client(live.port, receive_buffer=4096)):
        _until(lambda: live.hub.client_count == 1)
        if with_unsent_data:
            _fill(live)
        _until(lambda: live.hub.client_count == 0, seconds=5)
        assert live.server is not None
        state = live.server.server_state
        _until(lambda: not state.connections, seconds=2)


def test_a_peer_that_answers_pings_stays() -> None:
    with _serving(ping_seconds=0.1, pong_timeout_seconds=0.5) as live, live.connect(ping_interval=None) as client:
        _until(lambda: live.hub.client_count == 1)
        with pytest.raises(TimeoutError):
            client.recv(1.5)
        live.publish(1)
        assert _receive(client)["n"] == 1


def test_a_server_without_our_protocol_is_served_through_asgi_send() -> None:
    live = _live()
    with TestClient(live.app) as http, http.websocket_connect(f"{PATH}?api-key={LIVE_KEY}") as client:
        _until(lambda: live.hub.client_count == 1)
        for i in range(300):
            live.publish(i)
        assert [client.receive_json()["n"] for _ in range(300)] == list(range(300))


def _fill(live: Live) -> None:
    """Publish until a client that does not read loses messages."""

    def more() -> bool:
        for i in range(200):
            live.publish(i, padding=4_000)
        return live.total("sensorkeep_ws_dropped_total") > 0

    _until(more)


def _raw_client(port: int, receive_buffer: int) -> socket.socket:
    """A socket that did the handshake, and reads only when told to."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", port))
    client.sendall(
        f"GET {PATH}?api-key={LIVE_KEY} HTTP/1.1\r\nHost: localhost\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    client.settimeout(10)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += client.recv(1)
    assert answer.startswith(b"HTTP/1.1 101")
    return client


def _read_texts(client: socket.socket, until: int) -> list[dict[str, Any]]:
    """Text messages up to the one with this number; other frames are passed over."""
    found: list[dict[str, Any]] = []
    stream = client.makefile("rb")
    while not found or found[-1].get("n") != until:
        first, length = stream.read(2)
        if length == 126:
            (length,) = struct.unpack("!H", stream.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", stream.read(8))
        payload = stream.read(length)
        if first == 0x81:
            found.append(json.loads(payload))
    return found
