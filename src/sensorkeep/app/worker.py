"""The worker's side of a process: one thread that turns claims into rows."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from sensorkeep.app.system import System
from sensorkeep.decode.handoff import Handoff
from sensorkeep.errors import SensorkeepError
from sensorkeep.web.health import Figures
from sensorkeep.worker.attempts import AttemptKeeper
from sensorkeep.worker.housekeeping import Housekeeper
from sensorkeep.worker.load import Loader
from sensorkeep.worker.loop import Worker, WorkerSettings

log = structlog.get_logger(__name__)


class WorkerThread:
    """A worker on a thread of its own."""

    def __init__(self, system: System, handoff: Handoff) -> None:
        self._ledger = system.ledger
        self._worker = _make_worker(system, handoff)
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._ended_by: BaseException | None = None
        self.on_end: Callable[[], None] = lambda: None
        """Called on the worker's thread when it has ended, by itself or because it was told to."""

    def start(self, wait_seconds: float) -> None:
        """Start it, and wait at most so long until it has written what an earlier end left in the queue, or ends."""
        self._thread.start()
        self._worker.caught_up.wait(wait_seconds)

    def stop(self) -> None:
        """Let it end after the round it is in, and do not wait for that. Idempotent."""
        self._worker.stop()

    def close(self) -> None:
        """End it after the round it is in. Idempotent."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def stopped_because(self) -> str | None:
        """Why it stopped by itself; None where it did not."""
        if self._ended_by is not None:
            return f"{type(self._ended_by).__name__}: {self._ended_by}"
        return self._worker.stopped_because

    @property
    def stopped_for_good(self) -> bool:
        """Whether it would set more aside if it were started again."""
        return self._worker.stopped_for_good

    def check(self) -> Figures:
        """Raises where it does not work; else how many readings wait for it."""
        worker = self._worker
        if self.stopped_because is not None:
            raise SensorkeepError(f"the worker stopped: {self.stopped_because}; the log has the details")
        if self._thread.ident is not None and not self._thread.is_alive():
            raise SensorkeepError("the worker has ended; restart the process")
        if worker.maintenance_failed_because is not None:
            raise SensorkeepError(f"maintenance of the store failed: {worker.maintenance_failed_because}")
        return {"pending_readings": self._ledger.accounting()[1].pending}

    def _run(self) -> None:
        try:
            self._worker.run()
        except BaseException as error:  # the panic of a driver is no Exception
            log.exception("worker_ended")
            self._ended_by = error
        finally:
            self.on_end()


def _make_worker(system: System, handoff: Handoff) -> Worker:
    backends = system.backends
    return Worker(
        queue=backends.queue,
        store=backends.store,
        loader=Loader(object_store=backends.object_store, ledger=system.ledger, latest=system.latest, handoff=handoff),
        inventory=system.inventory,
        latest=system.latest,
        ledger=system.ledger,
        attempts=AttemptKeeper(system.attempts),
        pubsub=backends.pubsub,
        clock=system.clock,
        metrics=system.metrics,
        housekeep=Housekeeper(
            object_store=backends.object_store,
            queue=backends.queue,
            ledger=system.ledger,
            clock=system.clock,
            retention_days=system.config.payload_retention_days,
        ),
        settings=WorkerSettings(gather_seconds=system.config.gather_seconds),
    )
