"""What is particular to the claim queue on Kafka: topics, keys, offsets, messages that are no claims, lag."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its way to export them is not mypy's
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)
from queue_kafka_world import NO_BOUND, KafkaWorld, claim, fetch_all, kafka, names, wait_until
from structlog.testing import capture_logs

from sensorkeep.clock import ManualClock, SystemClock
from sensorkeep.errors import BadConfig, Corrupt, LimitExceeded, Unavailable, Uncertain
from sensorkeep.limits import KAFKA_CLIENT_LOG_SECONDS, KAFKA_ROOM_SECONDS_MAX, WORKER_FAILURES_MAX
from sensorkeep.queue.base import Delivery
from sensorkeep.queue.kafka import KafkaClaimQueue, client, topic
from sensorkeep.queue.kafka.consumer import GroupConsumer

__all__ = ["kafka"]  # the fixture

pytestmark = pytest.mark.distributed


def small_member(queue: KafkaClaimQueue, buffer_claims: int) -> GroupConsumer:
    """A member of the queue's group that reads less ahead."""
    topic, group = queue._topic, queue._topic
    return GroupConsumer(queue._brokers, topic, group, queue._client_log, SystemClock(), buffer_claims=buffer_claims)


# --- topics and starting ---


def test_the_topics_are_made_with_the_wanted_partitions_and_keep_claims_until_they_are_worked_off(
    kafka: KafkaWorld,
) -> None:
    kafka.open(partitions=5)
    topics = kafka.admin.list_topics(timeout=10).topics
    assert len(topics[kafka.topic].partitions) == 5
    assert len(topics[f"{kafka.topic}.dead-letter"].partitions) == 1
    resource = ConfigResource(ResourceType.TOPIC, kafka.topic)
    found = kafka.admin.describe_configs([resource])[resource].result()
    wanted = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete", "flush.messages": "1"}
    assert {name: found[name].value for name in wanted} == wanted


def test_a_gateway_makes_no_topic_for_dead_letters(kafka: KafkaWorld) -> None:
    kafka.open(consume=False)
    assert f"{kafka.topic}.dead-letter" not in kafka.admin.list_topics(timeout=10).topics


def test_many_processes_may_open_a_new_topic_at_once(kafka: KafkaWorld) -> None:
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            kafka.open(consume=False).publish([claim("1")])
        except Exception as error:  # noqa: BLE001 - whatever it is, the test tells it
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(fetch_all(kafka.open(), 5)) == 5


def test_a_topic_that_exists_is_left_as_it_is_and_one_that_forgets_is_told_of(kafka: KafkaWorld) -> None:
    made = NewTopic(kafka.topic, 2, 1, config={"retention.ms": "3600000"})
    kafka.admin.create_topics([made])[kafka.topic].result()
    with capture_logs() as logs:
        queue = kafka.open(partitions=6)
    assert len(kafka.admin.list_topics(timeout=10).topics[kafka.topic].partitions) == 2
    assert [line["settings"] for line in logs if line["event"] == "kafka_topic_forgets"] == [
        {"retention.ms": "3600000"}
    ]
    queue.publish([claim("1")])
    assert names(fetch_all(queue, 1)) == ["1"]


def test_a_topic_of_one_copy_that_does_not_sync_is_told_of_and_one_that_we_make_is_not(kafka: KafkaWorld) -> None:
    with capture_logs() as logs:
        kafka.open()
    assert [line for line in logs if line["event"] == "kafka_topic_unsafe"] == []
    kafka.topic += "-found"
    kafka.admin.create_topics([NewTopic(kafka.topic, 1, 1)])[kafka.topic].result()
    with capture_logs() as logs:
        kafka.open()
    (told,) = [line for line in logs if line["event"] == "kafka_topic_unsafe"]
    assert (told["topic"], told["copies"], list(told["settings"])) == (kafka.topic, 1, ["flush.messages"])


