"""Workers that die on Kafka: what waited before a worker may have been tried, and its start knows of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from queue_kafka_world import NO_BOUND, KafkaWorld, claim, fetch_all, kafka, names
from test_worker_deaths import START_US, arm, live, send

from sensorkeep import limits
from sensorkeep.clock import ManualClock, SystemClock
from sensorkeep.errors import Unavailable
from sensorkeep.queue.kafka.client import Brokers, ClientLog
from sensorkeep.queue.kafka.consumer import GroupConsumer
from sensorkeep.testing.faulty import Crashed
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings

__all__ = ["kafka"]  # the fixture

pytestmark = pytest.mark.distributed


class KafkaPipeline(Pipeline):
    """A pipeline whose queue is on Kafka."""

    def __init__(self, kafka: KafkaWorld, directory: Path) -> None:
        self._kafka = kafka
        super().__init__(directory, ManualClock(START_US), settings=PipelineSettings(gateways=2))

    def _open_queue(self) -> Any:
        return self._kafka.open()


def rounds(pipeline: Pipeline) -> None:
    """Until the worker dies."""
    while True:
        pipeline.worker.round(1.0)


@pytest.fixture
def pipeline(kafka: KafkaWorld, tmp_path: Path) -> Iterator[KafkaPipeline]:
    made = KafkaPipeline(kafka, tmp_path)
    yield made
    made.close()


def test_a_batch_that_ends_its_workers_is_given_up_and_all_others_are_stored(pipeline: KafkaPipeline) -> None:
    before, killer, after = send(pipeline, "a"), send(pipeline, "killer"), send(pipeline, "b")
    deaths, _ = live(pipeline, {killer})
    assert deaths == limits.CLAIM_DEATHS_MAX
    ledger = pipeline.working.ledger
    assert [ledger.batch(batch_id).state for batch_id in (before, killer, after)] == ["stored", "dead_letter", "stored"]
    assert ledger.accounting()[1].pending == 0


def test_a_batch_that_ends_a_worker_long_after_its_start_is_given_up_too(pipeline: KafkaPipeline) -> None:
    while not pipeline.worker.caught_up.is_set():
        pipeline.worker.round()
    killer = send(pipeline, "killer")
    arm(pipeline, {killer})
    with pytest.raises(Crashed):
        rounds(pipeline)
    assert pipeline.working.attempts.unfinished([killer]) == {}, "nothing is noted while all goes well"
    pipeline.crash_worker()
    other = send(pipeline, "other")
    deaths, _ = live(pipeline, {killer})
    assert deaths == limits.CLAIM_DEATHS_MAX
    ledger = pipeline.working.ledger
    assert [ledger.batch(batch_id).state for batch_id in (killer, other)] == ["dead_letter", "stored"]


def test_a_worker_has_caught_up_only_when_what_waited_before_it_is_settled(pipeline: KafkaPipeline) -> None:
    batches = [send(pipeline, str(number)) for number in range(20)]
    pipeline.crash_worker()
    while not pipeline.worker.caught_up.is_set():
        pipeline.worker.round()
    assert {pipeline.working.ledger.batch(batch_id).state for batch_id in batches} == {"stored"}


def test_the_first_fetch_of_a_worker_brings_what_waits_however_short_it_is(kafka: KafkaWorld) -> None:
    kafka.open(consume=False).publish([claim(str(i)) for i in range(3)])
    queue = kafka.open()
    taken = queue.fetch(NO_BOUND, NO_BOUND, 0.0)
    assert taken, "an empty list would say that nothing waits"
    taken += fetch_all(queue, 3 - len(taken))
    assert [delivery.attempts for delivery in taken] == [2, 2, 2]
    queue.publish([claim("later")])
    assert [(d.claim.batch_id, d.attempts) for d in fetch_all(queue, 1)] == [("later", 1)]


def test_what_one_worker_took_counts_as_tried_for_the_next_one(kafka: KafkaWorld) -> None:
    first = kafka.open()
    assert first.fetch(1, 1, 0.0) == []
    first.publish([claim("a"), claim("b")])
    assert [delivery.attempts for delivery in fetch_all(first, 2)] == [1, 1]
    first.close()
    assert [delivery.attempts for delivery in fetch_all(kafka.open(), 2)] == [2, 2]


def test_a_worker_for_which_no_partition_is_left_knows_that_nothing_waits_for_it(kafka: KafkaWorld) -> None:
    first = kafka.open(partitions=1)
    first.publish([claim("a")])
    assert names(fetch_all(first, 1)) == ["a"]
    began = time.monotonic()
    assert kafka.open(partitions=1).fetch(1, 1, 0.0) == []
    assert time.monotonic() - began < limits.KAFKA_JOIN_SECONDS_MAX


def test_a_worker_that_no_group_lets_in_does_not_say_that_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorkeep.queue.kafka.consumer.KAFKA_JOIN_SECONDS_MAX", 0.2)
    clock = SystemClock()
    nowhere = GroupConsumer(Brokers("127.0.0.1:9"), "topic", "group", ClientLog(clock), clock)
    with pytest.raises(Unavailable):
        nowhere.take(1, 1, 0.0)
    nowhere.close()
