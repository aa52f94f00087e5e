"""deploy/: what is generated is current, complete without a secret, and starts what it says."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deployment import CHOICES, GATEWAY_PORT, SECRETS, WORKER_PORT
from psycopg.conninfo import conninfo_to_dict
from write_deploy import DEPLOY, files, probe

from sensorkeep.app.backends import is_shared
from sensorkeep.app.urls import SCHEMES, address
from sensorkeep.cli.output import ExitCode
from sensorkeep.config import Config, load_config
from sensorkeep.object_store.s3.bucket import check_settings
from sensorkeep.valkey import Valkey
from services import BROKERS, S3_ENDPOINT, VALKEY_URL, settings

ROOT = DEPLOY.parent
OURS = ("migrate", "gateway", "worker")
ONCE = ("migrate", "seaweedfs-sync")
"""Services that do their work and end."""
FILLED = {secret.name: f"{number}f3a9c0d7e" * 4 for number, secret in enumerate(SECRETS)}
"""Secrets as `openssl rand -hex` makes them."""


class Missing(Exception):
    """Compose would refuse to start, with this message."""


def resolve(text: str, values: dict[str, str]) -> str:
    """`text` with its variables filled in, as compose does it. Raises Missing."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if values.get(name):
            return values[name]
        if kind == ":?":
            raise Missing(f"{name}: {rest}")
        return rest

    return re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", value, text)


def composed(values: dict[str, str] = FILLED) -> dict[str, Any]:
    """deploy/compose.yaml as compose understands it."""
    document: dict[str, Any] = yaml.safe_load(resolve((DEPLOY / "compose.yaml").read_text("utf-8"), values))
    return document


def config_of(service: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings that a process of this service finds."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in composed()["services"][service]["environment"].items():
        monkeypatch.setenv(name, value)
    return load_config()


@pytest.mark.parametrize("name", list(files()))
def test_a_generated_file_is_current(name: str) -> None:
    assert (DEPLOY / name).read_text("utf-8") == files()[name], "run: make deploy"


@pytest.mark.parametrize("values", [FILLED, FILLED | {"GATEWAYS": "3", "GATEWAY_PORTS": "8000-8002"}])
def test_compose_fits_the_schema_of_compose_files(values: dict[str, str]) -> None:
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text("utf-8"))
    jsonschema.validate(composed(values), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(composed(values) | {"services": {"gateway": {"imaje": "x"}}}, schema)


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret.name)
def test_compose_starts_nothing_without_a_secret_and_says_how_to_make_it(secret: Any) -> None:
    for empty in ({secret.name: ""}, {}):
        values = {name: value for name, value in FILLED.items() if name != secret.name} | empty
        with pytest.raises(Missing, match=rf"{secret.name}: .*openssl rand"):
            composed(values)


def test_the_example_of_the_variables_names_them_all_and_holds_no_secret() -> None:
    text = (DEPLOY / ".env.example").read_text("utf-8")
    used = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text("utf-8")))
    assert used == {variable.name for variable in (*SECRETS, *CHOICES)}
    assert dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)) == {secret.name: "" for secret in SECRETS}
    assert re.findall(r"^#(\w+)=(.*)$", text, re.MULTILINE) == [(one.name, one.default) for one in CHOICES]
    assert not re.search(r"[0-9a-f]{12}", text)


