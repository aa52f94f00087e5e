"""The fan-out of live readings: each message is framed once and shared by all its listeners."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from sensorkeep.errors import Corrupt, LimitExceeded
from sensorkeep.limits import (
    WS_INBOX_BYTES_MAX,
    WS_LOOP_SHARE,
    WS_PACE_SECONDS_MAX,
    WS_PAGE_MESSAGES_MAX,
    WS_QUEUE_MESSAGES_MAX,
)
from sensorkeep.live.client import Client, Outlet
from sensorkeep.live.frames import text_frame
from sensorkeep.live.messages import LiveMessage, open_envelope, open_page
from sensorkeep.metrics import Metrics
from sensorkeep.model import canonical_uuid
from sensorkeep.pubsub.base import READINGS_CHANNEL, PubSub, Unsubscribe


class Hub:
    """Hands live messages to the connected clients. Its methods run on the event loop, but for `revoke`.

    It listens on pub/sub only while it has clients, so publishers need not encode what nobody wants. Memory is bounded:
    WS_INBOX_BYTES_MAX before the event loop, and a bounded queue for each client.
    """

    def __init__(
        self,
        pubsub: PubSub,
        metrics: Metrics,
        *,
        queue_messages_max: int = WS_QUEUE_MESSAGES_MAX,
        inbox_bytes_max: int = WS_INBOX_BYTES_MAX,
    ) -> None:
        self._pubsub = pubsub
        self._metrics = metrics
        self._queue_messages_max = queue_messages_max
        self._inbox_bytes_max = inbox_bytes_max
        self._inbox = Inbox(inbox_bytes_max)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_round = 0.0
        self._unsubscribe: Unsubscribe | None = None
        self._by_credential: dict[str, dict[Client, None]] = {}
        self._clients: dict[Client, tuple[str, frozenset[str]]] = {}
        self._unfiltered: dict[Client, None] = {}
        self._by_uuid: dict[str, dict[Client, None]] = {}

    @property
    def client_count(self) -> int:
        """Clients connected now."""
        return len(self._clients)

    def connect(self, outlet: Outlet, credential_id: str, connections_max: int, filters: Iterable[str] = ()) -> Client:
        """Add a client that gets the messages of any of `filters`, or all where there is none.

        A filter is the uuid or external id of an equipment or sensor. Raises LimitExceeded where the credential has
        `connections_max` clients already, and Unavailable where pub/sub is closed.
        """
        siblings = self._by_credential.get(credential_id, {})
        if len(siblings) >= connections_max:
            raise LimitExceeded(
                f"this key has all its {connections_max} live connections open (limit MAX_WS_CONNECTIONS_PER_KEY)"
            )
        self._listen()
        wanted = frozenset(canonical_uuid(text) for text in filters)
        client = Client(outlet, self._queue_messages_max, self._metrics)
        self._by_credential.setdefault(credential_id, siblings)[client] = None
        self._clients[client] = (credential_id, wanted)
        for uuid in wanted:
            self._by_uuid.setdefault(uuid, {})[client] = None
        if not wanted:
            self._unfiltered[client] = None
        self._metrics.ws_clients.set(len(self._clients))
        return client

    def disconnect(self, client: Client) -> None:
        """Remove a client. Idempotent."""
        if client not in self._clients:
            return
        credential_id, wanted = self._clients.pop(client)
        self._unfiltered.pop(client, None)
        for uuid in wanted:
            _discard(self._by_uuid, uuid, client)
        _discard(self._by_credential, credential_id, client)
        if not self._clients:
            self.close()
        self._metrics.ws_clients.set(len(self._clients))

    def revoke(self, credential_id: str) -> None:
        """End the connections of a credential that was changed or revoked. On any thread."""
        self._call_soon(self._end, credential_id)

    def _end(self, credential_id: str) -> None:
        for client in self._by_credential.get(credential_id, {}):
            client.end()

    def close(self) -> None:
        """Stop listening. Idempotent; connections end with the server."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _listen(self) -> None:
        if self._unsubscribe is None:
            self._loop = asyncio.get_running_loop()
            self._inbox = Inbox(self._inbox_bytes_max)  # What came for clients that are gone concerns nobody.
            self._unsubscribe = self._pubsub.subscribe(READINGS_CHANNEL, self._on_envelope)

    def _on_envelope(self, envelope: bytes) -> None:
        """On any thread: leave the envelope for the event loop, which is woken once for a burst."""
        if self._inbox.put(envelope):
            self._call_soon(self._drain)

    def _call_soon(self, callback: Callable[..., None], *arguments: str) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody is left to tell.
                self._loop.call_soon_threadsafe(callback, *arguments)

    def _drain(self) -> None:
        """Hand one page or more of the inbox to the clients, and come back for the rest after other work had its turn.

        A round that took long is followed by a pause in proportion (WS_LOOP_SHARE). Each write to a socket costs the
        same whether it holds one message or ten, so the pause is what makes many clients cheap.
        """
        assert self._loop is not None
        started = self._loop.time()
        if started < self._next_round:
            self._loop.call_at(self._next_round, self._drain)
            return
        messages, lost, more = self._inbox.take(WS_PAGE_MESSAGES_MAX)
        if lost:
            for client in self._clients:
                client.lose(lost)
        self._dispatch(messages)
        ended = self._loop.time()
        self._next_round = ended + min((ended - started) * (1 / WS_LOOP_SHARE - 1), WS_PACE_SECONDS_MAX)
        if more:
            self._loop.call_at(self._next_round, self._drain)

    def _dispatch(self, messages: list[LiveMessage]) -> None:
        frames = [text_frame(message.body) for message in messages]
        if not frames:
            for client in self._clients:
                client.flush()  # Only a loss to tell.
            return
        joined = frames[0] if len(frames) == 1 else b"".join(frames)
        sent = sum(client.offer(frames, joined) for client in self._unfiltered)
        if self._by_uuid:
            sent += self._dispatch_filtered(messages, frames)
        self._metrics.ws_messages.inc(sent)

    def _dispatch_filtered(self, messages: list[LiveMessage], frames: list[bytes]) -> int:
        picked: dict[Client, list[bytes]] = {}
        for message, frame in zip(messages, frames, strict=True):
            clients = self._by_uuid.get(message.equipment_uuid, {})
            if message.sensor_uuid is not None:
                clients = clients | self._by_uuid.get(message.sensor_uuid, {})
            for client in clients:
                picked.setdefault(client, []).append(frame)
        return sum(client.offer(wanted, b"".join(wanted)) for client, wanted in picked.items())


