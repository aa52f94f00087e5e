"""What every answer says to browsers, and what none says to attackers."""

from __future__ import annotations

import re

import httpx
import pytest
from harness import API_KEY, Server

REQUESTS = {
    "a page": ("GET", "/docs", {}),
    "an asset": ("GET", "/docs/assets/swagger-ui.css", {}),
    "the description": ("GET", "/openapi.json", {}),
    "a redirection": ("GET", "/", {}),
    "health": ("GET", "/api/v1/health", {}),
    "metrics": ("GET", "/metrics", {}),
    "data": ("GET", "/api/v1/equipment", {"X-API-Key": API_KEY}),
    "an accepted reading": ("POST", "/api/v1/temperature_reading", {"X-API-Key": API_KEY}),
    "a reading on the general way": ("POST", "/api/v1/temperature_reading", {"X-API-Key": API_KEY, "Prefer": "wait=1"}),
    "no credential": ("GET", "/api/v1/equipment", {}),
    "a wrong credential": ("POST", "/api/v1/readings", {"X-API-Key": "x" * 20}),
    "no such path": ("GET", "/nothing", {}),
    "a wrong method": ("PUT", "/api/v1/equipment", {"X-API-Key": API_KEY}),
}
VERSIONS = re.compile(r"uvicorn|starlette|fastapi|python|duckdb|sqlite|sensorkeep/\d", re.IGNORECASE)


def ask(server: Server, name: str) -> httpx.Response:
    method, path, headers = REQUESTS[name]
    body = b'{"temperature": 1, "sensor_id": "headers"}' if method == "POST" else None
    return httpx.request(method, server.url + path, headers=headers, content=body)


@pytest.mark.parametrize("name", REQUESTS)
def test_every_answer_forbids_sniffing_framing_and_referrers(fortress: Server, name: str) -> None:
    headers = ask(fortress, name).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Request-Id"]


@pytest.mark.parametrize("name", REQUESTS)
def test_no_answer_names_a_program_and_its_version(fortress: Server, name: str) -> None:
    answer = ask(fortress, name)
    assert "Server" not in answer.headers
    assert "X-Powered-By" not in answer.headers
    assert not VERSIONS.search(str(answer.headers))
    if answer.status_code >= 400:
        assert not VERSIONS.search(answer.text)


def test_answers_are_kept_by_nobody_but_assets(fortress: Server) -> None:
    for name in REQUESTS:
        kept = ask(fortress, name).headers["Cache-Control"]
        assert kept == ("public, max-age=86400" if name == "an asset" else "no-store"), name


def test_no_other_site_may_read_answers_by_default(fortress: Server) -> None:
    for name in REQUESTS:
        method, path, headers = REQUESTS[name]
        answer = httpx.request(method, fortress.url + path, headers={**headers, "Origin": "https://elsewhere.test"})
        assert not [field for field in answer.headers if field.startswith("access-control-")], name


def test_scripts_of_the_pages_run_by_their_hash_alone(fortress: Server) -> None:
    for path in ("/docs", "/redoc", "/api/v1/docs", "/api/v1/redoc"):
        policy = httpx.get(fortress.url + path).headers["Content-Security-Policy"]
        scripts = next(part for part in policy.split(";") if "script-src" in part)
        assert "unsafe" not in scripts
        assert "http" not in policy
