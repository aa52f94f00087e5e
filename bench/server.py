"""The real program as a child process, and what the operating system says it used."""

from __future__ import annotations

import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

API_KEY = "benchmark-ingest-and-read-key"
API_KEY_WS = "benchmark-live-key-0001"


class BenchServer:
    """One `sensorkeep serve`. CPU is user and system time of the process; memory in MiB."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SENSORKEEP_")}
        environment |= {
            "SENSORKEEP_PORT": "0",
            "SENSORKEEP_DATA_DIR": str(directory / "data"),
            "SENSORKEEP_ACCESS_LOG": "false",
            "SENSORKEEP_LOG_LEVEL": "warning",
            "API_KEY": API_KEY,
            "API_KEY_WS": API_KEY_WS,
        } | settings
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [Path(sys.executable).parent / "sensorkeep", "serve"], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"address:\s+http://([\d.]+):(\d+)", line):
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise RuntimeError("the server did not start")
        threading.Thread(target=self._process.stdout.read, daemon=True).start()
        self.call("GET", "/api/v1/ping")
        self.start_seconds = time.perf_counter() - started
        self._measured = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """CPU time used so far."""
        times = self._measured.cpu_times()
        return float(times.user + times.system)

    def resident_mib(self) -> float:
        """Resident memory now."""
        return float(self._measured.memory_info().rss) / 2**20

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        return http.client.HTTPConnection(self.host, self.port, timeout=120)

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        """One call on a new connection; the JSON of its answer."""
        connection = self.connect()
        try:
            connection.request(method, path, body, {"X-API-Key": API_KEY} | headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {content[:500]!r}")
            return msgspec.json.decode(content)
        finally:
            connection.close()

    def wait_settled(self) -> dict[str, int]:
        """The totals once nothing is pending."""
        while True:
            totals: dict[str, int] = self.call("GET", "/api/v1/telemetry/accounting")["all_time"]
            if totals["pending"] == 0:
                return totals
            time.sleep(0.1)

    def disk_bytes(self, pattern: str) -> int:
        """Bytes of the files of the data directory that match."""
        return sum(file.stat().st_blocks * 512 for file in (self.directory / "data").glob(pattern) if file.is_file())

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


@contextmanager
def bench_server(directory: Path, **settings: str) -> Iterator[BenchServer]:
    """A server for the time of the block."""
    server = BenchServer(directory, **settings)
    try:
        yield server
    finally:
        server.stop()


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """A quantile of durations, in milliseconds."""
    ordered = sorted(seconds)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 2)


def summary(values: Sequence[float]) -> str:
    """median (minimum to maximum)."""
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"
