"""Claim queues on the Kafka of this run, and what their tests share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from sensorkeep.clock import SystemClock
from sensorkeep.model import Claim, WireFormat
from sensorkeep.queue.base import Delivery
from sensorkeep.queue.kafka import KafkaClaimQueue
from services import BROKERS, address, new_name

DEADLINE_SECONDS = 40.0
NO_BOUND = 1_000_000


def claim(name: str, credential: str = "", **fields: Any) -> Claim:
    values = {"wire_format": WireFormat.READINGS, "received_us": 1_700_000_000_000_000, "readings": 1, **fields}
    return Claim(batch_id=name, credential=credential, **values)


def names(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.claim.batch_id for delivery in deliveries]


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class KafkaWorld:
    """A topic and a group of its own, and the queues opened on them."""

    def __init__(self, brokers: str) -> None:
        self.brokers = brokers
        self.topic = new_name("queue")
        self._opened = ExitStack()
        self.admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})

    def open(self, *, consume: bool = True, **settings: Any) -> KafkaClaimQueue:
        """A queue as a worker's process opens it, or a gateway's."""
        settings = {"partitions": 4, "replication_factor": 1, "security": {}, "depth_cached_seconds": 0.0, **settings}
        queue = KafkaClaimQueue(
            self.brokers, self.topic, clock=SystemClock(), consume=consume, group=self.topic, **settings
        )
        self._opened.callback(queue.close)
        return queue

    def close(self) -> None:
        self._opened.close()

    def committed(self, partitions: int = 4) -> dict[int, int]:
        """What the group has committed, by partition; partitions without are left out."""
        reader = Consumer({"bootstrap.servers": self.brokers, "group.id": self.topic})
        places = reader.committed([TopicPartition(self.topic, p) for p in range(partitions)], timeout=10)
        reader.close()
        return {place.partition: place.offset for place in places if place.offset >= 0}

    def members(self) -> dict[str, int]:
        """How many partitions each member of the group has."""
        group = self.admin.describe_consumer_groups([self.topic])[self.topic].result()
        return {member.member_id: len(member.assignment.topic_partitions) for member in group.members}

    def read(self, topic: str, count: int) -> list[Any]:
        """The first messages of partition 0."""
        reader = Consumer({"bootstrap.servers": self.brokers, "group.id": new_name("reader")})
        reader.assign([TopicPartition(topic, 0, 0)])
        messages = reader.consume(count, DEADLINE_SECONDS)
        reader.close()
        assert len(messages) == count
        return messages

    def write_raw(self, contents: Sequence[bytes], key: bytes) -> None:
        """Messages as another program would write them."""
        settings = {"partitioner": "murmur2_random", "message.max.bytes": 10_000_000}
        producer = Producer({"bootstrap.servers": self.brokers, **settings})
        for content in contents:
            producer.produce(self.topic, content, key)
        assert producer.flush(DEADLINE_SECONDS) == 0


def fetch_all(queue: KafkaClaimQueue, count: int, *, at_once: int = NO_BOUND) -> list[Delivery]:
    """Fetch until so many claims have come."""
    deliveries: list[Delivery] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(deliveries) < count:
        assert time.monotonic() < deadline, f"only {len(deliveries)} of {count} claims came"
        deliveries += queue.fetch(at_once, NO_BOUND, 0.5)
    return deliveries


@pytest.fixture
def kafka() -> Iterator[KafkaWorld]:
    world = KafkaWorld(address(BROKERS))
    yield world
    world.close()
