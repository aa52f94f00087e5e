"""The shortest way of a plain temperature reading: from the parsed request to the answer without ASGI.

It does what the general route does and nothing else (ingest/http.py): whatever is not plain (a compressed body,
preferences, an error, a credential that must be looked up) is left to that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sensorkeep.auth.gate import Admission, Gate
from sensorkeep.auth.scopes import Scope
from sensorkeep.clock import Clock, LocalTime
from sensorkeep.decode.gathered import TEMPERATURE, Entry
from sensorkeep.decode.temperature import check_time, parse_temperature
from sensorkeep.errors import SensorkeepError
from sensorkeep.ingest.accept import Acceptor, Sender, encode
from sensorkeep.ingest.gather import Gatherer, Ticket
from sensorkeep.ingest.http import temperature_answer

ROUTE = "/api/v1/temperature_reading"

RawHeaders = list[tuple[bytes, bytes]]
Answer = Callable[[int, bytes, bytes], None]
Problem = Callable[[SensorkeepError, str], tuple[int, RawHeaders, bytes]]
Report = Callable[[str, str, int, float, int, str, str, str | None], None]

_SPECIAL = frozenset(
    (
        b"content-encoding", b"prefer", b"idempotency-key", b"x-request-id", b"origin", b"transfer-encoding",
        b"forwarded", b"x-forwarded-for", b"x-forwarded-proto",
    )
)  # fmt: skip
"""A request with one of these goes the general way."""
_SENDER = Sender("")


class ExpressLane:
    """Serves plain POSTs of one temperature reading; web/protocol.py calls it."""

    url = ROUTE.encode()

    def __init__(
        self,
        *,
        acceptor: Acceptor,
        gatherer: Gatherer,
        gate: Gate,
        clock: Clock,
        display_time: LocalTime,
        new_request_id: Callable[[], str],
        report: Report,
        problem: Problem,
        header_lines: bytes,
    ) -> None:
        self._acceptor = acceptor
        self._gatherer = gatherer
        self._gate = gate
        self._clock = clock
        self._display_time = display_time
        self._new_request_id = new_request_id
        self._report = report
        self._problem = problem
        self._header_lines = header_lines

    def __call__(self, headers: RawHeaders, body: bytes, client_ip: str, answer: Answer) -> bool:
        """Take a plain request; False: serve it the general way."""
        authorization = api_key = None
        for name, value in headers:
            if name == b"x-api-key":
                api_key = value
            elif name == b"authorization":
                authorization = value
            elif name in _SPECIAL or (name == b"content-type" and not value.startswith(b"application/json")):
                return False
        started = self._clock.monotonic()
        try:
            parsed = parse_temperature(body)
            options = self._acceptor.options(_SENDER)
            time_us = check_time(parsed.timestamp, options)
            admission = self._gate.admit_now(Scope.INGEST, authorization, api_key)
            if admission is None:
                return False
            entry = Entry(TEMPERATURE, options.received_us, 0, client_ip, body, parsed, time_us)
            self._gatherer.enqueue(Ticket(entry, False, partial(self._done, answer, admission, started)))
        except SensorkeepError:
            return False
        return True

    def _done(
        self, answer: Answer, admission: Admission, started: float, ticket: Ticket, error: Exception | None
    ) -> None:
        entry = ticket.entry
        request_id = self._new_request_id()
        if error is None:
            date, time = self._display_time.date_and_time(entry.time_us)
            status, lines, body = (
                201,
                b"content-type: application/json\r\n",
                encode(temperature_answer(entry, date, time)),
            )
        else:
            status, lines, body = self._refused(error, request_id)
        if admission.rate is not None:
            lines += b"".join(b"%s: %s\r\n" % (n.encode(), v.encode()) for n, v in admission.rate.headers.items())
        answer(status, b"%sx-request-id: %s\r\n%s" % (lines, request_id.encode(), self._header_lines), body)
        seconds = self._clock.monotonic() - started
        self._report("POST", ROUTE, status, seconds, len(body), entry.client_ip, request_id, admission.credential.id)

    def _refused(self, error: Exception, request_id: str) -> tuple[int, bytes, bytes]:
        known = error if isinstance(error, SensorkeepError) else SensorkeepError(repr(error))
        status, headers, body = self._problem(known, request_id)
        lines = (b"%s: %s\r\n" % (name, value) for name, value in headers if name != b"content-length")
        return status, b"".join(lines), body
