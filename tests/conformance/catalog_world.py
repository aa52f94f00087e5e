"""What the suites of a catalog in PostgreSQL share: the time, batches, and callers at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sensorkeep.clock import ManualClock
from sensorkeep.model import Claim, WireFormat

NOW_US = 1_790_000_000_000_000
CLOCK = ManualClock(NOW_US)


def at_once(*acts: Callable[[], None]) -> None:
    """Run them at the same time. The first error is raised."""
    barrier = threading.Barrier(len(acts))

    def run(act: Callable[[], None]) -> None:
        barrier.wait()
        act()

    with ThreadPoolExecutor(len(acts)) as threads:
        running = [threads.submit(run, act) for act in acts]
    for ended in running:
        ended.result()


def claim(number: int, readings: int = 5, **more: object) -> Claim:
    """A claim to a batch of that number."""
    return Claim(
        batch_id=f"b{number:05}", wire_format=WireFormat.READINGS, received_us=NOW_US, readings=readings,
        payload=b"[]", **more,  # type: ignore[arg-type]
    )  # fmt: skip
