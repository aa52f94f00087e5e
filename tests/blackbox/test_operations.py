"""What operators ask: health, metrics, request ids, headers, documentation, logs."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from harness import (
    API_KEY,
    API_KEY_WS,
    PASSWORD,
    Server,
    esm_equipment,
    esm_reading,
    new_uuid,
    problem,
    running,
    wait_until,
)
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

SERVICES = {"object_store", "queue", "tsdb", "catalog", "pubsub", "worker", "disk"}
PAGES = ("/docs", "/redoc", "/api/v1/docs", "/api/v1/redoc")
SPEC_ROUTES = """
POST /auth/login, POST /auth/device/login, POST /auth/refresh, GET /auth/me, POST /keys, GET /keys, DELETE /keys/{},
POST /auth/ws-ticket, POST /telemetry/bulk, POST /telemetria/bulk, POST /temperature_reading, POST /readings,
GET /telemetry/batches/{}, GET /telemetry/batches, POST /telemetry/batches/{}/replay, GET /telemetry/quarantine,
GET /telemetry/accounting, GET /analytics/equipment/{}/history, GET /analytics/sensor/{}/history,
GET /analytics/equipment/{}/stats, GET /analytics/home-assistant/{}, GET /sensor/{}/latest, GET /equipment,
GET /equipment/{}, GET /sensors/{}, GET /health, GET /health/detailed, GET /ping
"""
"""SPEC section 3, below /api/v1."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: Server) -> Samples:
    """Each sample of /metrics by name and labels."""
    answer = httpx.get(server.url + "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def sample(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_health_tells_the_state_of_each_service_and_no_more(server: Server) -> None:
    answer = server.anonymous.get("/health")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document.keys() == {"status", "service", "timestamp", "version", "services", "uptime_seconds"}
    assert (document["status"], document["service"]) == ("healthy", "sensorkeep")
    assert document["services"] == dict.fromkeys(SERVICES, "ok")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(document["timestamp"])) < timedelta(minutes=1)
    assert document["uptime_seconds"] > 0
    assert str(server.data_dir) not in answer.text


def test_detailed_health_tells_latency_and_lag_to_those_who_may_read(server: Server, admin: httpx.Client) -> None:
    problem(server.anonymous.get("/health/detailed"), 401, "unauthenticated")
    answer = server.anonymous.get("/health/detailed", headers={"X-API-Key": API_KEY_WS})
    problem(answer, 403, "forbidden")
    for client in (server.client, admin):
        services = client.get("/health/detailed").json()["services"]
        assert services.keys() == SERVICES
        assert all(service["status"] == "ok" and service["latency_ms"] >= 0 for service in services.values())
        assert {"claims", "lag_seconds"} <= services["queue"].keys()


def test_ping_is_as_the_contract_says(server: Server) -> None:
    answer = server.anonymous.get("/ping")
    assert answer.json() == {"status": "ok", "message": "Sensorkeep is running"}


def readings_counted(server: Server) -> dict[str, float]:
    """The counters of readings."""
    samples = scrape(server)
    names = ("received", "stored", "updated", "duplicate")
    counts = {name: sample(samples, f"sensorkeep_readings_{name}_total") for name in names}
    quarantined = (value for (name, _), value in samples.items() if name == "sensorkeep_readings_quarantined_total")
    return counts | {"quarantined": sum(quarantined)}


def test_metrics_count_what_became_of_readings_as_the_accounting_does(server: Server) -> None:
    def agreed() -> dict[str, float] | None:
        """The counters, once they say what the accounting says; replays take readings out of its quarantine again."""
        counted, kept = readings_counted(server), server.get("/telemetry/accounting")["since_start"]
        names = counted.keys() - {"quarantined"}
        return counted if all(counted[name] == kept[name] for name in names) and not kept["pending"] else None

    sensor = new_uuid()
    readings = [esm_reading(sensor, i, datetime.now(UTC) - timedelta(seconds=i)) for i in range(5)]
    server.stored([esm_equipment(new_uuid(), readings[:1])])
    before = wait_until(agreed)
    body = [esm_equipment(new_uuid(), [*readings, esm_reading(sensor, 1.0, "never")])]
    server.stored(body)
    server.stored(body)
    server.stored([esm_equipment(new_uuid(), readings[:1])])
    after = wait_until(agreed)
    assert {name: after[name] - before[name] for name in after} == {
        "received": 13, "stored": 4, "updated": 0, "duplicate": 7, "quarantined": 2,
    }  # fmt: skip


def test_metrics_tell_latency_by_route_template_and_never_by_path(server: Server) -> None:
    secret_name = f"room-{new_uuid()}"
    assert server.client.get(f"/sensor/{secret_name}/latest").status_code == 404
    assert server.client.get(f"/{secret_name}").status_code == 404
    samples = scrape(server)
    route = "/api/v1/sensor/{sensor_id}/latest"
    assert sample(samples, "sensorkeep_request_seconds_count", method="GET", route=route, status="404") >= 1
    assert secret_name not in str(samples)
    server.stored([esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, None)])])
    labels = {"method": "POST", "route": "/api/v1/telemetry/bulk", "status": "201"}
    assert sample(scrape(server), "sensorkeep_request_seconds_count", **labels) >= 1


