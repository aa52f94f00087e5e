"""The topics of the claims: made where they are absent, watched, and freed of what is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its way to export them is not mypy's
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
    TopicMetadata,
)

from sensorkeep.clock import Clock
from sensorkeep.errors import BadConfig, SensorkeepError, Unavailable
from sensorkeep.limits import (
    KAFKA_CHECK_SECONDS_MAX,
    KAFKA_SEGMENT_BYTES,
    KAFKA_SEGMENT_HOURS,
    KAFKA_START_SECONDS_MAX,
    KAFKA_TRIM_SECONDS,
)
from sensorkeep.queue.kafka.client import REFUSALS, Brokers, ClientLog, error_of, unavailable

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 1.0
_LOST_BY_RETENTION = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
"""What keeps claims until they are worked off."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is made where it is absent. One that exists is left as it is."""

    name: str
    partitions: int
    replication_factor: int

    def settings(self) -> dict[str, str]:
        """Its settings at the brokers; why: decision 0011."""
        # A claim is on this many machines before it counts as published, with one machine to spare.
        acknowledging = max(1, self.replication_factor - 1)
        settings = {
            **_LOST_BY_RETENTION,
            "segment.bytes": str(KAFKA_SEGMENT_BYTES),
            "segment.ms": str(KAFKA_SEGMENT_HOURS * 3_600_000),
            "unclean.leader.election.enable": "false",
            "min.insync.replicas": str(acknowledging),
        }
        if acknowledging == 1:
            settings["flush.messages"] = "1"  # perhaps no other machine has it, so it must be on the disk
        return settings


def unsafe_settings(settings: Mapping[str, str | None], copies: int) -> dict[str, str | None]:
    """Those of a topic with so many copies by which a published claim may be lost when one machine fails."""
    names: list[str] = []
    if copies > 1 and settings.get("unclean.leader.election.enable") != "false":
        names.append("unclean.leader.election.enable")
    if min(copies, int(settings.get("min.insync.replicas") or 1)) < 2 and settings.get("flush.messages") != "1":
        names += ["flush.messages"] if copies == 1 else ["flush.messages", "min.insync.replicas"]
    return {name: settings.get(name) for name in names}


def prepare_topic(brokers: Brokers, topic: Topic, client_log: ClientLog, clock: Clock) -> int:
    """Make the topic where it is absent; returns how many copies a claim needs to be published.

    Raises BadConfig where the brokers refuse, Unavailable where they do not answer. Several may do it at once.
    """
    return _Preparation(brokers, topic, client_log, clock).run()


class _Preparation:
    def __init__(self, brokers: Brokers, topic: Topic, client_log: ClientLog, clock: Clock) -> None:
        self._brokers = brokers
        self._topic = topic
        self._clock = clock
        self._deadline = clock.monotonic() + KAFKA_START_SECONDS_MAX
        self._events: list[KafkaError] = []
        self._admin = brokers.client(AdminClient, "start", {"error_cb": self._events.append, "logger": client_log})

    def run(self) -> int:
        found = self._look(lambda topics: True)
        if self._topic.name not in found:
            self._create()
            found = self._look(lambda topics: _has_leaders(topics.get(self._topic.name)))
        elif len(found[self._topic.name].partitions) != self._topic.partitions:
            count = len(found[self._topic.name].partitions)
            log.info("kafka_topic_kept", topic=self._topic.name, partitions=count, configured=self._topic.partitions)
        return self._check_settings(min(len(each.replicas) for each in found[self._topic.name].partitions.values()))

    def _look(self, wanted: Callable[[Mapping[str, TopicMetadata]], bool]) -> Mapping[str, TopicMetadata]:
        """The topics, once `wanted` says yes to them."""
        last: KafkaError | None = None
        while True:
            try:
                # All of them: one that is asked for and not there is an error, which a start must tell from others.
                topics = self._admin.list_topics(timeout=_LOOK_SECONDS).topics
                if wanted(topics):
                    return topics
            except KafkaException as error:
                last = error_of(error)
            self._admin.poll(0)
            refusal = next((event for event in [*self._events, last] if event and event.code() in REFUSALS), None)
            if refusal is not None:
                raise self._refused("let us in", refusal)
            if self._clock.monotonic() > self._deadline:
                raise Unavailable(
                    f"SENSORKEEP_QUEUE_URL: Kafka at {self._brokers.addresses} did not answer within"
                    f" {KAFKA_START_SECONDS_MAX:.0f} s: {_reason(self._events, last)}",
                    code="dependency_down",
                )

    def _create(self) -> None:
        topic = self._topic
        wanted = NewTopic(topic.name, topic.partitions, topic.replication_factor, config=topic.settings())
        try:
            self._admin.create_topics([wanted], request_timeout=KAFKA_START_SECONDS_MAX)[topic.name].result()
            log.info("kafka_topic_made", topic=topic.name, partitions=topic.partitions)
        except KafkaException as exception:
            error = error_of(exception)
            if error.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise self._not_created(error) from exception

    def _not_created(self, error: KafkaError) -> SensorkeepError:
        if error.code() in REFUSALS:
            return self._refused(f"let us make the topic {self._topic.name}", error)
        settings = {
            KafkaError.INVALID_REPLICATION_FACTOR: "SENSORKEEP_KAFKA_REPLICATION_FACTOR",
            KafkaError.INVALID_PARTITIONS: "SENSORKEEP_KAFKA_PARTITIONS",
            KafkaError.TOPIC_EXCEPTION: "SENSORKEEP_KAFKA_TOPIC",
            KafkaError.POLICY_VIOLATION: "SENSORKEEP_KAFKA_TOPIC",
        }
        if error.code() in settings:
            return BadConfig(f"{settings[error.code()]}: the topic {self._topic.name} cannot be made: {error.str()}")
        return unavailable(f"the topic {self._topic.name} cannot be made (SENSORKEEP_QUEUE_URL)", error)

    def _refused(self, what: str, error: KafkaError) -> BadConfig:
        return BadConfig(
            f"SENSORKEEP_QUEUE_URL: Kafka at {self._brokers.addresses} does not {what}: {error.str()}; see the settings"
            " SENSORKEEP_KAFKA_… and what the user may do there"
        )

    def _check_settings(self, copies: int) -> int:
        """Warn where the topic may lose claims by itself. Who may not look at its settings goes without that."""
        resource = ConfigResource(ResourceType.TOPIC, self._topic.name)
        try:
            asked = self._admin.describe_configs([resource], request_timeout=KAFKA_START_SECONDS_MAX)[resource]
            found = {name: entry.value for name, entry in asked.result().items()}
        except KafkaException as error:
            log.warning("kafka_topic_not_checked", topic=self._topic.name, detail=error_of(error).str())
            return 1
        risks = {name: found.get(name) for name, safe in _LOST_BY_RETENTION.items() if found.get(name) != safe}
        if risks:
            log.warning("kafka_topic_forgets", topic=self._topic.name, settings=risks, wanted=_LOST_BY_RETENTION)
        if unsafe := unsafe_settings(found, copies):
            log.warning("kafka_topic_unsafe", topic=self._topic.name, copies=copies, settings=unsafe)
        return int(found.get("min.insync.replicas") or 1)


