"""Writes the generated files of deploy/: compose.yaml and .env.example. A test holds that they are current.

What stands in them is decided in scripts/deployment.py; here is only how compose is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from deployment import (
    ADMIN_PASSWORD,
    CHOICES,
    COMPOSE_PLACES,
    GATEWAY_ADDRESS,
    GATEWAY_PORT,
    GATEWAY_PORTS,
    GATEWAYS,
    KAFKA_IMAGE,
    KAFKA_PORT,
    POSTGRES_MEMORY,
    POSTGRES_PASSWORD,
    PROMETHEUS_IMAGE,
    PROMETHEUS_PORT,
    S3_PORT,
    SEAWEEDFS_COMMAND,
    SEAWEEDFS_IMAGE,
    SEAWEEDFS_SYNC,
    SECRETS,
    SENSORKEEP_IMAGE,
    SUBNET,
    TIMESCALEDB_IMAGE,
    VALKEY_IMAGE,
    WORKER_PORT,
    WORKERS,
    environment,
    kafka_environment,
    seaweedfs_environment,
)

DEPLOY = Path(__file__).parent.parent / "deploy"

Node = dict[str, Any]

COMPOSE_HEAD = """\
# Sensorkeep on Kafka, SeaweedFS, TimescaleDB and Valkey, all on one machine: docs/DEPLOYMENT.md tells how to use it.
# Generated from scripts/deployment.py by `make deploy`. Secrets and choices stand in .env (see .env.example), further
# settings of Sensorkeep (docs/CONFIGURATION.md) in sensorkeep.env. Nothing but the gateways and Prometheus can be
# reached from outside of the containers' network, and these from this machine alone.
"""
ENV_HEAD = """\
# Copy this file to deploy/.env and fill in the secrets: compose does not start while one is empty.
# Generated from scripts/deployment.py by `make deploy`.
"""


def probe(port: int, path: str = "/api/v1/ping") -> list[str]:
    """A health check of a Sensorkeep process: its image has no curl."""
    code = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{port}{path}', timeout=5)"
    return ["CMD", "python", "-c", code]


def health(test: list[str], *, every: str = "15s", first: str = "60s") -> Node:
    """A health check that may fail for `first` after a start."""
    return {"test": test, "interval": every, "timeout": "10s", "retries": 4, "start_period": first,
            "start_interval": "2s"}  # fmt: skip


def common() -> Node:
    """What every Sensorkeep container has."""
    return {
        "image": SENSORKEEP_IMAGE,
        "build": {"context": "..", "dockerfile": "deploy/Dockerfile"},
        "env_file": [{"path": "sensorkeep.env", "required": False}],
        "read_only": True,
        "tmpfs": ["/tmp", "/var/lib/sensorkeep"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "logging": {"driver": "local"},
    }


def beside_services() -> Node:
    """What a gateway or worker waits for. Valkey may be missing; Sensorkeep serves without it."""
    return {
        "migrate": {"condition": "service_completed_successfully"},
        "seaweedfs-sync": {"condition": "service_completed_successfully"},
        "timescaledb": {"condition": "service_healthy"},
        "kafka": {"condition": "service_healthy"},
        "seaweedfs": {"condition": "service_healthy"},
        "valkey": {"condition": "service_started"},
    }


def sensorkeep_services() -> dict[str, tuple[str, Node]]:
    """(comment, definition) of Sensorkeep's own processes by their names."""
    serving = {"SENSORKEEP_HOST": "0.0.0.0", "SENSORKEEP_METRICS_OPEN": "true"}
    gateway = {
        "<<": "*sensorkeep",
        "command": ["gateway"],
        "environment": {
            "<<": "*services",
            **serving,
            "SENSORKEEP_PORT": str(GATEWAY_PORT),
            "SENSORKEEP_TRUSTED_PROXIES": str(SUBNET),
        },
        "ports": [f"{GATEWAY_ADDRESS}:{GATEWAY_PORTS}:{GATEWAY_PORT}"],
        "depends_on": beside_services(),
        "healthcheck": health(probe(GATEWAY_PORT)),
        "deploy": {"replicas": str(GATEWAYS)},
        "mem_limit": "1g",
        "restart": "unless-stopped",
        "stop_grace_period": "45s",
    }
    worker = {
        "<<": "*sensorkeep",
        # Compose starts again whatever ends, and a worker that stopped for good must not be.
        "command": ["worker", "--stay"],
        "environment": {"<<": "*services", **serving, "SENSORKEEP_WORKER_PORT": str(WORKER_PORT)},
        "depends_on": beside_services(),
        "healthcheck": health(probe(WORKER_PORT)),
        "deploy": {"replicas": str(WORKERS)},
        "mem_limit": "2g",
        "restart": "unless-stopped",
        "stop_grace_period": "2m",
    }
    migrate = {
        "<<": "*sensorkeep",
        "command": ["migrate", "upgrade"],
        "environment": {"<<": "*services", "SENSORKEEP_ADMIN_PASSWORD": str(ADMIN_PASSWORD)},
        "depends_on": {"timescaledb": {"condition": "service_healthy"}},
        "restart": "on-failure:5",
    }
    return {
        "migrate": ("Makes the schemas and, the first time, the user admin; then it ends.", migrate),
        "gateway": ("Answers HTTP and WebSockets.", gateway),
        "worker": ("Turns what was accepted into rows.", worker),
    }


