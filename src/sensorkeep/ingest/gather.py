"""Gathers single readings into shared claims, so that requests which arrive together share one sync.

Whatever arrives while one claim is made durable goes into the next. A lone request waits for nothing but its own
sync; while many arrive, a short pause lets more of them share one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from sensorkeep import limits
from sensorkeep.catalog.base import Registry
from sensorkeep.decode.gathered import Entry
from sensorkeep.errors import SensorkeepError, Unavailable
from sensorkeep.ingest.accept import Acceptor, Sender

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Ticket:
    """A single reading on its way. `entry.record_id` and `batch_id` are set when it is durable."""

    entry: Entry
    urgent: bool
    on_done: Callable[[Ticket, Exception | None], None]
    """Called on the event loop, with the error where it could not be made durable."""
    batch_id: str = ""


class Gatherer:
    """Single readings to claims. `submit` is called on the event loop; one thread of its own makes claims durable."""

    def __init__(self, acceptor: Acceptor, registry: Registry) -> None:
        self._acceptor = acceptor
        self._registry = registry
        self._waiting: deque[Ticket] = deque()
        self._wakeup = threading.Event()
        self._closing = False
        self._next_id = self._last_id = 0
        self._thread = threading.Thread(target=self._run, name="gather", daemon=True)
        self._loop: asyncio.AbstractEventLoop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to serve `submit` on this loop."""
        self._loop = loop
        self._thread.start()

    async def submit(self, entry: Entry, *, urgent: bool = False) -> Ticket:
        """Return when the reading is durable. Raises Unavailable where it cannot be made so."""
        done: asyncio.Future[None] = self._loop.create_future()

        def resolve(_: Ticket, error: Exception | None) -> None:
            if done.done():  # the client went away; the reading is kept all the same
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        ticket = Ticket(entry, urgent, resolve)
        self.enqueue(ticket)
        await done
        return ticket

    def enqueue(self, ticket: Ticket) -> None:
        """As `submit`, for a caller who is told by `ticket.on_done`. On the event loop. Raises Unavailable."""
        if self._closing:
            raise Unavailable("the server is shutting down", retry_after_seconds=2)
        self._waiting.append(ticket)
        if not self._wakeup.is_set():
            self._wakeup.set()

    def close(self) -> None:
        """Make durable what waits, then end the thread."""
        self._closing = True
        self._wakeup.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing or self._waiting:
            self._wakeup.wait()
            self._wakeup.clear()
            while tickets := self._take():
                self._commit(tickets)
                if len(tickets) >= limits.GATHER_PAUSE_ENTRIES and not self._closing:
                    time.sleep(limits.GATHER_PAUSE_SECONDS)

    def _take(self) -> list[Ticket]:
        tickets: list[Ticket] = []
        size = 0
        while self._waiting and len(tickets) < limits.GATHER_ENTRIES_MAX:
            size += len(self._waiting[0].entry.body) + 64
            if tickets and size > limits.SMALL_BODY_BYTES_MAX:
                break
            tickets.append(self._waiting.popleft())
        return tickets

    def _commit(self, tickets: list[Ticket]) -> None:
        error: Exception | None = None
        batch_id = ""
        try:
            batch_id = self._make_durable(tickets)
        except SensorkeepError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001 - the outermost loop: every waiting request gets the error
            error = caught
        self._loop.call_soon_threadsafe(_resolve, tickets, batch_id, error)

    def _make_durable(self, tickets: list[Ticket]) -> str:
        for ticket in tickets:
            ticket.entry.record_id = self._new_id()
        entries = tuple(ticket.entry for ticket in tickets)
        return self._acceptor.gathered(entries, Sender("", urgent=any(ticket.urgent for ticket in tickets)))

    def _new_id(self) -> int:
        if self._next_id >= self._last_id:
            self._next_id = self._registry.reserve_ids(limits.RECORD_IDS_RESERVED)
            self._last_id = self._next_id + limits.RECORD_IDS_RESERVED
        self._next_id += 1
        return self._next_id - 1


def _resolve(tickets: list[Ticket], batch_id: str, error: Exception | None) -> None:
    for ticket in tickets:
        ticket.batch_id = batch_id
        try:
            ticket.on_done(ticket, error)
        except Exception:  # what went wrong with one answer must not keep the others waiting
            log.exception("answer_failed", batch_id=batch_id)