@pytest.mark.parametrize("service", OURS)
def test_a_process_of_compose_finds_valid_settings_that_name_services(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(service, monkeypatch)
    assert is_shared(config)
    assert all(address(config, setting) for setting in SCHEMES)
    database = conninfo_to_dict(config.tsdb_url)
    assert (database["host"], database["password"]) == ("timescaledb", FILLED["POSTGRES_PASSWORD"])
    assert config.catalog_url == config.tsdb_url
    assert config.s3_access_key is not None
    assert config.s3_secret_key is not None
    check_settings(
        address(config, "object_store_url"),
        endpoint=config.s3_endpoint,
        access_key=config.s3_access_key.get_secret_value(),
        secret_key=config.s3_secret_key.get_secret_value(),
        region=config.s3_region,
    )
    Valkey(config.pubsub_url, prefix=config.pubsub_prefix).close()


@pytest.mark.parametrize("service", OURS)
def test_a_process_of_compose_and_one_of_the_tests_are_told_the_same(service: str) -> None:
    addresses = {BROKERS: "kafka:9092", S3_ENDPOINT: "http://seaweedfs:8333", VALKEY_URL: "redis://valkey:6379/0"}
    tested = settings(addresses, "postgresql://sensorkeep@timescaledb/sensorkeep")
    deployed = composed()["services"][service]["environment"]
    assert tested.keys() <= deployed.keys()
    assert deployed.keys() - tested.keys() <= {
        "SENSORKEEP_ADMIN_PASSWORD", "SENSORKEEP_HOST", "SENSORKEEP_PORT", "SENSORKEEP_WORKER_PORT",
        "SENSORKEEP_METRICS_OPEN", "SENSORKEEP_TRUSTED_PROXIES",
    }  # fmt: skip
    same = ("SENSORKEEP_S3_ENDPOINT", "SENSORKEEP_PUBSUB_URL")
    assert {name: tested[name] for name in same} == {name: deployed[name] for name in same}


def test_only_gateways_and_prometheus_can_be_reached_and_from_this_machine_alone() -> None:
    ports = {name: service["ports"] for name, service in composed()["services"].items() if "ports" in service}
    assert ports == {"gateway": [f"127.0.0.1:8000:{GATEWAY_PORT}"], "prometheus": ["127.0.0.1:9090:9090"]}


def test_every_service_is_pinned_checked_restarted_and_stops_in_time() -> None:
    for name, service in composed()["services"].items():
        assert re.search(r":v?\d+\.\d+\.?\d*(-\w+)?$", service["image"]), name
        assert ("healthcheck" in service) is (name not in ONCE), name
        assert service["restart"] == ("on-failure:5" if name in ONCE else "unless-stopped"), name
        assert service["logging"]["driver"] == "local", name


def test_what_a_service_needs_is_there() -> None:
    document = composed()
    services = document["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if needed in ONCE else "service_healthy"
            assert how["condition"] == ("service_started" if needed == "valkey" else wanted), (name, needed)
            assert needed in services
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in document["volumes"], volume
    build = services["gateway"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


class _Pong(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/v1/ping" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering_port() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Pong) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_health_check_tells_what_answers_from_what_does_not(answering_port: int) -> None:
    def outcome(check: list[str]) -> int:
        return subprocess.run([sys.executable, *check[2:]], capture_output=True, timeout=60, check=False).returncode

    assert outcome(probe(answering_port)) == 0
    assert outcome(probe(answering_port, "/elsewhere")) == 1
    assert outcome(probe(1)) == 1
    checks = {name: composed()["services"][name]["healthcheck"]["test"] for name in ("gateway", "worker")}
    assert checks == {"gateway": probe(GATEWAY_PORT), "worker": probe(WORKER_PORT)}


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody_special() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    native, build, final = re.split(r"^FROM .*\n", text, flags=re.MULTILINE)[1:]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    copied = " ".join(re.findall(r"^COPY (?!--)(.*) \S+$", native + build, re.MULTILINE)).split()
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / source).exists() for source in copied)
    assert "--require-hashes" in build
    assert not re.search(r"^(RUN|COPY) .*(apt|pip|gcc)", final, re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*$", final, re.MULTILINE)
    instructions = re.findall(r"^(?: +)?(CMD|ENTRYPOINT) (\[.*\])$", final, re.MULTILINE)
    assert [(name, json.loads(value)) for name, value in instructions] == [
        ("CMD", probe(GATEWAY_PORT)[1:]),
        ("ENTRYPOINT", ["sensorkeep"]),
        ("CMD", ["serve"]),
    ]


def test_a_worker_that_stopped_for_good_is_not_started_again() -> None:
    unit = (DEPLOY / "sensorkeep@.service").read_text("utf-8")
    assert f"\nRestartPreventExitStatus={ExitCode.STOPPED_FOR_GOOD.value}\n" in unit
    assert composed()["services"]["worker"]["command"] == ["worker", "--stay"], "compose looks at no exit code"


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.service")), ids=lambda path: path.name)
def test_a_unit_starts_a_command_that_there_is(path: Path) -> None:
    command = re.search(r"^ExecStart=/opt/sensorkeep/bin/sensorkeep (\S+)$", path.read_text("utf-8"), re.MULTILINE)
    assert command is not None
    assert command[1] == ("%i" if "@" in path.name else "serve")
