"""The threads that read bodies and make them durable, and the requests that wait for one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sensorkeep import limits
from sensorkeep.errors import Unavailable

Result = TypeVar("Result")


class BodyThreads:
    """BULK_STREAMS_MAX threads. Lives on the event loop.

    Who finds none free waits, in the order of arrival, with its body in memory. So only some may wait, and whose client
    has left is dropped: while a service hangs, clients give up, come back, and would otherwise pile up here.
    """

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(limits.BULK_STREAMS_MAX, thread_name_prefix=name)
        self._free = asyncio.Semaphore(limits.BULK_STREAMS_MAX)
        self._waiting = 0
        self._waiting_bytes = 0

    async def run(self, work: Callable[[], Result], size: int, left: Callable[[], Awaitable[Exception]]) -> Result:
        """What `work` returns or raises, on a thread. Its body takes up to `size` bytes.

        `left` returns once nobody waits for the answer any more, with the error to raise then; what has begun is
        finished all the same. Raises Unavailable where too many wait.
        """
        if self._free.locked():
            await self._turn(size, left)
        else:
            await self._free.acquire()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._free.release()

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._threads.shutdown(wait=True)

    async def _turn(self, size: int, left: Callable[[], Awaitable[Exception]]) -> None:
        room = self._waiting_bytes + size <= limits.BODIES_WAITING_BYTES_MAX or not self._waiting
        if self._waiting >= limits.BODIES_WAITING_MAX or not room:
            raise Unavailable("too many requests wait for their turn")
        turn = asyncio.ensure_future(self._free.acquire())
        leaving = asyncio.ensure_future(left())
        self._waiting += 1
        self._waiting_bytes += size
        has_turn = False
        try:
            await asyncio.wait((turn, leaving), return_when=asyncio.FIRST_COMPLETED)
            has_turn = turn.done()
            if not has_turn:
                raise leaving.result()
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size
            leaving.cancel()
            if not has_turn and not turn.cancel():  # it came at the moment in which this request was cancelled
                self._free.release()