def test_brokers_that_do_not_answer_are_named_with_their_setting(
    kafka: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic, "KAFKA_START_SECONDS_MAX", 1.0)
    kafka.brokers = "127.0.0.1:9"
    with pytest.raises(Unavailable, match=r"SENSORKEEP_QUEUE_URL.*127\.0\.0\.1:9 .*refused") as caught:
        kafka.open()
    assert caught.value.code == "dependency_down"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"replication_factor": 3}, "SENSORKEEP_KAFKA_REPLICATION_FACTOR"),
        ({"security": {"security.protocol": "magic"}}, "magic"),
        ({"security": {"security.protocol": "ssl", "ssl.ca.location": "/nowhere/ca.pem"}}, r"ssl\.ca\.location"),
    ],
)
def test_settings_that_cannot_work_stop_the_start(kafka: KafkaWorld, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(BadConfig, match=named):
        kafka.open(**settings)


def test_a_topic_of_a_name_that_is_not_allowed_stops_the_start(kafka: KafkaWorld) -> None:
    kafka.topic = "not a name"
    with pytest.raises(BadConfig, match="SENSORKEEP_KAFKA_TOPIC"):
        kafka.open()


# --- order and publishing ---


def test_claims_of_one_source_keep_their_order_whichever_gateway_took_them(kafka: KafkaWorld) -> None:
    gateways = [kafka.open(consume=False) for _ in range(2)]
    sources = ["", "key-1", "key-2", "key-3", "key-4"]
    for i in range(20):
        for source in sources:
            gateways[i % 2].publish([claim(f"{source}/{i}", source)])
    worker = kafka.open()
    seen = names(fetch_all(worker, 20 * len(sources)))
    for source in sources:
        assert [name for name in seen if name.startswith(f"{source}/")] == [f"{source}/{i}" for i in range(20)]


def test_a_claim_that_the_topic_cannot_take_is_refused_and_others_go_on(kafka: KafkaWorld) -> None:
    queue = kafka.open(consume=False)
    with pytest.raises(LimitExceeded):
        queue.publish([claim("large", payload=bytes(2_000_000))])
    queue.publish([claim("small")])
    assert queue.depth().claims == 1


def test_where_one_claim_of_several_failed_the_outcome_is_uncertain(kafka: KafkaWorld) -> None:
    queue = kafka.open(consume=False)
    with pytest.raises(Uncertain):
        queue.publish([claim("small"), claim("large", payload=bytes(2_000_000))])
    queue.publish([claim("next")])
    assert queue.depth().claims == 2


def test_without_the_topic_publishing_and_the_check_fail_and_it_is_certain(kafka: KafkaWorld) -> None:
    queue = kafka.open(consume=False)
    queue.publish([claim("1")])
    kafka.admin.delete_topics([kafka.topic])[kafka.topic].result()
    wait_until(lambda: kafka.topic not in kafka.admin.list_topics(timeout=10).topics, "the topic stays")
    with pytest.raises(Unavailable, match=kafka.topic):
        queue.check()
    wait_until(lambda: _fails_certainly(queue), "it is never certain")


def _fails_certainly(queue: KafkaClaimQueue) -> bool:
    with pytest.raises(Unavailable) as caught:
        queue.publish([claim("2")])
    return not isinstance(caught.value, Uncertain)


def test_what_the_brokers_refuse_the_reader_is_told_once(kafka: KafkaWorld) -> None:
    queue = kafka.open()
    queue.fetch(1, 1, 0.0)
    queue._member()._take_error(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))
    with pytest.raises(Unavailable, match="the queue cannot be read"):
        queue.fetch(1, 1, 20.0)
    assert queue.fetch(1, 1, 0.0) == []


def test_after_a_fatal_error_the_client_is_made_anew(kafka: KafkaWorld) -> None:
    queue = kafka.open(consume=False)
    queue.publish([claim("1")])
    before = queue._publisher._producer
    queue._publisher._take_event(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "made up", fatal=True))
    queue.publish([claim("2")])
    assert queue._publisher._producer is not before
    assert queue.depth().claims == 2