def kafka() -> Node:
    """The broker."""
    return {
        "image": KAFKA_IMAGE,
        "environment": kafka_environment(),
        "volumes": ["kafka:/var/lib/kafka/data"],
        "healthcheck": health(["CMD", "bash", "-c", f"</dev/tcp/127.0.0.1/{KAFKA_PORT}"]),
        "mem_limit": "1g",
        "restart": "unless-stopped",
        "stop_grace_period": "1m",
        "logging": {"driver": "local"},
    }


def seaweedfs() -> Node:
    """The object store."""
    ready = f"wget -q -O /dev/null http://127.0.0.1:{S3_PORT}/healthz"
    ready += " && wget -q -O /dev/null http://127.0.0.1:9333/cluster/healthz"
    return {
        "image": SEAWEEDFS_IMAGE,
        "command": SEAWEEDFS_COMMAND,
        "environment": seaweedfs_environment(),
        "volumes": ["seaweedfs:/data"],
        "depends_on": {"timescaledb": {"condition": "service_healthy"}},
        "healthcheck": health(["CMD-SHELL", ready]),
        "mem_limit": "1g",
        "restart": "unless-stopped",
        "stop_grace_period": "30s",
        "logging": {"driver": "local"},
    }


def seaweedfs_sync() -> Node:
    """The one setting of SeaweedFS that no option of its command makes."""
    shell = "timeout 60 weed shell -master=127.0.0.1:9333 -filer=127.0.0.1:8888"
    return {
        "image": SEAWEEDFS_IMAGE,
        "entrypoint": ["/bin/sh", "-c"],
        "command": [f"echo '{SEAWEEDFS_SYNC}' | {shell} | grep '\"fsync\": *true'"],
        "network_mode": "service:seaweedfs",
        "depends_on": {"seaweedfs": {"condition": "service_healthy"}},
        "restart": "on-failure:5",
        "logging": {"driver": "local"},
    }


