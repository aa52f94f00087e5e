"""A claim queue whose broker stops, hangs, comes back, or wants a password. The broker is the tests' own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its way to export them is not mypy's
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from queue_kafka_world import DEADLINE_SECONDS, NO_BOUND, KafkaWorld, claim, fetch_all, names, wait_until

from sensorkeep.errors import BadConfig, Unavailable, Uncertain
from sensorkeep.limits import (
    HEALTH_CHECK_SECONDS,
    KAFKA_CHECK_SECONDS_MAX,
    KAFKA_CLOSE_SECONDS_MAX,
    KAFKA_COMMIT_SECONDS_MAX,
    KAFKA_PUBLISH_GRACE_SECONDS,
    KAFKA_PUBLISH_SECONDS_MAX,
)
from sensorkeep.queue.kafka import KafkaClaimQueue
from services.broker import Kafka
from services.process import free_ports

pytestmark = pytest.mark.distributed

PUBLISHERS = 8
PUBLISH_BOUND_SECONDS = KAFKA_PUBLISH_SECONDS_MAX + KAFKA_PUBLISH_GRACE_SECONDS + KAFKA_CHECK_SECONDS_MAX
USER, STRANGER, PASSWORD = "telemetry", "stranger", "right-password"
"""The stranger may do nothing."""


class OwnKafka(Kafka):
    """A broker with a second listener, which asks for a password."""

    def prepare(self) -> None:
        if self._jars is None:
            (self.password_port,) = free_ports(1)
        super().prepare()
        listener = f"PASSWORD://127.0.0.1:{self.password_port}"
        lines = self._settings_path.read_text().splitlines()
        settings = dict(line.split("=", 1) for line in lines)
        settings["listeners"] += f",{listener}"
        settings["advertised.listeners"] += f",{listener}"
        settings["listener.security.protocol.map"] += ",PASSWORD:SASL_PLAINTEXT"
        settings["sasl.enabled.mechanisms"] = "PLAIN"
        users = " ".join(f'user_{user}="{PASSWORD}"' for user in (USER, STRANGER))
        settings["listener.name.password.plain.sasl.jaas.config"] = (
            f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
        )
        settings["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        settings["super.users"] = f"User:ANONYMOUS;User:{USER}"
        settings["inter.broker.listener.name"] = "PLAINTEXT"
        settings["auto.create.topics.enable"] = "true"
        self._settings_path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnKafka]:
    with OwnKafka(tmp_path_factory.mktemp("kafka") / "broker") as running:
        yield running


@pytest.fixture
def kafka(broker: OwnKafka) -> Iterator[KafkaWorld]:
    if broker.process is None:
        broker.start()
    world = KafkaWorld(broker.brokers)
    yield world
    world.close()


class Load:
    """Threads that publish until they are stopped, and what became of each claim."""

    def __init__(self, queue: KafkaClaimQueue) -> None:
        self._queue = queue
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.published: list[str] = []
        self.uncertain = 0
        self.refused = 0
        self.slowest_seconds = 0.0
        self._threads = [threading.Thread(target=self._publish, args=(i,), daemon=True) for i in range(PUBLISHERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()

    def _publish(self, number: int) -> None:
        count = 0
        while not self._stop.wait(0.01):
            name = f"{number}/{count}"
            started = time.monotonic()
            error: Unavailable | None = None
            try:
                self._queue.publish([claim(name, f"key-{number}")])
            except Unavailable as raised:
                error = raised
            with self._lock:
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
                if error is None:
                    self.published.append(name)
                elif isinstance(error, Uncertain):
                    self.uncertain += 1
                else:
                    assert error.code == "dependency_down"
                    self.refused += 1
            count += 1


class Reader:
    """A worker that fetches and acknowledges, whatever fails meanwhile."""

    def __init__(self, queue: KafkaClaimQueue) -> None:
        self._queue = queue
        self._stop = threading.Event()
        self.seen: set[str] = set()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                deliveries = self._queue.fetch(100, 10_000, 0.2)
                self.seen.update(names(deliveries))
                self._queue.ack(deliveries)
            except Unavailable:
                self._stop.wait(0.1)


def raises_within(seconds: float, act: object) -> Unavailable:
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        act()  # type: ignore[operator]
    assert time.monotonic() - started < seconds
    return caught.value


@pytest.mark.parametrize("end", ["stop", "kill", "pause"])
def test_an_outage_answers_within_the_bound_loses_nothing_and_ends_by_itself(
    broker: OwnKafka, kafka: KafkaWorld, end: str
) -> None:
    gateway, worker = kafka.open(consume=False), kafka.open()
    load, reader = Load(gateway), Reader(worker)
    wait_until(lambda: len(reader.seen) > 50, "nothing comes before the outage")
    getattr(broker, end)()
    wait_until(lambda: load.refused > 5 * PUBLISHERS, "publishing does not fail")
    before = len(load.published)
    raises_within(HEALTH_CHECK_SECONDS, gateway.check)
    raises_within(HEALTH_CHECK_SECONDS, gateway.depth)
    came_before = worker.fetch(NO_BOUND, NO_BOUND, 0.0)  # while the reader waited for an answer to what it acknowledged
    assert worker.fetch(1, 1, 0.0) == []
    assert len(load.published) == before
    if end == "pause":
        broker.resume()
    else:
        broker.start()
    wait_until(lambda: len(load.published) > before + 50, "publishing does not work again")
    load.stop()
    reader.seen.update(names(came_before))
    worker.ack(came_before)
    wait_until(lambda: reader.seen.issuperset(load.published), "claims that were published do not come")
    wait_until(lambda: gateway.depth() == (0, None), "the queue is not drained")
    gateway.check()
    reader.stop()
    assert load.slowest_seconds < PUBLISH_BOUND_SECONDS
    # What was in flight when it began, and perhaps once more when it ended.
    assert load.uncertain <= 2 * PUBLISHERS
    assert load.uncertain > 0 or end != "pause"


def elect_again(broker: OwnKafka) -> None:
    """Let the broker hang longer than its session (broker.session.timeout.ms, 9 s): it loses its partitions, and leads
    them in another epoch when it goes on. Where its heartbeat comes before anybody looks, it does not, and hangs again.
    """

    def elections() -> int:
        return broker.log_path.read_text().count("handleBrokerUnfenced")

    before = elections()
    for _ in range(5):
        broker.pause()
        time.sleep(10.0)
        broker.resume()
        looked_until = time.monotonic() + 3
        while elections() == before and time.monotonic() < looked_until:
            time.sleep(0.05)
        if elections() > before:
            return
    raise AssertionError("nobody was elected")


def test_the_depth_is_known_soon_after_an_election(broker: OwnKafka, kafka: KafkaWorld) -> None:
    gateway = kafka.open(consume=False)
    assert gateway.depth() == (0, None)
    elect_again(broker)

    def known() -> bool:
        with contextlib.suppress(Unavailable):
            return gateway.depth() == (0, None)
        return False

    wait_until(known, "the depth is not known")


def test_a_topic_that_somebody_deleted_is_not_made_by_the_brokers(broker: OwnKafka, kafka: KafkaWorld) -> None:
    """With their own settings it might forget claims. The next start makes it."""
    gateway = kafka.open(consume=False)
    kafka.admin.delete_topics([kafka.topic])[kafka.topic].result()
    wait_until(lambda: kafka.topic not in kafka.admin.list_topics().topics, "the topic is not gone")
    raises_within(HEALTH_CHECK_SECONDS, gateway.check)
    raises_within(HEALTH_CHECK_SECONDS, gateway.depth)
    raises_within(PUBLISH_BOUND_SECONDS, lambda: gateway.publish([claim("1")]))
    assert kafka.topic not in kafka.admin.list_topics().topics
    kafka.open(consume=False).publish([claim("1")])


def test_with_the_broker_gone_closing_ends_in_time(broker: OwnKafka, kafka: KafkaWorld) -> None:
    gateway, worker = kafka.open(consume=False), kafka.open()
    gateway.publish([claim("1")])
    held = fetch_all(worker, 1)
    broker.kill()
    raises_within(KAFKA_COMMIT_SECONDS_MAX + 2.0, lambda: worker.ack(held))
    for queue in (worker, gateway):
        started = time.monotonic()
        queue.close()
        assert time.monotonic() - started < 2 * KAFKA_CLOSE_SECONDS_MAX + 1.0
    broker.start()
    assert names(fetch_all(kafka.open(), 1)) == ["1"]


def test_a_publish_that_waits_is_answered_when_the_queue_is_closed(broker: OwnKafka, kafka: KafkaWorld) -> None:
    gateway = kafka.open(consume=False)
    gateway.publish([claim("1")])
    broker.pause()
    errors: list[Unavailable] = []

    def publish() -> None:
        errors.append(raises_within(PUBLISH_BOUND_SECONDS, lambda: gateway.publish([claim("2")])))

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    gateway.close()
    thread.join(DEADLINE_SECONDS)
    broker.resume()
    assert len(errors) == 1


def as_user(user: str, password: str = PASSWORD) -> dict[str, str]:
    return {
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": password,
    }


def test_a_wrong_password_stops_the_start_and_the_right_one_works(broker: OwnKafka, kafka: KafkaWorld) -> None:
    kafka.brokers = f"127.0.0.1:{broker.password_port}"
    started = time.monotonic()
    with pytest.raises(BadConfig, match=r"SENSORKEEP_QUEUE_URL.*Authentication failed") as caught:
        kafka.open(security=as_user(USER, "wrong-password"))
    assert time.monotonic() - started < 5.0
    assert "wrong-password" not in str(caught.value)
    queue = kafka.open(security=as_user(USER))
    queue.publish([claim("1")])
    assert names(fetch_all(queue, 1)) == ["1"]


def test_who_may_not_make_the_topic_or_use_the_group_is_told_at_the_start(broker: OwnKafka, kafka: KafkaWorld) -> None:
    kafka.brokers = f"127.0.0.1:{broker.password_port}"
    with pytest.raises(BadConfig, match=rf"SENSORKEEP_QUEUE_URL.*make the topic {kafka.topic}: Authorization"):
        kafka.open(consume=False, security=as_user(STRANGER))
    kafka.open(consume=False, security=as_user(USER))
    allowed = AclBinding(
        ResourceType.TOPIC, kafka.topic, ResourcePatternType.PREFIXED, f"User:{STRANGER}", "*", AclOperation.ALL,
        AclPermissionType.ALLOW,
    )  # fmt: skip
    kafka.admin.create_acls([allowed])[allowed].result()
    with pytest.raises(BadConfig, match=rf"SENSORKEEP_QUEUE_URL.*group {kafka.topic} .*[Aa]uthorization"):
        kafka.open(consume=False, security=as_user(STRANGER))
