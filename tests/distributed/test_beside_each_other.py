"""What one gateway is told, the others know: readings, newest values, live messages, keys, tickets, limits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from cluster import Cluster, running_cluster
from harness import API_KEY_WS, Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, wait_until
from load import settled
from websockets.sync.client import ClientConnection, connect

pytestmark = pytest.mark.distributed

RECEIVE_SECONDS = 20.0
REVOKED_WITHIN_SECONDS = 35.0
"""Without a word between gateways a key lives on for as long as it is remembered."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, module_services: dict[str, str]) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), module_services) as cluster:
        yield cluster


def listen(gateway: Server, **query: str) -> AbstractContextManager[ClientConnection]:
    url = f"{gateway.url.replace('http', 'ws', 1)}/ws/sensor_updates?{urlencode(query)}"
    return connect(url, compression=None, max_queue=None, close_timeout=2)


def single(gateway: Server, sensor_id: str, temperature: float, at: datetime | None = None) -> None:
    when = {} if at is None else {"timestamp": at.isoformat()}
    answer = gateway.client.post(
        "/temperature_reading", json={"sensor_id": sensor_id, "temperature": temperature} | when
    )
    assert answer.status_code == 201, answer.text


def test_a_batch_sent_to_one_gateway_is_stored_by_a_worker_and_read_from_the_other(cluster: Cluster) -> None:
    one, other = cluster.gateways
    equipment, sensor = new_uuid(), new_uuid()
    readings = [esm_reading(sensor, float(i), hours_ago(2) + timedelta(milliseconds=i)) for i in range(500)]
    answer = one.stored([esm_equipment(equipment, readings)])
    assert (answer["stored"], answer["duplicate"]) == (500, 0)
    (row,) = other.get(f"/analytics/equipment/{equipment}/history")["data"]
    assert (row["sample_count"], row["avg_value"]) == (500, 249.5)
    assert other.get(f"/telemetry/batches/{answer['batch_id']}")["state"] == "stored"
    again = other.stored([esm_equipment(equipment, readings)])
    assert (again["stored"], again["duplicate"]) == (0, 500)


def test_the_newest_value_is_right_on_every_gateway_the_moment_a_post_was_answered(cluster: Cluster) -> None:
    one, other = cluster.gateways
    sensor_id = f"newest-{new_uuid()}"
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30)
    for number in range(40):
        sender, reader = (one, other) if number % 2 else (other, one)
        single(sender, sensor_id, float(number), start + timedelta(seconds=number))
        assert reader.get(f"/sensor/{sensor_id}/latest")["temperature"] == number
    single(one, sensor_id, -1.0, start)
    assert other.get(f"/sensor/{sensor_id}/latest")["temperature"] == 39, "a late reading is not the newest"


def test_a_reading_sent_to_one_gateway_reaches_a_listener_of_the_other(cluster: Cluster) -> None:
    one, other = cluster.gateways
    sensor_id = f"live-{new_uuid()}"
    with listen(other, **{"api-key": API_KEY_WS, "sensor_id": sensor_id}) as listener:

        def heard() -> bool:
            single(one, sensor_id, 7.25)  # again until the listener is entered on the other side
            try:
                message = json.loads(listener.recv(0.5))
            except TimeoutError:
                return False
            return bool(message["temperature"] == 7.25 and message["sensor_id"] == sensor_id)

        wait_until(heard)


def test_a_listener_of_the_gateway_that_is_told_hears_a_reading_once(cluster: Cluster) -> None:
    one, _ = cluster.gateways
    sensor_id = f"once-{new_uuid()}"
    with listen(one, **{"api-key": API_KEY_WS, "sensor_id": sensor_id}) as listener:
        wait_until(lambda: "sensorkeep_ws_clients 1.0" in one.client.get(one.url + "/metrics").text)
        for number in range(20):
            single(one, sensor_id, float(number))
        heard = [json.loads(listener.recv(RECEIVE_SECONDS))["temperature"] for _ in range(20)]
    assert heard == [float(number) for number in range(20)]


def test_a_ticket_of_one_gateway_opens_one_socket_on_the_other(cluster: Cluster) -> None:
    one, other = cluster.gateways
    with one.login() as admin:
        answer = admin.post("/auth/ws-ticket")
    assert answer.status_code == 201, answer.text
    ticket = answer.json()["ticket"]
    with listen(other, ticket=ticket):
        pass
    with pytest.raises(Exception, match=r"40[13]|1008"), listen(one, ticket=ticket) as second:
        second.recv(RECEIVE_SECONDS)


