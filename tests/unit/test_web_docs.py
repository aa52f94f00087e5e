"""The documentation pages work with no internet access."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sensorkeep.clock import IdSource, SystemClock
from sensorkeep.metrics import Metrics
from sensorkeep.web.docs import install_docs
from sensorkeep.web.middleware import RequestMiddleware
from sensorkeep.web.problems import install_problem_handlers

PAGES = ("/docs", "/redoc", "/api/v1/docs", "/api/v1/redoc")
# Where a script or style sheet loads something by itself: an image or script source, an import, a fetch, a worker.
_LOADS = re.compile(
    r"""(?:\bsrc\s*[:=]|\bfetch\(|\bimport\(|importScripts\(|new Worker\(|@import|url\(|rel="stylesheet"\s+href=)"""
    r"""\s*["'`]?(?:https?:)?//[\w.-]+""",
)


def _client(root_path: str = "") -> TestClient:
    app = FastAPI(title="Sensorkeep", docs_url=None, redoc_url=None)
    install_docs(app)
    install_problem_handlers(app)
    clock = SystemClock()
    return TestClient(RequestMiddleware(app, Metrics(), clock, IdSource(clock)), root_path=root_path)


class _References(HTMLParser):
    """Every address a page names, and its inline scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "action", "spec-url", "data", "poster", "srcset"}
        self.addresses += [value or "" for name, value in attrs if name in names]
        self._in_script = tag == "script" and not dict(attrs).get("src")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.scripts.append(data)


@pytest.mark.parametrize("page", PAGES)
def test_everything_a_page_names_is_served_from_here(page: str) -> None:
    client = _client()
    answer = client.get(page)
    assert answer.headers["content-type"].startswith("text/html")
    references = _References(answer.text)
    assert len(references.addresses) >= 3
    for address in references.addresses:
        assert address.startswith("/")
        assert not address.startswith("//")
        assert client.get(address).status_code == 200, address
    assert not re.search(r"(https?:)?//[a-z]", answer.text)
    for script in references.scripts:
        (url,) = re.findall(r"url: '([^']*)'", script)
        assert client.get(url).json()["info"]["title"] == "Sensorkeep"


@pytest.mark.parametrize("page", PAGES)
def test_the_policy_of_a_page_allows_its_own_scripts_and_nothing_from_elsewhere(page: str) -> None:
    answer = _client().get(page)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    allowed = {"'self'", "'none'", "'unsafe-inline'", "data:", "blob:"}
    for name, sources in policy.items():
        for source in sources.split():
            assert source in allowed or source.startswith("'sha256-"), f"{name} {source}"
    assert "'unsafe-inline'" not in policy["script-src"]
    for script in _References(answer.text).scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy["script-src"]


@pytest.mark.parametrize("name", ["swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js"])
def test_no_asset_loads_anything_from_elsewhere(name: str) -> None:
    answer = _client().get(f"/docs/assets/{name}")
    assert len(answer.content) > 50_000
    assert _LOADS.findall(answer.text) == []


def test_the_search_for_loads_finds_what_redoc_would_load() -> None:
    """The test above can fail: the bundle as it is shipped has such an address."""
    assert _LOADS.search('createElement("img",{src:"https://cdn.redoc.ly/redoc/logo-mini.svg"})')


def test_swagger_does_not_send_the_description_to_a_validator() -> None:
    assert '"validatorUrl": null' in _client().get("/docs").text


def test_assets_may_be_kept_and_unknown_ones_are_not_found() -> None:
    client = _client()
    assert client.get("/docs/assets/favicon.png").content.startswith(b"\x89PNG")
    assert "max-age" in client.get("/docs/assets/swagger-ui.css").headers["cache-control"]
    assert client.get("/docs/assets/nothing.js").status_code == 404
    assert client.get("/docs/assets/..%2f__init__.py").status_code == 404


def test_the_pages_work_behind_a_prefix() -> None:
    references = _References(_client("/keep").get("/docs").text)
    assert all(address.startswith("/keep/") for address in references.addresses)
