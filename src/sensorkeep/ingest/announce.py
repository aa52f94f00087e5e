"""Tells live listeners of accepted readings, and requests that wait of settled batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from sensorkeep.model import DecodedBatch
from sensorkeep.pubsub.base import HURRY_CHANNEL, READINGS_CHANNEL, SETTLED_CHANNEL, PubSub

Encode = Callable[[DecodedBatch], bytes]


class Announcer:
    """Publishes accepted readings for live listeners; costs nothing while nobody listens."""

    def __init__(self, pubsub: PubSub, encode: Encode) -> None:
        self._pubsub = pubsub
        self._encode = encode

    def announce(self, batch: Callable[[], DecodedBatch]) -> None:
        """Publish the usable readings of an accepted batch, which is made only where somebody listens."""
        if self._pubsub.wanted(READINGS_CHANNEL):
            self._pubsub.publish(READINGS_CHANNEL, self._encode(batch()))

    def hurry(self) -> None:
        """Tell the worker that somebody waits for the claim just published."""
        self._pubsub.publish(HURRY_CHANNEL, b"")


class SettledWaiters:
    """Requests that wait for their batch to be settled. Lives on the event loop; notices come from any thread."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        self._events: dict[str, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen; events are set on this loop."""
        self._loop = loop
        self.close = self._pubsub.subscribe(SETTLED_CHANNEL, self._on_message)

    def expect(self, batch_id: str) -> asyncio.Event:
        """An event that is set when the batch is settled from now on."""
        return self._events.setdefault(batch_id, asyncio.Event())

    def forget(self, batch_id: str) -> None:
        """The request has ended."""
        self._events.pop(batch_id, None)

    def _on_message(self, message: bytes) -> None:
        if self._events:
            self._loop.call_soon_threadsafe(self._settled, msgspec.msgpack.decode(message, type=list[str]))

    def _settled(self, batch_ids: list[str]) -> None:
        for batch_id in batch_ids:
            if event := self._events.get(batch_id):
                event.set()
