"""The distributed form in one description: the services around Sensorkeep, and the environment of its processes.

deploy/compose.yaml is written from here (scripts/write_deploy.py). The tests and benchmarks that start gateways and
workers by hand take the same environment with other addresses, so what they prove holds for what is deployed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sensorkeep import __version__

KAFKA_IMAGE = "apache/kafka:4.3.1"
SEAWEEDFS_IMAGE = "chrislusf/seaweedfs:4.48"
TIMESCALEDB_IMAGE = "timescale/timescaledb:2.23.1-pg17"
VALKEY_IMAGE = "valkey/valkey:9.1.2-alpine"
PROMETHEUS_IMAGE = "prom/prometheus:v3.13.3"
SENSORKEEP_IMAGE = f"sensorkeep:{__version__}"

GATEWAY_PORT = 8000
WORKER_PORT = 8001
KAFKA_PORT = 9092
KAFKA_CONTROLLER_PORT = 9093
S3_PORT = 8333
PARTITIONS = 12
"""Partitions of the topic: the most workers that share the work. More later means to drain the topic first."""


class Places(NamedTuple):
    """Where the services are, and what is this installation's there."""

    brokers: str
    """`host:port`, several with commas."""
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    database_url: str
    """`postgresql://user:password@host:port/database`: catalog and time series."""
    valkey_url: str
    bucket: str = "telemetry-raw"
    topic: str = "telemetry.raw"
    prefix: str = "sensorkeep"
    """What every name in Valkey begins with."""


def environment(places: Places, *, partitions: int = PARTITIONS) -> dict[str, str]:
    """What every Sensorkeep process (gateway, worker, migrate) must know of the services."""
    return {
        "SENSORKEEP_OBJECT_STORE_URL": f"s3://{places.bucket}",
        "SENSORKEEP_S3_ENDPOINT": places.s3_endpoint,
        "SENSORKEEP_S3_ACCESS_KEY": places.s3_access_key,
        "SENSORKEEP_S3_SECRET_KEY": places.s3_secret_key,
        "SENSORKEEP_QUEUE_URL": f"kafka://{places.brokers}/{places.topic}",
        "SENSORKEEP_KAFKA_PARTITIONS": str(partitions),
        "SENSORKEEP_TSDB_URL": places.database_url,
        "SENSORKEEP_CATALOG_URL": places.database_url,
        "SENSORKEEP_PUBSUB_URL": places.valkey_url,
        "SENSORKEEP_PUBSUB_PREFIX": places.prefix,
    }


class Variable(NamedTuple):
    """A variable of deploy/.env. One without a default is a secret, and compose refuses to start without it."""

    name: str
    about: str
    default: str | None = None
    make: str = "openssl rand -hex 24"
    """How to make a secret. Hexadecimal, because some become part of a URL."""

    def __str__(self) -> str:
        """As compose reads it."""
        if self.default is not None:
            return f"${{{self.name}:-{self.default}}}"
        return f"${{{self.name}:?set it in deploy/.env ({self.make})}}"


POSTGRES_PASSWORD = Variable(
    "POSTGRES_PASSWORD", "Password of PostgreSQL's user sensorkeep. Letters and digits only: it is part of a URL."
)
S3_ACCESS_KEY = Variable("S3_ACCESS_KEY", "Access key of the object store.", make="openssl rand -hex 10")
S3_SECRET_KEY = Variable("S3_SECRET_KEY", "Secret key of the object store.")
ADMIN_PASSWORD = Variable("ADMIN_PASSWORD", "Password of Sensorkeep's user admin, taken at the first start only.")
GATEWAY_ADDRESS = Variable(
    "GATEWAY_ADDRESS", "Address of this machine at which the gateways listen. TLS stands in front.", "127.0.0.1"
)
GATEWAY_PORTS = Variable("GATEWAY_PORTS", "Their port; a range such as 8000-8003 for four gateways.", "8000")
GATEWAYS = Variable("GATEWAYS", "How many gateways.", "1")
WORKERS = Variable("WORKERS", f"How many workers, {PARTITIONS} at most.", "2")
PROMETHEUS_PORT = Variable("PROMETHEUS_PORT", "Port of Prometheus, on 127.0.0.1.", "9090")
POSTGRES_MEMORY = Variable("POSTGRES_MEMORY", "Memory PostgreSQL is tuned for, when its volume is made.", "2GB")
SUBNET = Variable(
    "SUBNET",
    "Addresses of the containers. X-Forwarded-For is believed from them: the proxy of this machine comes from its"
    " first.",
    "172.31.250.0/24",
)
SECRETS = (POSTGRES_PASSWORD, S3_ACCESS_KEY, S3_SECRET_KEY, ADMIN_PASSWORD)
CHOICES = (GATEWAY_ADDRESS, GATEWAY_PORTS, GATEWAYS, WORKERS, PROMETHEUS_PORT, POSTGRES_MEMORY, SUBNET)

