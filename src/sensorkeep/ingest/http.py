"""The ingest routes as raw ASGI in front of the application: they carry nearly all traffic, and FastAPI's own way
costs several times what the request needs (DESIGN, decisions).

Errors are raised as SensorkeepError and turned into answers by the middleware around (web/middleware.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from sensorkeep import limits
from sensorkeep.auth.credentials import require
from sensorkeep.auth.gate import Admission, Gate
from sensorkeep.auth.scopes import Scope
from sensorkeep.catalog.base import Batch, BatchLedger, IdempotencyKeys, StoredAnswer
from sensorkeep.clock import Clock, LocalTime
from sensorkeep.decode.gathered import READINGS, TEMPERATURE, Entry, Parsed
from sensorkeep.decode.inflate import inflate_whole
from sensorkeep.decode.readings import parse_reading
from sensorkeep.decode.temperature import check_time, parse_temperature
from sensorkeep.errors import InvalidInput, LimitExceeded, NotFound, SensorkeepError, Unavailable
from sensorkeep.ingest.accept import Accepted, Acceptor, Sender, answer_body, encode
from sensorkeep.ingest.announce import SettledWaiters
from sensorkeep.ingest.body import BodyPipe, BodyReader, ClientGone, Receive
from sensorkeep.ingest.gather import Gatherer
from sensorkeep.ingest.threads import BodyThreads, Result

log = structlog.get_logger(__name__)

AsgiScope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[AsgiScope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
_SENSORFLOW_QUANTITIES = frozenset({"temperature", "humidity", "pressure"})
_SECONDS = re.compile(r"\d{1,9}", re.ASCII).fullmatch
_JSON_TYPES = (b"application/json", b"text/json")


@dataclass(slots=True)
class _Request:
    """One ingest request: what its headers say, and its body to be read."""

    route: str
    credential: str
    headers: dict[bytes, bytes]
    answer_headers: Headers
    body: BodyReader
    client_ip: str
    wait_seconds: float
    backfill: bool
    digest: hashlib._Hash | None = None
    """Where set, to be fed with the content of the body."""

    @property
    def sender(self) -> Sender:
        return Sender(self.credential, urgent=self.wait_seconds > 0, backfill=self.backfill)

    @property
    def encoding(self) -> str:
        return self.headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()


@dataclass(slots=True)
class _Answer:
    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class _Route:
    answer: Callable[[_Request], Awaitable[_Answer]]
    read: Callable[[_Request, hashlib._Hash], Awaitable[object]]
    """Reads the body as `answer` does, within the same limits, and feeds the digest with its content; keeps nothing."""


class IngestRoutes:
    """ASGI: serves the ingest routes and hands everything else to `app`."""

    def __init__(
        self,
        app: AsgiApp,
        *,
        acceptor: Acceptor,
        gatherer: Gatherer,
        waiters: SettledWaiters,
        ledger: BatchLedger,
        idempotency: IdempotencyKeys,
        gate: Gate,
        clock: Clock,
        display_time: LocalTime,
    ) -> None:
        self._app = app
        self._acceptor = acceptor
        self._gatherer = gatherer
        self._waiters = waiters
        self._ledger = ledger
        self._idempotency = idempotency
        self._gate = gate
        self._clock = clock
        self._display_time = display_time
        self._threads = BodyThreads("ingest")
        # Of their own, because a sender that stalls holds its thread: whole bodies must not wait for it.
        self._stream_threads = BodyThreads("ingest-stream")
        # Likewise: what was answered before is answered again though no body can be made durable now.
        self._again_threads = BodyThreads("ingest-again")
        self._again_stream_threads = BodyThreads("ingest-again-stream")
        bulk = _Route(self._bulk, self._bulk_body)
        self._routes = {
            "/api/v1/telemetry/bulk": bulk,
            "/api/v1/telemetria/bulk": bulk,
            "/api/telemetria/bulk": bulk,
            "/api/v1/temperature_reading": _Route(self._temperature, self._temperature_body),
            "/api/v1/readings": _Route(self._readings, self._readings_body),
        }

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one connection event stream (ASGI 3)."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["sensorkeep.route"] = scope["path"]  # for the metrics and the access log (web/middleware.py)
        request = await self._admit(scope, receive)
        try:
            key = request.headers.get(b"idempotency-key")
            answer = await (route.answer(request) if key is None else self._once(route, request, key))
        except ClientGone:
            return
        headers = answer.headers + request.answer_headers
        headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    @property
    def paths(self) -> list[str]:
        """What it serves, each with POST alone."""
        return list(self._routes)

    def close(self) -> None:
        """Finish what runs and end the threads."""
        for threads in (self._threads, self._stream_threads, self._again_threads, self._again_stream_threads):
            threads.close()

    async def _admit(self, scope: AsgiScope, receive: Receive) -> _Request:
        if scope["method"] != "POST":
            raise InvalidInput("use POST here", code="method_not_allowed", headers={"Allow": "POST"})
        headers = dict(scope["headers"])
        client = scope.get("client")
        client_ip = client[0] if client else ""
        admission = await self._pass_gate(Scope.INGEST, headers, client_ip)
        self._check_type_and_length(headers)
        wait_seconds, backfill = 0.0, False
        if b"prefer" in headers:
            wait_seconds, backfill = parse_prefer(headers[b"prefer"].decode("latin-1"))
        if backfill:
            require(admission.credential, Scope.ADMIN)
        scope["sensorkeep.credential"] = admission.credential.id
        rate = admission.rate.headers.items() if admission.rate is not None else ()
        return _Request(
            route=scope["path"],
            credential=admission.credential.id,
            headers=headers,
            answer_headers=[(name.encode(), value.encode()) for name, value in rate],
            body=BodyReader(receive),
            client_ip=client_ip,
            wait_seconds=wait_seconds,
            backfill=backfill,
        )

    async def _pass_gate(self, scope: Scope, headers: dict[bytes, bytes], client_ip: str) -> Admission:
        authorization, api_key = headers.get(b"authorization"), headers.get(b"x-api-key")
        admission = self._gate.admit_now(scope, authorization, api_key)
        if admission is None:
            admission = await asyncio.to_thread(self._gate.admit, scope, authorization, api_key, client_ip)
        return admission

    def _check_type_and_length(self, headers: dict[bytes, bytes]) -> None:
        content_type = headers.get(b"content-type", b"application/json").split(b";", 1)[0].strip().lower()
        if content_type not in _JSON_TYPES:
            shown = content_type.decode("latin-1")
            raise InvalidInput(f"send Content-Type: application/json, not {shown}", code="unsupported_media_type")
        length = headers.get(b"content-length", b"0")
        size = self._acceptor.settings.max_wire_bytes
        if length.isdigit() and int(length) > size:
            raise LimitExceeded(f"the body is larger than {size} bytes (SENSORKEEP_MAX_WIRE_BYTES)")

    async def _bulk(self, request: _Request) -> _Answer:
        accept = partial(self._acceptor.bulk, encoding=request.encoding, sender=request.sender, digest=request.digest)
        accepted = await _on_thread(request, accept, self._threads, self._stream_threads)
        return await self._accepted(request, accepted)

    async def _bulk_body(self, request: _Request, digest: hashlib._Hash) -> None:
        read = partial(self._acceptor.read, encoding=request.encoding, digest=digest)
        await _on_thread(request, read, self._again_threads, self._again_stream_threads)

    async def _readings(self, request: _Request) -> _Answer:
        body = await self._readings_body(request, request.digest)
        plain = body.lstrip()[:1] == b"{" and len(body) <= limits.SMALL_BODY_BYTES_MAX
        if not plain or request.backfill or request.wait_seconds:  # a batch of its own, with counts of its own
            return await self._readings_batch(request, body)
        entry = self._entry(request, READINGS, parse_reading(body), body)
        ticket = await self._gatherer.submit(entry)
        answer = {
            "status": "accepted",
            "received": 1,
            "readings": entry.readings,
            "quarantined": 0,
            "batch_id": ticket.batch_id,
            "claim_check": f"inline/{ticket.batch_id}",
            "message": f"{entry.readings} of {entry.readings} readings are durable and will be stored",
            "errors": [],
        }
        return _Answer(201, [_JSON, _location(ticket.batch_id)], encode(answer))

    async def _readings_body(self, request: _Request, digest: hashlib._Hash | None) -> bytes:
        return await _small_body(request, limits.GENERAL_BODY_BYTES_MAX, digest)

    async def _readings_batch(self, request: _Request, body: bytes) -> _Answer:
        work = partial(self._acceptor.readings, body, request.sender)
        return await self._accepted(request, await self._threads.run(work, len(body), request.body.left))

    async def _temperature(self, request: _Request) -> _Answer:
        body = await self._temperature_body(request, request.digest)
        reading = parse_temperature(body)
        entry = self._entry(request, TEMPERATURE, reading, body)
        ticket = await self._gatherer.submit(entry, urgent=request.wait_seconds > 0)
        if request.wait_seconds:
            await self._wait_settled(request, ticket.batch_id, {})
        date, time = self._display_time.date_and_time(entry.time_us)
        return _Answer(201, [_JSON], encode(temperature_answer(entry, date, time)))

    async def _temperature_body(self, request: _Request, digest: hashlib._Hash | None) -> bytes:
        return await _small_body(request, limits.SMALL_BODY_BYTES_MAX, digest)

    def _entry(self, request: _Request, kind: str, parsed: Parsed, body: bytes) -> Entry:
        received_us = self._clock.now_us()
        options = self._acceptor.options(request.sender)
        time_us = check_time(parsed.timestamp, options)
        return Entry(kind, received_us, 0, request.client_ip, body, parsed, time_us)

    async def _accepted(self, request: _Request, accepted: Accepted) -> _Answer:
        body = answer_body(accepted)
        await self._wait_settled(request, accepted.claim.batch_id, body)
        return _Answer(201, [_JSON, _location(accepted.claim.batch_id)], encode(body))

    async def _wait_settled(self, request: _Request, batch_id: str, answer: dict[str, object]) -> None:
        """Hold the answer until the batch is stored or the time asked for is over; then add its counts."""
        if not request.wait_seconds:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.wait_seconds
        event = self._waiters.expect(batch_id)
        try:
            batch = await self._settled(batch_id, deadline)
            while batch is None and (left := deadline - limits.SETTLED_LOOK_SECONDS - loop.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(left, limits.SETTLED_POLL_SECONDS))
                event.clear()
                batch = await self._settled(batch_id, deadline)
        finally:
            self._waiters.forget(batch_id)
        request.answer_headers.append((b"preference-applied", b"wait=%d" % request.wait_seconds))
        if batch is not None:
            answer.update(
                status=batch.state, stored=batch.stored, updated=batch.updated, duplicate=batch.duplicate,
                quarantined=batch.quarantined,
                message=f"{batch.readings - batch.quarantined} of {batch.readings} readings are stored",
            )  # fmt: skip

    async def _settled(self, batch_id: str, deadline: float) -> Batch | None:
        """The batch once it has ended. None, too, where the ledger cannot say, or has not by `deadline` (time of the
        loop): the request is durable, and that it waits longer must not fail it."""
        try:
            async with asyncio.timeout_at(deadline):
                batch = await asyncio.to_thread(self._ledger.batch, batch_id)
        except TimeoutError:
            return None
        except (NotFound, Unavailable) as error:
            log.info("batch_state_unknown", batch_id=batch_id, code=error.code)
            return None
        return None if batch.state == "accepted" else batch

    async def _once(self, route: _Route, request: _Request, raw_key: bytes) -> _Answer:
        """Serve a request with an Idempotency-Key: the first answer is kept and given again.

        https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
        """
        key = raw_key.decode("latin-1").strip()
        if not 0 < len(key) <= limits.IDEMPOTENCY_KEY_CHARS_MAX:
            raise InvalidInput(f"Idempotency-Key must have 1 to {limits.IDEMPOTENCY_KEY_CHARS_MAX} characters")
        begin, now_us = self._idempotency.begin, self._clock.now_us()
        owner = f"{request.credential} {request.route}"  # a key belongs to a route
        first = await asyncio.to_thread(begin, owner, key, now_us)
        digest = request.digest = hashlib.sha256()
        if first is not None:
            await route.read(request, digest)
            return _again(digest.hexdigest(), *first)
        try:
            answer = await route.answer(request)
        except BaseException:
            await asyncio.to_thread(self._idempotency.abandon, owner, key)
            raise
        kept = StoredAnswer(
            status=answer.status,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers},
            body=answer.body,
        )
        try:
            await asyncio.to_thread(self._idempotency.finish, owner, key, digest.hexdigest(), kept)
        except SensorkeepError as error:  # the request is done: it must not be told to come again
            log.warning("idempotency_key_not_kept", code=error.code, detail=error.detail)
        return answer


def _again(content_sha256: str, first_sha256: str, first: StoredAnswer) -> _Answer:
    """The first answer for the same content. Raises InvalidInput (422) for another."""
    if content_sha256 != first_sha256:
        detail = "this Idempotency-Key was used with another body; use a new key for a new body"
        raise InvalidInput(detail, code="idempotency_mismatch")
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in first.headers.items()]
    return _Answer(first.status, [*headers, (b"idempotency-replayed", b"true")], first.body)


async def _small_body(request: _Request, size_max: int, digest: hashlib._Hash | None) -> bytes:
    """All of a body's content, with which `digest` is fed. Raises LimitExceeded past `size_max` bytes."""
    advice = "send larger bodies to /api/v1/telemetry/bulk"
    body = await request.body.whole(size_max, advice)
    if request.encoding not in ("identity", ""):
        body = inflate_whole(body, request.encoding, size_max, advice)
    if digest is not None:
        digest.update(body)
    return body


