"""The contract of publish/subscribe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Unsubscribe = Callable[[], None]

READINGS_CHANNEL = "readings"
"""Accepted readings for live listeners; see live/messages.py for the form."""
SETTLED_CHANNEL = "settled"
"""Batches that were settled: a msgpack array of batch ids."""
HURRY_CHANNEL = "hurry"
"""Somebody waits for a claim just published: the worker stops gathering. Empty messages."""

AUTH_CHANNEL = "auth"
"""A credential that was changed or revoked: its id (UTF-8). Other gateways stop believing what they remember of it."""


class PubSub(Protocol):
    """Messages to whoever listens now; nothing is kept. Every method is thread-safe and returns at once.

    Per channel, messages of one publisher arrive in order. Delivery is best effort: correctness never hangs on it.
    """

    def publish(self, channel: str, message: bytes) -> None:
        """Hand `message` to the subscribers of `channel`. Never raises for want of a listener."""
        ...

    def subscribe(self, channel: str, callback: Callable[[bytes], None]) -> Unsubscribe:
        """Call `callback` with each message, on some thread; it must return at once and not raise."""
        ...

    def wanted(self, channel: str) -> bool:
        """Whether anybody listens: publishers skip the work of a message nobody wants. May be true by mistake."""
        ...

    def check(self) -> None:
        """Raises Unavailable where messages do not get through."""
        ...

    def close(self) -> None:
        """Release what is held. Idempotent."""
        ...
