"""What a worker holds of the partitions that are its own: claims that wait, claims that are out, how far all is done.

Plain bookkeeping, without a lock and without Kafka.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sensorkeep.limits import FETCH_BYTES_MAX
from sensorkeep.model import Claim

_OFFSET_BITS = 48


def token_of(partition: int, offset: int) -> int:
    """The token of the claim at this place."""
    return partition << _OFFSET_BITS | offset


@dataclass(slots=True)
class Held:
    """A message that is not acknowledged. `claim` is None where it does not decode."""

    partition: int
    offset: int
    claim: Claim | None
    content: bytes
    time_us: int
    """When it was published, by the clock of who did."""
    arrival: int = 0
    """Its place in the order in which messages came to this worker."""
    attempts: int = 0
    out: bool = False

    @property
    def token(self) -> int:
        """See queue/base.py."""
        return token_of(self.partition, self.offset)


@dataclass(slots=True)
class _Partition:
    committed: int | None
    """How far the group has come, as far as is known: the offset of its next message."""
    end: int | None
    """Where it ended when it was taken over (None: not known): what is before that may have been tried by others."""
    next_offset: int | None = None
    """Behind the last message that came; None before the first."""
    held: dict[int, Held] = field(default_factory=dict)
    """By offset, in order."""

    @property
    def done(self) -> int | None:
        """The offset up to which all that came is acknowledged; None before the first message."""
        return next(iter(self.held), self.next_offset)


class Assignment:
    """The partitions of one worker. Order of delivery: as messages came, and so in order for each partition."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._waiting: list[tuple[int, Held]] = []
        """A heap by arrival. Messages that were acknowledged, or whose partition went, leave it when they are met."""
        self._arrivals = 0
        self.claims = 0
        self.size = 0
        """Messages that wait, and their bytes."""
        self.out = 0
        """Messages that are out."""

    @property
    def partitions(self) -> set[int]:
        """Those assigned."""
        return set(self._partitions)

    def assign(self, partition: int, committed: int | None, end: int | None) -> None:
        """Take over a partition that ends there, and whose messages before `committed` are done (None: not known)."""
        self.revoke(partition)
        self._partitions[partition] = _Partition(committed, end)

    def is_behind(self) -> bool:
        """Whether messages that were there before this worker have not come yet."""
        return any(
            partition.end is not None and (partition.next_offset or partition.committed or 0) < partition.end
            for partition in self._partitions.values()
        )

    def revoke(self, partition: int) -> None:
        """Let a partition go: what waits of it is dropped, what is out is no longer ours."""
        gone = self._partitions.pop(partition, None)
        if gone is not None:
            self._forget(gone, 0)

    def add(self, message: Held) -> int:
        """Take in a message. Returns how many before it never came: they are not in the topic any more.

        Where it is not behind the last one (the topic was made anew, or the client reads again), those from it on come
        again too, and are forgotten until then.
        """
        partition = self._partitions.get(message.partition)
        if partition is None:
            return 0
        expected = partition.committed if partition.next_offset is None else partition.next_offset
        missing = 0
        if expected is None:
            partition.committed = message.offset  # nothing of it is done
        else:
            missing = max(0, message.offset - expected)
            if message.offset < expected:
                self._rewind(partition, message.offset)
        if partition.end is None or message.offset < partition.end:
            message.attempts = 1
        self._arrivals += 1
        message.arrival = self._arrivals
        partition.next_offset = message.offset + 1
        partition.held[message.offset] = message
        self._wait(message)
        return missing

    def take(self, max_claims: int, max_readings: int) -> list[Held]:
        """The next messages within the bounds (queue/base.py), at least one if any waits. They are out then."""
        taken: list[Held] = []
        readings = size = 0
        while (message := self._first()) is not None:
            readings += message.claim.readings if message.claim is not None else 0
            size += len(message.content)
            fits = len(taken) < max_claims and readings <= max_readings and size <= FETCH_BYTES_MAX
            if taken and not fits:
                break
            heapq.heappop(self._waiting)
            self._leave(message)
            message.out = True
            self.out += 1
            message.attempts += 1
            taken.append(message)
        return taken

    def acknowledge(self, tokens: Iterable[int]) -> None:
        """Forget these messages. Those of partitions that went are passed over."""
        for token in tokens:
            partition = self._partitions.get(token >> _OFFSET_BITS)
            message = partition.held.pop(token & (1 << _OFFSET_BITS) - 1, None) if partition is not None else None
            if message is not None:
                self._leave(message)

    def release(self, tokens: Iterable[int]) -> None:
        """Let these messages wait again, in their old place, if they are out."""
        for token in tokens:
            partition = self._partitions.get(token >> _OFFSET_BITS)
            message = partition.held.get(token & (1 << _OFFSET_BITS) - 1) if partition is not None else None
            if message is not None and message.out:
                self._leave(message)
                message.out = False
                self._wait(message)

    def uncommitted(self) -> dict[int, int]:
        """How far each partition is done, where that is further than the group knows: offset by partition."""
        found: dict[int, int] = {}
        for number, partition in self._partitions.items():
            done = partition.done
            if done is not None and (partition.committed is None or done > partition.committed):
                found[number] = done
        return found

    def committed(self, partition: int, offset: int) -> None:
        """Note that the group knows that far."""
        found = self._partitions.get(partition)
        if found is not None:
            found.committed = offset

    def progress(self) -> Mapping[int, int]:
        """How far the group has come, by partition, where that is known."""
        return {number: found.committed for number, found in self._partitions.items() if found.committed is not None}

    def acknowledged_ahead(self) -> int:
        """Messages acknowledged that the group cannot know of yet: an earlier one of their partition is not."""
        ahead = 0
        for partition in self._partitions.values():
            if partition.next_offset is not None and partition.done is not None:
                ahead += partition.next_offset - partition.done - len(partition.held)
        return ahead

    def _first(self) -> Held | None:
        """The first message that waits, still in the heap."""
        while self._waiting:
            message = self._waiting[0][1]
            partition = self._partitions.get(message.partition)
            if partition is not None and partition.held.get(message.offset) is message and not message.out:
                return message
            heapq.heappop(self._waiting)
        return None

    def _wait(self, message: Held) -> None:
        heapq.heappush(self._waiting, (message.arrival, message))
        self.claims += 1
        self.size += len(message.content)

    def _leave(self, message: Held) -> None:
        """Count it no longer, as waiting or as out."""
        if message.out:
            self.out -= 1
        else:
            self.claims -= 1
            self.size -= len(message.content)

    def _rewind(self, partition: _Partition, offset: int) -> None:
        self._forget(partition, offset)
        if partition.committed is not None:
            partition.committed = min(partition.committed, offset)

    def _forget(self, partition: _Partition, offset: int) -> None:
        """Forget the messages from there on."""
        for message in [held for held in partition.held.values() if held.offset >= offset]:
            del partition.held[message.offset]
            self._leave(message)
