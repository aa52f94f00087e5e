"""The bookkeeping of a worker's partitions, without Kafka: nothing unacknowledged is ever counted as done."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.limits import FETCH_BYTES_MAX
from sensorkeep.model import Claim, WireFormat
from sensorkeep.queue.kafka.assignment import Assignment, Held, token_of

NO_BOUND = 1_000_000


def message(partition: int, offset: int, size: int = 10, readings: int = 1) -> Held:
    claim = Claim(batch_id=f"{partition}/{offset}", wire_format=WireFormat.READINGS, received_us=1, readings=readings)
    return Held(partition=partition, offset=offset, claim=claim, content=bytes(size), time_us=1)


def filled(count: int, committed: int | None = None) -> Assignment:
    assignment = Assignment()
    assignment.assign(0, committed, 0)
    for offset in range(count):
        assignment.add(message(0, offset))
    return assignment


def offsets(messages: list[Held]) -> list[int]:
    return [held.offset for held in messages]


def test_a_new_partition_has_nothing_to_commit_before_something_is_done() -> None:
    assignment = filled(3)
    assert assignment.uncommitted() == {}
    assignment.acknowledge([token_of(0, 0)])
    assert assignment.uncommitted() == {0: 1}
    assignment.committed(0, 1)
    assert assignment.uncommitted() == {}


def test_what_was_there_before_the_worker_may_have_been_tried_and_what_came_later_was_not() -> None:
    assignment = Assignment()
    assignment.assign(0, 0, 2)
    assignment.assign(1, 0, None)  # its end is not known
    for partition, offset in ((0, 0), (0, 1), (0, 2), (1, 0)):
        assignment.add(message(partition, offset))
    assert [held.attempts for held in assignment.take(NO_BOUND, NO_BOUND)] == [2, 2, 1, 2]


def test_it_is_behind_until_all_has_come_that_was_there_before_the_worker() -> None:
    assignment = Assignment()
    assert not assignment.is_behind()
    assignment.assign(0, 1, 3)
    assignment.assign(1, 7, 7)
    assignment.assign(2, None, 0)
    assert assignment.is_behind()
    assignment.add(message(0, 1))
    assignment.acknowledge([token_of(0, 1)])
    assert assignment.is_behind()
    assignment.add(message(0, 2))
    assert not assignment.is_behind()
    assignment.assign(3, None, 1)
    assert assignment.is_behind()
    assignment.revoke(3)
    assert not assignment.is_behind()


def test_gaps_in_the_offsets_hold_up_nothing_and_are_told() -> None:
    assignment = Assignment()
    assignment.assign(0, 5, 0)
    assert assignment.add(message(0, 7)) == 2
    assert assignment.add(message(0, 8)) == 0
    assert assignment.add(message(0, 12)) == 3
    assignment.acknowledge([token_of(0, 7), token_of(0, 8), token_of(0, 12)])
    assert assignment.uncommitted() == {0: 13}


def test_a_released_message_comes_before_those_that_came_after_it() -> None:
    assignment = filled(5)
    taken = assignment.take(3, NO_BOUND)
    assignment.release([taken[2].token, taken[0].token])
    assert offsets(assignment.take(NO_BOUND, NO_BOUND)) == [0, 2, 3, 4]
    assert [held.attempts for held in taken] == [2, 1, 2]


def test_what_is_read_again_does_not_make_an_earlier_open_message_count_as_done() -> None:
    assignment = filled(6)
    taken = assignment.take(3, NO_BOUND)
    assignment.acknowledge([taken[2].token])
    assert assignment.add(message(0, 2)) == 0  # the client went back to 2
    assignment.acknowledge([token_of(0, 2)])
    assert assignment.uncommitted() == {}
    assignment.acknowledge([token_of(0, 0), token_of(0, 1)])
    assert assignment.uncommitted() == {0: 3}
    assert (assignment.claims, assignment.out) == (0, 0)


def test_a_topic_that_was_made_anew_is_committed_from_its_beginning() -> None:
    assignment = Assignment()
    assignment.assign(0, 500, 0)
    assert assignment.add(message(0, 0)) == 0
    assignment.acknowledge([token_of(0, 0)])
    assert assignment.uncommitted() == {0: 1}


def test_a_partition_that_went_takes_its_messages_along_and_a_late_acknowledgement_does_nothing() -> None:
    assignment = filled(4)
    assignment.assign(1, 0, 0)
    assignment.add(message(1, 0))
    taken = assignment.take(2, NO_BOUND)
    assignment.revoke(0)
    assignment.acknowledge([held.token for held in taken])
    assignment.release([held.token for held in taken])
    assert assignment.uncommitted() == {}
    assert [held.partition for held in assignment.take(NO_BOUND, NO_BOUND)] == [1]
    assert (assignment.claims, assignment.size, assignment.out) == (0, 0, 1)


def test_messages_of_partitions_that_are_not_ours_are_not_taken_in() -> None:
    assignment = Assignment()
    assignment.add(message(3, 0))
    assert assignment.take(NO_BOUND, NO_BOUND) == []


def test_bounds_hold_past_the_first_message() -> None:
    assignment = Assignment()
    assignment.assign(0, 0, 0)
    for offset, size in enumerate([FETCH_BYTES_MAX + 1, 10, FETCH_BYTES_MAX - 10, 1]):
        assignment.add(message(0, offset, size=size, readings=50))
    assert offsets(assignment.take(10, NO_BOUND)) == [0]
    assert offsets(assignment.take(10, NO_BOUND)) == [1, 2]
    assert offsets(assignment.take(10, 1)) == [3]


class Model:
    """An Assignment of two partitions, and what must be true of it."""

    def __init__(self) -> None:
        self.assignment = Assignment()
        self.ends = {0: 0, 1: 0}
        self.open: dict[int, set[int]] = {0: set(), 1: set()}
        self.out: list[Held] = []
        for partition in self.ends:
            self.assignment.assign(partition, 0, 0)

    def add(self, partition: int, _: int) -> None:
        self.assignment.add(message(partition, self.ends[partition]))
        self.open[partition].add(self.ends[partition])
        self.ends[partition] += 1

    def take(self, _: int, number: int) -> None:
        taken = self.assignment.take(number + 1, NO_BOUND)
        for partition in self.ends:
            mine = [held.offset for held in taken if held.partition == partition]
            assert mine == sorted(mine)
        self.out += taken

    def acknowledge(self, _: int, number: int) -> None:
        done, self.out = self.out[:number], self.out[number:]
        self.assignment.acknowledge([held.token for held in done])
        for held in done:
            self.open[held.partition].discard(held.offset)

    def release(self, _: int, number: int) -> None:
        self.out, back = self.out[:number], self.out[number:]
        self.assignment.release([held.token for held in back])

    def commit(self, _: int, __: int) -> None:
        for partition, offset in self.assignment.uncommitted().items():
            self.assignment.committed(partition, offset)

    def revoke(self, partition: int, _: int) -> None:
        """It comes back at once, from what the group knows."""
        begin = self.assignment.progress()[partition]
        self.assignment.revoke(partition)
        self.assignment.assign(partition, begin, 0)
        self.out = [held for held in self.out if held.partition != partition]
        for offset in range(begin, self.ends[partition]):
            self.assignment.add(message(partition, offset))
            self.open[partition].add(offset)

    def check(self) -> None:
        for done in (self.assignment.progress(), self.assignment.uncommitted()):
            for partition, offset in done.items():
                assert all(offset <= still_open for still_open in self.open[partition])
        assert self.assignment.claims + self.assignment.out == sum(len(each) for each in self.open.values())
        assert self.assignment.size == 10 * self.assignment.claims
        assert self.assignment.out == len(self.out)


ACTS = [Model.add, Model.take, Model.acknowledge, Model.release, Model.commit, Model.revoke]
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 1), st.integers(0, 6)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_after_any_steps_nothing_open_counts_as_done_and_order_holds(
    steps: list[tuple[Callable[[Model, int, int], None], int, int]],
) -> None:
    model = Model()
    for act, partition, number in steps:
        act(model, partition, number)
        model.check()
    model.take(0, NO_BOUND)
    model.acknowledge(0, NO_BOUND)
    assert {**model.assignment.progress(), **model.assignment.uncommitted()} == model.ends
