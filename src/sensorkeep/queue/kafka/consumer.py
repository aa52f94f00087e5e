"""A worker's membership in the group that shares the partitions among its workers.

One thread polls the client, all the time: it takes messages into a bounded buffer, and gives partitions up and takes
them over when the group says so. So a round of the worker may take as long as it likes without holding up the group,
and without the brokers believing it dead. No other thread may use the client: it lets in one at a time, and a thread
that polls would keep the others out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from sensorkeep.clock import Clock
from sensorkeep.errors import SensorkeepError, Unavailable
from sensorkeep.limits import (
    FETCH_BYTES_MAX,
    KAFKA_BUFFER_CLAIMS_MAX,
    KAFKA_CHECK_SECONDS_MAX,
    KAFKA_CLOSE_SECONDS_MAX,
    KAFKA_COMMIT_SECONDS_MAX,
    KAFKA_HEARTBEAT_SECONDS,
    KAFKA_JOIN_SECONDS_MAX,
    KAFKA_POLL_SECONDS,
    KAFKA_PREFETCH_KIB_MAX,
    KAFKA_ROOM_SECONDS_MAX,
    KAFKA_SESSION_SECONDS,
)
from sensorkeep.queue.kafka.assignment import Assignment, Held
from sensorkeep.queue.kafka.client import REFUSALS, Brokers, ClientLog, error_of, unavailable
from sensorkeep.queue.kafka.messages import read_message

log = structlog.get_logger(__name__)

_PASSING = frozenset({KafkaError._MAX_POLL_EXCEEDED, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN})
"""Errors between which the client goes on by itself."""
_AGAIN_SECONDS = 0.1
"""Pause before a commit that failed is tried again: its group may be in the middle of a rebalance."""

_BRISK_POLL_SECONDS = 0.005


class GroupConsumer:
    """Reads the topic as a member of `group`, from the first call of `take` on. Thread-safe.

    At most `buffer_claims` and FETCH_BYTES_MAX are read ahead.
    """

    def __init__(
        self,
        brokers: Brokers,
        topic: str,
        group: str,
        client_log: ClientLog,
        clock: Clock,
        *,
        buffer_claims: int = KAFKA_BUFFER_CLAIMS_MAX,
    ) -> None:
        self._topic = topic
        self._clock = clock
        self._brokers = brokers
        self._group = group
        self._client_log = client_log
        self._buffer_claims = buffer_claims
        self._consumer: Consumer
        self._thread: threading.Thread | None = None
        self._paused: set[int] = set()
        """Partitions that the client does not read now. Only the polling thread uses it."""

        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._committed = threading.Condition(self._lock)
        self._assignment = Assignment()
        self._trouble: Unavailable | None = None
        """What the brokers said last that keeps messages from coming; told once."""
        self._failure: BaseException | None = None
        """What ended the polling thread."""
        self._commit_error: KafkaError | None = None
        self._committing = 0
        """Threads that wait for a commit."""
        self._commit_wanted = False
        self._wakes = 0
        self._joined = False
        """The group has said what is ours, be it nothing."""
        self._is_caught_up = False
        self._closed = False

    def take(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Held]:
        """The next messages as `ClaimQueue.fetch` bounds them; those that do not decode among them.

        A new member waits up to KAFKA_JOIN_SECONDS_MAX for what was there before it, since an empty list says that
        nothing waits. Raises Unavailable where it is in no group by then.
        """
        deadline = self._clock.monotonic() + wait_seconds
        with self._lock:
            self._start()
            wakes = self._wakes

            def is_answered() -> bool:
                return self._closed or self._wakes != wakes or self._assignment.claims > 0 or self._in_trouble()

            if not self._is_caught_up:
                self._catch_up(is_answered)
            self._arrived.wait_for(is_answered, max(0.0, deadline - self._clock.monotonic()))
            if self._closed:
                return []
            taken = self._assignment.take(max_claims, max_readings)
            if not taken and self._failure is not None:
                raise SensorkeepError("the reader of the queue has ended; restart the process") from self._failure
            if not taken and self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                raise trouble
            self._room.notify_all()
        return taken

    def _catch_up(self, is_answered: Callable[[], bool]) -> None:
        """Wait until all is here that was there before us. The lock is held."""
        self._arrived.wait_for(lambda: is_answered() or self._has_backlog(), KAFKA_JOIN_SECONDS_MAX)
        if not is_answered() and not self._joined:
            raise Unavailable("Kafka: the group of the workers does not answer", code="dependency_down")
        self._is_caught_up = self._has_backlog() or not is_answered()  # what does not come at all is no message

    def _has_backlog(self) -> bool:
        return self._joined and not self._assignment.is_behind()

    def acknowledge(self, tokens: Iterable[int]) -> None:
        """Forget these messages, and commit what that finishes. Raises Unavailable; it may be called again then."""
        with self._lock:
            self._check_open()
            self._assignment.acknowledge(tokens)
            self._room.notify_all()
        self._commit()

    def release(self, tokens: Iterable[int]) -> None:
        """Let these messages wait again."""
        with self._lock:
            self._assignment.release(tokens)
            self._arrived.notify_all()

    def acknowledged_ahead(self) -> int:
        """Messages acknowledged here that the group cannot know of yet."""
        with self._lock:
            return self._assignment.acknowledged_ahead()

    def progress(self) -> Mapping[int, int]:
        """How far the group has come in the partitions that are ours now."""
        with self._lock:
            return self._assignment.progress()

    def wake(self) -> None:
        """End a waiting `take` now."""
        with self._lock:
            self._wakes += 1
            self._arrived.notify_all()

    def close(self) -> None:
        """Leave the group. Idempotent."""
        with self._lock:
            self._closed = True
            for condition in (self._arrived, self._room, self._committed):
                condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(KAFKA_CLOSE_SECONDS_MAX)
            if thread.is_alive():
                log.warning("kafka_group_not_left", detail="the brokers did not answer in time")

    # --- the polling thread ---

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._consumer = self._brokers.client(Consumer, "consume", self._settings())
            self._thread = threading.Thread(target=self._run, name="kafka-consume", daemon=True)
            self._thread.start()

    def _settings(self) -> dict[str, object]:
        return {
            "group.id": self._group,
            "partition.assignment.strategy": "cooperative-sticky",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": KAFKA_SESSION_SECONDS * 1000,
            "heartbeat.interval.ms": KAFKA_HEARTBEAT_SECONDS * 1000,
            "check.crcs": True,
            "queued.min.messages": KAFKA_BUFFER_CLAIMS_MAX,
            "queued.max.messages.kbytes": KAFKA_PREFETCH_KIB_MAX,
            "fetch.error.backoff.ms": 100,
            "fetch.queue.backoff.ms": 100,
            "on_commit": self._take_commit,
            "logger": self._client_log,
        }

    def _run(self) -> None:
        try:
            self._consumer.subscribe(
                [self._topic], on_assign=self._take_over, on_revoke=self._give_up, on_lost=self._lose
            )
            while not self._closed:
                self._make_room()
                if self._commit_wanted:
                    self._send_commit()
                try:
                    # While claims are out an acknowledgement will come, and it must wait until this returns.
                    message = self._consumer.poll(_BRISK_POLL_SECONDS if self._assignment.out else KAFKA_POLL_SECONDS)
                except KafkaException as error:
                    self._take_error(error_of(error))
                    continue
                if message is not None:
                    self._receive(message)
        except BaseException as error:
            log.exception("kafka_reader_ended")
            with self._lock:
                self._failure = error
                self._arrived.notify_all()
        finally:
            try:
                self._consumer.unsubscribe()  # closing alone does not leave the group where no partition is ours
            finally:
                self._consumer.close()

    def _receive(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._take_error(error)
            return
        held = read_message(message)
        with self._lock:
            missing = self._assignment.add(held)
            self._trouble = None
            self._arrived.notify()
        if missing:
            # Ours are deleted only behind the committed offset, so a retention of the brokers must have done it.
            log.error(
                "kafka_claims_lost", topic=self._topic, partition=held.partition, before=held.offset, lost=missing
            )

    def _take_error(self, error: KafkaError) -> None:
        if error.code() in _PASSING:
            return
        log.warning("kafka_reader_waits", code=error.name(), detail=error.str())
        with self._lock:
            self._trouble = unavailable("the queue cannot be read", error)
            self._arrived.notify_all()

    def _make_room(self) -> None:
        """Wait a moment while the buffer is full; pause the partitions where that does not help, until half is free."""
        if self._paused and self._is_under(0.5):
            self._consumer.resume(self._all_of(self._paused))
            self._paused.clear()
        elif self._is_full() and (reading := self._assignment.partitions - self._paused):
            with self._lock:
                # One who waits for his commit is told by a poll, which may bring one message more.
                self._room.wait_for(
                    lambda: self._closed or self._commit_wanted or not self._is_full(),
                    _BRISK_POLL_SECONDS if self._committing else KAFKA_ROOM_SECONDS_MAX,
                )
                pause = self._is_full() and not self._committing and not self._closed
            if pause:
                self._consumer.pause(self._all_of(reading))
                self._paused |= reading

    def _is_full(self) -> bool:
        return not self._is_under(1.0)

    def _is_under(self, share: float) -> bool:
        assignment = self._assignment
        return assignment.claims < share * self._buffer_claims and assignment.size < share * FETCH_BYTES_MAX

    def _all_of(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return self._places(dict.fromkeys(partitions, OFFSET_INVALID))

    def _places(self, offsets: Mapping[int, int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]

    # --- the group ---

    def _take_over(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        offsets: dict[int, int] = {}
        try:
            known = consumer.committed(list(partitions), timeout=KAFKA_CHECK_SECONDS_MAX)
            offsets = {place.partition: place.offset for place in known if place.error is None and place.offset >= 0}
        except KafkaException as error:  # then it only is not noticed where claims are missing
            log.info("kafka_offsets_unknown", detail=error_of(error).str())
        ends = self._ends(consumer, partitions)
        with self._lock:
            for number in _numbers(partitions):
                self._assignment.assign(number, offsets.get(number), ends.get(number))
            self._joined = True
            self._trouble = None
            self._arrived.notify_all()
        log.info("kafka_partitions_taken_over", topic=self._topic, partitions=_numbers(partitions))
        consumer.incremental_assign(list(partitions))

    def _ends(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> dict[int, int]:
        """The offset behind the last message of each partition, where it is known; 0 where there is no message."""
        deadline = self._clock.monotonic() + KAFKA_CHECK_SECONDS_MAX
        ends: dict[int, int] = {}
        try:
            for place in partitions:
                left = max(0.01, deadline - self._clock.monotonic())
                if found := consumer.get_watermark_offsets(place, timeout=left):
                    ends[place.partition] = found[1] if found[1] > found[0] else 0
        except KafkaException as error:  # then all counts as tried before, which costs a note for each write
            log.info("kafka_ends_unknown", detail=error_of(error).str())
        return ends

    def _give_up(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        numbers = set(_numbers(partitions))
        with self._lock:
            done = {p: offset for p, offset in self._assignment.uncommitted().items() if p in numbers}
        if done:  # what an acknowledgement could not commit; the brokers get it before they learn that we let go
            consumer.commit(offsets=self._places(done), asynchronous=True)
        self._lose(consumer, partitions)

    def _lose(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        numbers = _numbers(partitions)
        paused = self._paused.intersection(numbers)
        if paused:  # or it would still be paused when it comes back to us
            consumer.resume(self._all_of(paused))
            self._paused -= paused
        with self._lock:
            for number in numbers:
                self._assignment.revoke(number)
            self._room.notify_all()
            self._committed.notify_all()
        log.info("kafka_partitions_given_up", topic=self._topic, partitions=numbers)
        consumer.incremental_unassign(list(partitions))

    # --- commits ---

    def _commit(self) -> None:
        """Have the group note how far we are. Partitions that go meanwhile are no longer our affair."""
        deadline = self._clock.monotonic() + KAFKA_COMMIT_SECONDS_MAX
        with self._lock:
            self._committing += 1
            try:
                while (wanted := self._assignment.uncommitted()) and not self._is_committed_by(wanted, deadline):
                    self._committed.wait_for(lambda: self._closed, _AGAIN_SECONDS)
            finally:
                self._committing -= 1

    def _is_committed_by(self, wanted: Mapping[int, int], deadline: float) -> bool:
        """Have the polling thread try it; False where another try is needed. The lock is held."""
        self._check_open()
        self._commit_wanted = True
        self._commit_error = None
        self._room.notify_all()
        self._committed.wait_for(
            lambda: self._closed or self._commit_error or self._is_committed(wanted),
            max(0.0, deadline - self._clock.monotonic()),
        )
        if self._is_committed(wanted):
            return True
        self._check_open()
        error = self._commit_error or KafkaError(KafkaError._TIMED_OUT)
        if self._clock.monotonic() + _AGAIN_SECONDS > deadline or error.code() in REFUSALS:
            raise unavailable("what is done could not be noted", error)
        return False

    def _send_commit(self) -> None:
        """Ask the brokers for what `_commit` waits for. On the polling thread: the client serves one at a time."""
        with self._lock:
            self._commit_wanted = False
            wanted = self._assignment.uncommitted()
        if wanted:
            self._consumer.commit(offsets=self._places(wanted), asynchronous=True)

    def _is_committed(self, wanted: Mapping[int, int]) -> bool:
        known = self._assignment.progress()
        return all(known.get(p, -1) >= o for p, o in wanted.items() if p in self._assignment.partitions)

    def _take_commit(self, error: KafkaError | None, places: Sequence[TopicPartition]) -> None:
        """What became of a commit. On the polling thread."""
        with self._lock:
            for place in places:
                failed = place.error or error
                if failed is not None:
                    self._commit_error = failed
                else:
                    self._assignment.committed(place.partition, place.offset)
            self._committed.notify_all()

    def _in_trouble(self) -> bool:
        return self._trouble is not None or self._failure is not None

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the queue is closed")


def _numbers(partitions: Sequence[TopicPartition]) -> list[int]:
    return [place.partition for place in partitions]
