"""Bulk bodies that wait for a thread while whatever makes them durable hangs: at the ingest routes, as ASGI."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, MutableMapping
from typing import Any, cast

import pytest

from sensorkeep import limits
from sensorkeep.auth.credentials import Credential
from sensorkeep.auth.gate import Admission, Gate
from sensorkeep.auth.scopes import Scope
from sensorkeep.catalog.base import IdempotencyKeys, StoredAnswer
from sensorkeep.clock import SystemClock
from sensorkeep.errors import SensorkeepError, Unavailable
from sensorkeep.ingest.accept import Acceptor, IngestSettings
from sensorkeep.ingest.http import IngestRoutes

THREADS = 2
DEADLINE_SECONDS = 20.0


class HangingAcceptor:
    """Reads each body and then takes as long as `hangs` says, as an object store that does not answer."""

    settings = IngestSettings()

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.begun: list[bytes] = []
        self.read_now: list[bytes] = []

    def bulk(self, chunks: Iterable[bytes], **_: object) -> None:
        chunks = iter(chunks)
        self.begun.append(next(chunks)[:8])
        self.answers.wait(DEADLINE_SECONDS)
        for _chunk in chunks:
            pass
        raise Unavailable("the object store did not answer in time", code="dependency_down")

    def read(self, chunks: Iterable[bytes], *, digest: hashlib._Hash, **_: object) -> None:
        for chunk in chunks:
            digest.update(chunk)
            self.read_now.append(chunk[:8])


class KnownKeys:
    """Every key was used before, with this content."""

    content = b"once more"

    def begin(self, *_: object) -> tuple[str, StoredAnswer]:
        return hashlib.sha256(self.content).hexdigest(), StoredAnswer(status=201, headers={}, body=b"first")


class OpenGate:
    def admit_now(self, *_: object) -> Admission:
        return Admission(Credential("c", "key", "c", frozenset({Scope.INGEST}), 1), None)


class World:
    """The routes, and clients that send to them."""

    def __init__(self) -> None:
        self.acceptor = HangingAcceptor()
        unused = cast(Any, None)
        self.routes = IngestRoutes(
            unused, acceptor=cast(Acceptor, self.acceptor), gatherer=unused, waiters=unused, ledger=unused,
            idempotency=cast(IdempotencyKeys, KnownKeys()), gate=cast(Gate, OpenGate()), clock=SystemClock(),
            display_time=unused,
        )  # fmt: skip
        self.answered: list[MutableMapping[str, Any]] = []

    def send(
        self, body: bytes, gone: asyncio.Event, *, more: bool = False, key: bytes = b""
    ) -> asyncio.Task[SensorkeepError | None]:
        """A client that sends a body, with `more` only its beginning, and leaves when told so. Its refusal, or None."""
        headers = [(b"idempotency-key", key)] if key else []
        parts = [{"type": "http.request", "body": body, "more_body": more}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def answer(message: MutableMapping[str, Any]) -> None:
            self.answered.append(message)

        async def ask() -> SensorkeepError | None:
            scope = {"type": "http", "path": "/api/v1/telemetry/bulk", "method": "POST", "headers": headers}
            try:
                await self.routes(scope, receive, answer)
            except SensorkeepError as error:
                return error
            return None

        return asyncio.ensure_future(ask())

    async def fill(self, count: int = THREADS, *, more: bool = False) -> list[asyncio.Task[SensorkeepError | None]]:
        """Requests that take every thread."""
        size = limits.BULK_WHOLE_BYTES_MAX + 1 if more else 8
        sent = [self.send(b"%08d" % number + bytes(size - 8), asyncio.Event(), more=more) for number in range(count)]
        await until(lambda: len(self.acceptor.begun) == count)
        return sent


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(limits, "BULK_STREAMS_MAX", THREADS)
    world = World()
    yield world
    world.acceptor.answers.set()
    world.routes.close()


def run(act: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(act, DEADLINE_SECONDS))


def test_past_so_many_waiting_bodies_the_next_is_refused_at_once_and_those_have_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODIES_WAITING_MAX", 3)

    async def act() -> None:
        sent = await world.fill()
        sent += [world.send(b"waits", asyncio.Event()) for _ in range(3)]
        error = await world.send(b"too many", asyncio.Event())
        assert isinstance(error, Unavailable)
        assert (error.status, error.retry_after_seconds) == (503, 5)
        assert len(world.acceptor.begun) == THREADS
        world.acceptor.answers.set()
        assert [getattr(each, "code", None) for each in await asyncio.gather(*sent)] == ["dependency_down"] * 5
        assert world.acceptor.begun[THREADS:] == [b"waits"] * 3
        await world.send(b"again", asyncio.Event())
        assert world.acceptor.begun[-1] == b"again", "there is room again"

    run(act())


def test_what_was_answered_before_is_answered_again_though_nothing_can_be_made_durable(world: World) -> None:
    async def act() -> None:
        sent = await world.fill()
        assert await world.send(KnownKeys.content, asyncio.Event(), key=b"known") is None
        assert [world.answered[0]["status"], world.answered[1]["body"]] == [201, b"first"]
        world.acceptor.answers.set()
        await asyncio.gather(*sent)

    run(act())


def test_slow_senders_of_what_was_answered_before_hold_up_no_whole_body(world: World) -> None:
    async def act() -> None:
        start = bytes(limits.BULK_WHOLE_BYTES_MAX + 1)
        slow = [world.send(start, asyncio.Event(), more=True, key=b"known") for _ in range(THREADS + 1)]
        await until(lambda: len(world.acceptor.read_now) == THREADS)
        assert await world.send(KnownKeys.content, asyncio.Event(), key=b"known") is None
        for each in slow:
            each.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    run(act())


def test_waiting_bodies_are_bounded_in_size_but_one_may_always_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODIES_WAITING_BYTES_MAX", 1_000)

    async def act() -> None:
        sent = await world.fill()
        sent.append(world.send(b"large   " * 500, asyncio.Event()))
        error = await world.send(b"small", asyncio.Event())
        assert isinstance(error, Unavailable)
        world.acceptor.answers.set()
        await asyncio.gather(*sent)
        assert world.acceptor.begun[THREADS:] == [b"large   "]

    run(act())


def test_a_body_whose_client_left_while_it_waited_is_not_taken_up(world: World) -> None:
    async def act() -> None:
        gone = asyncio.Event()
        sent = [*await world.fill(), world.send(b"first", asyncio.Event())]
        left = [world.send(b"left", gone) for _ in range(5)]
        sent.append(world.send(b"second", asyncio.Event()))
        gone.set()
        assert await asyncio.gather(*left) == [None] * 5, "there is nobody to answer"
        world.acceptor.answers.set()
        await asyncio.gather(*sent)
        assert sorted(world.acceptor.begun[THREADS:]) == [b"first", b"second"]

    run(act())


def test_a_client_that_leaves_in_the_middle_of_a_body_that_waits_gives_its_place_up(world: World) -> None:
    async def act() -> None:
        sent = await world.fill(more=True)
        gone = asyncio.Event()
        left = world.send(b"left    " + bytes(limits.BULK_WHOLE_BYTES_MAX), gone, more=True)
        gone.set()
        assert await left is None
        world.acceptor.answers.set()
        for each in sent:
            each.cancel()
        await asyncio.gather(*sent, return_exceptions=True)
        assert b"left    " not in world.acceptor.begun

    run(act())


def test_a_request_that_is_given_up_while_it_waits_or_runs_takes_no_place(world: World) -> None:
    async def act() -> None:
        sent = await world.fill()
        sent += [world.send(b"waits", asyncio.Event()) for _ in range(3)]
        await asyncio.sleep(0)
        for each in sent:
            each.cancel()
        await asyncio.gather(*sent, return_exceptions=True)
        world.acceptor.answers.set()
        for number in range(2 * THREADS):
            await world.send(b"next %d" % number, asyncio.Event())
        assert world.acceptor.begun[THREADS:] == [b"next %d" % number for number in range(2 * THREADS)]

    run(act())
