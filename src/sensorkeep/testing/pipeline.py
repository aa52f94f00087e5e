"""The whole way of the data in one process, without a thread or a clock of its own, which can fail and die by seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from sensorkeep import limits
from sensorkeep.catalog.database import open_database
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.clock import IdSource, ManualClock
from sensorkeep.decode.handoff import Handoff
from sensorkeep.ingest.accept import Acceptor, IngestSettings
from sensorkeep.ingest.announce import Announcer
from sensorkeep.live.messages import encode_batch
from sensorkeep.metrics import Metrics
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.pubsub.memory import MemoryPubSub
from sensorkeep.queue.sqlite import SqliteClaimQueue
from sensorkeep.testing.faulty import Crashed, Fault, Faults, faulty
from sensorkeep.tsdb.duckdb import DuckDBStore
from sensorkeep.worker.housekeeping import Housekeeper
from sensorkeep.worker.load import Loader
from sensorkeep.worker.loop import Worker, WorkerSettings

Backend = TypeVar("Backend")

SEAM_METHODS: Mapping[str, tuple[str, ...]] = {
    "object_store": ("put", "get", "delete", "list"),
    "queue": ("publish", "ack"),  # a fetch whose answer is lost keeps its claims until the queue is opened anew
    "store": ("write", "settle", "maintain"),
    "ledger": ("receive", "settle", "reopen"),
    "inventory": ("describe",),
    "latest": ("save",),
}
"""The methods of each seam that faults hit."""
NOT_IDEMPOTENT = {"object_store": {"put"}, "queue": {"publish"}, "store": {"settle"}}
"""Those of them that must not be done twice: what `settle` answers, it answers once."""


@dataclass
class Life:
    """One run of the process. Once it has died no call gets through, as none would."""

    dead: bool = False


class _Mortal:
    """A seam that dies with its process: what a dying caller still does in its `finally` must not happen."""

    def __init__(self, backend: object, life: Life) -> None:
        self._backend = backend
        self._life = life

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._backend, name)
        if not callable(attribute):
            return attribute

        def method(*args: Any, **kwargs: Any) -> Any:
            if self._life.dead:
                raise Crashed(f"{name} of a process that has died")
            try:
                return attribute(*args, **kwargs)
            except Crashed:
                self._life.dead = True
                raise

        return method


@dataclass
class PipelineSettings:
    """What differs between tests. Days; 0 keeps for ever."""

    raw_retention_days: int = limits.RAW_RETENTION_DAYS
    payload_retention_days: int = limits.PAYLOAD_RETENTION_DAYS
    handoff_bytes: int = limits.HANDOFF_BYTES_MAX
    rates: Mapping[Fault, float] = field(default_factory=dict)
    """Probability of each fault for each call of SEAM_METHODS."""


class Pipeline:
    """Acceptor and worker over the embedded backends in `directory`. `restart` is the next process on the same data.

    All of one seed is the same each time: clock, ids, faults. Faults begin with `faults.active = True`.
    """

    def __init__(self, directory: Path, clock: ManualClock, seed: int = 0, settings: PipelineSettings | None = None):
        self.directory = directory
        self.clock = clock
        self.settings = settings or PipelineSettings()
        self._random = random.Random(f"{seed}/pipeline")  # noqa: S311 - a seeded simulation
        self.faults = {
            seam: Faults(
                random.Random(f"{seed}/{seam}"),  # noqa: S311 - a seeded simulation
                self.settings.rates,
                methods,
                idempotent=set(methods) - NOT_IDEMPOTENT.get(seam, set()),
                delay=clock.advance,
            )
            for seam, methods in SEAM_METHODS.items()
        }
        self.let_faults_happen(False)
        self._open()

    def let_faults_happen(self, wanted: bool) -> None:
        """Switch all faults on or off."""
        for faults in self.faults.values():
            faults.active = wanted

    def restart(self) -> None:
        """The process is gone; another one opens what it left on disk."""
        self.close()
        self._open()

    def close(self) -> None:
        """Let the files go, without finishing anything."""
        self.queue.close()
        self.store.close()
        self.database.close()

    def _open(self) -> None:
        directory, clock = self.directory, self.clock
        self.life = Life()
        self.metrics = Metrics()
        self.pubsub = MemoryPubSub()
        self.handoff = Handoff(self.settings.handoff_bytes)
        self.objects = FilesystemObjectStore(directory / "payloads")
        self.queue = SqliteClaimQueue(directory / "queue.sqlite", clock)
        self.store = DuckDBStore(
            directory / "readings.duckdb",
            clock=clock,
            raw_retention_days=self.settings.raw_retention_days,
            memory_limit_bytes=128 * limits.MIB,
            threads=1,
        )
        self.database = open_database(f"sqlite:///{directory / 'catalog.sqlite'}")
        self.inventory = CatalogInventory(self.database)
        self.latest = CatalogLatestReadings(self.database)
        self.ledger = CatalogLedger(self.database, clock)
        self.acceptor = self._make_acceptor()
        self.worker = self._make_worker()

    def _wrapped(self, seam: str, backend: Backend) -> Backend:
        return cast(Backend, _Mortal(faulty(backend, self.faults[seam]), self.life))

    def _make_acceptor(self) -> Acceptor:
        return Acceptor(
            object_store=self._wrapped("object_store", self.objects),
            queue=self._wrapped("queue", self.queue),
            ledger=self._wrapped("ledger", self.ledger),
            latest=self._wrapped("latest", self.latest),
            announcer=Announcer(self.pubsub, encode_batch),
            handoff=self.handoff,
            clock=self.clock,
            ids=IdSource(self.clock, random.Random(self._random.random())),  # noqa: S311 - a seeded simulation
            metrics=self.metrics,
            settings=IngestSettings(raw_retention_days=self.settings.raw_retention_days),
        )

    def _make_worker(self) -> Worker:
        objects, queue = self._wrapped("object_store", self.objects), self._wrapped("queue", self.queue)
        ledger, latest = self._wrapped("ledger", self.ledger), self._wrapped("latest", self.latest)
        return Worker(
            queue=queue,
            store=self._wrapped("store", self.store),
            loader=Loader(object_store=objects, ledger=ledger, latest=latest, handoff=self.handoff),
            inventory=self._wrapped("inventory", self.inventory),
            latest=latest,
            ledger=ledger,
            pubsub=self.pubsub,
            clock=self.clock,
            metrics=self.metrics,
            housekeep=Housekeeper(
                object_store=objects,
                queue=queue,
                ledger=ledger,
                clock=self.clock,
                retention_days=self.settings.payload_retention_days,
            ),
            settings=WorkerSettings(gather_seconds=0.0),
        )
