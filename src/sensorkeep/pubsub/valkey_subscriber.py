"""The listening side of publish/subscribe through Valkey: one connection and one thread, whatever comes and goes."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from sensorkeep.errors import Unavailable
from sensorkeep.limits import (
    PUBSUB_CLOSE_SECONDS,
    PUBSUB_RECONNECT_SECONDS_FIRST,
    PUBSUB_RECONNECT_SECONDS_MAX,
    PUBSUB_SILENCE_SECONDS_MAX,
)
from sensorkeep.pubsub.valkey_sender import LISTENERS_CHANNEL, Sender
from sensorkeep.valkey import Valkey

log = structlog.get_logger(__name__)

_LOOK_SECONDS = PUBSUB_SILENCE_SECONDS_MAX / 4
"""How often the thread looks up when nothing comes."""


class Subscriber:
    """Hands on the messages of the channels listened to. After an outage it listens to them again by itself.

    The connection belongs to the thread: over TLS it could not be written to while it is read. To be heard by the
    thread at once, others send it a message the way all messages go.
    """

    def __init__(self, valkey: Valkey, sender: Sender, on_message: Callable[[str, bytes], None]) -> None:
        """`on_message(channel, message)` is called on the thread. By `sender` every process is told of the channels
        that this one has begun to listen to."""
        self._valkey = valkey
        self._sender = sender
        self._on_message = on_message
        self._start_of_names = len(valkey.name(""))
        self._wake_channel = f"wake-{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._wanted = {LISTENERS_CHANNEL, self._wake_channel}
        self._asked: set[str] = set()
        """Channels that the connection was asked for. The thread's own."""
        self._closing = threading.Event()
        self._tried = threading.Event()
        self.connected = False
        """Whether messages come in."""
        self._thread = threading.Thread(target=self._run, name="pubsub-receive", daemon=True)
        self._thread.start()

    def wait_for_first_try(self) -> None:
        """Wait until the first try to connect has ended, well or not."""
        self._tried.wait(PUBSUB_CLOSE_SECONDS)

    def listen(self, channel: str) -> None:
        """Begin to listen to a channel."""
        with self._lock:
            self._wanted.add(channel)
        self._wake()

    def leave(self, channel: str) -> None:
        """Stop listening to it."""
        with self._lock:
            self._wanted.discard(channel)
        self._wake()

    def stop(self) -> None:
        """Have the thread end; `join` waits for it."""
        self._closing.set()
        self._wake()

    def join(self) -> None:
        """Wait until the thread has ended. Idempotent."""
        self._thread.join(PUBSUB_CLOSE_SECONDS)

    def _wake(self) -> None:
        self._sender.put(self._wake_channel, b"", published=False)

    def _run(self) -> None:
        pause = PUBSUB_RECONNECT_SECONDS_FIRST
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._serve()
            except Exception as error:
                if not (isinstance(error, Unavailable) or self._valkey.is_error(error)):
                    log.exception("pubsub_receive_failed")
                elif self.connected:
                    log.warning("pubsub_subscriptions_lost", cause=str(error))
            self.connected = False
            self._tried.set()
            if time.monotonic() - began > PUBSUB_RECONNECT_SECONDS_MAX:
                pause = PUBSUB_RECONNECT_SECONDS_FIRST
            self._closing.wait(pause)
            pause = min(2 * pause, PUBSUB_RECONNECT_SECONDS_MAX)

    def _serve(self) -> None:
        """Connect, and hand on what comes until the connection ends."""
        connection = self._valkey.connection()
        try:
            connection.connect()
            self._asked = set()
            self._ask(connection)
            self.connected = True
            self._tried.set()
            self._read(connection)
        finally:
            connection.disconnect()

    def _ask(self, connection: Any) -> None:
        """Bring the subscriptions of the connection to what is wanted."""
        with self._lock:
            wanted = set(self._wanted)
        for command, channels in (("SUBSCRIBE", wanted - self._asked), ("UNSUBSCRIBE", self._asked - wanted)):
            if channels:
                names = map(self._valkey.name, sorted(channels))
                connection.send_command(command, *names, check_health=False)
        self._asked = wanted

    def _read(self, connection: Any) -> None:
        heard_at = time.monotonic()
        pinged = False
        while not self._closing.is_set():
            if connection.can_read(_LOOK_SECONDS):
                self._handle(connection, connection.read_response(disable_decoding=True))
                heard_at, pinged = time.monotonic(), False
                continue
            self._ask(connection)
            silence = time.monotonic() - heard_at
            if silence > PUBSUB_SILENCE_SECONDS_MAX:
                raise Unavailable("Valkey has fallen silent", code="dependency_down")
            if silence > PUBSUB_SILENCE_SECONDS_MAX / 2 and not pinged:
                pinged = True
                connection.send_command("PING", check_health=False)

    def _handle(self, connection: Any, frame: Any) -> None:
        if not isinstance(frame, list) or len(frame) != 3:
            return  # the answer to PING
        kind, name, content = frame
        channel = name[self._start_of_names :].decode("utf-8", "replace")
        if kind == b"subscribe":
            if channel not in (LISTENERS_CHANNEL, self._wake_channel):
                self._sender.announce(channel)
        elif kind != b"message":
            return
        elif channel == self._wake_channel:
            self._ask(connection)
        elif channel == LISTENERS_CHANNEL:
            self._sender.note_listener(content.decode("utf-8", "replace"))
        else:
            self._hand_on(channel, content)

    def _hand_on(self, channel: str, message: bytes) -> None:
        try:
            self._on_message(channel, message)
        except Exception:
            log.exception("pubsub_callback_failed", channel=channel)
