"""How each dependency proves that it works, and the gauges that nobody else keeps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from sensorkeep.app.backends import Backends
from sensorkeep.catalog.base import BatchLedger
from sensorkeep.clock import MICROSECONDS, Clock
from sensorkeep.errors import SensorkeepError, Unavailable
from sensorkeep.limits import DISK_FREE_BYTES_MIN
from sensorkeep.metrics import Metrics
from sensorkeep.web.health import Check, Figures
from sensorkeep.worker.loop import Worker


class Checks:
    """The checks of one process. All block; each raises where something does not work."""

    def __init__(
        self,
        *,
        backends: Backends,
        ledger: BatchLedger,
        worker: Worker,
        worker_has_ended: Callable[[], bool],
        metrics: Metrics,
        clock: Clock,
        data_dir: Path,
    ) -> None:
        self._backends = backends
        self._ledger = ledger
        self._worker = worker
        self._worker_has_ended = worker_has_ended
        self._metrics = metrics
        self._clock = clock
        self._data_dir = data_dir

    def by_name(self) -> dict[str, Check]:
        """How each dependency proves that it works."""
        backends = self._backends
        return {
            "object_store": backends.object_store.check,
            "queue": self._check_queue,
            "tsdb": self._check_store,
            "catalog": backends.database.check,
            "pubsub": backends.pubsub.check,
            "worker": self._check_worker,
            "disk": self._check_disk,
        }

    def refresh_gauges(self) -> None:
        """Bring the gauges up to date that nobody else does. Blocking."""
        depth = self._backends.queue.depth()
        self._metrics.queue_depth.set(depth.claims)
        age_us = 0 if depth.oldest_us is None else max(0, self._clock.now_us() - depth.oldest_us)
        self._metrics.queue_oldest_seconds.set(age_us / MICROSECONDS)
        self._metrics.readings_pending.set(self._ledger.accounting()[1].pending)
        self._metrics.disk_free_bytes.set(shutil.disk_usage(self._data_dir).free)
        for part, size in self._disk_use().items():
            self._metrics.disk_bytes.labels(part).set(size)

    def _check_queue(self) -> Figures:
        self._backends.queue.check()
        depth = self._backends.queue.depth()
        oldest_us = self._clock.now_us() if depth.oldest_us is None else depth.oldest_us
        return {"claims": depth.claims, "lag_seconds": max(0, self._clock.now_us() - oldest_us) / MICROSECONDS}

    def _check_store(self) -> Figures:
        status = self._backends.store.status()
        return {
            "disk_bytes": status.disk_bytes,
            "raw_readings": status.raw_readings,
            "staged_readings": status.staged_readings,
        }

    def _check_worker(self) -> Figures:
        if self._worker.stopped_because is not None:
            raise SensorkeepError(f"the worker stopped: {self._worker.stopped_because}; the log has the details")
        if self._worker_has_ended():
            raise SensorkeepError("the worker has ended; restart the server")
        if self._worker.maintenance_failed_because is not None:
            raise SensorkeepError(f"maintenance of the store failed: {self._worker.maintenance_failed_because}")
        return {"pending_readings": self._ledger.accounting()[1].pending}

    def _check_disk(self) -> Figures:
        free = shutil.disk_usage(self._data_dir).free
        if free < DISK_FREE_BYTES_MIN:
            raise Unavailable(f"only {free} bytes are free on the disk of the data directory", code="disk_full")
        return {"free_bytes": free}

    def _disk_use(self) -> dict[str, int]:
        """Bytes of the database files by what they are; the payload archive is not walked."""
        names = {"queue": "queue.sqlite", "catalog": "catalog.sqlite", "tsdb": "readings.duckdb"}
        return {
            part: sum(file.stat().st_size for file in self._data_dir.glob(name + "*") if file.is_file())
            for part, name in names.items()
        }
