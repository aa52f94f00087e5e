"""The listening side of publish/subscribe through Valkey: one connection and one thread, whatever comes and goes."""

from __future__ import annotations

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
from sensorkeep.pubsub.valkey_sender import LISTENERS_CHANNEL
from sensorkeep.valkey import Valkey

log = structlog.get_logger(__name__)


class Subscriber:
    """Hands on the messages of the channels listened to. After an outage it listens to them again by itself."""

    def __init__(
        self,
        valkey: Valkey,
        on_message: Callable[[str, bytes], None],
        on_listener: Callable[[str], None],
        announce: Callable[[str], None],
    ) -> None:
        """`on_message(channel, message)` and `on_listener(channel)` (somebody, anywhere, has begun to listen) are
        called on the thread; `announce(channel)` once Valkey has entered a subscription of this process."""
        self._valkey = valkey
        self._on_message = on_message
        self._on_listener = on_listener
        self._announce = announce
        self._start_of_names = len(valkey.name(""))
        self._lock = threading.Lock()
        self._channels = {LISTENERS_CHANNEL}
        self._connection: Any = None
        self._closing = threading.Event()
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pubsub-receive", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether messages come in."""
        return self._connection is not None

    def wait_for_first_try(self) -> None:
        """Wait until the first try to connect has ended, well or not."""
        self._tried.wait(PUBSUB_CLOSE_SECONDS)

    def listen(self, channel: str) -> None:
        """Begin to listen to a channel."""
        with self._lock:
            self._channels.add(channel)
            self._say("SUBSCRIBE", channel)

    def leave(self, channel: str) -> None:
        """Stop listening to it."""
        with self._lock:
            self._channels.discard(channel)
            self._say("UNSUBSCRIBE", channel)

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closing.set()
        self._hang_up()
        self._thread.join(PUBSUB_CLOSE_SECONDS)

    def _say(self, command: str, *channels: str) -> None:
        """Send on the connection, where there is one; a new connection begins with all channels. With the lock held:
        the thread that reads never sends without it."""
        if self._connection is None:
            return
        try:
            self._connection.send_command(command, *map(self._valkey.name, channels), check_health=False)
        except Exception as error:
            if not self._valkey.is_error(error):
                raise
            # The thread that reads meets the same, and connects anew.

    def _run(self) -> None:
        pause = PUBSUB_RECONNECT_SECONDS_FIRST
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._connect()
                self._read()
            except Exception as error:
                if not (isinstance(error, Unavailable) or self._valkey.is_error(error)):
                    log.exception("pubsub_receive_failed")
                elif self.connected:
                    log.warning("pubsub_subscriptions_lost", cause=str(error))
            finally:
                self._hang_up()
                self._tried.set()
            if time.monotonic() - began > PUBSUB_RECONNECT_SECONDS_MAX:
                pause = PUBSUB_RECONNECT_SECONDS_FIRST
            self._closing.wait(pause)
            pause = min(2 * pause, PUBSUB_RECONNECT_SECONDS_MAX)

    def _connect(self) -> None:
        connection = self._valkey.connection()
        connection.connect()
        with self._lock:
            self._connection = connection
            self._say("SUBSCRIBE", *sorted(self._channels))
        self._tried.set()

    def _hang_up(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _read(self) -> None:
        """Hand on what comes until the connection ends."""
        connection = self._connection
        if connection is None:  # it was closed meanwhile
            return
        heard_at = time.monotonic()
        asked = False
        while not self._closing.is_set():
            if connection.can_read(PUBSUB_SILENCE_SECONDS_MAX / 4):
                self._handle(connection.read_response(disable_decoding=True))
                heard_at, asked = time.monotonic(), False
                continue
            silence = time.monotonic() - heard_at
            if silence > PUBSUB_SILENCE_SECONDS_MAX:
                raise Unavailable("Valkey has fallen silent", code="dependency_down")
            if silence > PUBSUB_SILENCE_SECONDS_MAX / 2 and not asked:
                asked = True
                with self._lock:
                    self._say("PING")

    def _handle(self, frame: Any) -> None:
        if not isinstance(frame, list) or len(frame) != 3:
            return  # the answer to PING
        kind, name, content = frame
        channel = name[self._start_of_names :].decode("utf-8", "replace")
        if kind == b"subscribe":
            if channel != LISTENERS_CHANNEL:
                self._announce(channel)
        elif kind != b"message":
            return
        elif channel == LISTENERS_CHANNEL:
            self._on_listener(content.decode("utf-8", "replace"))
        else:
            self._hand_on(channel, content)

    def _hand_on(self, channel: str, message: bytes) -> None:
        try:
            self._on_message(channel, message)
        except Exception:
            log.exception("pubsub_callback_failed", channel=channel)
