"""The contract of the claim queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sensorkeep.model import Claim


class Delivery(NamedTuple):
    """A claim handed to a worker. `token` is the queue's own; `attempts` counts this delivery (1 at first)."""

    claim: Claim
    token: int
    attempts: int


class QueueDepth(NamedTuple):
    """What waits: claims published and not acknowledged, and when the oldest was received (None: none waits)."""

    claims: int
    oldest_us: int | None


class ClaimQueue(Protocol):
    """Claims, at least once, in the order published. Every method is blocking and thread-safe.

    Where many machines share a queue, that order holds for each source of claims, and a claim that one worker took may
    be delivered to another as well. Such a queue counts the `attempts` of the worker that asks alone, and begins with 2
    for a claim that was there before that worker: another may have tried it. Where it is opened anew, claims that were
    acknowledged before an earlier one of their source may be delivered again. Whoever works them off must therefore
    know those that are done.

    Errors of the backend raise Unavailable (code `disk_full` where no room is left, else `dependency_down`).
    """

    def publish(self, claims: Sequence[Claim]) -> None:
        """Append the claims, all or none. Durable when it returns. Concurrent calls may share one sync.

        Raises Uncertain where each of them may have been appended or not, and will not be appended later.
        """
        ...

    def fetch(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Delivery]:
        """Take the next claims in order, at least one claim if any waits, else as many as fit under both bounds.

        Waits up to `wait_seconds` for the first; an empty list after that: nothing waits. What is taken is not handed
        out again until it is released or the queue is opened anew. `wake` ends a wait early. Past the first claim the
        sum of the claims stays under FETCH_BYTES_MAX too.
        """
        ...

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Forget the claims for good. Idempotent; durable when it returns. Claims that another worker has been given
        meanwhile are passed over."""
        ...

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give the claims back: they are delivered again, in their old order, with `attempts` one higher."""
        ...

    def depth(self) -> QueueDepth:
        """What is not acknowledged yet, taken or not."""
        ...

    def wake(self) -> None:
        """End a waiting fetch now, with what there is."""
        ...

    def check(self) -> None:
        """Prove that a claim could be published: raises Unavailable where it could not."""
        ...

    def close(self) -> None:
        """Release what is held; a waiting fetch returns empty. Idempotent."""
        ...
