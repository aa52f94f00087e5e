"""One live client: a bounded queue in front of an outlet, and the notice of what was lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from sensorkeep.limits import WS_PAGE_MESSAGES_MAX
from sensorkeep.live.frames import text_frame
from sensorkeep.metrics import Metrics


class Outlet(Protocol):
    """Where a client's frames go. Used on the event loop only; no method waits."""

    on_writable: Callable[[], None] | None
    """Called when `writable` may have become true again."""

    def writable(self) -> bool:
        """Whether the peer takes more: false while its buffer is over the high-water mark, and once it is gone."""
        ...

    def write(self, frames: bytes) -> None:
        """Send whole frames (see module frames). Only where `writable`."""
        ...


class Client:
    """A listener. It gets the frames offered, or loses the oldest and is told how many before the next it gets."""

    __slots__ = ("_dropped", "_metrics", "_outlet", "_queue", "_queue_max", "ended")

    def __init__(self, outlet: Outlet, queue_messages_max: int, metrics: Metrics) -> None:
        self._outlet = outlet
        self._metrics = metrics
        self._queue: deque[bytes] = deque(maxlen=queue_messages_max)
        self._queue_max = queue_messages_max
        self._dropped = 0
        self.ended = asyncio.Event()
        """Set where the connection must end: its credential was changed or revoked."""
        outlet.on_writable = self.flush

    def offer(self, frames: Sequence[bytes], joined: bytes) -> int:
        """Send the frames, or keep them until the outlet takes them. `joined` is their concatenation.

        Answers how many were sent at once, for the caller to count: once for many clients costs less.
        """
        if not self._queue and not self._dropped and self._outlet.writable():
            self._outlet.write(joined)
            return len(frames)
        excess = len(self._queue) + len(frames) - self._queue_max
        self._queue.extend(frames)  # A full deque lets its oldest go.
        if excess > 0:
            self.lose(excess)
        self.flush()
        return 0

    def lose(self, messages: int) -> None:
        """Enter `messages` that this client will not get."""
        self._dropped += messages
        self._metrics.ws_dropped.inc(messages)

    def end(self) -> None:
        """Ask whoever serves the connection to close it."""
        self.ended.set()

    def flush(self) -> None:
        """Send what waits, as long as the outlet takes it."""
        queue = self._queue
        while (queue or self._dropped) and self._outlet.writable():
            page = [queue.popleft() for _ in range(min(len(queue), WS_PAGE_MESSAGES_MAX))]
            self._metrics.ws_messages.inc(len(page))
            if self._dropped:
                page.insert(0, text_frame(b'{"type":"gap","dropped":%d}' % self._dropped))
                self._dropped = 0
            self._outlet.write(b"".join(page))
