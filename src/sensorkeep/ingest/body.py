"""Request bodies on their way from the event loop to the thread that uses them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from sensorkeep import limits
from sensorkeep.errors import InvalidInput, LimitExceeded

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client closed the connection before its body had arrived, or before anything was done with it."""


class BodyReader:
    """The body of one request, chunk by chunk. Lives on the event loop."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._end_at = asyncio.get_running_loop().time() + limits.BODY_SECONDS_MAX
        self.complete = False
        """Whether the last chunk was read."""

    async def chunk(self) -> bytes:
        """The next chunk (maybe empty). Raises ClientGone, or InvalidInput (408) after too long a silence, or where
        the body takes too long in all."""
        left = self._end_at - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(limits.BODY_IDLE_SECONDS_MAX, left)):
                message = await self._receive()
        except TimeoutError:
            if left < limits.BODY_IDLE_SECONDS_MAX:
                detail = f"the body took longer than {limits.BODY_SECONDS_MAX // 3600} hours; send smaller ones"
            else:
                detail = f"nothing of the body arrived for {limits.BODY_IDLE_SECONDS_MAX} seconds; send it again"
            raise InvalidInput(detail, code="request_timeout") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        self.complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def left(self) -> ClientGone:
        """Return when the client has closed the connection. Only after the last chunk."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        return ClientGone()

    async def up_to(self, size: int) -> bytes:
        """What arrives until the body is complete or longer than `size` bytes."""
        body = await self.chunk()
        if self.complete:
            return body
        parts = [body]
        total = len(body)
        while not self.complete and total <= size:
            parts.append(await self.chunk())
            total += len(parts[-1])
        return b"".join(parts)

    async def whole(self, size_max: int, setting: str) -> bytes:
        """All of it. Raises LimitExceeded past `size_max` bytes; `setting` says what to change."""
        body = await self.up_to(size_max)
        if len(body) > size_max:
            raise LimitExceeded(f"the body is larger than {size_max} bytes ({setting})")
        return body


class BodyPipe:
    """Chunks from the event loop to one thread, never more than INFLATE_OUTPUT_BYTES waiting in between."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._ended = False
        self._error: BaseException | None = None
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, chunk: bytes) -> None:
        """Hand a chunk over; waits while the thread is behind."""
        await self._room.wait()
        with self._ready:
            self._chunks.append(chunk)
            self._waiting += len(chunk)
            if self._waiting >= limits.INFLATE_OUTPUT_BYTES:
                self._room.clear()
            self._ready.notify()

    def end(self, error: BaseException | None = None) -> None:
        """There is no more; with `error`, the thread gets that raised."""
        with self._ready:
            self._ended = True
            self._error = error
            self._ready.notify()

    def __iter__(self) -> Iterator[bytes]:
        """The chunks, on the thread. Blocks for the next."""
        while True:
            with self._ready:
                while not self._chunks and not self._ended:
                    self._ready.wait()
                if not self._chunks:
                    if self._error is not None:
                        raise self._error
                    return
                chunk = self._chunks.popleft()
                self._waiting -= len(chunk)
                full = not self._room.is_set()
            if full:
                self._loop.call_soon_threadsafe(self._room.set)
            yield chunk