COMPOSE_PLACES = Places(
    brokers=f"kafka:{KAFKA_PORT}",
    s3_endpoint=f"http://seaweedfs:{S3_PORT}",
    s3_access_key=str(S3_ACCESS_KEY),
    s3_secret_key=str(S3_SECRET_KEY),
    database_url=f"postgresql://sensorkeep:{POSTGRES_PASSWORD}@timescaledb:5432/sensorkeep",
    valkey_url="redis://valkey:6379/0",
)

KAFKA_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.quorum.voters": f"1@127.0.0.1:{KAFKA_CONTROLLER_PORT}",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "listeners": f"PLAINTEXT://:{KAFKA_PORT},CONTROLLER://127.0.0.1:{KAFKA_CONTROLLER_PORT}",
    "advertised.listeners": f"PLAINTEXT://kafka:{KAFKA_PORT}",
    "log.dirs": "/var/lib/kafka/data",
    "auto.create.topics.enable": "false",
    # One node keeps one copy of everything.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
}
"""Settings of the broker, by the names of its own documentation."""


def kafka_environment() -> dict[str, str]:
    """KAFKA_SETTINGS as the image takes them, and the id that its storage is formatted with."""
    taken = {"KAFKA_" + re.sub(r"\W", "_", name).upper(): value for name, value in KAFKA_SETTINGS.items()}
    return {"CLUSTER_ID": "U2Vuc29ya2VlcC1DbHVzdA", "KAFKA_HEAP_OPTS": "-Xms512m -Xmx512m"} | taken


SEAWEEDFS_COMMAND = [
    "server", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
    "-master.volumePreallocate=false", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false", "-volume.max=0",
    "-filer", "-s3", f"-s3.port={S3_PORT}", "-s3.ip.bind=0.0.0.0", "-s3.iam=false", "-s3.port.iceberg=0",
    "-s3.port.lance=0", "-s3.autoCreateBucket=false",
]  # fmt: skip
"""Only S3, which asks for keys, can be reached from elsewhere; its other parts ask nobody who he is."""

SEAWEEDFS_SYNC = "fs.configure -locationPrefix=/buckets/ -fsync -apply"
"""For its shell: every object is on the disk before it is acknowledged (docs/decisions/0008-objects-on-s3.md)."""


def seaweedfs_environment() -> dict[str, str]:
    """Its keys, and PostgreSQL for the names of the objects, whose own store is not synced when a name is written."""
    table = "dirhash BIGINT, name VARCHAR(65535), directory VARCHAR(65535), meta bytea, PRIMARY KEY (dirhash, name)"
    return {
        "AWS_ACCESS_KEY_ID": str(S3_ACCESS_KEY),
        "AWS_SECRET_ACCESS_KEY": str(S3_SECRET_KEY),
        "WEED_LEVELDB2_ENABLED": "false",
        "WEED_POSTGRES2_ENABLED": "true",
        "WEED_POSTGRES2_HOSTNAME": "timescaledb",
        "WEED_POSTGRES2_PORT": "5432",
        "WEED_POSTGRES2_USERNAME": "sensorkeep",
        "WEED_POSTGRES2_PASSWORD": str(POSTGRES_PASSWORD),
        "WEED_POSTGRES2_DATABASE": "seaweedfs",
        "WEED_POSTGRES2_SSLMODE": "disable",
        "WEED_POSTGRES2_CONNECTION_MAX_OPEN": "20",
        "WEED_POSTGRES2_CONNECTION_MAX_IDLE": "5",
        "WEED_POSTGRES2_CREATETABLE": f'CREATE TABLE IF NOT EXISTS "%s" ({table})',
    }
