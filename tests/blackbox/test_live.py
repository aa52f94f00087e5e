"""The live stream at its WebSocket: who may listen, what arrives, and what a slow listener loses."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from harness import API_KEY, API_KEY_WS, Server, running, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from sensorkeep.model import external_uuid

RECEIVE_SECONDS = 20.0
CONNECTIONS_PER_KEY = 10


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: its listeners hear everything that is sent to it."""
    with running(tmp_path_factory.mktemp("live") / "data") as server:
        yield server


def listen(server: Server, key: str | None = API_KEY_WS, **query: str) -> AbstractContextManager[ClientConnection]:
    """A connection that listens from now on; use it as a context manager."""
    fields = ({"api-key": key} if key is not None else {}) | query
    url = f"{server.url.replace('http', 'ws', 1)}/ws/sensor_updates?{urlencode(fields)}"
    return connect(url, compression=None, max_queue=None, close_timeout=2)


def wait_for_listeners(server: Server, count: int) -> None:
    """The handshake is answered before the listener is entered, so what is sent at once could be missed."""

    def listening() -> bool:
        answer = server.client.get(server.url + "/metrics")
        return f"sensorkeep_ws_clients {float(count)}" in answer.text

    wait_until(listening)


def next_message(listener: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(listener.recv(RECEIVE_SECONDS))
    return message


def close_of(listener: ClientConnection) -> tuple[int, str]:
    """(code, reason) with which the server closes."""
    with pytest.raises(ConnectionClosed) as closed:
        drain(listener)
    received = closed.value.rcvd
    assert received is not None, "the connection was cut without a close frame"
    return received.code, received.reason


def drain(listener: ClientConnection) -> None:
    """Read until the connection ends, which raises ConnectionClosed."""
    while True:
        listener.recv(RECEIVE_SECONDS)


def now() -> str:
    return datetime.now(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def send_bulk(server: Server, equipment: str, sensor: str, readings: int) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    items = [
        {"sensor_uuid": sensor, "valor": float(i), "timestamp": (moment + timedelta(milliseconds=i)).isoformat()}
        for i in range(readings)
    ]
    answer = server.client.post("/telemetry/bulk", json=[{"equip_uuid": equipment, "sensor": items}])
    assert answer.status_code == 201, answer.text


def send_temperature(server: Server, sensor_id: str, **fields: object) -> None:
    body = {"temperature": 1.0, "sensor_id": sensor_id} | fields
    assert server.client.post("/temperature_reading", json=body).status_code == 201


def test_a_temperature_reading_arrives_in_the_sensorflow_form(live: Server) -> None:
    with listen(live) as listener:
        wait_for_listeners(live, 1)
        moment = now()
        body = {"temperature": 25.5, "humidity": 60.2, "sensor_id": "sensor_001", "timestamp": moment}
        assert live.client.post("/temperature_reading", json=body).status_code == 201
        assert next_message(listener) == {
            "temperature": 25.5, "humidity": 60.2, "pressure": None, "sensor_id": "sensor_001", "timestamp": moment,
        }  # fmt: skip
    wait_for_listeners(live, 0)


def test_a_bulk_reading_arrives_in_the_easy_smart_monitor_form(live: Server) -> None:
    equipment, sensor = "550e8400-e29b-41d4-a716-446655440000", "660e8400-e29b-41d4-a716-446655440001"
    reading = {"sensor_uuid": sensor, "sensor_tipo": "temperatura", "valor": -18.4, "timestamp": now()}
    door = {"sensor_uuid": sensor[:-1] + "2", "sensor_tipo": "porta", "sensor_telemetria": "on", "timestamp": now()}
    with listen(live) as listener:
        wait_for_listeners(live, 1)
        answer = live.client.post("/telemetry/bulk", json=[{"equip_uuid": equipment, "sensor": [reading, door]}])
        assert answer.status_code == 201
        assert next_message(listener) == {
            "equipment_uuid": equipment, "sensor_uuid": sensor, "sensor_type": "temperatura", "value": -18.4,
            "status": None, "timestamp": reading["timestamp"],
        }  # fmt: skip
        assert next_message(listener) == {
            "equipment_uuid": equipment, "sensor_uuid": door["sensor_uuid"], "sensor_type": "porta", "value": None,
            "status": "on", "timestamp": door["timestamp"],
        }  # fmt: skip
    wait_for_listeners(live, 0)


def test_filters_let_through_the_named_sensors_and_equipment_only(live: Server) -> None:
    freezer = external_uuid("filter-freezer")
    with (
        listen(live, sensor_id="filter-a") as by_sensor,
        listen(live, equipment=freezer) as by_equipment,
        listen(live) as everything,
    ):
        wait_for_listeners(live, 3)
        send_temperature(live, "filter-b")
        send_temperature(live, "filter-a")
        send_bulk(live, freezer, external_uuid("filter-probe"), 1)
        send_temperature(live, "filter-a", temperature=2.0)
        assert [next_message(by_sensor)["temperature"] for _ in range(2)] == [1.0, 2.0]
        assert next_message(by_equipment)["equipment_uuid"] == freezer
        heard = [next_message(everything).get("sensor_id") for _ in range(4)]
        assert heard == ["filter-b", "filter-a", None, "filter-a"]
    wait_for_listeners(live, 0)


def test_the_eleventh_connection_of_a_key_is_closed_with_1008_and_a_reason(live: Server) -> None:
    with ExitStack() as open_listeners:
        first = open_listeners.enter_context(listen(live))
        for _ in range(CONNECTIONS_PER_KEY - 1):
            open_listeners.enter_context(listen(live))
        wait_for_listeners(live, CONNECTIONS_PER_KEY)
        with listen(live) as refused:
            code, reason = close_of(refused)
        assert code == 1008
        assert "MAX_WS_CONNECTIONS_PER_KEY" in reason
        first.close()
        wait_for_listeners(live, CONNECTIONS_PER_KEY - 1)
        with listen(live):  # there is room again
            wait_for_listeners(live, CONNECTIONS_PER_KEY)
    wait_for_listeners(live, 0)


@pytest.mark.parametrize("key", ["not-a-key-of-this-server", None, API_KEY], ids=["wrong", "none", "without scope"])
def test_a_credential_that_may_not_listen_is_closed_with_1008(live: Server, key: str | None) -> None:
    with listen(live, key) as refused:
        code, reason = close_of(refused)
    assert code == 1008
    assert reason
    assert key is None or key not in reason


def test_the_key_is_taken_from_the_header_too(live: Server) -> None:
    url = live.url.replace("http", "ws", 1) + "/ws/sensor_updates"
    with connect(url, additional_headers={"X-API-Key": API_KEY_WS}) as listener:
        wait_for_listeners(live, 1)
        send_temperature(live, "by-header")
        assert next_message(listener)["sensor_id"] == "by-header"
    wait_for_listeners(live, 0)


def test_a_ticket_opens_one_connection(live: Server) -> None:
    answer = live.anonymous.post("/auth/ws-ticket", headers={"X-API-Key": API_KEY_WS})
    assert answer.status_code == 201, answer.text
    ticket = answer.json()["ticket"]
    with listen(live, None, ticket=ticket) as listener:
        wait_for_listeners(live, 1)
        send_temperature(live, "by-ticket")
        assert next_message(listener)["sensor_id"] == "by-ticket"
        with listen(live, None, ticket=ticket) as refused:
            assert close_of(refused)[0] == 1008
    wait_for_listeners(live, 0)


def test_a_slow_listener_loses_the_oldest_and_is_told_while_a_fast_one_gets_everything(live: Server) -> None:
    rounds, readings = 40, 500  # 4 MB of messages: more than a queue and all the buffers on the way hold
    equipment, sensor = external_uuid("flood"), external_uuid("flood/probe")
    with listen(live) as fast, StalledListener(live) as slow:
        wait_for_listeners(live, 2)
        for _ in range(rounds):
            send_bulk(live, equipment, sensor, readings)
            assert [next_message(fast)["value"] for _ in range(readings)] == [float(i) for i in range(readings)]
        send_temperature(live, "the-end")
        assert next_message(fast)["sensor_id"] == "the-end"
        messages = slow.read_until("the-end")
    gaps = [message for message in messages if message.get("type") == "gap"]
    assert gaps, "the slow listener lost nothing: the test did not press hard enough"
    assert all(gap.keys() == {"type", "dropped"} for gap in gaps)
    heard = [message for message in messages if message.get("type") != "gap"]
    assert len(heard) - 1 + sum(gap["dropped"] for gap in gaps) == rounds * readings
    after_last_gap = messages[messages.index(gaps[-1]) + 1 :]
    assert len(after_last_gap) >= readings, "the newest messages are kept, not the oldest"
    wait_for_listeners(live, 0)


class StalledListener:
    """A WebSocket client by hand, over a socket with a small buffer: it reads only when told."""

    def __init__(self, server: Server) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self._socket.settimeout(RECEIVE_SECONDS)
        self._socket.connect((host, int(port)))
        self._socket.sendall(
            f"GET /ws/sensor_updates?api-key={API_KEY_WS} HTTP/1.1\r\nHost: {host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        assert b" 101 " in self._stream.readline()
        while self._stream.readline() != b"\r\n":
            pass

    def __enter__(self) -> StalledListener:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def read_until(self, sensor_id: str) -> list[dict[str, Any]]:
        """Every message up to the one of this sensor."""
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1].get("sensor_id") != sensor_id:
            first, length = self._stream.read(2)
            if length == 126:
                length = int.from_bytes(self._stream.read(2))
            payload = self._stream.read(length)
            if first == 0x81:  # a whole text message; pings need no answer this soon
                messages.append(json.loads(payload))
        return messages


def test_a_shutdown_closes_listeners_with_1001(data_dir: Path) -> None:
    server = Server(data_dir).start()
    try:
        with listen(server) as listener:
            wait_for_listeners(server, 1)
            assert server.stop() == 0, server.log[-2000:]
            assert close_of(listener)[0] == 1001
    finally:
        server.stop()
