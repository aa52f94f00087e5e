"""The HTTP protocol of uvicorn with two short cuts and three bounds; everything else stays uvicorn's.

Head and body of an answer are written at once: uvicorn writes them one after the other, two system calls and two
packets however small the answer. And a plain request of the express route skips ASGI (a task, a scope, four coroutine
calls, a regular expression for each header): it is handed to the application's `express` when its body is there.
Whatever is not plain about it goes the general way, as if the express route did not exist.

The bounds: heads, and what else is sent around bodies, are limited in size; a head must arrive in time, and before the
first one a connection may not idle either; trailers are dropped, which uvicorn takes for headers (RFC 9110 section
6.5.1 forbids it: a proxy that removes a header looks at the head). What is no HTTP is refused with a problem document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sensorkeep.errors import InvalidInput, SensorkeepError
from sensorkeep.limits import HTTP_HEAD_BYTES_MAX, SMALL_BODY_BYTES_MAX
from sensorkeep.web.problems import problem_response

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
        self._in_head = True
        """The next head is awaited or has begun, and is not complete."""
        self._unheard_bytes = 0
        """Bytes since the parser last told of anything: of a head, a trailer, or an extension of a chunk."""
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the joining transport in between, and await a head."""
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport)))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Await nothing more."""
        self._await_no_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; a body that stays away for long ends the connection, as an idle one does."""
        idle = self.timeout_keep_alive_task is not None
        self._unheard_bytes += len(data)
        super().data_received(data)
        if self._unheard_bytes > HTTP_HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse(InvalidInput(f"the request line and the headers are longer than {HTTP_HEAD_BYTES_MAX} bytes"))
        elif self._in_head:
            self._await_head()
        elif self._head_deadline is not None:
            self._await_no_head()
        waits = self._body is not None or (idle and self._unheard_bytes > 0)  # idle: mere line ends between requests
        if waits and self.timeout_keep_alive_task is None:
            self._await_more()

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head = True
        self._unheard_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect what belongs to the head."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Keep a request back that may go the express way."""
        self._in_head = False
        self._unheard_bytes = 0
        if self._answering:
            # A pipelined request: clients must expect to send those again on a new connection (RFC 9112, 9.3.2).
            self._last = True
        elif self._may_take_express():
            self._body = b""
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Collect."""
        self._unheard_bytes = 0
        if self._body is not None:
            self._body += body
        elif not self._answering:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the express way, or the general one."""
        self._unheard_bytes = 0
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
        self._await_no_head()
        self.transport = cast(JoiningTransport, self.transport).inner
        super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        """Close, after the answer that is under way."""
        if self._answering:
            self._last = True
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(InvalidInput(msg))

    def _refuse(self, error: SensorkeepError) -> None:
        """Answer with a problem, and close."""
        new_request_id: Callable[[], str] | None = getattr(self.app, "new_request_id", None)
        status, headers, body = problem_response(error, new_request_id() if new_request_id is not None else "")
        fields = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
        head = b"".join(b"%s: %s\r\n" % field for field in fields)
        self.transport.write(b"".join((STATUS_LINE[status], head, b"\r\n", body)))
        self.transport.close()

    def _await_head(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(self.timeout_keep_alive, self._head_is_overdue)

    def _await_no_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_is_overdue(self) -> None:
        if not self.transport.is_closing():
            self._refuse(SensorkeepError("the head of the request did not arrive in time", code="request_timeout"))

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