class Inbox:
    """Pages between the publishers' threads and the event loop. Thread-safe; bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._pages: deque[bytes] = deque()
        self._bytes = 0
        self._lost = 0
        self._awake = False

    def put(self, envelope: bytes) -> bool:
        """Append, letting the oldest go where there is no room. Answers whether the taker must be woken."""
        try:
            left_out, pages = msgspec.structs.astuple(open_envelope(envelope))
        except Corrupt:
            left_out, pages = 1, []  # How many it held is unknown; that something was lost is told to the clients.
        with self._lock:
            self._lost += left_out
            self._pages.extend(pages)
            self._bytes += sum(map(len, pages))
            while self._bytes > self._bytes_max:
                self._lost += len(self._pop())
            wake, self._awake = not self._awake, True
        return wake

    def take(self, messages_min: int) -> tuple[list[LiveMessage], int, bool]:
        """(messages, how many were lost before them, whether to come again): whole pages until there are enough.

        After an answer that says not to come again, the next `put` asks to be woken.
        """
        messages: list[LiveMessage] = []
        with self._lock:
            while self._pages and len(messages) < messages_min:
                messages += self._pop()
            lost, self._lost = self._lost, 0
            self._awake = bool(self._pages)
            return messages, lost, self._awake

    def _pop(self) -> list[LiveMessage]:
        """Take out the oldest page."""
        page = self._pages.popleft()
        self._bytes -= len(page)
        try:
            return open_page(page)
        except Corrupt:
            self._lost += 1
            return []


def _discard(index: dict[str, dict[Client, None]], name: str, client: Client) -> None:
    """Take the client out of one entry, and the entry out of the index once it is empty."""
    del index[name][client]
    if not index[name]:
        del index[name]
