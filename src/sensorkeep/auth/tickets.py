"""One-time tickets for opening a WebSocket, so that a browser need not put a key into a URL.

With Valkey a ticket opens a socket on any gateway. Without it, or while it is down, one is kept in this process and
opens a socket on the gateway that issued it.
"""

from __future__ import annotations

import hashlib
import secrets
import threading

from sensorkeep.auth.credentials import Credential
from sensorkeep.auth.shared_tickets import SharedTickets
from sensorkeep.clock import Clock
from sensorkeep.errors import Unauthenticated, Unavailable
from sensorkeep.limits import WS_TICKET_SECONDS, WS_TICKETS_MAX


class Tickets:
    """Tickets, each good for one use within WS_TICKET_SECONDS. Thread-safe; past WS_TICKETS_MAX the oldest go.

    With `shared` tickets `issue` and `redeem` block for a round trip.
    """

    def __init__(self, clock: Clock, shared: SharedTickets | None = None) -> None:
        self._clock = clock
        self._shared = shared
        self._lock = threading.Lock()
        # By hash, in the order issued: a look at the memory or at timing gives no ticket away.
        self._waiting: dict[bytes, tuple[Credential, float]] = {}

    def issue(self, credential: Credential) -> str:
        """A new ticket (43 URL-safe characters) that stands for `credential`."""
        ticket = secrets.token_urlsafe(32)
        if self._put_shared(ticket, credential):
            return ticket
        # Another one: Valkey may still take the first when it was given up, and a ticket in two places is good twice.
        ticket = secrets.token_urlsafe(32)
        now = self._clock.monotonic()
        with self._lock:
            self._drop_stale(now)
            self._waiting[_digest(ticket)] = (credential, now + WS_TICKET_SECONDS)
        return ticket

    def redeem(self, ticket: str) -> Credential:
        """Spend the ticket. Raises Unauthenticated where it is unknown, spent or too old, and Unavailable where that
        cannot be told now."""
        with self._lock:
            credential, expires = self._waiting.pop(_digest(ticket), (None, 0.0))
        if credential is None and self._shared is not None:
            credential, expires = self._shared.take(_digest(ticket)), self._clock.monotonic() + WS_TICKET_SECONDS
        if credential is None or self._clock.monotonic() >= expires:
            raise Unauthenticated("The ticket is not valid, was used before, or is too old; ask for a new one.")
        return credential

    def forget(self, credential_id: str) -> None:
        """Drop the tickets kept here of a credential that was changed or revoked."""
        with self._lock:
            self._waiting = {key: held for key, held in self._waiting.items() if held[0].id != credential_id}

    def _put_shared(self, ticket: str, credential: Credential) -> bool:
        if self._shared is None:
            return False
        try:
            self._shared.put(_digest(ticket), credential)
        except Unavailable:
            return False
        return True

    def _drop_stale(self, now: float) -> None:
        while self._waiting:
            oldest = next(iter(self._waiting))
            if len(self._waiting) < WS_TICKETS_MAX and now < self._waiting[oldest][1]:
                return
            del self._waiting[oldest]


def _digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).digest()