# --- offsets ---


def test_offsets_are_committed_only_as_far_as_all_is_acknowledged(kafka: KafkaWorld) -> None:
    queue = kafka.open(partitions=1)
    queue.publish([claim(str(i)) for i in range(6)])
    taken = fetch_all(queue, 6)
    assert kafka.committed() == {}
    queue.ack([taken[0], taken[1], taken[3]])
    assert kafka.committed() == {0: 2}
    queue.ack([taken[5]])
    assert kafka.committed() == {0: 2}
    assert queue.depth().claims == 2
    queue.ack([taken[2]])
    assert kafka.committed() == {0: 4}
    queue.ack([taken[4]])
    assert kafka.committed() == {0: 6}


def test_the_acknowledgement_of_a_claim_that_went_to_another_worker_is_passed_over(kafka: KafkaWorld) -> None:
    first = kafka.open()
    sources = [f"key-{i}" for i in range(12)]
    first.publish([claim(source, source) for source in sources])
    held = fetch_all(first, len(sources))
    second = kafka.open()
    again = second.fetch(1, 1, 0.0)
    mine, moved = first._member()._assignment, second._member()._assignment
    wait_until(
        lambda: len(moved.partitions) == 2 and len(mine.partitions) == 2, "no partition went to the second worker"
    )
    again += fetch_all(second, sum(delivery.token >> 48 in moved.partitions for delivery in held) - len(again))
    first.ack(held)
    committed = kafka.committed()
    assert committed.keys() == mine.partitions
    assert second.depth().claims == len(again)
    second.ack(again)
    assert second.depth() == (0, None)


def test_acknowledged_claims_are_deleted_from_the_topic_and_others_stay(kafka: KafkaWorld) -> None:
    queue = kafka.open(partitions=1)
    queue._trimmer = topic.Trimmer(kafka.admin, kafka.topic, SystemClock(), every_seconds=0.0)
    queue.publish([claim(str(i)) for i in range(5)])
    queue.ack(fetch_all(queue, 5)[:3])
    place = TopicPartition(kafka.topic, 0)

    def first_offset() -> int:
        asked = kafka.admin.list_offsets({place: OffsetSpec.earliest()})  # type: ignore[no-untyped-call]
        return int(asked[place].result().offset)

    wait_until(lambda: first_offset() == 3, "the claims stay")
    queue.close()
    assert names(fetch_all(kafka.open(), 2)) == ["3", "4"]


def test_claims_that_something_else_deleted_are_told_of(kafka: KafkaWorld) -> None:
    queue = kafka.open(partitions=1)
    queue.publish([claim(str(i)) for i in range(6)])
    queue.ack(fetch_all(queue, 6)[:1])
    queue.close()
    place = TopicPartition(kafka.topic, 0, 4)
    kafka.admin.delete_records([place])[place].result()
    with capture_logs() as logs:
        assert names(fetch_all(kafka.open(), 2)) == ["4", "5"]
    assert [line["lost"] for line in logs if line["event"] == "kafka_claims_lost"] == [3]


def test_a_full_buffer_pauses_the_partitions_and_nothing_is_missed(kafka: KafkaWorld) -> None:
    queue = kafka.open(partitions=2)
    queue._consumer = member = small_member(queue, buffer_claims=10)
    queue.publish([claim(f"{source}/{i}", source) for i in range(300) for source in ("a", "b", "c")])
    seen = names(queue.fetch(1, 1, 20.0))
    wait_until(lambda: member._paused, "the partitions are not paused")
    assert member._assignment.claims <= 10
    while len(seen) < 900:
        deliveries = queue.fetch(7, 7, 20.0)
        assert deliveries, "a claim was missed"
        seen += names(deliveries)
    for source in ("a", "b", "c"):
        assert [name for name in seen if name.startswith(f"{source}/")] == [f"{source}/{i}" for i in range(300)]


