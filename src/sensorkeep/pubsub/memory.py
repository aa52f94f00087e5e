"""Publish/subscribe inside one process."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sensorkeep.errors import Unavailable
from sensorkeep.pubsub.base import Unsubscribe


class _Subscription:
    """One call of `subscribe`: two of the same callback are two."""

    def __init__(self, callback: Callable[[bytes], None]) -> None:
        self.callback = callback


class MemoryPubSub:
    """A PubSub that calls the subscribers on the publisher's thread, in the order they subscribed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: dict[str, tuple[_Subscription, ...]] = {}
        """Tuples are replaced, never changed, so that publishers read them without the lock."""
        self._closed = False

    def publish(self, channel: str, message: bytes) -> None:
        for subscription in self._subscriptions.get(channel, ()):
            subscription.callback(message)

    def subscribe(self, channel: str, callback: Callable[[bytes], None]) -> Unsubscribe:
        subscription = _Subscription(callback)
        with self._lock:
            if self._closed:
                raise Unavailable("publish/subscribe is closed")
            self._subscriptions[channel] = (*self._subscriptions.get(channel, ()), subscription)
        return lambda: self._unsubscribe(channel, subscription)

    def _unsubscribe(self, channel: str, subscription: _Subscription) -> None:
        with self._lock:
            rest = tuple(other for other in self._subscriptions.get(channel, ()) if other is not subscription)
            if rest:
                self._subscriptions[channel] = rest
            else:
                self._subscriptions.pop(channel, None)

    def wanted(self, channel: str) -> bool:
        return channel in self._subscriptions

    def check(self) -> None:
        if self._closed:
            raise Unavailable("publish/subscribe is closed")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._subscriptions = {}