def test_metrics_tell_of_queue_commits_writes_disk_and_websockets(server: Server) -> None:
    server.settled()
    samples = scrape(server)
    for name in ("commit", "write"):
        assert sample(samples, f"sensorkeep_{name}_seconds_count") > 0
        assert sample(samples, f"sensorkeep_{name}_seconds_sum") > 0
    assert sample(samples, "sensorkeep_queue_depth") == 0
    assert sample(samples, "sensorkeep_queue_oldest_seconds") == 0
    assert sample(samples, "sensorkeep_readings_pending") == 0
    assert sample(samples, "sensorkeep_disk_free_bytes") > 0
    for part in ("queue", "catalog", "tsdb"):
        assert sample(samples, "sensorkeep_disk_bytes", part=part) > 0
    before = sample(samples, "sensorkeep_ws_clients")
    with connect(f"ws{server.url[4:]}/ws/sensor_updates?api-key={API_KEY_WS}"):
        wait_until(lambda: sample(scrape(server), "sensorkeep_ws_clients") == before + 1)
    wait_until(lambda: sample(scrape(server), "sensorkeep_ws_clients") == before)


@pytest.mark.parametrize("path", ["/ping", "/nothing", "/telemetry/bulk", "/equipment"])
def test_a_request_id_is_honoured_or_made(server: Server, path: str) -> None:
    given = server.client.get(path, headers={"X-Request-Id": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    made = {server.client.get(path).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert all(made)
    for unusable in (b"x" * 129, b"caf\xe9"):
        answer = server.client.get(path, headers={b"X-Request-Id": unusable})
        assert answer.headers["x-request-id"].encode("latin-1") not in (b"", unusable)


@pytest.mark.parametrize("path", ["/ping", "/nothing", "/telemetry/bulk", "/equipment", "/health"])
def test_every_answer_has_the_security_headers(server: Server, path: str) -> None:
    for client in (server.client, server.anonymous):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_the_quick_way_of_single_readings_is_answered_measured_and_logged_like_any_other(server: Server) -> None:
    """It does not pass through what serves the other routes."""
    labels = {"method": "POST", "route": "/api/v1/temperature_reading", "status": "201"}
    body = {"temperature": 1.5, "sensor_id": f"quick-{new_uuid()}"}
    assert server.client.post("/temperature_reading", json=body).status_code == 201
    before = sample(scrape(server), "sensorkeep_request_seconds_count", **labels)
    request_id = new_uuid()
    given = server.client.post("/temperature_reading", json=body, headers={"X-Request-Id": request_id})
    made = server.client.post("/temperature_reading", json=body)
    other = server.client.post("/readings", json={"sensor_id": body["sensor_id"], "values": {"a": 1}})
    assert given.headers["x-request-id"] == request_id
    assert made.headers["x-request-id"] != other.headers["x-request-id"] != ""
    assert set(made.headers) == set(other.headers) - {"location"}
    different = {"date", "x-request-id", "content-length"}
    assert all(made.headers[name] == other.headers[name] for name in set(made.headers) - different)
    assert sample(scrape(server), "sensorkeep_request_seconds_count", **labels) == before + 2
    wait_until(lambda: f'"request_id":"{request_id}"' in server.log)


@pytest.mark.parametrize("page", PAGES)
def test_documentation_pages_load_nothing_from_elsewhere(server: Server, page: str) -> None:
    answer = httpx.get(server.url + page)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "://" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assets = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert any(asset.endswith(".js") for asset in assets)
    for asset in assets:
        found = httpx.get(urljoin(server.url + page, asset))
        assert found.status_code == 200, asset
        assert len(found.content) > 100
    (described,) = set(re.findall(r"[\w./-]*openapi\.json", answer.text))
    assert httpx.get(urljoin(server.url + page, described)).status_code == 200


def test_the_openapi_document_lists_every_path_of_the_contract(server: Server) -> None:
    document = httpx.get(server.url + "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert (document["info"]["title"], bool(document["info"]["version"])) == ("Sensorkeep", True)
    listed: set[str] = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            listed.add(f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}")
            check_operation(path, operation, document)
    wanted = {route.replace(" ", " /api/v1", 1) for route in re.split(r",\s+", SPEC_ROUTES.strip())}
    assert wanted | {"POST /api/telemetria/bulk", "GET /metrics"} <= listed


def check_operation(path: str, operation: dict[str, Any], document: dict[str, Any]) -> None:
    """What makes the document usable: answers, every path parameter, references that lead somewhere."""
    assert operation["responses"], path
    parameters = {item["name"] for item in operation.get("parameters", []) if item["in"] == "path"}
    assert parameters == set(re.findall(r"{([^}]*)}", path)), path
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(operation)):
        assert reference in document["components"]["schemas"], reference
    for requirement in operation.get("security", []):
        assert requirement.keys() <= document["components"]["securitySchemes"].keys(), path


def test_cors_is_off_by_default(server: Server) -> None:
    origin = {"Origin": "https://dashboard.example"}
    answer = server.client.get("/ping", headers=origin)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = origin | {"Access-Control-Request-Method": "GET"}
    assert "access-control-allow-origin" not in server.anonymous.options("/equipment", headers=preflight).headers


def test_cors_is_for_the_origins_of_the_setting_and_logs_hold_no_secret(data_dir: Path) -> None:
    with running(data_dir, CORS_ORIGINS="https://dashboard.example", LOG_LEVEL="debug") as server:
        for path in ("/ping", "/telemetry/bulk"):
            for origin, allowed in (("https://dashboard.example", True), ("https://evil.example", False)):
                asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
                asked["Access-Control-Request-Headers"] = "X-API-Key"
                answer = server.anonymous.options(path, headers=asked)
                assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
            for client in (server.client, server.anonymous):  # a page may read what is wrong, too
                for method in ("GET", "POST"):
                    answer = client.request(method, path, headers={"Origin": "https://dashboard.example"})
                    assert answer.headers["access-control-allow-origin"] == "https://dashboard.example"
        secrets = use_secrets(server)
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
        assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
        requests = [line for line in lines if line["event"] == "request"]
        assert len(requests) > 10
        assert {"method", "route", "status", "request_id"} <= requests[0].keys()
        assert [secret for secret in secrets if secret in server.log or secret in "".join(server.greeting)] == []


def use_secrets(server: Server) -> list[str]:
    """Present every kind of secret in every way, good ones and bad ones; returns them."""
    wrong = {"password": "wrong-horse-battery", "key": "wrong-key-00000000001", "token": "eyJwrong.token.signature"}
    tokens = server.anonymous.post("/auth/login", json={"username": "admin", "password": PASSWORD}).json()
    form = server.anonymous.post("/auth/device/login", data={"username": "admin", "password": PASSWORD}).json()
    server.anonymous.post("/auth/login", json={"username": "admin", "password": wrong["password"]})
    server.anonymous.post("/auth/login", json={"username": wrong["password"], "password": 5})
    refreshed = server.anonymous.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}).json()
    server.anonymous.post("/auth/refresh", headers={"Authorization": f"Bearer {tokens['refresh_token']}"})
    bearer = {"Authorization": f"Bearer {form['access_token']}"}
    made = server.anonymous.post("/keys", json={"name": "k", "scopes": ["live"]}, headers=bearer).json()["secret"]
    user = {"username": "maria", "password": "marias own passphrase", "scopes": ["read"]}
    assert server.anonymous.post("/users", json=user, headers=bearer).status_code == 201
    ticket = server.anonymous.post("/auth/ws-ticket", headers=bearer).json()["ticket"]
    for header in ({"X-API-Key": wrong["key"]}, {"Authorization": f"Bearer {wrong['token']}"}):
        assert server.anonymous.get("/equipment", headers=header).status_code == 401
    server.anonymous.get("/equipment", params={"api-key": API_KEY, "token": tokens["access_token"]})
    for query in (f"api-key={API_KEY_WS}", f"api-key={made}", f"ticket={ticket}", f"api-key={wrong['key']}"):
        with connect(f"ws{server.url[4:]}/ws/sensor_updates?{query}"):
            pass
    server.client.post("/telemetry/bulk", content=b"[", headers={"Idempotency-Key": "x", "Cookie": f"token={made}"})
    parts = [tokens, form, refreshed]
    signatures = [part[name].rpartition(".")[2] for part in parts for name in ("access_token", "refresh_token")]
    return [API_KEY, API_KEY_WS, PASSWORD, made, ticket, str(user["password"]), *wrong.values(), *signatures]


def test_monitors_may_ask_with_head_and_people_find_the_documentation_at_the_root(server: Server) -> None:
    for path in ("/health", "/ping"):
        answer = server.anonymous.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    root = server.anonymous.get(server.url + "/")
    assert (root.status_code, root.headers["location"]) == (307, "/docs")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/telemetry/quarantine?cursor=wrI", {}),
        ("/telemetry/quarantine?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", {}),
        ("/telemetry/batches?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5L2E", {}),
    ],
)
def test_a_made_up_cursor_is_a_400(server: Server, path: str, headers: dict[str, str]) -> None:
    problem(server.client.get(path, headers=headers), 400, "bad_parameter")


def test_a_preference_that_is_no_number_is_ignored(server: Server) -> None:
    for wait in (b"wait=\xb2", b"wait=" + b"9" * 5000, b"wait=soon"):
        answer = server.client.post(
            "/readings", json={"sensor_id": "preference", "values": {"v": 1}}, headers=[(b"Prefer", wait)]
        )
        assert answer.status_code == 201
