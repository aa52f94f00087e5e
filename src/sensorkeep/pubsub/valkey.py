"""Publish/subscribe between processes, through Valkey (or Redis)."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from sensorkeep.errors import Unavailable
from sensorkeep.metrics import Metrics
from sensorkeep.pubsub.base import Unsubscribe
from sensorkeep.pubsub.memory import MemoryPubSub
from sensorkeep.pubsub.valkey_sender import Sender
from sensorkeep.pubsub.valkey_subscriber import Subscriber
from sensorkeep.valkey import Valkey

_ID_BYTES = 8


class ValkeyPubSub:
    """A PubSub whose messages reach the subscribers of every process of the installation.

    Those of this process are called by the publisher itself, whatever becomes of Valkey; a message begins with the id
    of its publisher, who ignores what comes back to it. So each subscriber hears a message once, and while Valkey is
    down each process still hears itself.

    Other processes lose what is published while Valkey is down, or faster than it takes it (the oldest first); the
    metric `pubsub_dropped` counts it.
    """

    def __init__(self, valkey: Valkey, metrics: Metrics | None = None) -> None:
        self._valkey = valkey
        self._id = secrets.token_bytes(_ID_BYTES)
        self._local = MemoryPubSub()
        self._lock = threading.Lock()
        self._subscriptions: dict[str, int] = {}
        self._closed = False
        self._sender = Sender(valkey, metrics or Metrics())
        self._subscriber = Subscriber(valkey, self._sender, self._on_message)
        self._subscriber.wait_for_first_try()

    def publish(self, channel: str, message: bytes) -> None:
        self._local.publish(channel, message)
        self._sender.put(channel, self._id + message)

    def subscribe(self, channel: str, callback: Callable[[bytes], None]) -> Unsubscribe:
        leave = self._local.subscribe(channel, callback)
        with self._lock:
            self._subscriptions[channel] = self._subscriptions.get(channel, 0) + 1
            if self._subscriptions[channel] == 1:
                self._subscriber.listen(channel)
        left = threading.Lock()  # taken by the first call of `unsubscribe`, and never given back

        def unsubscribe() -> None:
            if left.acquire(blocking=False):
                leave()
                self._drop_subscription(channel)

        return unsubscribe

    def _drop_subscription(self, channel: str) -> None:
        with self._lock:
            self._subscriptions[channel] -= 1
            if not self._subscriptions[channel]:
                del self._subscriptions[channel]
                self._subscriber.leave(channel)

    def wanted(self, channel: str) -> bool:
        return self._local.wanted(channel) or self._sender.has_listener(channel)

    def check(self) -> None:
        self._local.check()
        self._valkey.check()
        if not self._subscriber.connected:
            raise Unavailable("the subscriptions in Valkey are being made again", code="dependency_down")

    def close(self) -> None:
        self._local.close()
        self._subscriber.stop()
        self._sender.close()
        self._subscriber.join()

    def _on_message(self, channel: str, message: bytes) -> None:
        """On the subscriber's thread: a message of this installation, this process included."""
        if message[:_ID_BYTES] != self._id:
            self._local.publish(channel, message[_ID_BYTES:])
