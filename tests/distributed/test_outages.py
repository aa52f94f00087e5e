"""Every part fails in turn under load: what was answered 201 is there, once, and everything heals without a restart."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cluster import Cluster, running_cluster
from harness import API_KEY, Server, esm_equipment, esm_reading, hours_ago, new_uuid, wait_until
from load import DURABLE, REFUSED, Load, check

from sensorkeep.limits import BULK_STREAMS_MAX, CATALOG_ANSWER_SECONDS_MAX, S3_REQUEST_SECONDS_MAX
from services import Services, make_database, settings

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

KILLS = int(os.environ.get("SENSORKEEP_TEST_KILL_ROUNDS", "2"))
REQUIRED = ("kafka", "seaweedfs")
"""Without these nothing can be made durable."""


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Services of this module's own, which it may stop."""
    with Services(tmp_path_factory.mktemp("services")) as services:
        yield services


@pytest.fixture
def cluster(tmp_path: Path, private: Services) -> Iterator[Cluster]:
    with running_cluster(tmp_path, settings(private.addresses(), make_database(private.postgresql.url))) as cluster:
        yield cluster


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("SENSORKEEP_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}")
    return random.Random(seed)


def bulk(gateway: Server) -> httpx.Response:
    body = [esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, hours_ago(1))])]
    return httpx.post(
        gateway.url + "/api/v1/telemetry/bulk",
        content=gzip.compress(json.dumps(body).encode()),
        headers={"X-API-Key": API_KEY, "Content-Encoding": "gzip", "Content-Type": "application/json"},
        timeout=30,
    )


def test_workers_killed_in_the_middle_of_their_work_lose_and_double_nothing(
    cluster: Cluster, chance: random.Random
) -> None:
    load = Load(cluster.gateways, "killed-worker")
    for round_number in range(KILLS):
        load.wait_for(30)
        victim = cluster.workers[round_number % 2]
        victim.kill()
        load.wait_for(10 + chance.randrange(20))
        victim.start()
    load.end()
    check(cluster.gateways[0], [load])


def test_gateways_killed_in_the_middle_of_requests_lose_and_double_nothing(
    cluster: Cluster, chance: random.Random
) -> None:
    loads = []
    for round_number in range(KILLS):
        load = Load(cluster.gateways, f"killed-gateway-{round_number}")
        loads.append(load)
        load.wait_for(20 + chance.randrange(20))
        victim = cluster.gateways[round_number % 2]
        port = httpx.URL(victim.url).port
        victim.kill()
        load.wait_for(10)
        victim.settings["SENSORKEEP_PORT"] = str(port)
        victim.start()
        load.wait_for(20)
        load.end()
    check(cluster.gateways[1], loads)


def test_workers_that_come_and_go_while_others_write_lose_and_double_nothing(cluster: Cluster) -> None:
    load = Load(cluster.gateways, "rebalance")
    load.wait_for(20)
    third = cluster.add("worker")
    load.wait_for(30)
    assert cluster.workers[0].stop(signal.SIGTERM) == 0, cluster.workers[0].log[-2000:]
    load.wait_for(20)
    cluster.workers[0].start()
    third.stop(signal.SIGTERM)
    load.wait_for(20)
    load.end()
    check(cluster.gateways[0], [load])


@pytest.mark.parametrize("name", ["kafka", "seaweedfs", "postgresql", "valkey"])
def test_a_service_that_stops_and_comes_back_costs_nothing_that_was_answered(
    cluster: Cluster, private: Services, name: str
) -> None:
    service = getattr(private, name)
    pids = [node.process.pid for node in (*cluster.gateways, *cluster.workers)]
    load = Load(cluster.gateways, f"outage-{name}")
    load.wait_for(20)
    service.kill()
    try:
        if name in REQUIRED:
            refused = wait_until(lambda: _refusal(cluster.gateways[0]))
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["code"] == "dependency_down"
            assert cluster.gateways[1].anonymous.get("/ping").status_code == 200
            health = wait_until(lambda: _unhealthy(cluster.gateways[0]))
            assert (health.status_code, health.json()["services"]) == (503, health.json()["services"])
        elif name == "valkey":
            load.wait_for(20)  # nothing that matters hangs on it
            health = wait_until(lambda: _unhealthy(cluster.gateways[0]))
            assert (health.status_code, health.json()["services"]["pubsub"]) == (200, "down")
        else:
            health = wait_until(lambda: _unhealthy(cluster.gateways[0]))
            assert health.json()["services"]["tsdb"] == "down"
    finally:
        service.start()
    load.wait_for(30)
    load.end()
    wait_until(lambda: all(_healthy(node) for node in (*cluster.gateways, *cluster.workers)))
    check(cluster.gateways[0], [load])
    assert [node.process.pid for node in (*cluster.gateways, *cluster.workers)] == pids
    assert all(node.process.poll() is None for node in (*cluster.gateways, *cluster.workers)), "one has ended"
    assert load.answers.keys() <= {DURABLE, REFUSED}


def test_a_catalog_that_hangs_delays_no_answer_for_long_and_costs_nothing(cluster: Cluster, private: Services) -> None:
    load = Load(cluster.gateways, "hung-catalog")
    load.wait_for(20)
    private.postgresql.pause()
    try:
        began = time.monotonic()
        load.wait_for(40)
        assert time.monotonic() - began < CATALOG_ANSWER_SECONDS_MAX / 2, "they waited for PostgreSQL"
    finally:
        private.postgresql.resume()
    load.wait_for(30)
    load.end()
    wait_until(lambda: all(_healthy(node) for node in (*cluster.gateways, *cluster.workers)))
    check(cluster.gateways[0], [load])
    assert load.answers.keys() == {DURABLE}


def test_an_object_store_that_hangs_makes_nobody_wait_for_the_others_and_costs_nothing(
    cluster: Cluster, private: Services
) -> None:
    load = Load(cluster.gateways, "hung-store")
    load.wait_for(20)
    private.seaweedfs.pause()
    try:
        with ThreadPoolExecutor(4 * BULK_STREAMS_MAX) as clients:
            began = time.monotonic()
            answers = list(clients.map(bulk, cluster.gateways[:1] * 6 * BULK_STREAMS_MAX))
        assert time.monotonic() - began < 4 * S3_REQUEST_SECONDS_MAX, "they waited for it one after the other"
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(REFUSED, "dependency_down")}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    finally:
        private.seaweedfs.resume()
    load.wait_for(30)
    load.end()
    check(cluster.gateways[0], [load])
    assert load.answers.keys() <= {DURABLE, REFUSED}


def _refusal(gateway: Server) -> httpx.Response | None:
    answer = bulk(gateway)
    return answer if answer.status_code == REFUSED else None


def _unhealthy(gateway: Server) -> httpx.Response | None:
    answer = gateway.anonymous.get("/health")
    return answer if answer.json()["status"] == "degraded" else None


def _healthy(node: Server) -> bool:
    return bool(node.anonymous.get("/health").json()["status"] == "healthy")
