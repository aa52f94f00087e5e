"""How the client of Kafka is set up, what it may say in our log, and what its errors mean.

The names of its settings: librdkafka, CONFIGURATION.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from sensorkeep.clock import Clock
from sensorkeep.errors import BadConfig, Unavailable
from sensorkeep.limits import KAFKA_CLIENT_LOG_SECONDS, KAFKA_CLOSE_SECONDS_MAX

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")
Client = TypeVar("Client")

REFUSALS = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.DELEGATION_TOKEN_AUTHORIZATION_FAILED,
        KafkaError.SECURITY_DISABLED,
    }
)
"""The brokers do not let us in, or do not let us do it: waiting cannot help."""


@dataclass(frozen=True, slots=True)
class Brokers:
    """The brokers to begin with, `host:port,host:port`, and how they are spoken to, in librdkafka's names."""

    addresses: str
    security: Mapping[str, str] = field(default_factory=dict, repr=False)

    def client(self, make: Callable[[dict[str, Any]], Client], purpose: str, settings: Mapping[str, Any]) -> Client:
        """A client of the kind that `make` makes. Raises BadConfig for a setting that is not valid."""
        common = {
            "bootstrap.servers": self.addresses,
            "client.id": f"sensorkeep-{purpose}",
            # A broker that hangs is given up, and one that is back is found, within seconds.
            "socket.timeout.ms": 10_000,
            "socket.connection.setup.timeout.ms": 5_000,
            "socket.keepalive.enable": True,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1_000,
            "log.connection.close": False,
            "enable.metrics.push": False,
            # Only topic.py makes topics: with the brokers' own settings they might forget claims.
            "allow.auto.create.topics": False,
        }
        try:
            return make({**common, **self.security, **settings})
        except KafkaException as error:
            raise BadConfig(
                f"SENSORKEEP_QUEUE_URL or SENSORKEEP_KAFKA_…: no client can be made with them: {error_of(error).str()}"
            ) from error

    def quiet_admin(self) -> AdminClient:
        """A client for questions. Nobody serves its events, so it must not queue any: it logs nothing."""
        return self.client(AdminClient, "admin", {"log_level": 0})


class ClientLog:
    """Takes the client's log, in the form of a logger of the standard library. Thread-safe.

    Of lines about the same thing one is written in KAFKA_CLIENT_LOG_SECONDS: during an outage every try to connect
    makes some.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], tuple[float, int]] = {}
        """By client and facility: when the last line was written, and how many were left out since."""

    def log(self, level: int, _template: str, facility: str, client: str, text: str) -> None:
        """What librdkafka's binding calls, on the thread that serves the client."""
        now = self._clock.monotonic()
        with self._lock:
            written_at, left_out = self._held.get((client, facility), (now - KAFKA_CLIENT_LOG_SECONDS, 0))
            if now - written_at < KAFKA_CLIENT_LOG_SECONDS:
                self._held[client, facility] = (written_at, left_out + 1)
                return
            self._held[client, facility] = (now, 0)
        log.log(level, "kafka_client", client=client, facility=facility, detail=text, left_out=left_out)


def error_of(exception: KafkaException) -> KafkaError:
    """The error that the client's exception carries."""
    error: KafkaError = exception.args[0]
    return error


def unavailable(what: str, error: KafkaError | KafkaException) -> Unavailable:
    """The error for our callers where a request failed while we run."""
    if isinstance(error, KafkaException):
        error = error_of(error)
    return Unavailable(f"Kafka: {what}: {error.str()}", code="dependency_down")


def close_consumer(consumer: Consumer) -> bool:
    """Close it; False where that takes too long: with the brokers gone it may never end, and goes on by itself."""
    closing = threading.Thread(target=consumer.close, name="kafka-close", daemon=True)
    closing.start()
    closing.join(KAFKA_CLOSE_SECONDS_MAX)
    return not closing.is_alive()


def answer_of(what: str, future: Future[Answer], seconds: float) -> Answer:
    """What an administrative request answered. Raises Unavailable."""
    try:
        return future.result(max(0.0, seconds))
    except KafkaException as error:
        raise unavailable(what, error) from error
    except FutureTimeoutError:
        raise Unavailable(f"Kafka: {what}: no answer came in time", code="dependency_down") from None
