"""Health, ping and metrics."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sensorkeep.auth.credentials import Authenticator, StaticKey
from sensorkeep.auth.gate import Gate
from sensorkeep.auth.limiter import RateLimiter
from sensorkeep.auth.tokens import TokenIssuer
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.database import open_database
from sensorkeep.clock import ManualClock, SystemClock
from sensorkeep.errors import Unavailable
from sensorkeep.metrics import Metrics
from sensorkeep.web.health import Check, HealthMonitor
from sensorkeep.web.operations import health_router, metrics_router
from sensorkeep.web.problems import install_problem_handlers

NOW_US = 1_705_312_800_000_000  # 2024-01-15T10:00:00Z
KEYS = {"read": "read-key-0123456789abcdef", "admin": "admin-key-0123456789abcdef", "live": "live-key-0123456789abc"}
SECRET = "postgresql://admin:hunter2@10.0.0.7"


def _down() -> None:
    raise Unavailable(f"cannot reach {SECRET}", code="dependency_down")


def _gate() -> Gate:
    clock = SystemClock()
    static = [StaticKey(scope, key, frozenset({scope})) for scope, key in KEYS.items()]
    accounts = CatalogAccounts(open_database("sqlite://"), clock)
    return Gate(Authenticator(accounts, TokenIssuer("s" * 40, clock), clock, static), RateLimiter(clock, 0))


def _client(
    checks: dict[str, Check] | None = None, clock: ManualClock | None = None, host: str = "127.0.0.1", **metrics: Any
) -> TestClient:
    clock = clock or ManualClock(NOW_US)
    checks = checks if checks is not None else {"queue": lambda: None, "tsdb": lambda: {"lag_seconds": 1.5}}
    app, gate = FastAPI(), _gate()
    monitor = HealthMonitor(checks, [name for name in checks if name == "queue"], clock, timeout_seconds=0.2)
    app.include_router(health_router(monitor, gate, clock, "1.2.3"), prefix="/api/v1")
    app.include_router(metrics_router(Metrics(), gate, **metrics))
    install_problem_handlers(app)
    return TestClient(app, client=(host, 50000))


def test_ping_answers_what_clients_of_sensorflow_expect() -> None:
    answer = _client().get("/api/v1/ping")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "message": "Sensorkeep is running"})


def test_health_has_the_promised_shape() -> None:
    clock = ManualClock(NOW_US)
    client = _client(clock=clock)
    clock.advance(12.5)
    answer = client.get("/api/v1/health")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "status": "healthy",
            "service": "sensorkeep",
            "timestamp": "2024-01-15T10:00:12.500000Z",
            "version": "1.2.3",
            "services": {"queue": "ok", "tsdb": "ok"},
            "uptime_seconds": 12.5,
        },
    )


@pytest.mark.parametrize(("broken", "status"), [("queue", 503), ("tsdb", 200)])
def test_degraded_is_503_only_where_readings_cannot_be_accepted(broken: str, status: int) -> None:
    checks: dict[str, Check] = {"queue": lambda: None, "tsdb": lambda: None, broken: _down}
    answer = _client(checks).get("/api/v1/health")
    assert (answer.status_code, answer.json()["status"]) == (status, "degraded")
    assert answer.json()["services"][broken] == "down"


def _bug() -> None:
    raise RuntimeError(SECRET)


@pytest.mark.parametrize("failing", [_down, _bug])
def test_the_open_health_tells_nothing_but_names_and_states(failing: Check) -> None:
    answer = _client({"queue": lambda: {"host": SECRET}, "tsdb": failing}).get("/api/v1/health")
    assert answer.json()["services"] == {"queue": "ok", "tsdb": "down"}
    assert "hunter2" not in answer.text


def test_the_detailed_health_tells_latency_figures_and_faults_to_read_and_admin() -> None:
    client = _client({"queue": lambda: {"lag_seconds": 1.5}, "tsdb": _down})
    for scope in ("read", "admin"):
        answer = client.get("/api/v1/health/detailed", headers={"X-API-Key": KEYS[scope]})
        services = answer.json()["services"]
        assert services["queue"] == {"status": "ok", "latency_ms": 0.0, "lag_seconds": 1.5}
        assert services["tsdb"]["code"] == "dependency_down"
        assert services["tsdb"]["detail"].startswith("cannot reach")
    assert client.get("/api/v1/health/detailed").status_code == 401
    assert client.get("/api/v1/health/detailed", headers={"X-API-Key": KEYS["live"]}).status_code == 403
    assert client.get("/api/v1/health/detailed", headers={"X-API-Key": "wrong"}).status_code == 401


def _run(monitor_test: Callable[[], Any]) -> None:
    asyncio.run(monitor_test())


def test_polls_share_one_answer_for_a_while_and_then_ask_again() -> None:
    calls = []
    clock = ManualClock(NOW_US)
    monitor = HealthMonitor({"a": lambda: calls.append(1)}, [], clock, cached_seconds=1.0)

    async def run() -> None:
        await asyncio.gather(*(monitor.health() for _ in range(50)))
        await monitor.health()
        assert len(calls) == 1
        clock.advance(1.1)
        await monitor.health()
        assert len(calls) == 2

    _run(run)


def test_a_check_that_hangs_is_down_in_time_costs_one_thread_and_comes_back() -> None:
    release, started = threading.Event(), []

    def hang() -> None:
        started.append(threading.current_thread())
        release.wait(20)

    clock = ManualClock(NOW_US)
    monitor = HealthMonitor({"stuck": hang, "fine": lambda: None}, ["stuck"], clock, timeout_seconds=0.05)

    async def run() -> None:
        for _ in range(4):
            before = time.monotonic()
            health = await monitor.health()
            assert time.monotonic() - before < 2
            assert health.services["stuck"].error is not None
            assert health.services["fine"].error is None
            assert not health.accepting
            clock.advance(2)
        assert len(started) == 1
        assert started[0].daemon
        release.set()
        started[0].join(5)
        assert (await monitor.health()).healthy

    _run(run)


def test_one_who_stops_waiting_does_not_take_the_answer_from_others() -> None:
    gate = threading.Event()

    def wait() -> None:
        gate.wait(5)

    monitor = HealthMonitor({"slow": wait}, [], ManualClock(NOW_US))

    async def run() -> None:
        impatient, patient = asyncio.create_task(monitor.health()), asyncio.create_task(monitor.health())
        await asyncio.sleep(0)
        impatient.cancel()
        gate.set()
        assert (await patient).healthy

    _run(run)


def test_a_needed_service_must_have_a_check() -> None:
    with pytest.raises(ValueError, match="nothing"):
        HealthMonitor({}, ["nothing"], ManualClock(NOW_US))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.8.8.8"])
def test_metrics_are_open_to_loopback(host: str) -> None:
    answer = _client(host=host).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert "sensorkeep_ws_clients 0.0" in answer.text


def test_metrics_ask_others_for_the_scope_read() -> None:
    client = _client(host="192.168.1.9")
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"X-API-Key": KEYS["live"]}).status_code == 403
    assert client.get("/metrics", headers={"X-API-Key": KEYS["read"]}).status_code == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_what_a_proxy_on_this_machine_forwards_is_not_local(header: str) -> None:
    assert _client().get("/metrics", headers={header: "203.0.113.9"}).status_code == 401


def test_a_setting_opens_metrics_and_gauges_are_refreshed_before_they_are_read() -> None:
    refreshed = []
    client = _client(host="192.168.1.9", open_to_all=True, refresh=lambda: refreshed.append(1))
    assert client.get("/metrics").status_code == 200
    assert refreshed == [1]


def test_metrics_are_given_as_openmetrics_to_who_asks() -> None:
    answer = _client().get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_the_routes_are_in_the_description() -> None:
    description = json.loads(_client().get("/openapi.json").text)
    assert {"/api/v1/health", "/api/v1/health/detailed", "/api/v1/ping", "/metrics"} <= set(description["paths"])