def test_a_full_buffer_does_not_keep_an_acknowledgement_waiting(kafka: KafkaWorld) -> None:
    queue = kafka.open(partitions=1)
    queue._consumer = member = small_member(queue, buffer_claims=5)
    queue.publish([claim(str(i)) for i in range(60)])
    slowest_seconds = 0.0
    for _ in range(40):
        taken = fetch_all(queue, 1, at_once=1)
        wait_until(member._is_full, "the buffer does not fill")
        started = time.monotonic()
        queue.ack(taken)
        slowest_seconds = max(slowest_seconds, time.monotonic() - started)
    assert slowest_seconds < KAFKA_ROOM_SECONDS_MAX / 2


# --- messages that are no claims ---


def test_a_message_that_is_no_claim_is_set_aside_and_those_behind_it_come(kafka: KafkaWorld) -> None:
    queue = kafka.open(partitions=1)
    queue.publish([claim("1", "key")])
    kafka.write_raw([b"\xc1 garbage", b""], b"key")
    queue.publish([claim("2", "key")])
    with capture_logs() as logs:
        deliveries = fetch_all(queue, 2)
    assert names(deliveries) == ["1", "2"]
    assert queue.damaged() == 2
    assert [line["event"] for line in logs].count("claim_set_aside") == 2
    first, second = kafka.read(f"{kafka.topic}.dead-letter", 2)
    assert (first.value(), second.value() or b"") == (b"\xc1 garbage", b"")
    assert dict(first.headers())["origin"] == f"{kafka.topic}/0/1".encode()
    queue.ack(deliveries)
    assert queue.depth() == (0, None)


def test_a_topic_of_which_most_messages_are_no_claims_stops_the_worker_and_keeps_the_rest(kafka: KafkaWorld) -> None:
    queue = kafka.open(partitions=1)
    assert queue.fetch(1, 1, 0.0) == []
    kafka.write_raw([b"garbage"] * 200, b"")
    wait_until(lambda: queue._member()._assignment.claims == 200, "the messages do not come")
    with pytest.raises(Corrupt, match=kafka.topic):
        fetch_all(queue, 1)
    assert queue.damaged() == WORKER_FAILURES_MAX
    assert queue.depth().claims == 200 - WORKER_FAILURES_MAX
    with pytest.raises(Corrupt):  # the rest was given back
        fetch_all(queue, 1)


def test_dead_letters_whose_topic_was_deleted_hold_up_no_claim(kafka: KafkaWorld) -> None:
    queue, dead_letters = kafka.open(), f"{kafka.topic}.dead-letter"
    kafka.admin.delete_topics([dead_letters])[dead_letters].result()
    wait_until(lambda: dead_letters not in kafka.admin.list_topics().topics, "the topic is not gone")
    kafka.write_raw([b"garbage"], b"key")
    queue.publish([claim("1", "key")])
    fetched: list[Delivery] = []

    def comes() -> bool:
        with suppress(Unavailable):
            fetched.extend(queue.fetch(NO_BOUND, NO_BOUND, 0.5))
        return bool(fetched)

    wait_until(comes, "the garbage holds it up")
    assert names(fetched) == ["1"]
    assert kafka.read(dead_letters, 1)[0].value() == b"garbage"


def test_a_foreign_message_too_long_for_the_dead_letters_is_cut_there_and_holds_up_nothing(kafka: KafkaWorld) -> None:
    sizes = {"max.message.bytes": "8000000"}
    kafka.admin.create_topics([NewTopic(kafka.topic, 1, 1, config=sizes)])[kafka.topic].result()
    queue = kafka.open()
    foreign = [bytes([number]) * size for number, size in ((200, 1_020_000), (201, 5_000_000), (202, 900_000))]
    kafka.write_raw(foreign, b"key")
    queue.publish([claim("ours")])
    assert names(fetch_all(queue, 1)) == ["ours"]
    assert queue.damaged() == 3
    letters = kafka.read(f"{kafka.topic}.dead-letter", 3)
    assert [foreign[i].startswith(letter.value()) for i, letter in enumerate(letters)] == [True] * 3
    cut = [dict(letter.headers()).get("cut_from_bytes") for letter in letters]
    assert cut == [b"1020000", b"5000000", None]
    assert [dict(letter.headers())["origin"] for letter in letters] == [
        f"{kafka.topic}/0/{i}".encode() for i in (0, 1, 2)
    ]


