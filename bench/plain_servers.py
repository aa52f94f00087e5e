"""What the single-reading route is measured against, as programs: `python -m bench.plain_servers KIND PORT KEY`.

fastapi: a handler of the same route as FastAPI's documentation has it, which stores nothing. bare: an HTTP parser and a
constant answer, the least that a server in Python can do.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import httptools
import uvicorn
import uvloop
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, Field

ROUTE = "/api/v1/temperature_reading"


class Reading(BaseModel):
    """The body of the route."""

    temperature: float
    humidity: float | None = None
    pressure: float | None = None
    sensor_id: str = Field(min_length=1, max_length=128)


class Record(Reading):
    """The answer of the route."""

    id: int
    date_recorded: str
    time_recorded: str
    client_ip: str


def fastapi_application(api_key: str) -> FastAPI:
    """The route with a key, checked fields and the whole answer."""
    application, ids = FastAPI(), itertools.count(1)

    async def check_key(x_api_key: Annotated[str, Header()]) -> None:
        if x_api_key != api_key:
            raise HTTPException(401)

    @application.post(ROUTE, status_code=201, response_model=Record, dependencies=[Depends(check_key)])
    async def post(reading: Reading, request: Request) -> Record:
        now = datetime.now(UTC).isoformat()
        client_ip = request.client.host if request.client else ""
        return Record(
            id=next(ids), date_recorded=now[:10], time_recorded=now[11:19], client_ip=client_ip, **reading.model_dump()
        )

    return application


class BareProtocol(asyncio.Protocol):
    """Parses requests and answers each with the same bytes."""

    _CONTENT = b'{"id":1,"temperature":25.5,"humidity":60.2,"pressure":1012.5,"sensor_id":"sensor_000001"}'
    _ANSWER = b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._answer = self._ANSWER % (len(self._CONTENT), self._CONTENT)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body += body

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._body = b""
        self._transport.write(self._answer)


async def serve_bare(port: int) -> None:
    """Serve BareProtocol for ever."""
    server: Any = await asyncio.get_running_loop().create_server(BareProtocol, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serve until a signal."""
    kind, port, api_key = sys.argv[1:]
    if kind == "bare":
        uvloop.run(serve_bare(int(port)))
    else:
        settings: dict[str, Any] = {"http": "httptools", "loop": "uvloop", "access_log": False, "log_level": "warning"}
        uvicorn.run(fastapi_application(api_key), port=int(port), **settings)


if __name__ == "__main__":
    main()
