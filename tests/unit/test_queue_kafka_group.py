"""Workers that come, go and die while claims are published: each claim is delivered, each source stays in order."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from queue_kafka_world import DEADLINE_SECONDS, KafkaWorld, claim, fetch_all, kafka, names, wait_until

from sensorkeep.queue.kafka import KafkaClaimQueue

__all__ = ["kafka"]  # the fixture

pytestmark = pytest.mark.distributed

SOURCES = 12
EACH = 150
WORKER = Path(__file__).parent / "queue_kafka_worker.py"


class Crew:
    """Workers as threads, and what was delivered to them, in the order in which it was."""

    def __init__(self, kafka: KafkaWorld) -> None:
        self._kafka = kafka
        self._lock = threading.Lock()
        self._threads: list[tuple[threading.Event, threading.Thread]] = []
        self.delivered: list[str] = []
        self.failures: list[Exception] = []

    def add(self) -> None:
        stop = threading.Event()
        thread = threading.Thread(target=self._work, args=(self._kafka.open(), stop), daemon=True)
        self._threads.append((stop, thread))
        thread.start()

    def remove(self, index: int = 0) -> None:
        stop, thread = self._threads.pop(index)
        stop.set()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()

    def count(self) -> int:
        with self._lock:
            return len(self.delivered)

    def wait_for_more_than(self, count: int) -> None:
        wait_until(lambda: self.count() > count or self.failures, "nothing comes")

    def first_deliveries(self) -> list[str]:
        return list(dict.fromkeys(self.delivered))

    def _work(self, queue: KafkaClaimQueue, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                deliveries = queue.fetch(20, 1_000, 0.1)
                with self._lock:
                    self.delivered += names(deliveries)
                queue.release(deliveries[10:])
                queue.ack(deliveries[:10])
            queue.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test tells it
            self.failures.append(error)


def test_rebalances_while_publishing_lose_nothing_and_keep_each_source_in_order(kafka: KafkaWorld) -> None:
    gateway = kafka.open(consume=False)
    crew = Crew(kafka)
    step = threading.Semaphore(0)

    def publish() -> None:
        for i in range(EACH):
            step.acquire()
            gateway.publish([claim(f"{source}/{i}", f"key-{source}") for source in range(SOURCES)])

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    crew.add()
    changes: list[Callable[[], None]] = [crew.add, crew.add, crew.remove, crew.add, lambda: crew.remove(1)]
    for change in changes:
        before = crew.count()
        step.release(EACH // len(changes))
        crew.wait_for_more_than(before)
        change()
    publisher.join()
    wait_until(lambda: gateway.depth().claims == 0 or crew.failures, "the queue is not drained")
    crew.remove()
    crew.remove()
    assert crew.failures == []
    first = crew.first_deliveries()
    assert len(first) == SOURCES * EACH
    for source in range(SOURCES):
        mine = [name for name in first if name.startswith(f"{source}/")]
        assert mine == [f"{source}/{i}" for i in range(EACH)]


def test_what_a_worker_that_was_killed_held_goes_to_the_next_one(kafka: KafkaWorld) -> None:
    kafka.open().publish([claim(str(i)) for i in range(20)])
    with subprocess.Popen(
        [sys.executable, str(WORKER), kafka.brokers, kafka.topic],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            held = next(line for line in process.stdout if not line.startswith("20")).split()
            assert held == [str(i) for i in range(10)]
            process.stdin.write("4\n")
            process.stdin.flush()
            assert next(line for line in process.stdout if line.startswith("ack"))
        finally:
            process.kill()
    queue = kafka.open()
    again = fetch_all(queue, 16)
    assert names(again) == [str(i) for i in range(4, 20)]
    queue.ack(again)
    assert queue.depth() == (0, None)


def test_a_worker_that_ends_without_a_partition_leaves_the_group_at_once(kafka: KafkaWorld) -> None:
    """Or the group would wait for it whenever it shares anew, and what the others do could not be noted meanwhile."""
    crew = [kafka.open(partitions=1) for _ in range(2)]
    with ThreadPoolExecutor(len(crew)) as threads:
        assert list(threads.map(lambda queue: queue.fetch(1, 1, 0.1), crew)) == [[], []]
    wait_until(lambda: sorted(kafka.members().values()) == [0, 1], "the group is not shared")
    for queue in crew:
        queue.close()
    assert kafka.members() == {}
