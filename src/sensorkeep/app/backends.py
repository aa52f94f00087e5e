"""The concrete backends, by the URLs of the settings."""

from __future__ import annotations

from dataclasses import dataclass

from sensorkeep.app.urls import embedded_path
from sensorkeep.catalog.database import Database, open_database
from sensorkeep.clock import Clock
from sensorkeep.config import Config
from sensorkeep.data_dir import DataDir
from sensorkeep.errors import BadConfig
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.pubsub.base import PubSub
from sensorkeep.pubsub.memory import MemoryPubSub
from sensorkeep.queue.base import ClaimQueue
from sensorkeep.queue.sqlite import SqliteClaimQueue
from sensorkeep.tsdb.base import TimeSeriesStore
from sensorkeep.tsdb.duckdb import DuckDBStore


@dataclass(frozen=True, slots=True)
class Backends:
    """The concrete backends, opened."""

    object_store: ObjectStore
    queue: ClaimQueue
    store: TimeSeriesStore
    database: Database
    pubsub: PubSub


def open_backends(config: Config, data_dir: DataDir, clock: Clock) -> Backends:
    """Open what the URLs of the settings name. Raises BadConfig, Corrupt, DataDirInUse, Unavailable."""
    return Backends(
        object_store=FilesystemObjectStore(embedded_path(config, "object_store_url", "file", data_dir / "payloads")),
        queue=SqliteClaimQueue(embedded_path(config, "queue_url", "sqlite", data_dir / "queue.sqlite"), clock),
        store=DuckDBStore(
            embedded_path(config, "tsdb_url", "duckdb", data_dir / "readings.duckdb"),
            clock=clock,
            raw_retention_days=config.raw_retention_days,
            memory_limit_bytes=config.tsdb_memory_bytes,
            threads=config.tsdb_threads,
        ),
        database=open_database(
            f"sqlite:///{embedded_path(config, 'catalog_url', 'sqlite', data_dir / 'catalog.sqlite')}"
        ),
        pubsub=_pubsub(config.pubsub_url),
    )


def _pubsub(url: str) -> PubSub:
    if url != "memory://":
        raise BadConfig("SENSORKEEP_PUBSUB_URL: only memory:// is served here")
    return MemoryPubSub()
