"""How much of the topic the group has not acknowledged yet, seen from any process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its way to export
    AdminClient,
    OffsetSpec,
    TopicMetadata,
)

from sensorkeep.clock import Clock
from sensorkeep.errors import BadConfig, Unavailable
from sensorkeep.limits import KAFKA_CHECK_SECONDS_MAX, KAFKA_START_SECONDS_MAX, KIB
from sensorkeep.queue.base import QueueDepth
from sensorkeep.queue.kafka.client import REFUSALS, Brokers, answer_of, close_consumer, error_of, unavailable
from sensorkeep.queue.kafka.messages import read_message

_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]

_READER_SETTINGS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "queued.min.messages": 1,
    "fetch.queue.backoff.ms": 5,
    "fetch.message.max.bytes": 128 * KIB,
    "log_level": 0,
}
"""Of a reader of single messages, no member of the group: it is told what to read, and commits nothing."""

_PASSING = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.NOT_LEADER_FOR_PARTITION,  # of a topic just made, too: the broker learns it after the cluster
    }
)
"""Answers of a cluster that is about to know better."""
_TRY_SECONDS = 0.5
_AGAIN_SECONDS = 0.05


class Lag:
    """Tells the depth. Thread-safe; a call is shared by all who ask while it runs, and for `cached_seconds` after.

    `ahead` tells how many messages this process has acknowledged that the group does not know of yet.
    """

    def __init__(
        self,
        brokers: Brokers,
        admin: AdminClient,
        topic: str,
        group: str,
        clock: Clock,
        *,
        ahead: Callable[[], int],
        cached_seconds: float,
    ) -> None:
        self._brokers = brokers
        self._admin = admin
        self._topic = topic
        self._group = group
        self._clock = clock
        self._ahead = ahead
        self._cached_seconds = cached_seconds
        self._asking = threading.Lock()
        """Held by the one who uses the reader."""
        self._reader: Consumer | None = None
        self._known: tuple[float, QueueDepth] | None = None
        self._heads: dict[int, tuple[int, int]] = {}
        """By partition: the offset of the first message that waits, and when its claim was received."""

    def open(self) -> None:
        """Prove that the group can be asked. Raises BadConfig where it is refused, Unavailable.

        The first one to ask a new cluster waits until its brokers have made the topic of all groups' offsets.
        """
        try:
            with self._asking:
                self._committed([0], self._clock.monotonic() + KAFKA_START_SECONDS_MAX)
        except KafkaException as exception:
            what, error = f"the consumer group {self._group} cannot be asked", error_of(exception)
            self.close()
            if error.code() in REFUSALS:
                raise BadConfig(f"SENSORKEEP_QUEUE_URL: {what}: {error.str()}") from exception
            raise unavailable(f"{what} (SENSORKEEP_QUEUE_URL)", error) from exception

    def _refusal(self) -> KafkaError | None:
        """The brokers' refusal, if there is one: the client goes on asking, and tells of it as of a message."""
        message = self._reader_now().poll(0)
        error = message.error() if message is not None else None
        return error if error is not None and error.code() in REFUSALS else None

    def depth(self) -> QueueDepth:
        """The depth now, or a moment ago. Raises Unavailable."""
        with self._asking:
            now = self._clock.monotonic()
            if self._known is None or now - self._known[0] >= self._cached_seconds:
                self._known = (now, self._ask(now + KAFKA_CHECK_SECONDS_MAX))
            return self._known[1]

    def close(self) -> None:
        """Let go of the client. Idempotent."""
        with self._asking:
            reader, self._reader = self._reader, None
        if reader is not None:
            close_consumer(reader)

    def _ask(self, deadline: float) -> QueueDepth:
        waiting = self._waiting(deadline)
        claims = sum(end - first for first, end in waiting.values())
        if not claims:
            self._heads.clear()
            return QueueDepth(0, None)
        self._read_heads({partition: first for partition, (first, _) in waiting.items()}, deadline)
        return QueueDepth(max(1, claims - self._ahead()), min(received_us for _, received_us in self._heads.values()))

    def _waiting(self, deadline: float) -> dict[int, tuple[int, int]]:
        """By partition, of those that have any: the first offset that is not acknowledged, and the end."""
        try:
            numbers = self._partitions(deadline)
            committed = self._committed(numbers, deadline)  # first: asked after the ends they could be past them
            ends = self._offsets(numbers, _LATEST, deadline)
            fresh = [p for p in numbers if p not in committed]
            committed.update(self._offsets(fresh, _EARLIEST, deadline) if fresh else {})
        except KafkaException as error:
            raise unavailable("the depth of the queue is not known", error) from error
        return {p: (committed[p], ends[p]) for p in numbers if ends[p] > committed[p]}

    def _committed(self, numbers: Sequence[int], deadline: float) -> dict[int, int]:
        """What the group has committed of these partitions, where it has. Raises KafkaException.

        Asked through the reader: the same request of the administrative client ends the process where the group's
        coordinator has moved or is still loading (librdkafka 2.16).
        """
        asked = [TopicPartition(self._topic, p) for p in numbers]
        while True:
            try:
                places = self._reader_now().committed(asked, timeout=min(_TRY_SECONDS, self._left(deadline)))
                failed = next((place.error for place in places if place.error is not None), None)
                if failed is not None:
                    raise KafkaException(failed)
            except KafkaException as error:
                refusal = self._refusal()
                if refusal is not None:
                    raise KafkaException(refusal) from error
                if error_of(error).code() not in _PASSING or self._clock.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN_SECONDS)
            else:
                return {place.partition: place.offset for place in places if place.offset >= 0}

    def _partitions(self, deadline: float) -> list[int]:
        """The partitions' numbers. Raises KafkaException.

        To ask renews what a client knows of their leaders. The reader would have to find out before its first message,
        and the administrative client names leaders in its requests, but learns of an election minutes later of itself
        (compare https://github.com/confluentinc/librdkafka/issues/4620).
        """
        for client in (self._reader_now(), self._admin):
            while (found := self._described(client, deadline)).error is not None:
                if found.error.code() not in _PASSING or self._clock.monotonic() > deadline:
                    raise KafkaException(found.error)
                time.sleep(_AGAIN_SECONDS)
        return list(found.partitions)

    def _described(self, client: Consumer | AdminClient, deadline: float) -> TopicMetadata:
        return client.list_topics(self._topic, timeout=self._left(deadline)).topics[self._topic]

    def _offsets(self, numbers: list[int], which: OffsetSpec, deadline: float) -> dict[int, int]:
        asked = {TopicPartition(self._topic, p): which for p in numbers}
        while True:
            futures = self._admin.list_offsets(asked, request_timeout=self._left(deadline))
            try:
                return {
                    place.partition: answer_of("the topic's offsets", future, self._left(deadline)).offset
                    for place, future in futures.items()
                }
            except Unavailable as error:
                cause = error.__cause__
                passing = isinstance(cause, KafkaException) and error_of(cause).code() in _PASSING
                if not passing or self._clock.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN_SECONDS)
                self._partitions(deadline)

    def _read_heads(self, first: Mapping[int, int], deadline: float) -> None:
        """Find out when the first claim that waits was received, in each partition. Raises Unavailable."""
        self._heads = {p: head for p, head in self._heads.items() if first.get(p) == head[0]}
        missing = {p: offset for p, offset in first.items() if p not in self._heads}
        if not missing:
            return
        reader = self._reader_now()
        reader.assign([TopicPartition(self._topic, p, offset) for p, offset in missing.items()])
        try:
            while missing:
                if self._clock.monotonic() > deadline:
                    raise Unavailable("Kafka: the first claim that waits cannot be read", code="dependency_down")
                message = reader.poll(self._left(deadline))
                if message is None or message.error() is not None:
                    continue
                held = read_message(message)
                if held.partition in missing:
                    received_us = held.claim.received_us if held.claim is not None else held.time_us
                    self._heads[held.partition] = (missing.pop(held.partition), received_us)
        finally:
            reader.unassign()

    def _reader_now(self) -> Consumer:
        if self._reader is None:
            self._reader = self._brokers.client(Consumer, "depth", {"group.id": self._group, **_READER_SETTINGS})
        return self._reader

    def _left(self, deadline: float) -> float:
        return max(0.01, deadline - self._clock.monotonic())
