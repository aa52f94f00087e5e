"""Gateways and workers as real processes on real services."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import DEADLINE_SECONDS, PASSWORD, PROGRAM, Server


class Cluster:
    """Some gateways and workers that share their services, by the settings `services`."""

    def __init__(
        self, folder: Path, services: dict[str, str], gateways: int = 2, workers: int = 2, **settings: object
    ) -> None:
        self.folder = folder
        self.services = services
        self.settings = {**services, **{name.upper(): str(value) for name, value in settings.items()}}
        self.gateways = [self._node("gateway", number) for number in range(gateways)]
        self.workers = [self._node("worker", number) for number in range(workers)]

    def start(self) -> Cluster:
        """Migrate, then start every process and wait until it answers."""
        migrated = self.command("migrate", "upgrade")
        assert migrated.returncode == 0, migrated.stderr
        for node in (*self.gateways, *self.workers):
            node.start()
        return self

    def stop(self) -> None:
        """End every process that still runs."""
        for node in (*self.gateways, *self.workers):
            if hasattr(node, "process"):
                node.stop(signal.SIGKILL)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `sensorkeep` with the settings of the cluster."""
        return subprocess.run(
            [PROGRAM, *arguments],
            env={"PATH": "/usr/bin:/bin", "SENSORKEEP_ADMIN_PASSWORD": PASSWORD} | self.settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    def add(self, role: str) -> Server:
        """One more gateway or worker, started."""
        nodes = self.gateways if role == "gateway" else self.workers
        nodes.append(self._node(role, len(nodes)).start())
        return nodes[-1]

    def _node(self, role: str, number: int) -> Server:
        node = Server(self.folder / f"{role}-{number}", **self.settings | {"SENSORKEEP_DATA_DIR": "None"})
        node.role = role
        return node


@contextmanager
def running_cluster(folder: Path, services: dict[str, str], **settings: object) -> Iterator[Cluster]:
    """A cluster for the time of the block."""
    cluster = Cluster(folder, services, **settings)  # type: ignore[arg-type]
    try:
        yield cluster.start()
    finally:
        cluster.stop()
