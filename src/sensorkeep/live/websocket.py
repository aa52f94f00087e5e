"""The WebSocket door of the live stream: who may listen, to what, and until when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import structlog
from starlette.types import Receive, Scope, Send

from sensorkeep.auth.credentials import Credential, require
from sensorkeep.auth.gate import Gate
from sensorkeep.auth.scopes import Scope as Access
from sensorkeep.auth.tickets import Tickets
from sensorkeep.errors import InvalidInput, LimitExceeded, SensorkeepError, Unauthenticated, Unavailable
from sensorkeep.limits import (
    CREDENTIAL_CACHE_SECONDS,
    EXTERNAL_ID_CHARS_MAX,
    NAME_CHARS_MAX,
    WS_FILTERS_MAX,
    WS_INCOMING_PER_MINUTE_MAX,
)
from sensorkeep.live.client import Client, Outlet
from sensorkeep.live.frames import payloads
from sensorkeep.live.hub import Hub
from sensorkeep.live.protocol import OUTLET_EXTENSION

POLICY_VIOLATION = 1008
TRY_AGAIN_LATER = 1013

_REASON_BYTES_MAX = 123
"""A close frame holds 125 bytes, two of them the code (RFC 6455 section 5.5)."""
_FILTER_CHARS_MAX = EXTERNAL_ID_CHARS_MAX + 1 + NAME_CHARS_MAX
"""The longest external id is that of a sensor: sensor_id/quantity."""
_QUERY_FIELDS_MAX = WS_FILTERS_MAX + 10

_log = structlog.get_logger("sensorkeep.live")


class LiveEndpoint:
    """ASGI application for `WS /ws/sensor_updates`.

    A change of a credential ends its connections at once where this process hears of it, and else, as the expiry of a
    key does, within CREDENTIAL_CACHE_SECONDS: so often the catalog is asked about those that are connected.
    """

    def __init__(self, hub: Hub, gate: Gate, tickets: Tickets) -> None:
        self._hub = hub
        self._gate = gate
        self._tickets = tickets
        self._connected: dict[Client, Credential] = {}
        self._reviewer: asyncio.Task[None] | None = None
        """Runs while somebody is connected."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. One that is refused is accepted first: only then does the reason reach the client."""
        await receive()  # websocket.connect
        try:
            request = _ListenRequest.parse(scope)
            credential = await asyncio.to_thread(self._authenticate, request)
        except SensorkeepError as error:
            await send({"type": "websocket.accept"})
            await _close(send, error)
            return
        await send({"type": "websocket.accept"})
        try:
            await self._stream(scope, receive, send, credential, request.filters)
        except SensorkeepError as error:
            _log.info("live client refused", credential=credential.id, code=error.code)
            await _close(send, error)

    def _authenticate(self, request: _ListenRequest) -> Credential:
        """Blocking. Raises what the gate does, and Unauthenticated for a bad ticket."""
        if request.ticket is None:
            return self._gate.admit(Access.LIVE, request.authorization, request.api_key, request.client_ip).credential
        credential = self._tickets.redeem(request.ticket)
        require(credential, Access.LIVE)
        return credential

    async def _stream(
        self, scope: Scope, receive: Receive, send: Send, credential: Credential, filters: tuple[str, ...]
    ) -> None:
        """Feed the client until it goes.

        Raises LimitExceeded where it may not have this connection, or talks back too much, and Unauthenticated where
        its credential ends.
        """
        direct: Outlet | None = scope.get("extensions", {}).get(OUTLET_EXTENSION)
        outlet = direct if direct is not None else AsgiOutlet(send)
        client = self._hub.connect(outlet, credential.id, credential.max_ws_connections, filters)
        self._connected[client] = credential
        if self._reviewer is None:
            self._reviewer = asyncio.create_task(self._review())
        reader = asyncio.create_task(_ignore_until_gone(receive))
        ender = asyncio.create_task(client.ended.wait())
        tasks: list[asyncio.Task[Any]] = [reader, ender]
        if isinstance(outlet, AsgiOutlet):
            tasks.append(asyncio.create_task(outlet.run()))
        _log.info("live client connected", credential=credential.id, filters=len(filters))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ender in done:
                raise Unauthenticated("the credential was changed or revoked; connect again")
            for task in done:
                task.result()
        finally:
            self._hub.disconnect(client)
            del self._connected[client]
            if not self._connected and self._reviewer is not None:
                self._reviewer.cancel()
                self._reviewer = None
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            _log.info("live client disconnected", credential=credential.id)

    async def _review(self) -> None:
        """Now and then, end the connections whose credential was changed or has expired."""
        while True:
            await asyncio.sleep(CREDENTIAL_CACHE_SECONDS)
            try:
                await asyncio.to_thread(self._gate.review, set(self._connected.values()))
            except SensorkeepError as error:  # the next time will do
                _log.warning("live clients not reviewed", code=error.code)


