"""The claim queue on Apache Kafka.

`publisher` sends claims; `consumer` is a worker's place in the group that shares the partitions, and `assignment` what
it holds of them; `lag` measures how far the group is behind; `topic` makes the topics and frees them of what is done;
`client` sets up the client. Decision 0011 has the reasons and the figures.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence

import structlog

from sensorkeep.clock import Clock
from sensorkeep.errors import Corrupt, LimitExceeded, Unavailable
from sensorkeep.limits import (
    KAFKA_DEAD_LETTER_BYTES_CUT,
    KAFKA_DEPTH_CACHED_SECONDS,
    WORKER_FAILURES_MAX,
    WORKER_OUTCOMES_WATCHED,
)
from sensorkeep.model import Claim
from sensorkeep.queue.base import Delivery, QueueDepth
from sensorkeep.queue.kafka.assignment import Held
from sensorkeep.queue.kafka.client import Brokers, ClientLog
from sensorkeep.queue.kafka.consumer import GroupConsumer
from sensorkeep.queue.kafka.lag import Lag
from sensorkeep.queue.kafka.messages import Record, record_of
from sensorkeep.queue.kafka.publisher import Publisher
from sensorkeep.queue.kafka.topic import Topic, Trimmer, check_topic, prepare_topic

log = structlog.get_logger(__name__)

WORKER_GROUP = "telemetry-workers"
"""The consumer group of all workers."""


class KafkaClaimQueue:
    """A ClaimQueue in `topic`, which is made with so many partitions and copies where it is absent.

    What order is kept: claims of one credential are delivered in the order in which their publishing ended, whichever
    gateways took them; so are all gathered claims (single readings, of whatever credential), which share one partition.
    A gathered claim and another one of the same credential may overtake each other. Partitions added later to a topic
    move credentials to other partitions: drain the topic first.

    A partition belongs to one worker at a time. When the group hands it on, what was taken and not acknowledged is
    delivered to the next worker, again in order; the former one's acknowledgements of it are ignored.

    `consume`: whether claims are fetched here, too; the group is joined with the first fetch. `security`: librdkafka's
    settings of that kind. `token` is partition and offset.

    A message that is no claim is set aside in the topic `<topic>.dead-letter`. Where most messages are none, `fetch`
    raises Corrupt: then the fault is rather here, or the topic another program's.

    Raises BadConfig where the brokers refuse, Unavailable where they do not answer.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        clock: Clock,
        partitions: int,
        replication_factor: int,
        consume: bool,
        security: Mapping[str, str],
        group: str = WORKER_GROUP,
        depth_cached_seconds: float = KAFKA_DEPTH_CACHED_SECONDS,
    ) -> None:
        self._brokers = Brokers(brokers, security)
        self._topic = topic
        self._dead_letters = Topic(f"{topic}.dead-letter", 1, replication_factor)
        self._clock = clock
        self._client_log = ClientLog(clock)
        self._copies = prepare_topic(
            self._brokers, Topic(topic, partitions, replication_factor), self._client_log, clock
        )
        if consume:
            prepare_topic(self._brokers, self._dead_letters, self._client_log, clock)
        self._admin = self._brokers.quiet_admin()
        self._publisher = Publisher(self._brokers, self._probe, self._client_log, clock)
        self._consumer = GroupConsumer(self._brokers, topic, group, self._client_log, clock) if consume else None
        self._lag = Lag(
            self._brokers,
            self._admin,
            topic,
            group,
            clock,
            ahead=self._consumer.acknowledged_ahead if self._consumer is not None else lambda: 0,
            cached_seconds=depth_cached_seconds,
        )
        self._lag.open()
        self._trimmer = Trimmer(self._admin, topic, clock)
        self._trimming = threading.Lock()
        self._readable: deque[bool] = deque(maxlen=WORKER_OUTCOMES_WATCHED)
        self._set_aside_count = 0
        self._closed = False
        if not consume:
            self._publisher.open()

    # --- the contract ---

    def publish(self, claims: Sequence[Claim]) -> None:
        self._check_open()
        if claims:
            self._publisher.publish(self._topic, [record_of(claim) for claim in claims])

    def fetch(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Delivery]:
        consumer = self._member()
        deadline = self._clock.monotonic() + wait_seconds
        while True:
            taken = consumer.take(max_claims, max_readings, deadline - self._clock.monotonic())
            try:
                self._set_aside([held for held in taken if held.claim is None], len(taken))
            except BaseException:
                consumer.release(held.token for held in taken)
                raise
            sound = [Delivery(held.claim, held.token, held.attempts) for held in taken if held.claim is not None]
            if sound or not taken:
                return sound

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        if deliveries:
            self._member().acknowledge([delivery.token for delivery in deliveries])
            self._trim()

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._member().release([delivery.token for delivery in deliveries])

    def depth(self) -> QueueDepth:
        self._check_open()
        return self._lag.depth()

    def wake(self) -> None:
        if self._consumer is not None:
            self._consumer.wake()

    def check(self) -> None:
        self._check_open()
        self._probe()

    def damaged(self) -> int:
        """How many messages this process has set aside because they are no claims."""
        return self._set_aside_count

    def close(self) -> None:
        self._closed = True
        if self._consumer is not None:
            self._consumer.close()
        self._publisher.close()
        self._lag.close()

    # --- messages ---

    def _set_aside(self, unreadable: Sequence[Held], among: int) -> None:
        """Move messages that are no claims to the dead letters; the group goes on without them.

        Raises Corrupt where too many are none, with the rest of them left in their place.
        """
        self._readable.extend([True] * (among - len(unreadable)))
        for held in unreadable:
            self._bury(held)
            self._readable.append(False)
            failed = self._readable.count(False)
            if failed >= WORKER_FAILURES_MAX and 2 * failed > len(self._readable):
                raise Corrupt(
                    f"{failed} of the last {len(self._readable)} messages of the topic {self._topic} are no claims:"
                    " does another program write to it, or is this release older than the gateways?"
                )

    def _bury(self, held: Held) -> None:
        place = f"{self._topic}/{held.partition}/{held.offset}"
        record = Record(b"", held.content, [("origin", place), ("reason", "it does not decode as a claim")])
        try:
            self._send_to_dead_letters(record)
        except LimitExceeded:  # no claim is nearly as long, and what follows must not wait behind it for ever
            cut = record._replace(value=held.content[:KAFKA_DEAD_LETTER_BYTES_CUT])
            cut.headers.append(("cut_from_bytes", str(len(held.content))))
            self._send_to_dead_letters(cut)
        self._member().acknowledge([held.token])
        self._set_aside_count += 1
        log.error("claim_set_aside", origin=place, topic=self._dead_letters.name, size_bytes=len(held.content))

    def _send_to_dead_letters(self, record: Record) -> None:
        try:
            self._publisher.publish(self._dead_letters.name, [record])
        except Unavailable:  # somebody may have deleted the topic, and what is no claim holds up all behind it
            self._check_open()
            prepare_topic(self._brokers, self._dead_letters, self._client_log, self._clock)
            self._publisher.publish(self._dead_letters.name, [record])

    def _trim(self) -> None:
        if self._trimming.acquire(blocking=False):
            try:
                self._trimmer.trim(self._member().progress())
            finally:
                self._trimming.release()

    # --- the rest ---

    def _probe(self) -> None:
        check_topic(self._admin, self._topic, self._copies)

    def _member(self) -> GroupConsumer:
        if self._consumer is None:
            raise RuntimeError("this queue was opened to publish only")
        return self._consumer

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the queue is closed")