def check_topic(admin: AdminClient, topic: str, copies: int) -> None:
    """Prove that claims can be published: every partition has a leader and enough copies. Raises Unavailable."""
    try:
        found = admin.list_topics(topic, timeout=KAFKA_CHECK_SECONDS_MAX).topics[topic]
    except KafkaException as error:
        raise unavailable("no broker answers", error) from error
    if found.error is not None:
        raise unavailable(f"the topic {topic} cannot be used", found.error)
    if not _has_leaders(found):
        raise Unavailable(f"Kafka: a partition of {topic} has no leader now", code="dependency_down")
    if any(len(partition.isrs) < copies for partition in found.partitions.values()):
        what = f"a partition of {topic} has fewer than {copies} copies in step (its min.insync.replicas)"
        raise Unavailable(f"Kafka: {what}", code="dependency_down")


class Trimmer:
    """Deletes acknowledged claims from the topic, once in a while. For the one thread that acknowledges."""

    def __init__(self, admin: AdminClient, topic: str, clock: Clock, every_seconds: float = KAFKA_TRIM_SECONDS) -> None:
        self._admin = admin
        self._topic = topic
        self._clock = clock
        self._every_seconds = every_seconds
        self._due_at = clock.monotonic() + every_seconds
        self._trimmed: dict[int, int] = {}

    def trim(self, committed: Mapping[int, int]) -> None:
        """Ask for the deletion of what is before these offsets, by partition, if it is time for that.

        Its answer is awaited by nobody: what was not deleted is by the next time.
        """
        now = self._clock.monotonic()
        wanted = {p: offset for p, offset in committed.items() if offset > self._trimmed.get(p, 0)}
        if now < self._due_at or not wanted:
            return
        self._due_at = now + self._every_seconds
        self._trimmed.update(wanted)
        partitions = [TopicPartition(self._topic, p, offset) for p, offset in wanted.items()]
        for future in self._admin.delete_records(partitions).values():
            future.add_done_callback(self._report)

    def _report(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            log.warning("kafka_topic_not_trimmed", topic=self._topic, detail=str(error))


def _has_leaders(found: TopicMetadata | None) -> bool:
    if found is None or found.error is not None or not found.partitions:
        return False
    return all(partition.leader >= 0 for partition in found.partitions.values())


def _reason(events: list[KafkaError], last: KafkaError | None) -> str:
    """The last error that says more than that all brokers are down."""
    telling = [event for event in events if event.code() != KafkaError._ALL_BROKERS_DOWN]
    error = telling[-1] if telling else last
    return error.str() if error is not None else "the topic has no leader"