class _ListenRequest(NamedTuple):
    """What a client shows and asks for."""

    ticket: str | None
    api_key: str | None
    authorization: str | None
    client_ip: str
    filters: tuple[str, ...]

    @classmethod
    def parse(cls, scope: Scope) -> _ListenRequest:
        """Read the query and the headers. Raises InvalidInput."""
        try:
            fields = parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=_QUERY_FIELDS_MAX)
        except ValueError:
            raise InvalidInput("the query has too many fields", code="bad_parameter") from None
        filters = tuple(value for name, value in fields if name in ("sensor_id", "equipment"))
        if len(filters) > WS_FILTERS_MAX:
            raise InvalidInput(f"at most {WS_FILTERS_MAX} filters are allowed", code="bad_parameter")
        if any(len(text) > _FILTER_CHARS_MAX for text in filters):
            raise InvalidInput(f"a filter has at most {_FILTER_CHARS_MAX} characters", code="bad_parameter")
        query = dict(reversed(fields))
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}
        return cls(
            query.get("ticket"),
            query.get("api-key", headers.get(b"x-api-key")),
            headers.get(b"authorization"),
            (scope.get("client") or ("", 0))[0],
            filters,
        )


class AsgiOutlet:
    """The way to clients where the server offers none of its own (see protocol.OUTLET_EXTENSION)."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._frames = b""
        self._written = asyncio.Event()
        self._open = True
        self.on_writable: Callable[[], None] | None = None

    def writable(self) -> bool:
        """Whether the last frames are out and the peer is there."""
        return self._open and not self._frames

    def write(self, frames: bytes) -> None:
        """Leave whole frames for `run`."""
        self._frames = frames
        self._written.set()

    async def run(self) -> None:
        """Send what is written until the peer is gone."""
        try:
            while True:
                await self._written.wait()
                self._written.clear()
                for payload in payloads(self._frames):
                    await self._send({"type": "websocket.send", "text": payload.decode()})
                self._frames = b""
                if self.on_writable is not None:
                    self.on_writable()
        except OSError:  # What ASGI servers raise from `send` once the peer is gone.
            self._open = False


async def _ignore_until_gone(receive: Receive) -> None:
    """Drop what the client says until it leaves. Raises LimitExceeded where it says too much."""
    loop = asyncio.get_running_loop()
    window_end, messages = loop.time() + 60, 0
    while (await receive())["type"] != "websocket.disconnect":
        if loop.time() >= window_end:
            window_end, messages = loop.time() + 60, 0
        messages += 1
        if messages > WS_INCOMING_PER_MINUTE_MAX:
            raise LimitExceeded(f"a live client may send {WS_INCOMING_PER_MINUTE_MAX} messages a minute")


async def _close(send: Send, error: SensorkeepError) -> None:
    code = TRY_AGAIN_LATER if isinstance(error, Unavailable) else POLICY_VIOLATION
    reason = error.detail.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
    message: dict[str, Any] = {"type": "websocket.close", "code": code, "reason": reason}
    with contextlib.suppress(OSError):  # The peer left first.
        await send(message)
