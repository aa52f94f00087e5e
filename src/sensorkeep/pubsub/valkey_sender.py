"""The sending side of publish/subscribe through Valkey: one thread, so that who publishes never waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

import structlog

from sensorkeep.errors import Unavailable
from sensorkeep.limits import (
    PUBSUB_CLOSE_SECONDS,
    PUBSUB_LISTENERS_SECONDS,
    PUBSUB_SENT_AT_ONCE,
    PUBSUB_WAITING_BYTES_MAX,
)
from sensorkeep.metrics import Metrics
from sensorkeep.valkey import Client, Valkey

log = structlog.get_logger(__name__)

LISTENERS_CHANNEL = "listeners"
"""Names of channels that somebody has just begun to listen to: until then publishers may have skipped them."""


class _Message(NamedTuple):
    channel: str
    content: bytes
    published: bool
    """Whether somebody misses it where it is lost: not what the processes say to keep their subscriptions."""


class Sender:
    """Sends messages in the order they were put, and knows which channels have a listener in any process."""

    def __init__(self, valkey: Valkey, metrics: Metrics) -> None:
        self._valkey = valkey
        self._metrics = metrics
        self._changed = threading.Condition()
        self._waiting: deque[_Message] = deque()
        self._waiting_bytes = 0
        self._closing = False
        self._listeners: dict[str, bool] = {}
        """Whether anybody listens to a channel that was asked for. While Valkey is down nobody else can be reached."""
        self._noted: set[str] = set()
        """Channels that somebody began to listen to since the last look."""
        self._look_at = 0.0
        self._dropped_unlogged = 0
        self._thread = threading.Thread(target=self._run, name="pubsub-send", daemon=True)
        self._thread.start()

    def put(self, channel: str, message: bytes, *, published: bool = True) -> None:
        """Send it soon. Where too much waits the oldest go; they are counted where they were `published`."""
        with self._changed:
            if self._closing:
                return
            self._waiting.append(_Message(channel, message, published))
            self._waiting_bytes += len(message)
            while self._waiting_bytes > PUBSUB_WAITING_BYTES_MAX:
                oldest = self._waiting.popleft()
                self._waiting_bytes -= len(oldest.content)
                self._count_lost([oldest])
            self._changed.notify()

    def announce(self, channel: str) -> None:
        """Tell every process that this one has begun to listen to a channel."""
        self.put(LISTENERS_CHANNEL, channel.encode(), published=False)

    def has_listener(self, channel: str) -> bool:
        """Whether anybody listens to the channel; true until that is known. Cheap."""
        known = self._listeners.get(channel)
        if known is None:
            with self._changed:
                known = self._listeners.setdefault(channel, True)
                self._look_at = 0.0
                self._changed.notify()
        return known

    def note_listener(self, channel: str) -> None:
        """Somebody has begun to listen to the channel."""
        with self._changed:
            self._noted.add(channel)
            if channel in self._listeners:
                self._listeners[channel] = True

    def close(self) -> None:
        """Send what waits, as far as there is time. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(PUBSUB_CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, max(0.0, self._look_at - time.monotonic()))
                if self._closing and not self._waiting:
                    return
                messages = self._take()
            try:
                if messages:
                    self._send(messages)
                    messages = []
                if time.monotonic() >= self._look_at:
                    self._look()
            except Unavailable:
                self._lose(messages)
            except Exception:
                log.exception("pubsub_send_failed")
                self._lose(messages)

    def _has_work(self) -> bool:
        return bool(self._waiting) or self._closing or time.monotonic() >= self._look_at

    def _take(self) -> list[_Message]:
        messages = [self._waiting.popleft() for _ in range(min(len(self._waiting), PUBSUB_SENT_AT_ONCE))]
        self._waiting_bytes -= sum(len(message.content) for message in messages)
        return messages

    def _send(self, messages: list[_Message]) -> None:
        def publish(client: Client) -> None:
            with client.pipeline(transaction=False) as pipeline:
                for message in messages:
                    pipeline.publish(self._valkey.name(message.channel), message.content)
                pipeline.execute()

        self._valkey.run(publish)
        with self._changed:
            dropped, self._dropped_unlogged = self._dropped_unlogged, 0
        if dropped:
            log.warning("pubsub_messages_dropped", messages=dropped)

    def _look(self) -> None:
        """Ask which channels have listeners; so it is known soon, too, that Valkey is down or back."""
        with self._changed:
            self._noted.clear()
            channels = list(self._listeners)
        self._look_at = time.monotonic() + PUBSUB_LISTENERS_SECONDS
        if not channels:
            self._valkey.check()
            return
        names = [self._valkey.name(channel) for channel in channels]
        counted = self._valkey.run(lambda client: client.pubsub_numsub(*names))
        with self._changed:
            for channel, (_, listeners) in zip(channels, counted, strict=True):
                self._listeners[channel] = bool(listeners) or channel in self._noted

    def _lose(self, unsent: list[_Message]) -> None:
        """Valkey is down: what waits would come late to listeners that have missed what came before it."""
        with self._changed:
            self._count_lost([*unsent, *self._waiting])
            self._waiting.clear()
            self._waiting_bytes = 0
            self._listeners = dict.fromkeys(self._listeners, False)
            self._look_at = time.monotonic() + PUBSUB_LISTENERS_SECONDS

    def _count_lost(self, messages: list[_Message]) -> None:
        """With the lock held."""
        lost = sum(message.published for message in messages)
        self._dropped_unlogged += lost
        self._metrics.pubsub_dropped.inc(lost)
