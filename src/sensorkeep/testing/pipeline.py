"""The whole way of the data in one process, without a thread or a clock of its own, which can fail and die by seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from sensorkeep import limits
from sensorkeep.catalog.attempts import CatalogAttempts
from sensorkeep.catalog.database import Database, open_database
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.clock import IdSource, ManualClock
from sensorkeep.decode.handoff import Handoff
from sensorkeep.ingest.accept import Acceptor, IngestSettings
from sensorkeep.ingest.announce import Announcer
from sensorkeep.live.messages import encode_batch
from sensorkeep.metrics import Metrics
from sensorkeep.model import Claim
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.pubsub.memory import MemoryPubSub
from sensorkeep.queue.sqlite import SqliteClaimQueue
from sensorkeep.testing.faulty import Crashed, Fault, Faults, Reorder, faulty
from sensorkeep.testing.redelivery import RedeliveringQueue, reorder_list, reorder_sources
from sensorkeep.tsdb.duckdb import DuckDBStore
from sensorkeep.worker.attempts import AttemptKeeper
from sensorkeep.worker.housekeeping import Housekeeper
from sensorkeep.worker.load import Loader
from sensorkeep.worker.loop import Worker, WorkerSettings

Backend = TypeVar("Backend")

SEAM_METHODS: Mapping[str, tuple[str, ...]] = {
    "object_store": ("put", "get", "delete", "list"),
    "queue": ("publish", "fetch", "ack"),
    "store": ("write", "settle", "maintain"),
    "ledger": ("receive", "settle", "reopen"),
    "inventory": ("describe",),
    "latest": ("save",),
    "attempts": ("begin", "end", "unfinished"),
}
"""The methods of each seam that faults hit."""
IDEMPOTENT: Mapping[str, tuple[str, ...]] = {
    "object_store": ("get", "delete", "list"),
    "queue": ("ack",),
    "store": ("write", "maintain"),  # what `settle` answers, it answers once
    "ledger": ("receive", "settle", "reopen"),
    "inventory": ("describe",),
    "latest": ("save",),
    "attempts": ("end", "unfinished"),
}
"""Those of them that may be done twice."""
REORDERED: Mapping[str, Mapping[str, Reorder]] = {
    "queue": {"fetch": reorder_sources},
    "store": {"write": reorder_list, "settle": reorder_list},
}
"""Those whose answers may have another order."""
SPARED: Mapping[str, Mapping[str, tuple[Fault, ...]]] = {
    "queue": {"fetch": (Fault.FAIL_AFTER,)},  # what it took would be out until the queue is opened anew
}
"""What cannot happen to a method."""


@dataclass
class Life:
    """One run of a process. Once it has died no call gets through, as none would."""

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
    gather_seconds: float = 0.0
    """How long the worker waits for more, by the clock of the machine."""
    rates: Mapping[Fault, float] = field(default_factory=dict)
    """Probability of each fault for each call of SEAM_METHODS."""
    gateways: int = 1
    """1: everything is one process. More: each of them is a process of its own, and the worker is."""
    deaths_max: int = limits.CLAIM_DEATHS_MAX
    """Processes that may end while they write a batch before it is given up."""
    redelivery: float = 0.0
    """Probability of a fetch that claims are delivered once more."""


OnReopen = Callable[[str, str], None]


class _WatchedLedger(CatalogLedger):
    def __init__(self, database: Database, clock: ManualClock, on_reopen: OnReopen) -> None:
        super().__init__(database, clock)
        self._on_reopen = on_reopen

    def reopen(self, batch_id: str, replay_id: str) -> tuple[Claim, list[tuple[int, int]]]:
        answer = super().reopen(batch_id, replay_id)
        self._on_reopen(batch_id, replay_id)
        return answer


class Process:
    """What one process has of its own, and what is lost with it: its life, its memory, its way to the catalog."""

    def __init__(self, catalog: Path, clock: ManualClock, handoff_bytes: int, on_reopen: OnReopen) -> None:
        self.life = Life()
        self.metrics = Metrics()
        self.handoff = Handoff(handoff_bytes)
        self.database = open_database(f"sqlite:///{catalog}")
        self.inventory = CatalogInventory(self.database)
        self.latest = CatalogLatestReadings(self.database)
        self.ledger = _WatchedLedger(self.database, clock, on_reopen)
        self.attempts = CatalogAttempts(self.database, clock)

    def close(self) -> None:
        """Let the catalog go, without finishing anything."""
        self.database.close()


class Pipeline:
    """Acceptors and a worker over the embedded backends in `directory`.

    `restart` is the next start on the same data, `crash` one after a kill -9. All of one seed is the same each time:
    clock, ids, faults. Faults begin with `let_faults_happen(True)`. With one gateway the parts of the one process are
    attributes here.
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
                idempotent=IDEMPOTENT[seam],
                reorder=REORDERED.get(seam),
                spared=SPARED.get(seam),
                delay=clock.advance,
            )
            for seam, methods in SEAM_METHODS.items()
        }
        self.let_faults_happen(False)
        self.on_reopen: OnReopen = lambda *_: None
        """Called with (batch id, replay id) when a replay has taken its batch's readings out of the quarantine."""
        self.working: Process
        """The process of the worker."""
        self.pubsub = MemoryPubSub()
        self.objects = FilesystemObjectStore(directory / "payloads")
        redelivering = random.Random(f"{seed}/redelivery")  # noqa: S311 - a seeded simulation
        self.queue = RedeliveringQueue(self._open_queue(), clock, redelivering, self.settings.redelivery)
        self._open()

    @property
    def is_one_process(self) -> bool:
        """Whether gateway and worker live and die together."""
        return self.settings.gateways == 1

    @property
    def acceptor(self) -> Acceptor:
        """The first gateway's."""
        return self.acceptors[0]

    def let_faults_happen(self, wanted: bool) -> None:
        """Switch all faults on or off."""
        for faults in self.faults.values():
            faults.active = wanted

    def restart(self) -> None:
        """All processes have ended; others open what they left."""
        self.close()
        self.queue.reopen(self._open_queue())
        self._open()

    def crash(self) -> None:
        """As `restart`, but what is opened is what the files held at this moment: a kill -9, of the stores too."""
        copies = [(path, path.with_name(f"left-{path.name}")) for path in self._files()]
        for path, copy in copies:
            shutil.copyfile(path, copy)
        self.close()
        for path in self._files():
            path.unlink()
        for path, copy in copies:
            copy.rename(path)
        self.queue.reopen(self._open_queue())
        self._open()

    def crash_gateway(self, number: int) -> None:
        """One gateway among several has died; its successor has started."""
        self.gateways[number].close()
        self.gateways[number] = self._start(handoff_bytes=0)
        self.acceptors[number] = self._make_acceptor(self.gateways[number])

    def crash_worker(self) -> None:
        """The worker beside several gateways has died; what it had taken is delivered to its successor."""
        self.working.close()
        self.queue.close()
        self.queue.reopen(self._open_queue())
        self.working = self._start(handoff_bytes=0)
        self.worker = self._make_worker(self.working)

    def close(self) -> None:
        """Let the files go, without finishing anything."""
        self.queue.close()
        self.store.close()
        for process in {id(process): process for process in (*self.gateways, self.working)}.values():
            process.close()

    def _files(self) -> list[Path]:
        """The files of the databases, with their logs."""
        names = ("queue.sqlite*", "readings.duckdb*", "catalog.sqlite*")
        return sorted(path for name in names for path in self.directory.glob(name) if path.is_file())

    def _open_queue(self) -> SqliteClaimQueue:
        return SqliteClaimQueue(self.directory / "queue.sqlite", self.clock)

    def _open(self) -> None:
        self.store = DuckDBStore(
            self.directory / "readings.duckdb",
            clock=self.clock,
            raw_retention_days=self.settings.raw_retention_days,
            memory_limit_bytes=128 * limits.MIB,
            threads=1,
        )
        handoff_bytes = self.settings.handoff_bytes if self.is_one_process else 0
        self.gateways = [self._start(handoff_bytes) for _ in range(self.settings.gateways)]
        self.working = self.gateways[0] if self.is_one_process else self._start(handoff_bytes)
        self.acceptors = [self._make_acceptor(process) for process in self.gateways]
        self.worker = self._make_worker(self.working)

    def _start(self, handoff_bytes: int) -> Process:
        catalog = self.directory / "catalog.sqlite"
        process = Process(catalog, self.clock, handoff_bytes, lambda *ids: self.on_reopen(*ids))
        if self.is_one_process:
            self.life, self.metrics, self.handoff = process.life, process.metrics, process.handoff
            self.database, self.inventory = process.database, process.inventory
            self.latest, self.ledger = process.latest, process.ledger
        return process

    def _wrapped(self, seam: str, backend: Backend, process: Process) -> Backend:
        return cast(Backend, _Mortal(faulty(backend, self.faults[seam]), process.life))

    def _make_acceptor(self, process: Process) -> Acceptor:
        return Acceptor(
            object_store=self._wrapped("object_store", self.objects, process),
            queue=self._wrapped("queue", self.queue, process),
            ledger=self._wrapped("ledger", process.ledger, process),
            latest=self._wrapped("latest", process.latest, process),
            announcer=Announcer(self.pubsub, encode_batch),
            handoff=process.handoff,
            clock=self.clock,
            ids=IdSource(self.clock, random.Random(self._random.random())),  # noqa: S311 - a seeded simulation
            metrics=process.metrics,
            settings=IngestSettings(raw_retention_days=self.settings.raw_retention_days),
        )

    def _make_worker(self, process: Process) -> Worker:
        objects = self._wrapped("object_store", self.objects, process)
        queue = self._wrapped("queue", self.queue, process)
        ledger = self._wrapped("ledger", process.ledger, process)
        latest = self._wrapped("latest", process.latest, process)
        return Worker(
            queue=queue,
            store=self._wrapped("store", self.store, process),
            loader=Loader(object_store=objects, ledger=ledger, latest=latest, handoff=process.handoff),
            inventory=self._wrapped("inventory", process.inventory, process),
            latest=latest,
            ledger=ledger,
            attempts=AttemptKeeper(self._wrapped("attempts", process.attempts, process)),
            pubsub=self.pubsub,
            clock=self.clock,
            metrics=process.metrics,
            housekeep=Housekeeper(
                object_store=objects,
                queue=queue,
                ledger=ledger,
                clock=self.clock,
                retention_days=self.settings.payload_retention_days,
            ),
            settings=WorkerSettings(gather_seconds=self.settings.gather_seconds, deaths_max=self.settings.deaths_max),
        )