def test_a_key_made_and_revoked_on_one_gateway_lives_and_dies_on_the_other(cluster: Cluster) -> None:
    one, other = cluster.gateways
    with one.login() as admin:
        made = admin.post("/keys", json={"name": "device", "scopes": ["read"]}).json()
        with httpx.Client(base_url=other.url + "/api/v1", headers={"X-API-Key": made["secret"]}) as device:
            assert device.get("/auth/me").status_code == 200
            assert admin.delete(f"/keys/{made['id']}").status_code == 204
            wait_until(lambda: device.get("/auth/me").status_code == 401, REVOKED_WITHIN_SECONDS)


def test_a_refresh_token_is_spent_once_whichever_gateway_is_asked(cluster: Cluster) -> None:
    one, other = cluster.gateways
    login = one.anonymous.post("/auth/login", json={"username": "admin", "password": "correct horse battery 9"})
    token = login.json()["refresh_token"]
    assert other.anonymous.post("/auth/refresh", json={"refresh_token": token}).status_code == 200
    problem(one.anonymous.post("/auth/refresh", json={"refresh_token": token}), 401, "unauthenticated")


def test_an_idempotency_key_gives_the_first_answer_on_the_other_gateway(cluster: Cluster) -> None:
    one, other = cluster.gateways
    body = [esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, hours_ago(1))])]
    key = new_uuid()
    first = one.bulk(body, Idempotency_Key=key)
    again = other.bulk(body, Idempotency_Key=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()


def test_the_accounting_is_one_for_all(cluster: Cluster) -> None:
    one, other = cluster.gateways
    before = settled(one)
    body = [esm_equipment(new_uuid(), [esm_reading(new_uuid(), float(i), hours_ago(1 + i)) for i in range(5)])]
    for gateway in (one, other, one):
        gateway.stored(body)
    after = settled(other)
    assert {name: after[name] - before[name] for name in ("received", "stored", "duplicate")} == {
        "received": 15, "stored": 5, "duplicate": 10,
    }  # fmt: skip


def test_a_replay_asked_of_the_other_gateway_is_done_by_a_worker(tmp_path: Path, cluster: Cluster) -> None:
    one, other = cluster.gateways
    equipment, sensor = new_uuid(), new_uuid()
    bad = esm_reading(sensor, 2.0, "not a time")
    answer = one.stored([esm_equipment(equipment, [esm_reading(sensor, 1.0, hours_ago(1)), bad])])
    assert answer["quarantined"] == 1
    with other.login() as admin:
        assert admin.post(f"/telemetry/batches/{answer['batch_id']}/replay").status_code in (200, 202)
    batch = wait_until(lambda: _ended(one, answer["batch_id"]))
    assert (batch["state"], batch["quarantined"]) == ("partial", 1)


def _ended(gateway: Server, batch_id: str) -> dict | None:  # type: ignore[type-arg]
    batch: dict = gateway.get(f"/telemetry/batches/{batch_id}")  # type: ignore[type-arg]
    return None if batch["state"] == "accepted" else batch


def test_record_ids_are_never_given_twice(cluster: Cluster) -> None:
    ids = []
    for number in range(60):
        gateway = cluster.gateways[number % 2]
        answer = gateway.client.post("/temperature_reading", json={"sensor_id": "ids", "temperature": 1.0})
        ids.append(answer.json()["id"])
    assert len(set(ids)) == 60
    assert all(isinstance(number, int) and 0 < number < 2**53 for number in ids)
    assert ids[::2] == sorted(ids[::2])


def test_every_process_tells_of_its_health_and_its_figures(cluster: Cluster) -> None:
    for node in (*cluster.gateways, *cluster.workers):
        health = node.anonymous.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "healthy"), health.text
        assert "disk" not in health.json()["services"]
        assert "sensorkeep_queue_depth" in httpx.get(node.url + "/metrics").text
    assert "worker" in cluster.workers[0].anonymous.get("/health").json()["services"]
    assert cluster.workers[0].anonymous.post("/telemetry/bulk", json=[]).status_code == 404


def test_the_schemas_are_told_and_migrating_again_changes_nothing(cluster: Cluster) -> None:
    status = cluster.command("migrate", "status")
    assert status.returncode == 0, status.stderr
    assert {"catalog", "tsdb"} <= set(status.stdout.split())
    began = time.monotonic()
    again = cluster.command("migrate", "upgrade")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is up to date") == 2
    assert "password" not in again.stdout
    assert time.monotonic() - began < 30
