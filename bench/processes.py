"""Programs under test as child processes, and what the operating system says they used."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

MIB = 2**20


class ProcessTree:
    """A process and its children. CPU is user and system time, that of children that have ended included."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def cpu_seconds(self) -> float:
        """CPU time used so far."""
        total = 0.0
        for process in (self._root, *self._root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue  # it ended in between; its parent has its time
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def resident_mib(self) -> float:
        """Resident memory now; memory that several of the processes share counts once."""
        children = self._root.children(recursive=True)
        if not children:
            return float(self._root.memory_info().rss) / MIB
        return sum(process.memory_full_info().pss for process in (self._root, *children)) / MIB

    def wait_quiet(self, seconds: float, share: float = 0.03, longest: float = 60.0) -> None:
        """Return once it has used less than `share` of a processor for `seconds`, or after `longest` seconds."""
        deadline = time.monotonic() + longest
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(seconds)
            if self.cpu_seconds() - before < seconds * share:
                return


class Program:
    """A program started for a benchmark; ended by its own process id."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        self._log = log
        self.tree = ProcessTree(self._process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_port(self, port: int, seconds: float = 30.0) -> None:
        """Return when it listens. Raises RuntimeError with the end of its log where it does not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.stop()
        raise RuntimeError(f"it did not start: {self._log.read_text(errors='replace')[-500:]}")

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)


class Post:
    """POSTs to one address on a connection of its own; not for several threads."""

    def __init__(self, host: str, port: int, path: str, headers: Mapping[str, str], expected: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=120)
        self._path = path
        self._headers = dict(headers)
        self._expected = expected

    def __call__(self, body: bytes) -> None:
        """Send it and read the answer. Raises RuntimeError for an unexpected status."""
        self._connection.request("POST", self._path, body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != self._expected:
            raise RuntimeError(f"{self._path}: {answer.status} {content[:500]!r}")


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def folder_bytes(folder: Path) -> int:
    """Bytes on disk of all files below."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
