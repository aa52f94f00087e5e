"""Apache Kafka: one node that is controller and broker, without ZooKeeper."""

from __future__ import annotations

import subprocess
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from deployment import KAFKA_SETTINGS

from services.java import java, kafka_jars
from services.process import Service, ServiceFailed, answers, free_ports

SETTINGS = KAFKA_SETTINGS | {
    "offsets.topic.num.partitions": "4",
    # What was killed is noticed soon.
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.enable": "false",
    "num.partitions": "4",
}
"""As it is deployed, with less of everything, and ports and a folder of its own."""


class Kafka(Service):
    """The broker. `brokers` is what a client is told."""

    name = "kafka"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port, self._controller_port = free_ports(2)
        self._jars: Path | None = None

    @property
    def brokers(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self._port}"

    def prepare(self) -> None:
        """Fetch the broker, write its settings, and format its storage once."""
        self._jars = kafka_jars()
        listeners = f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}"
        settings = SETTINGS | {
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": listeners,
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port}",
            "log.dirs": str(self.folder / "data"),
        }
        self._settings_path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        if not (self.folder / "data" / "meta.properties").exists():
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
            self._format(cluster)

    def command(self) -> list[str]:
        """The broker itself, with a small heap."""
        return [*self._java("-Xms128m", "-Xmx384m"), "kafka.Kafka", str(self._settings_path)]

    def is_ready(self) -> bool:
        """Whether the broker has told that it serves; the port alone opens before."""
        return answers(self._port) and b"Kafka Server started" in self.log_path.read_bytes()[self._log_start :]

    def start(self) -> None:
        """Start it; only what is logged from now on tells that it serves."""
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        super().start()

    @property
    def _settings_path(self) -> Path:
        return self.folder / "server.properties"

    def _java(self, *options: str) -> list[str]:
        return [java(), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *options, "-cp", f"{self._jars}/*"]

    def _format(self, cluster: str) -> None:
        tool = "kafka.tools.StorageTool"
        done = subprocess.run(
            [*self._java("-Xmx128m"), tool, "format", "-t", cluster, "-c", str(self._settings_path)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise ServiceFailed(f"Kafka's storage could not be formatted: {done.stdout[-800:]}{done.stderr[-800:]}")
