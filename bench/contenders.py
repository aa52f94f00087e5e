"""What is measured with the bulk workload: Sensorkeep, and the databases beside it.

Each runs on 127.0.0.1 in a folder of its own, takes the same readings from the same number of connections, and is
ended by its process id. One that cannot be had raises Missing with the reason; the others go on without it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

from bench.debian import Missing, program
from bench.processes import Post, ProcessTree, Program, folder_bytes, free_port
from bench.server import API_KEY, BenchServer
from bench.workload import Load

__all__ = [
    "CONTENDERS",
    "Contender",
    "InfluxDB",
    "Maker",
    "Missing",
    "Sensorkeep",
    "VictoriaMetrics",
    "VictoriaMetricsFull",
]


class Contender(ABC):
    """One running server under test; made with the folder for its files. Making it raises Missing."""

    name: ClassVar[str]
    differs: ClassVar[str]
    """What it does not do, or does differently; empty for Sensorkeep."""
    tree: ProcessTree
    version: str

    @abstractmethod
    def sender(self) -> Callable[[Load], None]:
        """A connection of its own that sends one batch and waits for the answer."""

    @abstractmethod
    def finish(self) -> None:
        """Return once all that was sent can be queried; what that costs counts."""

    @abstractmethod
    def disk_bytes(self) -> int:
        """Bytes on disk after settling. Nothing is sent afterwards."""

    @abstractmethod
    def stop(self) -> None:
        """End it."""


class Maker(Protocol):
    """A class of contenders."""

    name: str

    def __call__(self, folder: Path) -> Contender:
        """Start one with its files in `folder`. Raises Missing."""
        ...


class Sensorkeep(Contender):
    """`sensorkeep serve` with an empty data directory."""

    name = "sensorkeep"
    differs = ""
    version = ""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.server = BenchServer(folder, **settings)
        self.tree = ProcessTree(self.server.pid)

    def sender(self) -> Callable[[Load], None]:
        """See Contender."""
        headers = {"X-API-Key": API_KEY, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        post = Post(self.server.host, self.server.port, "/api/v1/telemetry/bulk", headers, 201)
        return lambda load: post(load.body)

    def finish(self) -> None:
        """See Contender."""
        self.server.wait_settled()

    def disk_bytes(self) -> int:
        """See Contender. The payloads as sent, kept for replay, are apart."""
        self.tree.wait_quiet(1.5)
        self.server.stop()  # what is in its log goes into the file
        return self.server.disk_bytes("readings.duckdb*")

    def stop(self) -> None:
        """See Contender."""
        self.server.stop()


class VictoriaMetrics(Contender):
    """VictoriaMetrics, single node, fed with Influx line protocol: the value alone."""

    name = "victoria-metrics"
    differs = (
        "answers before an fsync (a crash loses the last seconds), keeps re-sent readings until a merge, no status "
        "text, no rollups, no exact percentiles, times cut to milliseconds"
    )

    def __init__(self, folder: Path) -> None:
        binary, self.version = program("victoria-metrics", "victoria-metrics")
        self._port = free_port()
        self._data = folder / "data"
        command = [
            str(binary), f"-httpListenAddr=127.0.0.1:{self._port}", f"-storageDataPath={self._data}",
            "-retentionPeriod=12", "-search.latencyOffset=0s",
        ]  # fmt: skip
        self._program = Program(command, folder / "log")
        self._program.wait_port(self._port)
        self.tree = self._program.tree

    def sender(self) -> Callable[[Load], None]:
        """See Contender."""
        post = Post("127.0.0.1", self._port, "/write?precision=u", {"Content-Encoding": "gzip"}, 204)
        return lambda load: post(self._lines(load))

    def finish(self) -> None:
        """See Contender."""
        Post("127.0.0.1", self._port, "/internal/force_flush", {}, 200)(b"")

    def disk_bytes(self) -> int:
        """See Contender."""
        Post("127.0.0.1", self._port, "/internal/force_merge", {}, 200)(b"")
        self.tree.wait_quiet(1.5)
        return folder_bytes(self._data)

    def stop(self) -> None:
        """See Contender."""
        self._program.stop()

    @staticmethod
    def _lines(load: Load) -> bytes:
        return load.lines


class VictoriaMetricsFull(VictoriaMetrics):
    """The same with the metadata of each reading, as the verbose body has it and Sensorkeep keeps it."""

    name = "victoria-metrics, metadata too"

    @staticmethod
    def _lines(load: Load) -> bytes:
        return load.full_lines


_INFLUXDB_CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{data}/meta"
[data]
  dir = "{data}/data"
  wal-dir = "{data}/wal"
  cache-snapshot-write-cold-duration = "2s"
[http]
  bind-address = "127.0.0.1:{http}"
  log-enabled = false
[monitor]
  store-enabled = false
"""


class InfluxDB(Contender):
    """InfluxDB 1.x, fed with line protocol: the value and the metadata of each reading."""

    name = "influxdb"
    differs = "no rollups (they are queries of one's own), no counts of what was new, changed or there already"

    def __init__(self, folder: Path) -> None:
        binary, self.version = program("influxdb", "influxd")
        self._port, self._data = free_port(), folder / "data"
        config = folder / "influxdb.conf"
        config.write_text(_INFLUXDB_CONFIG.format(data=self._data, http=self._port, rpc=free_port()), "utf-8")
        self._program = Program([str(binary), "run", "-config", str(config)], folder / "log")
        self._program.wait_port(self._port)
        self.tree = self._program.tree
        Post("127.0.0.1", self._port, "/query?q=CREATE+DATABASE+bench", {}, 200)(b"")

    def sender(self) -> Callable[[Load], None]:
        """See Contender."""
        post = Post("127.0.0.1", self._port, "/write?db=bench&precision=u", {"Content-Encoding": "gzip"}, 204)
        return lambda load: post(load.full_lines)

    def finish(self) -> None:
        """See Contender. What was answered can be queried."""

    def disk_bytes(self) -> int:
        """See Contender. The cache is written after two quiet seconds."""
        time.sleep(4)
        self.tree.wait_quiet(3.0)
        return folder_bytes(self._data)

    def stop(self) -> None:
        """See Contender."""
        self._program.stop()


CONTENDERS: tuple[Maker, ...] = (Sensorkeep, VictoriaMetrics, VictoriaMetricsFull, InfluxDB)