# --- what others see ---


def test_the_depth_is_the_same_from_a_gateway_and_knows_the_oldest_of_all_partitions(kafka: KafkaWorld) -> None:
    worker, gateway = kafka.open(), kafka.open(consume=False)
    assert gateway.depth() == worker.depth() == (0, None)
    gateway.publish([claim(f"key-{i}", f"key-{i}", received_us=1_000 + i) for i in range(10)])
    assert gateway.depth() == worker.depth() == (10, 1_000)
    taken = {delivery.claim.batch_id: delivery for delivery in fetch_all(worker, 10)}
    assert gateway.depth() == worker.depth() == (10, 1_000)
    worker.ack([taken["key-0"]])
    depth = gateway.depth()
    assert depth.oldest_us is not None
    assert depth.claims == 9
    assert depth.oldest_us > 1_000
    worker.ack(list(taken.values()))
    assert gateway.depth() == worker.depth() == (0, None)


def test_the_depth_of_a_topic_just_made_is_known_although_its_brokers_are_not_its_leaders_yet(
    kafka: KafkaWorld,
) -> None:
    first = kafka.topic
    for i in range(10):
        kafka.topic = f"{first}-{i}"
        assert kafka.open(consume=False, partitions=12).depth() == (0, None)


def test_partitions_added_later_are_read_and_counted(kafka: KafkaWorld) -> None:
    worker, gateway = kafka.open(partitions=1), kafka.open(consume=False)
    gateway.publish([claim("1")])
    worker.ack(fetch_all(worker, 1))
    kafka.admin.create_partitions([NewPartitions(kafka.topic, 3)])[kafka.topic].result()
    wait_until(lambda: len(kafka.admin.list_topics(kafka.topic, timeout=5).topics[kafka.topic].partitions) == 3, "")
    later = kafka.open(consume=False)
    later.publish([claim(f"key-{i}", f"key-{i}") for i in range(12)])
    assert gateway.depth().claims == 12


def test_a_depth_is_told_from_memory_for_a_moment(kafka: KafkaWorld) -> None:
    queue = kafka.open(consume=False, depth_cached_seconds=1000.0)
    assert queue.depth().claims == 0
    queue.publish([claim("1")])
    assert queue.depth().claims == 0


def test_a_gateway_cannot_fetch(kafka: KafkaWorld) -> None:
    with pytest.raises(RuntimeError):
        kafka.open(consume=False).fetch(1, 1, 0.0)


def test_closing_takes_no_time(kafka: KafkaWorld) -> None:
    worker = kafka.open()
    worker.publish([claim("1")])
    fetch_all(worker, 1)
    started = time.monotonic()
    worker.close()
    worker.close()
    assert time.monotonic() - started < 3.0


def test_of_lines_about_the_same_thing_one_is_written_in_a_while() -> None:
    clock = ManualClock(0)
    log = client.ClientLog(clock)
    with capture_logs() as logs:
        for _ in range(5):
            log.log(40, "%s [%s] %s", "FAIL", "producer-1", "refused")
        log.log(40, "%s [%s] %s", "FAIL", "producer-2", "refused")
        clock.advance(KAFKA_CLIENT_LOG_SECONDS)
        log.log(40, "%s [%s] %s", "FAIL", "producer-1", "refused")
    assert [(line["client"], line["left_out"]) for line in logs] == [
        ("producer-1", 0),
        ("producer-2", 0),
        ("producer-1", 4),
    ]
