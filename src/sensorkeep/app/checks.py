"""How each dependency proves that it works, and the gauges that nobody else keeps."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from sensorkeep.app.system import System
from sensorkeep.app.worker import WorkerThread
from sensorkeep.clock import MICROSECONDS
from sensorkeep.errors import SensorkeepError, Unavailable
from sensorkeep.limits import DISK_FREE_BYTES_MIN
from sensorkeep.web.health import Check, Figures


class Checks:
    """The checks of one process. All block; each raises where something does not work."""

    def __init__(self, system: System, worker: WorkerThread | None) -> None:
        self._system = system
        self._backends = system.backends
        self._worker = worker
        data_dir = self._backends.data_dir
        self._data_dir = None if data_dir is None else data_dir.path

    def by_name(self) -> dict[str, Check]:
        """How each dependency proves that it works; those that this process has."""
        backends = self._backends
        checks: dict[str, Check] = {
            "object_store": backends.object_store.check,
            "queue": self._check_queue,
            "tsdb": self._check_store,
            "catalog": backends.database.check,
            "pubsub": backends.pubsub.check,
        }
        if self._worker is not None:
            checks["worker"] = self._worker.check
        if self._data_dir is not None:
            checks["disk"] = self._check_disk
        return checks

    def refresh_gauges(self) -> None:
        """Bring the gauges up to date that nobody else does. Blocking. What cannot be asked now is told as NaN."""
        metrics = self._system.metrics
        try:
            depth = self._backends.queue.depth()
            claims, age_seconds = float(depth.claims), self._age_seconds(depth.oldest_us)
        except SensorkeepError:
            claims = age_seconds = math.nan
        metrics.queue_depth.set(claims)
        metrics.queue_oldest_seconds.set(age_seconds)
        try:
            metrics.readings_pending.set(self._system.ledger.accounting()[1].pending)
        except SensorkeepError:
            metrics.readings_pending.set(math.nan)
        if self._data_dir is not None:
            metrics.disk_free_bytes.set(shutil.disk_usage(self._data_dir).free)
            for part, size in _disk_use(self._data_dir).items():
                metrics.disk_bytes.labels(part).set(size)

    def _check_queue(self) -> Figures:
        self._backends.queue.check()
        depth = self._backends.queue.depth()
        return {"claims": depth.claims, "lag_seconds": self._age_seconds(depth.oldest_us)}

    def _check_store(self) -> Figures:
        status = self._backends.store.status()
        return {
            "disk_bytes": status.disk_bytes,
            "raw_readings": status.raw_readings,
            "staged_readings": status.staged_readings,
        }

    def _check_disk(self) -> Figures:
        assert self._data_dir is not None
        free = shutil.disk_usage(self._data_dir).free
        if free < DISK_FREE_BYTES_MIN:
            raise Unavailable(f"only {free} bytes are free on the disk of the data directory", code="disk_full")
        return {"free_bytes": free}

    def _age_seconds(self, oldest_us: int | None) -> float:
        return 0.0 if oldest_us is None else max(0, self._system.clock.now_us() - oldest_us) / MICROSECONDS


def _disk_use(data_dir: Path) -> dict[str, int]:
    """Bytes of the database files by what they are; the payload archive is not walked."""
    names = {"queue": "queue.sqlite", "catalog": "catalog.sqlite", "tsdb": "readings.duckdb"}
    return {
        part: sum(file.stat().st_size for file in data_dir.glob(name + "*") if file.is_file())
        for part, name in names.items()
    }