def timescaledb() -> Node:
    """The database of readings and catalog, and of the names of the objects."""
    return {
        "image": TIMESCALEDB_IMAGE,
        "command": ["postgres", "-c", "max_connections=300"],
        "environment": {
            "POSTGRES_USER": "sensorkeep",
            "POSTGRES_DB": "sensorkeep",
            "POSTGRES_PASSWORD": str(POSTGRES_PASSWORD),
            "TIMESCALEDB_TELEMETRY": "off",
            "TS_TUNE_MEMORY": str(POSTGRES_MEMORY),
        },
        "volumes": [
            "timescaledb:/var/lib/postgresql/data",
            "./create-seaweedfs.sql:/docker-entrypoint-initdb.d/900_create_seaweedfs.sql:ro",
        ],
        "shm_size": "256m",
        "healthcheck": health(["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "sensorkeep", "-d", "sensorkeep"]),
        "restart": "unless-stopped",
        "stop_grace_period": "1m",
        "logging": {"driver": "local"},
    }


def valkey() -> Node:
    """Facts of the moment; nothing in it needs to outlive it."""
    return {
        "image": VALKEY_IMAGE,
        "command": ["valkey-server", "--save", "", "--appendonly", "no"],
        "healthcheck": health(["CMD", "valkey-cli", "ping"]),
        "mem_limit": "512m",
        "restart": "unless-stopped",
        "logging": {"driver": "local"},
    }


def prometheus() -> Node:
    """Figures and alerts."""
    return {
        "image": PROMETHEUS_IMAGE,
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--storage.tsdb.retention.time=30d",
        ],
        "volumes": [
            "./prometheus.yml:/etc/prometheus/prometheus.yml:ro",
            "./alerts.yml:/etc/prometheus/alerts.yml:ro",
            "prometheus:/prometheus",
        ],
        "ports": [f"127.0.0.1:{PROMETHEUS_PORT}:9090"],
        "healthcheck": health(["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:9090/-/healthy"]),
        "mem_limit": "512m",
        "restart": "unless-stopped",
        "logging": {"driver": "local"},
    }


def compose() -> str:
    """The text of deploy/compose.yaml."""
    services = {
        **sensorkeep_services(),
        "kafka": ("Holds claims until a worker has written them.", kafka()),
        "seaweedfs": ("Holds what the clients sent; other S3 services do as well.", seaweedfs()),
        "seaweedfs-sync": ("Makes it sync every object before it answers; then it ends.", seaweedfs_sync()),
        "timescaledb": ("Holds readings, rollups, catalog and the names of the objects.", timescaledb()),
        "valkey": ("Holds live messages, newest values, rate limits and tickets; may be lost.", valkey()),
        "prometheus": ("Watches all of it.", prometheus()),
    }
    parts = [COMPOSE_HEAD + _yaml({"name": "sensorkeep"})]
    parts.append("# Where every Sensorkeep process finds the services.\n")
    parts[-1] += _yaml({"x-services": environment(COMPOSE_PLACES)}, anchor="services")
    parts.append(_yaml({"x-sensorkeep": common()}, anchor="sensorkeep"))
    parts.append("services:\n" + "\n".join(_service(name, *told) for name, told in services.items()))
    volumes: Node = {name: {} for name in ("kafka", "seaweedfs", "timescaledb", "prometheus")}
    parts.append(_yaml({"volumes": volumes}))
    parts.append(_yaml({"networks": {"default": {"ipam": {"config": [{"subnet": str(SUBNET)}]}}}}))
    return "\n".join(parts)


def env_example() -> str:
    """The text of deploy/.env.example."""
    lines = [ENV_HEAD]
    lines += [f"# {secret.about}\n# {secret.make}\n{secret.name}=\n" for secret in SECRETS]
    lines += [f"# {choice.about}\n#{choice.name}={choice.default}\n" for choice in CHOICES]
    return "\n".join(lines)


def files() -> dict[str, str]:
    """What is generated, by its name in deploy/."""
    return {"compose.yaml": compose(), ".env.example": env_example()}


def _service(name: str, comment: str, definition: Node) -> str:
    lines = _yaml({name: definition}).splitlines()
    return "".join(f"  {line}\n" for line in [f"# {comment}", *lines])


def _yaml(node: Node, anchor: str | None = None) -> str:
    """As YAML; `<<: *name` is a merge, and `anchor` names the value of the only key."""
    text = yaml.dump(node, sort_keys=False, width=1000, default_flow_style=None, Dumper=_Dumper)
    for name in ("services", "sensorkeep"):
        text = text.replace(f"<<: '*{name}'", f"<<: *{name}")
    if anchor is not None:
        head, rest = text.split(":", 1)
        text = f"{head}: &{anchor}{rest}"
    return text


class _Dumper(yaml.SafeDumper):
    """Mappings as blocks, lists of plain words in one line, no aliases of its own."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(dumper: yaml.SafeDumper, node: Node) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", node.items(), flow_style=not node)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    merge = text == "<<"
    return dumper.represent_scalar("tag:yaml.org,2002:merge" if merge else "tag:yaml.org,2002:str", text)


_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(str, _text)


if __name__ == "__main__":
    for name, text in files().items():
        (DEPLOY / name).write_text(text, "utf-8")
