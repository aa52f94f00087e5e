"""The HTTP protocol of uvicorn, writing head and body of an answer at once.

uvicorn writes them one after the other: two system calls and two packets for each answer, however small. Here the
head waits for what follows it in the same answer.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = b"HTTP/1.1 "
_INTERIM = b"HTTP/1.1 1"


class OneWriteHttpProtocol(HttpToolsProtocol):
    """Give this class to uvicorn as `http=`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the joining transport in between."""
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport)))

    def on_response_complete(self) -> None:
        """Send a head that no body followed (an answer to HEAD, a 204)."""
        transport = self.transport
        if isinstance(transport, JoiningTransport):
            transport.flush()
        super().on_response_complete()


class JoiningTransport:
    """A transport that keeps the head of an answer back until the next write, `flush` or `close`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or keep back what is the head of a final answer."""
        if self._held:
            data = self._held + data
            self._held = b""
        elif data.startswith(_HEAD) and not data.startswith(_INTERIM):
            self._held = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write what was kept back."""
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)

    def close(self) -> None:
        """Write what was kept back, and close."""
        self.flush()
        self._transport.close()
