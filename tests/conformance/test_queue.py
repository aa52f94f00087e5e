"""What every claim queue must do; see queue/base.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensorkeep.clock import ManualClock, SystemClock
from sensorkeep.errors import Unavailable
from sensorkeep.limits import FETCH_BYTES_MAX, KIB
from sensorkeep.model import Claim, WireFormat
from sensorkeep.queue.base import ClaimQueue, Delivery
from sensorkeep.queue.kafka import KafkaClaimQueue
from sensorkeep.queue.memory import MemoryClaimQueue
from sensorkeep.queue.sqlite import SqliteClaimQueue
from services import BROKERS, address, new_name

NO_BOUND = 1_000_000
LONG_SECONDS = 20.0
"""Waits of this length must be ended by what the test does."""


class PromptKafkaQueue(KafkaClaimQueue):
    """A KafkaClaimQueue that fetches only when all that was published has come to it, or as much as it reads ahead."""

    def __init__(self, name: str) -> None:
        super().__init__(
            address(BROKERS), name, clock=SystemClock(), partitions=3, replication_factor=1, consume=True, security={},
            group=name, depth_cached_seconds=0.0,
        )  # fmt: skip
        member = self._member()
        with member._lock:  # what is published from now on comes after this worker
            member._start()
            assert member._arrived.wait_for(lambda: member._joined, LONG_SECONDS)

    def fetch(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Delivery]:
        if wait_seconds < LONG_SECONDS:
            deadline = time.monotonic() + LONG_SECONDS
            while not self._has_all():
                assert time.monotonic() < deadline, "a claim did not come"
        return super().fetch(max_claims, max_readings, wait_seconds)

    def _has_all(self) -> bool:
        waiting = self.depth().claims
        member = self._member()
        with member._lock:
            held = member._assignment
            return bool(held.partitions) and (held.claims + held.out >= waiting or member._is_full())


class World:
    """A queue and how to open it anew, as the next process would.

    `shared`: it is a queue of many machines, and may do what queue/base.py allows those.
    """

    def __init__(self, backend: str, folder: Path) -> None:
        self._backend = backend
        self._folder = folder
        self._name = new_name("queue")
        self.shared = backend == "kafka"
        self.queue: ClaimQueue = self._open()

    def reopen(self) -> ClaimQueue:
        if isinstance(self.queue, MemoryClaimQueue):
            self.queue = self.queue.restarted()
        else:
            self.queue.close()
            self.queue = self._open()
        return self.queue

    def _open(self) -> ClaimQueue:
        if self._backend == "kafka":
            return PromptKafkaQueue(self._name)
        if self._backend == "sqlite":
            return SqliteClaimQueue(self._folder / "queue.db", SystemClock())
        return MemoryClaimQueue(SystemClock())


@pytest.fixture(params=["sqlite", "memory", pytest.param("kafka", marks=pytest.mark.distributed)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(request.param, tmp_path)
    yield made
    made.queue.close()
    made.queue.close()


@pytest.fixture
def queue(world: World) -> ClaimQueue:
    return world.queue


def claim(name: str, readings: int = 1, **fields: object) -> Claim:
    values = {"wire_format": WireFormat.READINGS, "received_us": 1_700_000_000_000_000, **fields}
    return Claim(batch_id=name, readings=readings, **values)  # type: ignore[arg-type]


def names(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.claim.batch_id for delivery in deliveries]


def attempts(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.attempts for delivery in deliveries]


def fetch_all(queue: ClaimQueue) -> list[Delivery]:
    return queue.fetch(NO_BOUND, NO_BOUND, 0.0)


def in_thread(act: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    answer: list[object] = []
    thread = threading.Thread(target=lambda: answer.append(act()))
    thread.start()
    return thread, answer


def test_a_claim_arrives_as_it_was_published(queue: ClaimQueue) -> None:
    full = Claim(
        batch_id="018f-ä", wire_format=WireFormat.ESM_BULK, received_us=1, readings=5, quarantined=2,
        credential="key-1", object_key="telemetry/x/y.json.gz", payload=b"\0\xff", naive_timezone="America/Sao_Paulo",
        oldest_allowed_us=-5, oldest_us=-1, newest_us=2**60, urgent=True, replay_of="other",
    )  # fmt: skip
    plain = claim("plain", credential="key-1")
    queue.publish([full, plain])
    deliveries = fetch_all(queue)
    assert [delivery.claim for delivery in deliveries] == [full, plain]
    assert attempts(deliveries) == [1, 1]
    assert len({delivery.token for delivery in deliveries}) == 2


def test_claims_come_in_the_order_published_and_only_once(queue: ClaimQueue) -> None:
    queue.publish([claim("1"), claim("2")])
    queue.publish([])
    queue.publish([claim("3")])
    assert names(queue.fetch(2, NO_BOUND, 0.0)) == ["1", "2"]
    queue.publish([claim("4")])
    assert names(fetch_all(queue)) == ["3", "4"]
    assert fetch_all(queue) == []


def test_fetch_keeps_both_bounds_but_always_gives_one(queue: ClaimQueue) -> None:
    queue.publish([claim("big", 50), claim("a", 4), claim("b", 6), claim("c", 1), claim("d", 1), claim("e", 1)])
    assert names(queue.fetch(10, 10, 0.0)) == ["big"]
    assert names(queue.fetch(10, 10, 0.0)) == ["a", "b"]
    assert names(queue.fetch(2, 10, 0.0)) == ["c", "d"]
    assert names(queue.fetch(1, 0, 0.0)) == ["e"]


def test_fetch_bounds_the_bytes_it_hands_out(queue: ClaimQueue) -> None:
    payload = bytes(64 * KIB)
    count = FETCH_BYTES_MAX // len(payload) + 20
    queue.publish([claim(str(i), payload=payload) for i in range(count)])
    first = fetch_all(queue)
    assert sum(len(delivery.claim.payload or b"") for delivery in first) <= FETCH_BYTES_MAX
    assert names(first) + names(fetch_all(queue)) == [str(i) for i in range(count)]


def test_acknowledged_claims_are_gone_for_good(world: World) -> None:
    world.queue.publish([claim("1"), claim("2"), claim("3")])
    first, second, third = fetch_all(world.queue)
    world.queue.ack([first, third])  # a shared queue may forget that of the third: the second one is open
    world.queue.ack([first])
    world.queue.ack([])
    world.queue.release([first, third])
    assert fetch_all(world.queue) == []
    assert world.queue.depth().claims == 1
    queue = world.reopen()
    left = [second, third] if world.shared else [second]
    again = fetch_all(queue)
    assert [(d.claim, d.token) for d in again] == [(d.claim, d.token) for d in left]
    queue.ack(again)
    queue = world.reopen()
    assert fetch_all(queue) == []
    assert queue.depth() == (0, None)


def test_released_claims_return_in_their_old_place_with_attempts_one_higher(queue: ClaimQueue) -> None:
    queue.publish([claim(str(i)) for i in range(6)])
    taken = queue.fetch(4, NO_BOUND, 0.0)
    queue.release([taken[2], taken[1]])
    queue.release([taken[1]])
    again = queue.fetch(3, NO_BOUND, 0.0)
    assert (names(again), attempts(again)) == (["1", "2", "4"], [2, 2, 1])
    queue.release(again)
    once_more = fetch_all(queue)
    assert (names(once_more), attempts(once_more)) == (["1", "2", "4", "5"], [3, 3, 2, 1])


def test_a_claim_acknowledged_after_its_release_does_not_return(queue: ClaimQueue) -> None:
    queue.publish([claim("1"), claim("2")])
    taken = fetch_all(queue)
    queue.release(taken)
    queue.ack(taken[:1])
    assert names(fetch_all(queue)) == ["2"]
    assert queue.depth().claims == 1


def test_opened_anew_all_that_is_not_acknowledged_is_delivered_again(world: World) -> None:
    world.queue.publish([claim(str(i)) for i in range(6)])
    taken = world.queue.fetch(4, NO_BOUND, 0.0)
    world.queue.ack(taken[:1])
    world.queue.release(taken[1:2])
    assert attempts(world.queue.fetch(1, NO_BOUND, 0.0)) == [2]
    again = fetch_all(world.reopen())
    assert names(again) == ["1", "2", "3", "4", "5"]
    assert attempts(again) == ([2] * 5 if world.shared else [3, 2, 2, 1, 1])


def test_a_claim_that_ends_the_process_each_time_reaches_any_number_of_attempts(world: World) -> None:
    world.queue.publish([claim("poison"), claim("innocent")])
    for expected in range(1, 7):
        assert attempts(world.queue.fetch(1, NO_BOUND, 0.0)) == [min(2, expected) if world.shared else expected]
        world.reopen()
    assert attempts(fetch_all(world.queue)) == ([2, 2] if world.shared else [7, 1])


def test_a_token_is_never_used_for_another_claim(world: World) -> None:
    world.queue.publish([claim("old")])
    old = fetch_all(world.queue)
    world.queue.ack(old)
    queue = world.reopen()
    assert queue.fetch(1, 1, 0.0) == []
    queue.publish([claim("new")])
    queue.ack(old)
    assert names(fetch_all(queue)) == ["new"]


def test_depth_counts_taken_claims_and_knows_the_oldest(world: World) -> None:
    assert world.queue.depth() == (0, None)
    world.queue.publish([claim("1", received_us=100), claim("2", received_us=200), claim("3", received_us=300)])
    taken = world.queue.fetch(2, NO_BOUND, 0.0)
    assert world.queue.depth() == (3, 100)
    world.queue.ack(taken[:1])
    assert world.queue.depth() == (2, 200)
    queue = world.reopen()
    assert queue.depth() == (2, 200)
    queue.ack(fetch_all(queue))
    assert queue.depth() == (0, None)
    assert world.reopen().depth() == (0, None)


@pytest.mark.parametrize("urgent", [False, True])
def test_a_publish_ends_a_waiting_fetch(queue: ClaimQueue, urgent: bool) -> None:
    thread, answer = in_thread(lambda: names(queue.fetch(10, NO_BOUND, LONG_SECONDS)))
    queue.publish([claim("1", urgent=urgent)])
    thread.join(LONG_SECONDS / 2)
    assert answer == [["1"]]


def test_a_release_ends_a_waiting_fetch(queue: ClaimQueue) -> None:
    queue.publish([claim("1")])
    taken = fetch_all(queue)
    thread, answer = in_thread(lambda: attempts(queue.fetch(10, NO_BOUND, LONG_SECONDS)))
    queue.release(taken)
    thread.join(LONG_SECONDS / 2)
    assert answer == [[2]]


def test_a_fetch_with_nothing_to_fetch_returns_empty_in_time(queue: ClaimQueue) -> None:
    clock = SystemClock()
    started = clock.monotonic()
    assert queue.fetch(1, 1, 0.05) == []
    assert 0.04 < clock.monotonic() - started < LONG_SECONDS


@pytest.mark.parametrize("end", ["wake", "close"])
def test_wake_and_close_end_a_waiting_fetch_empty(queue: ClaimQueue, end: str) -> None:
    thread, answer = in_thread(lambda: queue.fetch(1, 1, LONG_SECONDS))
    for _ in range(1000):  # a wake before the fetch waits has no effect, so it is repeated
        getattr(queue, end)()
        thread.join(0.01)
        if not thread.is_alive():
            break
    assert answer == [[]]


def test_a_closed_queue_refuses_and_fetches_nothing(queue: ClaimQueue) -> None:
    queue.publish([claim("1")])
    taken = fetch_all(queue)
    queue.close()
    assert queue.fetch(1, 1, LONG_SECONDS) == []
    for act in (lambda: queue.publish([claim("2")]), lambda: queue.ack(taken), queue.check, queue.depth):
        with pytest.raises(Unavailable):
            act()


def test_check_passes_and_changes_nothing(queue: ClaimQueue) -> None:
    queue.check()
    assert queue.depth() == (0, None)
    assert queue.fetch(1, 1, 0.0) == []


def test_concurrent_publishers_lose_nothing_and_each_keeps_its_order(queue: ClaimQueue) -> None:
    publishers, each = 8, 40

    def publish(number: int) -> None:
        for i in range(0, each, 2):
            queue.publish([claim(f"{number}/{i}"), claim(f"{number}/{i + 1}")])

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(publishers)]
    for thread in threads:
        thread.start()
    seen: list[str] = []
    while len(seen) < publishers * each:
        deliveries = queue.fetch(7, NO_BOUND, LONG_SECONDS)
        assert deliveries, "a claim was lost"
        seen += names(deliveries)
        queue.ack(deliveries)
    for thread in threads:
        thread.join()
    assert queue.depth() == (0, None)
    for number in range(publishers):
        assert [name for name in seen if name.startswith(f"{number}/")] == [f"{number}/{i}" for i in range(each)]


def test_concurrent_workers_never_share_a_claim(queue: ClaimQueue) -> None:
    queue.publish([claim(str(i)) for i in range(200)])
    seen: list[str] = []

    def work() -> None:
        while deliveries := queue.fetch(3, NO_BOUND, 0.0):
            seen.extend(names(deliveries))
            queue.ack(deliveries)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen, key=int) == [str(i) for i in range(200)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 3)),
        st.tuples(st.just("fetch"), st.integers(1, 4)),
        st.tuples(st.just("ack"), st.integers(0, 3)),
        st.tuples(st.just("release"), st.integers(0, 3)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_sqlite_and_memory_answer_every_sequence_of_calls_alike(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    worlds = [World(backend, tmp_path_factory.mktemp("alike")) for backend in ("sqlite", "memory")]
    held: list[list[Delivery]] = [[], []]
    published = 0
    for act, number in steps:
        answers = []
        for side, world in enumerate(worlds):
            if act == "publish":
                world.queue.publish([claim(str(published + i), readings=i + 1) for i in range(number)])
            elif act == "fetch":
                deliveries = world.queue.fetch(number, 5, 0.0)
                held[side] += deliveries
                answers.append(deliveries)
            elif act == "reopen":
                world.reopen()
                held[side] = []
            else:
                getattr(world.queue, act)(held[side][:number])
                del held[side][:number]
            answers.append(world.queue.depth())  # type: ignore[arg-type]
        assert answers[: len(answers) // 2] == answers[len(answers) // 2 :]
        published += number if act == "publish" else 0
    for world in worlds:
        world.queue.close()


def test_a_fetch_under_a_clock_that_stands_still_ends(tmp_path: Path) -> None:
    clock = ManualClock(0)
    for made in (SqliteClaimQueue(tmp_path / "queue.db", clock), MemoryClaimQueue(clock)):
        assert made.fetch(1, 1, 0.01) == []
        made.close()