async def _on_thread(
    request: _Request, use: Callable[[Iterable[bytes]], Result], whole: BodyThreads, streams: BodyThreads
) -> Result:
    """What `use` makes of the body on a thread of `whole`, where it is small, or chunk by chunk on one of `streams`."""
    body = request.body
    start = await body.up_to(limits.BULK_WHOLE_BYTES_MAX)
    if body.complete:
        return await whole.run(partial(use, [start]), len(start), body.left)
    pipe = BodyPipe(asyncio.get_running_loop())
    await pipe.put(start)
    feeding = asyncio.ensure_future(_feed(body, pipe))
    work, left = partial(use, pipe), partial(_left, feeding, body)
    using = asyncio.ensure_future(streams.run(work, limits.INFLATE_OUTPUT_BYTES, left))
    either: set[asyncio.Future[Any]] = {using, feeding}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not feeding.done():  # refused before its end: the rest is not read
        feeding.cancel()
        request.answer_headers.append((b"connection", b"close"))
    return await using


async def _feed(body: BodyReader, pipe: BodyPipe) -> Exception | None:
    """The rest of the body into the pipe. What ends it early is returned, and the thread at its other end gets it."""
    try:
        while not body.complete:
            await pipe.put(await body.chunk())
    except (ClientGone, InvalidInput) as error:
        pipe.end(error)
        return error
    except asyncio.CancelledError:
        pipe.end(ClientGone())
        raise
    pipe.end()
    return None


