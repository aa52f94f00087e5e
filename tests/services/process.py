"""A service as a process of its own: started on free ports of 127.0.0.1, waited for, stopped by its pid."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

PORTS = range(10_000, 20_000)
"""SeaweedFS takes each port + 10,000 for gRPC. From 32,768 on the system gives ports to outgoing connections of anybody
(ip_local_port_range), and a service that was stopped would not find its own again."""
SHARED_PORTS = 1_000
"""The first of PORTS are for the process that starts pytest-xdist's workers, and the services that these share."""
READY_SECONDS = 60.0
END_SECONDS = 30.0
LOG_TAIL_CHARS = 3_000

_given: set[int] = set()


class ServiceFailed(RuntimeError):
    """A service did not start, or ended by itself. It shows the end of its log."""


class Service:
    """What all services share. A subclass prepares its data, says how it is run, and when it is ready.

    The ports are chosen once, so that a service that was stopped comes back where its clients look for it.
    """

    name: str
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    # --- what a subclass says ---
    def prepare(self) -> None:
        """Make what must be there before the first start. Called at every start."""

    def command(self) -> list[str]:
        """How it is run."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Further variables of its process."""
        return {}

    def is_ready(self) -> bool:
        """Whether it answers."""
        raise NotImplementedError

    # --- what the tests do with it ---
    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.prepare()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        self.wait_until_ready()

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it answers. Raises ServiceFailed with the end of its log."""
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            assert self.process is not None
            if self.process.poll() is not None:
                raise ServiceFailed(f"{self.name} ended with {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServiceFailed(f"{self.name} did not answer within {seconds} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as its operator would. Idempotent."""
        if self.process is None:
            return
        _signal_group(self.process, self.stop_signal)
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        else:
            _signal_group(self.process, signal.SIGKILL)  # what it left
            self.process = None

    def kill(self) -> None:
        """End it as a power cut would, without a word to anybody. Idempotent."""
        if self.process is None:
            return
        self.pause()  # or it could make another child meanwhile, which would keep what the next start needs
        family = self._family()
        _signal_group(self.process, signal.SIGKILL)
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait(END_SECONDS)
        self.process = None
        deadline = time.monotonic() + END_SECONDS
        while alive := [each for each in family if _status(each) not in _ENDED]:
            assert time.monotonic() < deadline, f"{self.name}: {alive} cannot be killed"
            time.sleep(0.001)

    def pause(self) -> None:
        """Let it hang: its connections stay open and nothing answers. Returns when all of it has stopped."""
        deadline = time.monotonic() + END_SECONDS
        while running := [each for each in self._family() if _status(each) not in (psutil.STATUS_STOPPED, *_ENDED)]:
            assert time.monotonic() < deadline, f"{self.name}: {running} cannot be paused"
            for each in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.suspend()
            time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        for each in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()

    def log_tail(self) -> str:
        """The end of what it has logged."""
        return self.log_path.read_text("utf-8", "replace")[-LOG_TAIL_CHARS:]

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _family(self) -> list[psutil.Process]:
        """Its process and all below it, of which some may be in process groups of their own. Nothing once it has ended:
        its number may be another's."""
        assert self.process is not None
        if self.process.poll() is not None:
            return []
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _signal_group(process: subprocess.Popen[bytes], kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, kind)


_ENDED = (None, psutil.STATUS_ZOMBIE)


def _status(process: psutil.Process) -> str | None:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return None


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 in PORTS that nothing listens on. None is given out twice, in this process or in another
    process of this run of pytest-xdist: a service may be stopped and come back to it. Raises ServiceFailed."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        ours = PORTS[:SHARED_PORTS]
    else:
        first = SHARED_PORTS + int(worker.removeprefix("gw"))
        ours = PORTS[first :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    candidates = [port for port in ours if port not in _given]
    random.SystemRandom().shuffle(candidates)  # another run of the tests may be beside this one
    ports = list(islice((port for port in candidates if _is_free(port) and _is_free(port + 10_000)), count))
    if len(ports) < count:
        raise ServiceFailed(f"{len(ports)} of {len(ours)} ports from {PORTS.start} on are free; {count} are needed")
    _given.update(ports)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def answers(port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
