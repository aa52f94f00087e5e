"""The worker's thread in a process: however it ends, the process knows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sensorkeep.app.application import Application
from sensorkeep.config import load_config
from sensorkeep.errors import SensorkeepError, Unavailable

WAIT_SECONDS = 20.0


class Panic(BaseException):
    """What the bindings of a driver raise: no Exception."""


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    application = Application(load_config(data_dir=tmp_path / "data"))
    yield application
    application.close()


@pytest.mark.parametrize("error", [Panic("a driver panicked"), SystemExit("a driver panicked")], ids=type)
def test_a_worker_that_ends_by_no_exception_has_stopped_by_itself(
    application: Application, error: BaseException
) -> None:
    worker = application.worker
    assert worker is not None

    def fetch(*_: object) -> None:
        raise error

    application.system.backends.queue.fetch = fetch  # type: ignore[assignment, method-assign]
    ended = threading.Event()
    worker.on_end = ended.set
    worker.start(0.0)
    assert ended.wait(WAIT_SECONDS)
    assert "a driver panicked" in (worker.stopped_because or "")
    assert not worker.stopped_for_good
    with pytest.raises(SensorkeepError, match="a driver panicked"):
        worker.check()


def test_a_worker_that_cannot_even_begin_has_stopped_by_itself(application: Application) -> None:
    worker = application.worker
    assert worker is not None

    def subscribe(*_: object) -> None:
        raise Unavailable("down")

    application.system.backends.pubsub.subscribe = subscribe  # type: ignore[assignment, method-assign]
    ended = threading.Event()
    worker.on_end = ended.set
    worker.start(0.0)
    assert ended.wait(WAIT_SECONDS)
    assert worker.stopped_because == "Unavailable: down"


def test_a_worker_that_was_told_to_end_has_not_stopped_by_itself(application: Application) -> None:
    worker = application.worker
    assert worker is not None
    worker.start(WAIT_SECONDS)
    worker.close()
    assert worker.stopped_because is None
