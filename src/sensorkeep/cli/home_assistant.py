"""A client that behaves as the deployed Home Assistant client does, faults of its network included.

It keeps a queue: what was not answered with 200 or 201 stays in it and is sent again with what came since.
"""

from __future__ import annotations

import gzip
import random
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from sensorkeep.cli.client import API_ROOT, Answer, Credential, HttpConnection, problem_error, unreachable
from sensorkeep.errors import Unavailable
from sensorkeep.limits import CLIENT_TIMEOUT_SECONDS, EQUIPMENT_OBJECTS_MAX, READINGS_PER_GENERAL_REQUEST_MAX

SUCCESS = frozenset({200, 201})
"""The only answers that the deployed client takes for success."""
_GZIP_LEVEL = 6

Fault = Literal["cut", "truncated", "unheard"]
"""cut: the connection drops amid the body. truncated: the gzip stream ends early, in a whole request.
unheard: all is sent and the connection drops before the answer."""
FAULTS: tuple[Fault, ...] = ("cut", "truncated", "unheard")


class Route(NamedTuple):
    """How a form of readings is sent."""

    path: str
    objects_max: int
    """Objects in one request."""
    array: bool = True
    """Whether a request is an array; else it is one object."""
    compressed: bool = True


BULK = Route(f"{API_ROOT}/telemetry/bulk", EQUIPMENT_OBJECTS_MAX)
READINGS = Route(f"{API_ROOT}/readings", READINGS_PER_GENERAL_REQUEST_MAX, compressed=False)
TEMPERATURE = Route(f"{API_ROOT}/temperature_reading", 1, array=False, compressed=False)


class SendOutcome(NamedTuple):
    """What one request came to."""

    objects: int
    """Objects in it."""
    status: int | None
    """None: no answer arrived."""
    answer: dict[str, Any]
    """The answer's JSON object, empty where there is none."""
    fault: Fault | None = None
    """The fault that was made on purpose."""
    detail: str = ""
    """Why it failed."""

    @property
    def success(self) -> bool:
        """Whether the client takes it for delivered."""
        return self.status in SUCCESS


class Faults:
    """Decides by its seed which requests go wrong, and how."""

    def __init__(self, fraction: float, source: random.Random) -> None:
        self._fraction = fraction
        self._random = source

    def next(self) -> Fault | None:
        """The fault of the next request."""
        if self._random.random() >= self._fraction:
            return None
        return self._random.choice(FAULTS)

    def cut(self, length: int) -> int:
        """How much of `length` bytes is sent before it breaks off: at least one, never all."""
        return self._random.randint(1, max(length - 1, 1))


class HomeAssistantClient:
    """Queue, send, refresh: as deployed. Not thread-safe.

    `queued` objects (JSON bytes) are sent oldest first as one gzip JSON array. An answer of 401 makes it refresh its
    token, or log in again, and send once more; any other failure leaves the queue as it is for the next `send`.
    """

    def __init__(
        self,
        base_url: str,
        credential: Credential,
        *,
        route: Route = BULK,
        faults: Faults | None = None,
        timeout_seconds: float = CLIENT_TIMEOUT_SECONDS,
    ) -> None:
        self._connection = HttpConnection(base_url, timeout_seconds)
        self._credential = credential
        self._route = route
        self._faults = faults
        self._queue: deque[bytes] = deque()
        self._access_token: str | None = None
        self._refresh_token: str | None = None
        self.logins = 0
        self.refreshes = 0

    @property
    def queued(self) -> int:
        """Objects waiting."""
        return len(self._queue)

    def enqueue(self, objects: Iterable[bytes]) -> None:
        """Add objects, each a JSON text; they are sent in this order."""
        self._queue.extend(objects)

    def close(self) -> None:
        """Hang up; the queue stays."""
        self._connection.close()

    def login(self) -> None:
        """Get tokens. Raises Unauthenticated and what else the answer tells of, Unavailable where there is none."""
        if self._credential.api_key or not self._credential.username:
            return
        body = msgspec.json.encode({"username": self._credential.username, "password": self._credential.password or ""})
        answer = self._post(f"{API_ROOT}/auth/device/login", {"Content-Type": "application/json"}, body)
        if answer.status not in SUCCESS:
            raise problem_error(answer)
        self._keep_tokens(answer)
        self.logins += 1

    def refresh(self) -> bool:
        """Trade the refresh token for new tokens; False where that is refused. Raises Unavailable."""
        token, self._refresh_token = self._refresh_token, None
        if token is None:
            return False
        answer = self._post(f"{API_ROOT}/auth/refresh", {"Authorization": f"Bearer {token}"}, b"")
        if answer.status not in SUCCESS:
            return False
        self._keep_tokens(answer)
        self.refreshes += 1
        return True

    def send(self) -> SendOutcome:
        """Send what is queued, as much as one request takes; delivered objects leave the queue.

        Never raises for what the network or the server does to this request; raises Unauthenticated where a login
        is needed and refused. An empty queue sends nothing (0 objects, no status).
        """
        objects = [self._queue[i] for i in range(min(len(self._queue), self._route.objects_max))]
        if not objects:
            return SendOutcome(0, None, {})
        fault = self._faults.next() if self._faults is not None else None
        try:
            outcome = self._deliver(objects, fault)
        except Unavailable as error:
            outcome = SendOutcome(len(objects), None, {}, fault, error.detail)
        if outcome.success:
            for _ in objects:
                self._queue.popleft()
        return outcome

    def _deliver(self, objects: list[bytes], fault: Fault | None) -> SendOutcome:
        if self._access_token is None:
            self.login()
        body = b"[" + b",".join(objects) + b"]" if self._route.array else objects[0]
        headers = {"Content-Type": "application/json"}
        if self._route.compressed:
            body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        if fault is not None and self._faults is not None:
            length = self._faults.cut(len(body))
            if fault != "truncated":
                sent = length if fault == "cut" else len(body)
                self._connection.break_off(
                    "POST", self._route.path, {**headers, **self._authorization()}, body, sent_bytes=sent
                )
                return SendOutcome(len(objects), None, {}, fault, "the connection was dropped on purpose")
            body = body[:length]
        answer = self._post(self._route.path, {**headers, **self._authorization()}, body)
        if answer.status == 401 and not self._credential.api_key:
            if not self.refresh():
                self.login()
            answer = self._post(self._route.path, {**headers, **self._authorization()}, body)
        detail = "" if answer.status in SUCCESS else problem_error(answer).detail
        return SendOutcome(len(objects), answer.status, _object(answer), fault, detail)

    def _post(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return self._connection.exchange("POST", path, headers, body)

    def _authorization(self) -> dict[str, str]:
        if self._credential.api_key:
            return {"X-API-Key": self._credential.api_key}
        return {"Authorization": f"Bearer {self._access_token}"} if self._access_token else {}

    def _keep_tokens(self, answer: Answer) -> None:
        tokens = _object(answer)
        if not isinstance(tokens.get("access_token"), str):
            raise unreachable("the login's answer holds no token: is this a Sensorkeep server?")
        self._access_token, self._refresh_token = tokens["access_token"], tokens.get("refresh_token")


def _object(answer: Answer) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