async def _left(feeding: asyncio.Future[Exception | None], body: BodyReader) -> Exception:
    """What ended the body early, or that the client left after it."""
    await asyncio.wait([feeding])
    return feeding.result() or await body.left()


def parse_prefer(value: str) -> tuple[float, bool]:
    """(seconds to wait, backfill) of a Prefer header (RFC 7240); unknown preferences are ignored."""
    wait_seconds, backfill = 0.0, False
    for part in value.split(","):
        name, _, argument = part.strip().partition("=")
        if name.strip().lower() == "backfill":
            backfill = True
        elif name.strip().lower() == "wait" and (asked := _SECONDS(argument.strip().strip('"'))):
            wait_seconds = float(min(int(asked[0]), limits.PREFER_WAIT_SECONDS_MAX))
    return wait_seconds, backfill


def temperature_answer(entry: Entry, date: str, time: str) -> dict[str, object]:
    """The answer to a single reading, in SensorFlow's form; further quantities stand beside its three."""
    values = entry.parsed.values
    answer: dict[str, object] = {
        "id": entry.record_id,
        "temperature": values["temperature"],
        "humidity": values.get("humidity"),
        "pressure": values.get("pressure"),
        "date_recorded": date,
        "time_recorded": time,
        "sensor_id": entry.parsed.sensor_id,
        "client_ip": entry.client_ip,
    }
    if len(values) > len(_SENSORFLOW_QUANTITIES) or not values.keys() <= _SENSORFLOW_QUANTITIES:
        answer = {**values, **answer}  # a quantity never hides a field of the answer
    return answer


def _location(batch_id: str) -> tuple[bytes, bytes]:
    return b"location", b"/api/v1/telemetry/batches/" + batch_id.encode()
