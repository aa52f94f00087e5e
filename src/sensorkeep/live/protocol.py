"""The WebSocket protocol of uvicorn, with a direct way for frames that are encoded already.

uvicorn's ASGI `send` encodes each message again for each client and costs a coroutine; the outlet here writes shared
frames to the transport. Handshake, pings, fragmentation and closing stay uvicorn's, but for some of its habits: it logs
the query string (which may hold a key) and a traceback for each text that is none, it closes with 1012 at shutdown, and
it waits for ever for a peer that vanished with data still to be sent, or whose handshake cannot be read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, TypedDict, cast

from uvicorn import Config
from uvicorn._types import WebSocketDisconnectEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from sensorkeep.limits import (
    WS_CLOSE_SECONDS,
    WS_INCOMING_BYTES_MAX,
    WS_PING_SECONDS,
    WS_PONG_TIMEOUT_SECONDS,
    WS_SEND_BUFFER_BYTES,
)

OUTLET_EXTENSION = "sensorkeep.outlet"
"""The ASGI scope extension under which the protocol offers its outlet."""

GOING_AWAY = 1001
NO_TEXT = 1007
_BAD_HANDSHAKE = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_SHUTDOWN_REASON = "the server is shutting down"

_logger = logging.getLogger("uvicorn.error.websocket")
# uvicorn logs accepted paths with their query at INFO, and the websockets library whole requests at DEBUG.
_logger.setLevel(logging.WARNING)


class TransportOutlet:
    """Writes frames to the transport of one connection."""

    __slots__ = ("_protocol", "on_writable", "paused")

    def __init__(self, protocol: LiveWebSocketProtocol) -> None:
        self._protocol = protocol
        self.paused = False
        self.on_writable: Callable[[], None] | None = None

    def writable(self) -> bool:
        """Whether the transport is open and below its high-water mark."""
        protocol = self._protocol
        return not self.paused and not protocol.close_sent and not protocol.transport.is_closing()

    def write(self, frames: bytes) -> None:
        """Hand whole frames to the transport; between two writes of uvicorn's own, so that frames never mix."""
        self._protocol.transport.write(frames)


class LiveWebSocketProtocol(WebSocketsSansIOProtocol):
    """Give this class to uvicorn as `ws=`; see `uvicorn_settings`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.outlet: TransportOutlet | None = None
        self.logger = _logger
        self.conn.logger = _logger
        self.conn.debug = False  # It was chosen by the level of another logger.

    async def run_asgi(self) -> None:
        """Offer the outlet to the application, and run it."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WS_SEND_BUFFER_BYTES)
        self.outlet = TransportOutlet(self)
        extensions = cast("dict[str, object]", self.scope["extensions"])
        extensions[OUTLET_EXTENSION] = self.outlet
        await super().run_asgi()

    def data_received(self, data: bytes) -> None:
        """Take frames; refuse a handshake that cannot be read."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(_BAD_HANDSHAKE)
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Hand on a message; close with 1007 where it is a text and not UTF-8."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                if not self.close_sent:
                    self.conn.send_close(NO_TEXT)
                    self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def pause_writing(self) -> None:
        """The transport is over its high-water mark."""
        super().pause_writing()
        if self.outlet is not None:
            self.outlet.paused = True

    def resume_writing(self) -> None:
        """The transport is below its low-water mark."""
        super().resume_writing()
        if self.outlet is not None:
            self.outlet.paused = False
            if self.outlet.on_writable is not None:
                self.outlet.on_writable()

    def keepalive_timeout(self) -> None:
        """Cut the connection: a vanished peer never takes the data that a graceful close would wait for."""
        super().keepalive_timeout()
        self.transport.abort()

    def shutdown(self) -> None:
        """Close with 1001."""
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.stop_keepalive()
            event: WebSocketDisconnectEvent = {
                "type": "websocket.disconnect",
                "code": GOING_AWAY,
                "reason": _SHUTDOWN_REASON,
            }
            self.queue.put_nowait(event)
            self.conn.send_close(GOING_AWAY, _SHUTDOWN_REASON)
            self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
        else:
            super().shutdown()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application is done: cut the connection where the peer does not take what is left to send in time."""
        super().on_task_complete(task)
        self.loop.call_later(WS_CLOSE_SECONDS, self.transport.abort)


class UvicornSettings(TypedDict):
    """Arguments of uvicorn.Config."""

    ws: type[LiveWebSocketProtocol]
    ws_max_size: int
    ws_ping_interval: float
    ws_ping_timeout: float
    ws_per_message_deflate: bool


def uvicorn_settings(
    ping_seconds: float = WS_PING_SECONDS, pong_timeout_seconds: float = WS_PONG_TIMEOUT_SECONDS
) -> UvicornSettings:
    """What uvicorn.Config needs for the live stream: a vanished peer is gone after both times together."""
    return {
        "ws": LiveWebSocketProtocol,
        "ws_max_size": WS_INCOMING_BYTES_MAX,
        "ws_ping_interval": ping_seconds,
        "ws_ping_timeout": pong_timeout_seconds,
        # Compression would cost each client its own encoder, and each delivery its own work.
        "ws_per_message_deflate": False,
    }
