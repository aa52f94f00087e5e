"""How the commands that run until they are told to stop end: by a signal, or because the worker ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from sensorkeep.cli.output import ExitCode
from sensorkeep.cli.serve import run
from sensorkeep.config import Config

WAIT_SECONDS = 20.0


def test_a_server_imports_nothing_that_it_does_without() -> None:
    program = """
import contextlib, sys
sys.argv = ["sensorkeep", "--version"]
from sensorkeep.cli import main, without
with contextlib.suppress(SystemExit):
    main()
with without("pandas"):
    import sensorkeep.app.application
print(sorted({"rich", "pandas"} & sys.modules.keys()))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.splitlines()[-1] == "[]"


class FakeWorker:
    """A worker that ends as the test says, at the moment it says."""

    def __init__(self) -> None:
        self.on_end: Callable[[], None] = lambda: None
        self.stopped_because: str | None = None
        self.stopped_for_good = False
        self.told_to_stop = False

    def stop(self) -> None:
        self.told_to_stop = True

    def end(self, because: str, *, for_good: bool) -> None:
        self.stopped_because, self.stopped_for_good = because, for_good
        self.on_end()


class FakeApplication:
    """A worker's process without its services. It calls what is set when it begins, starts, serves and is closed."""

    def __init__(self) -> None:
        self.config = Config()
        self.role = "worker"
        self.gateway = None
        self.worker = FakeWorker()
        self.queue_closed = threading.Event()
        self.system = SimpleNamespace(backends=SimpleNamespace(queue=SimpleNamespace(close=self.queue_closed.set)))
        self.password: str | None = None
        self.data_dir = None
        self.on_first_start: Callable[[], None] = lambda: None
        self.on_start: Callable[[], None] = lambda: None
        self.on_serve: Callable[[], None] = lambda: None
        self.closed = False

    def first_start(self) -> str | None:
        self.on_first_start()
        return self.password

    def start(self) -> None:
        self.on_start()

    def places(self) -> list[tuple[str, str]]:
        """What is asked last before it serves."""
        threading.Thread(target=self.on_serve, daemon=True).start()
        return []

    def asgi(self, _: object) -> Any:
        return lambda *_: None

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApplication]:
    fake = FakeApplication()
    monkeypatch.setattr("sensorkeep.app.application.Application", lambda *_, **__: fake)
    kept = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
    yield fake
    for kind, handler in kept.items():
        signal.signal(kind, handler)
    assert fake.closed


def ends_with(*, stay: bool = False) -> int:
    """The exit code of a worker's process."""
    try:
        run(Config(), "worker", 0, stay=stay)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


@pytest.mark.parametrize(
    ("for_good", "code"), [(True, ExitCode.STOPPED_FOR_GOOD), (False, ExitCode.SOME_REFUSED)], ids=["good", "now"]
)
def test_a_worker_that_stops_by_itself_ends_its_process_and_the_code_says_whether_to_start_it_again(
    application: FakeApplication, for_good: bool, code: int
) -> None:
    application.on_serve = lambda: application.worker.end("20 failed", for_good=for_good)
    assert ends_with() == code


def test_a_worker_that_stays_lets_its_claims_go_and_ends_when_it_is_told_to(application: FakeApplication) -> None:
    def stop_it_then() -> None:
        application.worker.end("20 failed", for_good=True)
        assert application.queue_closed.wait(WAIT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    application.on_serve = stop_it_then
    assert ends_with(stay=True) == ExitCode.STOPPED_FOR_GOOD
    assert application.queue_closed.is_set()


def test_a_worker_that_stays_is_ended_by_what_a_new_start_may_heal(application: FakeApplication) -> None:
    application.on_serve = lambda: application.worker.end("a bug", for_good=False)
    assert ends_with(stay=True) == ExitCode.SOME_REFUSED
    assert not application.queue_closed.is_set()


def test_a_worker_that_ends_while_the_process_starts_ends_it(application: FakeApplication) -> None:
    application.on_start = lambda: application.worker.end("a bug", for_good=False)
    assert ends_with() == ExitCode.SOME_REFUSED


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT], ids=lambda kind: kind.name)
@pytest.mark.parametrize("moment", ["on_first_start", "on_start"])
def test_a_signal_during_the_start_ends_the_process_before_it_serves(
    application: FakeApplication, moment: str, kind: signal.Signals
) -> None:
    served = threading.Event()
    told_before: list[bool] = []

    def start() -> None:
        if moment == "on_start":
            os.kill(os.getpid(), kind)
        told_before.append(application.worker.told_to_stop)

    application.on_first_start = lambda: os.kill(os.getpid(), kind) if moment == "on_first_start" else None
    application.on_start = start
    application.on_serve = served.set
    assert ends_with() == 0
    assert told_before == [True]  # or the start would wait for it
    assert not served.is_set()


def test_the_first_password_is_told_though_the_start_is_ended(
    application: FakeApplication, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next start would not know it."""
    application.password = "made-at-the-first-start"
    application.on_start = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert ends_with() == 0
    assert capsys.readouterr().out.count(application.password) == 1


def test_a_second_signal_stops_nothing_twice(application: FakeApplication) -> None:
    """It comes in the middle of anything: of what the first one called, too, which may hold a lock."""
    stops = 0

    def stop() -> None:
        nonlocal stops
        stops += 1
        os.kill(os.getpid(), signal.SIGTERM)

    application.worker.stop = stop  # type: ignore[method-assign]
    application.on_start = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert ends_with() == 0
    assert stops == 1
