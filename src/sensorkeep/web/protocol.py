"""The HTTP protocol of uvicorn with two short cuts; everything else stays uvicorn's.

Head and body of an answer are written at once: uvicorn writes them one after the other, two system calls and two
packets however small the answer. And a plain request of the express route skips ASGI (a task, a scope, four coroutine
calls, a regular expression for each header): it is handed to the application's `express` when its body is there.
Whatever is not plain about it goes the general way, as if the express route did not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sensorkeep.limits import SMALL_BODY_BYTES_MAX

_HEAD = b"HTTP/1.1 "
_INTERIM = b"HTTP/1.1 1"

RawHeaders = list[tuple[bytes, bytes]]
Answer = Callable[[int, bytes, bytes], None]
"""Answers with (status, header lines each ended by CRLF, body); on the event loop, once."""


class Express(Protocol):
    """Serves plain requests of one route."""

    url: bytes
    """The exact target, without a query."""

    def __call__(self, headers: RawHeaders, body: bytes, client_ip: str, answer: Answer) -> bool:
        """Take the request, and `answer` it soon; False: not plain, nothing was done, serve it the general way."""
        ...


class ExpressHttpProtocol(HttpToolsProtocol):
    """Give this class to uvicorn as `http=`."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._express: Express | None = getattr(self.app, "express", None)
        self._body: bytes | None = None
        """The body so far of a request that may go the express way."""
        self._answering = False
        """An express request is being served; its answer comes before anything else."""
        self._last = False
        """Close after that answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the joining transport in between."""
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport)))

    def data_received(self, data: bytes) -> None:
        """Parse; a body that stays away for long ends the connection, as an idle one does."""
        super().data_received(data)
        if self._body is not None and self.timeout_keep_alive_task is None:
            self._await_more()

    def on_headers_complete(self) -> None:
        """Keep a request back that may go the express way."""
        if self._answering:
            # A pipelined request: clients must expect to send those again on a new connection (RFC 9112, 9.3.2).
            self._last = True
        elif self._may_take_express():
            self._body = b""
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Collect."""
        if self._body is not None:
            self._body += body
        elif not self._answering:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the express way, or the general one."""
        if self._body is None:
            if not self._answering:
                super().on_message_complete()
            return
        body, self._body = self._body, None
        assert self._express is not None
        client_ip = self.client[0] if self.client else ""
        self._answering = self._express(self.headers, body, client_ip, self._answer)
        if not self._answering:
            super().on_headers_complete()
            super().on_body(body)
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Send a head that no body followed (an answer to HEAD, a 204)."""
        cast(JoiningTransport, self.transport).flush()
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        """Give the WebSocket its transport as it is."""
        self.transport = cast(JoiningTransport, self.transport).inner
        super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        """Close, after the answer that is under way."""
        if self._answering:
            self._last = True
        else:
            super().shutdown()

    def _may_take_express(self) -> bool:
        express = self._express
        if express is None or self.url != express.url or self.parser.get_method() != b"POST":
            return False
        if self.flow.write_paused:  # the client does not read its answers: the general way waits for it
            return False
        if self.expect_100_continue or self.parser.get_http_version() != "1.1" or self.parser.should_upgrade():
            return False
        if not self.parser.should_keep_alive() or not (self.cycle is None or self.cycle.response_complete):
            return False
        for name, value in self.headers:
            if name == b"content-length":
                return value.isdigit() and int(value) <= SMALL_BODY_BYTES_MAX
        return False

    def _answer(self, status: int, header_lines: bytes, body: bytes) -> None:
        self._answering = False
        if self.transport.is_closing():
            return
        parts = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            parts += [name, b": ", value, b"\r\n"]
        if self._last:
            parts.append(b"connection: close\r\n")
        parts += [header_lines, b"content-length: %d\r\n\r\n" % len(body), body]
        cast(JoiningTransport, self.transport).inner.write(b"".join(parts))
        self.server_state.total_requests += 1
        if self._last:
            self.transport.close()
        else:
            self._unset_keepalive_if_required()
            self._await_more()

    def _await_more(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)


class JoiningTransport:
    """A transport that keeps the head of an answer back until the next write, `flush` or `close`."""

    def __init__(self, inner: asyncio.Transport) -> None:
        self.inner = inner
        self._held = b""

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def write(self, data: bytes) -> None:
        """Write, or keep back what is the head of a final answer."""
        if self._held:
            data = self._held + data
            self._held = b""
        elif data.startswith(_HEAD) and not data.startswith(_INTERIM):
            self._held = data
            return
        self.inner.write(data)

    def flush(self) -> None:
        """Write what was kept back."""
        if self._held:
            data, self._held = self._held, b""
            self.inner.write(data)

    def close(self) -> None:
        """Write what was kept back, and close."""
        self.flush()
        self.inner.close()
