"""Claims to the brokers: durable when `publish` returns, and its failures as definite as can be."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sensorkeep.clock import Clock
from sensorkeep.errors import LimitExceeded, Unavailable, Uncertain
from sensorkeep.limits import (
    KAFKA_CLOSE_SECONDS_MAX,
    KAFKA_LINGER_MS,
    KAFKA_POLL_SECONDS,
    KAFKA_PROBE_KEPT_SECONDS,
    KAFKA_PUBLISH_GRACE_SECONDS,
    KAFKA_PUBLISH_KIB_MAX,
    KAFKA_PUBLISH_SECONDS_MAX,
)
from sensorkeep.queue.kafka.client import Brokers, ClientLog, error_of, unavailable
from sensorkeep.queue.kafka.messages import Record

log = structlog.get_logger(__name__)

_NOT_APPENDED = frozenset(
    {
        KafkaError._QUEUE_FULL,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
"""Errors after which a message is certainly not in the topic. The client knows it of others, too, a message that timed
out before it was sent for one, but its Python binding does not tell."""


class _Receipts:
    """What the brokers answered to the records of one call. Each record gets exactly one answer."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._missing = count
        self.errors: list[KafkaError] = []
        self._complete = threading.Lock()
        self._complete.acquire()

    def take(self, error: KafkaError | None, _message: Message | None = None) -> None:
        """One answer: from the thread that serves the client, or from the caller where a record was not even taken."""
        with self._lock:
            if error is not None:
                self.errors.append(error)
            self._missing -= 1
            if not self._missing:
                self._complete.release()

    def wait(self) -> bool:
        """Wait for all answers; False where they do not come."""
        return self._complete.acquire(timeout=KAFKA_PUBLISH_SECONDS_MAX + KAFKA_PUBLISH_GRACE_SECONDS)


class Publisher:
    """Publishes records. Thread-safe; records of calls that come together share requests to the brokers.

    A message that the brokers did not answer may be in the topic: Uncertain. So that an outage gives few of those, the
    first failure makes the publisher cautious: until `probe` says that the brokers are there, nothing is sent, and
    calls fail at once with a plain Unavailable.
    """

    def __init__(self, brokers: Brokers, probe: Callable[[], None], client_log: ClientLog, clock: Clock) -> None:
        self._brokers = brokers
        self._probe = probe
        self._client_log = client_log
        self._clock = clock
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._server: threading.Thread | None = None
        self._closing = threading.Event()
        self._broken = False
        """The client ended by a fatal error: it must be made anew."""
        self._cautious = False
        self._probing = threading.Lock()
        self._absence: tuple[float, str] | None = None
        """Until when the last probe's failure holds for others, and what it was."""

    def open(self) -> None:
        """Begin to make contact; else the first call does, and takes half a second longer."""
        self._current()

    def publish(self, topic: str, records: Sequence[Record]) -> None:
        """Append the records, or raise Unavailable; Uncertain where some or all may have been appended."""
        self._require_presence()
        producer = self._current()
        receipts = _Receipts(len(records))
        for record in records:
            try:
                producer.produce(topic, record.value, record.key, on_delivery=receipts.take, headers=record.headers)
            except BufferError:
                receipts.take(KafkaError(KafkaError._QUEUE_FULL))
            except KafkaException as error:
                receipts.take(error_of(error))
            except RuntimeError:  # closed meanwhile
                receipts.take(KafkaError(KafkaError._QUEUE_FULL, "the queue is closed"))
        if not receipts.wait():
            self._cautious = True
            raise Uncertain("Kafka: the client does not tell what became of a claim", code="dependency_down")
        if receipts.errors:
            raise self._failure(topic, receipts.errors, len(records))

    def close(self) -> None:
        """Let go of the client; calls that wait for an answer get one. Idempotent."""
        with self._lock:
            self._closing.set()
            producer, self._producer = self._producer, None
        if self._server is not None:
            self._server.join()
        if producer is not None:
            _end(producer)

    # --- the outcome ---

    def _failure(self, topic: str, errors: Sequence[KafkaError], count: int) -> Unavailable | LimitExceeded:
        error = errors[0]
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and count == 1:
            return LimitExceeded(f"the claim is larger than {topic} takes (its max.message.bytes): {error.str()}")
        self._cautious = True
        if len(errors) == count and all(each.code() in _NOT_APPENDED for each in errors):
            return unavailable(f"nothing was published to {topic}", error)
        return Uncertain(f"Kafka: perhaps nothing was published to {topic}: {error.str()}", code="dependency_down")

    def _require_presence(self) -> None:
        """While cautious, look whether the brokers are there; one looks for all. Raises Unavailable."""
        if not self._cautious:
            return
        with self._probing:
            if not self._cautious:
                return
            if self._absence is not None and self._clock.monotonic() < self._absence[0]:
                raise Unavailable(self._absence[1], code="dependency_down")
            try:
                self._probe()
            except Unavailable as error:
                self._absence = (self._clock.monotonic() + KAFKA_PROBE_KEPT_SECONDS, error.detail)
                raise
            self._absence = None
            self._cautious = False

    # --- the client ---

    def _current(self) -> Producer:
        with self._lock:
            if self._closing.is_set():
                raise Unavailable("the queue is closed")
            if self._broken and self._producer is not None:
                log.error("kafka_producer_made_anew")
                _end(self._producer)
                self._producer = None
            if self._producer is None:
                self._producer = self._open()
                self._broken = False
            if self._server is None:
                self._server = threading.Thread(target=self._serve, name="kafka-publish", daemon=True)
                self._server.start()
            return self._producer

    def _open(self) -> Producer:
        settings = {
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": int(KAFKA_PUBLISH_SECONDS_MAX * 1000),
            "request.timeout.ms": int(KAFKA_PUBLISH_SECONDS_MAX * 1000),
            "linger.ms": KAFKA_LINGER_MS,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",  # as the Java clients have it: one key, one partition, for all producers
            "queue.buffering.max.kbytes": KAFKA_PUBLISH_KIB_MAX,
            "error_cb": self._take_event,
            "logger": self._client_log,
        }
        return self._brokers.client(Producer, "publish", settings)

    def _serve(self) -> None:
        """Call back those who wait, for as long as there is a client."""
        while not self._closing.is_set():
            producer = self._producer
            if producer is None:
                self._closing.wait(KAFKA_POLL_SECONDS)
                continue
            with contextlib.suppress(RuntimeError):  # it was closed, for a new one
                producer.poll(KAFKA_POLL_SECONDS)

    def _take_event(self, error: KafkaError) -> None:
        """An error that belongs to no message."""
        if error.fatal():
            self._broken = True
        if error.fatal() or error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._cautious = True


def _end(producer: Producer) -> None:
    """Answer everybody who waits, then let go."""
    producer.flush(KAFKA_CLOSE_SECONDS_MAX)
    producer.purge(blocking=False)
    producer.flush(KAFKA_CLOSE_SECONDS_MAX)
    producer.close()
