"""What the suites of publish/subscribe listen with, and how they make one on Valkey."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sensorkeep.metrics import Metrics
from sensorkeep.pubsub.valkey import ValkeyPubSub
from sensorkeep.valkey import Valkey
from services import VALKEY_URL, address, new_name

DEADLINE_SECONDS = 20.0


class Listener:
    """Keeps what it hears and lets the test wait for it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._changed = threading.Condition()

    def __call__(self, message: bytes) -> None:
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[bytes]:
        """What was heard, once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.heard) >= count, DEADLINE_SECONDS)
            return self.heard


def valkey_pubsub(prefix: str | None = None, url: str | None = None, metrics: Metrics | None = None) -> ValkeyPubSub:
    """One process of an installation of its own, or of that with the `prefix`."""
    return ValkeyPubSub(Valkey(url or address(VALKEY_URL), prefix=prefix or new_name("test")), metrics)


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until the condition holds; fails where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
