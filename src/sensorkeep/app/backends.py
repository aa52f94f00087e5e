"""The concrete backends, by the URLs of the settings.

What needs a service is imported only where a URL asks for it: the embedded form starts without those drivers.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr

from sensorkeep.app.urls import SCHEMES, Setting, address, embedded_path, is_embedded
from sensorkeep.catalog.database import Database, SchemaAction, open_database
from sensorkeep.catalog.import_mark import refuse_unfinished_import
from sensorkeep.clock import Clock
from sensorkeep.config import Config
from sensorkeep.data_dir import DataDir
from sensorkeep.errors import BadConfig
from sensorkeep.metrics import Metrics
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.pubsub.base import PubSub
from sensorkeep.pubsub.memory import MemoryPubSub
from sensorkeep.queue.base import ClaimQueue
from sensorkeep.queue.sqlite import SqliteClaimQueue
from sensorkeep.tsdb.base import TimeSeriesStore
from sensorkeep.valkey import Valkey

Role = Literal["serve", "gateway", "worker"]
"""What a process does: a gateway answers HTTP, a worker turns claims into rows, `serve` is both in one."""

SHARED: tuple[Setting, ...] = ("object_store_url", "queue_url", "tsdb_url", "catalog_url", "pubsub_url")
"""What gateways and workers must share, so that none of it can be embedded in one of them."""


def is_shared(config: Config) -> bool:
    """Whether nothing is embedded, so that gateways and workers can work beside each other."""
    return not any(is_embedded(config, setting) for setting in SHARED)


@dataclass(frozen=True, slots=True)
class Backends:
    """The concrete backends, opened."""

    data_dir: DataDir | None
    """None where nothing is embedded."""
    object_store: ObjectStore
    queue: ClaimQueue
    store: TimeSeriesStore
    database: Database
    pubsub: PubSub
    valkey: Valkey | None
    """Where newest values, rate limits and tickets are shared; None where this process is alone."""

    def close(self) -> None:
        """Close them all. Idempotent."""
        for part in (self.queue, self.store, self.object_store, self.pubsub, self.valkey, self.database):
            if part is not None:
                part.close()
        if self.data_dir is not None:
            self.data_dir.close()


def open_backends(config: Config, role: Role, clock: Clock, metrics: Metrics | None = None) -> Backends:
    """Open what the URLs of the settings name. Raises BadConfig, Corrupt, DataDirInUse, Unavailable."""
    if role != "serve":
        _refuse_embedded(config, role)
    with ExitStack() as opened:
        data_dir = None
        if any(is_embedded(config, setting) for setting in SHARED if setting != "pubsub_url"):
            data_dir = DataDir(config.data_dir)
            opened.callback(data_dir.close)
        database = open_catalog(config)
        opened.callback(database.close)
        refuse_unfinished_import(database)
        object_store = open_object_store(config)
        opened.callback(object_store.close)
        store = open_store(config, clock)
        opened.callback(store.close)
        pubsub, valkey = open_pubsub(config, metrics)
        opened.callback(pubsub.close)
        queue = open_queue(config, clock, consume=role != "gateway")
        opened.pop_all()
    return Backends(data_dir, object_store, queue, store, database, pubsub, valkey)


def open_catalog(config: Config, schema: SchemaAction | None = None) -> Database:
    """The catalog's database; `schema` as open_database takes it."""
    if is_embedded(config, "catalog_url"):
        path = embedded_path(config, "catalog_url", config.data_dir.resolve() / "catalog.sqlite")
        return open_database(f"sqlite:///{path}", schema=schema)
    return open_database(config.catalog_url, schema=schema)


def open_object_store(config: Config) -> ObjectStore:
    """The store of payloads."""
    if is_embedded(config, "object_store_url"):
        return FilesystemObjectStore(embedded_path(config, "object_store_url", config.data_dir.resolve() / "payloads"))
    from sensorkeep.object_store.s3 import S3ObjectStore

    return S3ObjectStore(
        address(config, "object_store_url").strip("/"),
        endpoint=config.s3_endpoint or None,
        access_key=_text(config.s3_access_key),
        secret_key=_text(config.s3_secret_key),
        region=config.s3_region,
    )


def open_store(config: Config, clock: Clock) -> TimeSeriesStore:
    """The time series store."""
    if is_embedded(config, "tsdb_url"):
        from sensorkeep.tsdb.duckdb import DuckDBStore

        return DuckDBStore(
            embedded_path(config, "tsdb_url", config.data_dir.resolve() / "readings.duckdb"),
            clock=clock,
            raw_retention_days=config.raw_retention_days,
            memory_limit_bytes=config.tsdb_memory_bytes,
            threads=config.tsdb_threads,
        )
    try:
        from sensorkeep.tsdb.postgres import PostgresStore
    except ModuleNotFoundError as error:  # pgpq has no wheel for Linux on ARM
        raise BadConfig(
            f"SENSORKEEP_TSDB_URL: PostgreSQL needs the package {error.name}, which is not installed on this machine;"
            " use duckdb:// here, or build the package"
        ) from None

    return PostgresStore(config.tsdb_url, clock=clock, raw_retention_days=config.raw_retention_days)


def open_queue(config: Config, clock: Clock, *, consume: bool) -> ClaimQueue:
    """The claim queue; who does not `consume` publishes and asks how much waits."""
    if is_embedded(config, "queue_url"):
        return SqliteClaimQueue(embedded_path(config, "queue_url", config.data_dir.resolve() / "queue.sqlite"), clock)
    from sensorkeep.queue.kafka import KafkaClaimQueue

    brokers, _, topic = address(config, "queue_url").partition("/")
    return KafkaClaimQueue(
        brokers,
        topic or config.kafka_topic,
        clock=clock,
        partitions=config.kafka_partitions,
        replication_factor=config.kafka_replication_factor,
        consume=consume,
        security=_kafka_security(config),
    )


def _kafka_security(config: Config) -> dict[str, str]:
    """librdkafka's names for how the brokers are spoken to."""
    settings: dict[str, str] = {"security.protocol": config.kafka_security_protocol}
    if config.kafka_security_protocol.startswith("sasl_"):
        if not config.kafka_username or config.kafka_password is None:
            raise BadConfig(
                f"SENSORKEEP_KAFKA_SECURITY_PROTOCOL {config.kafka_security_protocol} needs SENSORKEEP_KAFKA_USERNAME"
                " and SENSORKEEP_KAFKA_PASSWORD"
            )
        settings["sasl.mechanism"] = config.kafka_sasl_mechanism
        settings["sasl.username"] = config.kafka_username
        settings["sasl.password"] = config.kafka_password.get_secret_value()
    if config.kafka_ca_file is not None:
        settings["ssl.ca.location"] = str(config.kafka_ca_file)
    return settings


def open_pubsub(config: Config, metrics: Metrics | None = None) -> tuple[PubSub, Valkey | None]:
    """Publish/subscribe, and the Valkey behind it where processes share one."""
    if is_embedded(config, "pubsub_url"):
        return MemoryPubSub(), None
    from sensorkeep.pubsub.valkey import ValkeyPubSub

    valkey = Valkey(config.pubsub_url, prefix=config.pubsub_prefix)
    return ValkeyPubSub(valkey, metrics), valkey


def _refuse_embedded(config: Config, role: Role) -> None:
    for setting in SHARED:
        if is_embedded(config, setting):
            raise BadConfig(
                f"a {role} works beside others, so SENSORKEEP_{setting.upper()} must name a service they share"
                f" ({SCHEMES[setting][1]}://…); for one machine alone use `sensorkeep serve`"
            )


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
