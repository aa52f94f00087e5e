"""A synchronous client of our own HTTP API, over the standard library alone.

`HttpConnection` makes one try; `ApiClient` adds the credential, retries and readable errors.
"""

from __future__ import annotations

import email.utils
import gzip
import http.client
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

from sensorkeep import limits
from sensorkeep.clock import Clock, SystemClock
from sensorkeep.errors import (
    PROBLEMS,
    Conflict,
    Forbidden,
    InvalidInput,
    LimitExceeded,
    NotFound,
    RateLimited,
    SensorkeepError,
    Unauthenticated,
    Unavailable,
)

DEFAULT_URL = "http://127.0.0.1:8000"
API_ROOT = "/api/v1"
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
"""Answers after which the same request may succeed later. No other answer is ever retried."""
_GZIP_LEVEL = 3
"""Most of the gain of level 6 at a third of its time."""

_BY_STATUS: dict[int, type[SensorkeepError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: LimitExceeded,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


class Answer(NamedTuple):
    """What the server answered; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises Unavailable where it is not: then it is not our server that answered."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError as error:
            raise unreachable(f"the answer is not JSON: is this a Sensorkeep server? ({error})") from error


@dataclass(frozen=True, slots=True)
class Credential:
    """An API key, or a user's name and password. All None: requests carry no credential."""

    api_key: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def unreachable(detail: str) -> Unavailable:
    """The error of a server that did not answer as ours does."""
    return Unavailable(detail, code="unreachable")


def problem_error(answer: Answer) -> SensorkeepError:
    """The error an answer of 400 or above tells of; its problem document gives message, code and further members."""
    kind = _BY_STATUS.get(answer.status, InvalidInput if answer.status < 500 else SensorkeepError)
    try:
        document = msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError:
        document = {}
    code = document.get("code")
    code = code if isinstance(code, str) and code in PROBLEMS else kind.default_code
    detail = str(document.get("detail") or document.get("title") or f"the server answered {answer.status}")
    retry_after = retry_after_seconds(answer, time.time())
    seconds = None if retry_after is None else int(retry_after)
    if kind is Unavailable:
        return Unavailable(detail, code=code, retry_after_seconds=5 if seconds is None else seconds)
    return kind(detail, code=code, retry_after_seconds=seconds, extra=document)


def retry_after_seconds(answer: Answer, now_seconds: float) -> float | None:
    """How long the answer asks to wait: seconds or an HTTP date (RFC 9110 section 10.2.3); None where it does not."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now_seconds)
    except ValueError:
        return None


_USER = re.compile(r"(^|//)[^/]*@")
"""User and password in a URL, behind its scheme."""


class HttpConnection:
    """One kept-alive connection, one try per call. Not thread-safe."""

    def __init__(self, base_url: str, timeout_seconds: float = limits.CLIENT_TIMEOUT_SECONDS) -> None:
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        base_url = _USER.sub(r"\1", base_url)  # it is shown, and a password may be in it
        try:
            port = parts.port
        except ValueError as error:
            raise InvalidInput(f"{base_url!r} has a bad port", code="bad_parameter") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{base_url!r} is not an http(s) URL", code="bad_parameter")
        self.base_url = base_url
        self._root = parts.path.rstrip("/")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=timeout_seconds)
        self._used = False

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, *, repeatable: bool = True
    ) -> Answer:
        """Send one request and read its answer, whatever its status. Raises Unavailable (`unreachable`).

        A kept connection may have been closed by the server meanwhile; then a repeatable request is sent once more
        on a new one, and any other is sent on a new one to begin with.
        """
        if not repeatable:
            self.close()
        reused = self._used
        try:
            return self._exchange(method, target, headers, body)
        except (ConnectionError, http.client.RemoteDisconnected) as error:
            if not reused:
                raise unreachable(f"{self.base_url}: {_say(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(f"{self.base_url}: {_say(error)}") from error
        try:
            return self._exchange(method, target, headers, body)
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(f"{self.base_url}: {_say(error)}") from error

    def break_off(self, method: str, target: str, headers: Mapping[str, str], body: bytes, sent_bytes: int) -> None:
        """Promise the whole body, send its first `sent_bytes` and hang up: what a failing network does."""
        self.close()
        try:
            self._connection.putrequest(method, self._root + target)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self._connection.putheader(name, value)
            self._connection.endheaders()
            self._connection.send(body[:sent_bytes])
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(f"{self.base_url}: {_say(error)}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Hang up; the next call connects anew."""
        self._connection.close()
        self._used = False

    def _exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        try:
            try:
                self._connection.request(method, self._root + target, body, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                if self._used:
                    raise
                # A server that refuses a large body answers and closes before it has read all of it.
            response = self._connection.getresponse()
            content = response.read(limits.CLIENT_ANSWER_BYTES_MAX + 1)
            if len(content) > limits.CLIENT_ANSWER_BYTES_MAX:
                raise http.client.HTTPException(f"the answer is over {limits.CLIENT_ANSWER_BYTES_MAX} bytes")
            if response.length:  # read() with a bound does not tell that the rest never came
                raise http.client.IncompleteRead(content, response.length)
        except BaseException:
            self.close()
            raise
        self._used = not response.will_close
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__


class ApiClient:
    """The HTTP API with a credential, retries and our errors. Not thread-safe: one for each thread.

    A request is tried again, at most `attempts_max` times in all, after a failed connection and after 429, 502, 503
    and 504, waiting as Retry-After says, else with exponential back-off and jitter from `source`. `on_wait` hears
    the reason and the seconds before each wait.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        credential: Credential | None = None,
        *,
        attempts_max: int = limits.CLIENT_ATTEMPTS_MAX,
        timeout_seconds: float = limits.CLIENT_TIMEOUT_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        source: random.Random | None = None,
        on_wait: Callable[[str, float], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.connection = HttpConnection(base_url, timeout_seconds)
        self.credential = credential or Credential()
        self._attempts_max = attempts_max
        self.sleep = sleep
        self._random = source or random.Random()  # noqa: S311  (jitter, not a secret)
        self._on_wait = on_wait
        self._clock = clock or SystemClock()
        self._access_token: str | None = None
        self._refresh_token: str | None = None

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.connection.close()

    def get(self, path: str, **query: str | int | None) -> Any:
        """GET `path` (below /api/v1) and its JSON; None parameters are left out. Raises as `request`."""
        return self.request("GET", path, query=query).json()

    def post_json(
        self, path: str, body: object, *, headers: Mapping[str, str] | None = None, repeatable: bool = True
    ) -> Any:
        """POST `body` as JSON and the JSON answered. Raises as `request`."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return self.request("POST", path, body=content, headers=headers, repeatable=repeatable).json()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> Answer:
        """One request with its retries; `path` is below /api/v1, or whole where it starts with another root.

        A JSON `body` of some size is sent as gzip. `repeatable=False`: it is tried once, whatever happens.
        Raises the error that the answer tells of (InvalidInput, Unauthenticated, Forbidden, NotFound, Conflict,
        LimitExceeded, RateLimited, Unavailable), and Unavailable (`unreachable`) where there is no answer.
        """
        parameters = {name: value for name, value in (query or {}).items() if value is not None}
        target = api_path(path) + (f"?{urlencode(parameters)}" if parameters else "")
        fields = {"Accept": "application/json", **(headers or {})}
        if body is not None:
            fields.setdefault("Content-Type", "application/json")
            if len(body) >= limits.CLIENT_GZIP_BYTES_MIN and "Content-Encoding" not in fields:
                body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
                fields["Content-Encoding"] = "gzip"
        answer = self._send(method, target, {**fields, **self._authorization()}, body, repeatable)
        if answer.status == 401 and self._renew():
            answer = self._send(method, target, {**fields, **self._authorization()}, body, repeatable)
        if not 200 <= answer.status < 300:
            raise problem_error(answer)
        return answer

    def _send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, repeatable: bool = True
    ) -> Answer:
        fields = {"User-Agent": f"sensorkeep/{version('sensorkeep')}", **headers}
        attempts_max = self._attempts_max if repeatable else 1
        attempt = 1
        while True:
            try:
                answer = self.connection.exchange(method, target, fields, body, repeatable=repeatable)
            except Unavailable as error:
                if attempt >= attempts_max:
                    raise
                self._wait(error.detail, self._backoff_seconds(attempt))
            else:
                if answer.status not in RETRIED_STATUSES or attempt >= attempts_max:
                    return answer
                asked = retry_after_seconds(answer, self._clock.now_us() / 1e6)
                if asked is not None and asked > limits.CLIENT_RETRY_AFTER_SECONDS_MAX:
                    return answer
                reason = f"{answer.status} {problem_error(answer).detail}"
                # A little more than asked for, so that clients turned away together do not return together.
                self._wait(
                    reason,
                    self._backoff_seconds(attempt) if asked is None else asked * (1 + self._random.random() / 10),
                )
            attempt += 1

    def _backoff_seconds(self, attempt: int) -> float:
        # "Full jitter": uniform in [0, bound], with a floor so that it is never a busy loop.
        bound = min(limits.CLIENT_BACKOFF_SECONDS_MAX, limits.CLIENT_BACKOFF_SECONDS_FIRST * 2.0 ** (attempt - 1))
        return bound / 4 + self._random.random() * bound * 3 / 4

    def _wait(self, reason: str, seconds: float) -> None:
        if self._on_wait is not None:
            self._on_wait(reason, seconds)
        self.sleep(seconds)

    def _authorization(self) -> dict[str, str]:
        if self.credential.api_key:
            return {"X-API-Key": self.credential.api_key}
        if not self.credential.username:
            return {}
        if self._access_token is None:
            self._login()
        return {"Authorization": f"Bearer {self._access_token}"}

    def _login(self) -> None:
        body = msgspec.json.encode({"username": self.credential.username, "password": self.credential.password or ""})
        answer = self._send("POST", api_path("/auth/login"), {"Content-Type": "application/json"}, body)
        if answer.status != 200:
            raise problem_error(answer)
        self._keep_tokens(answer)

    def _renew(self) -> bool:
        """Get a new access token after a 401: by the refresh token, else by login. False: there is no way to."""
        if self.credential.api_key or not self.credential.username:
            return False
        refresh, self._refresh_token = self._refresh_token, None
        self._access_token = None
        if refresh is not None:
            answer = self._send("POST", api_path("/auth/refresh"), {"Authorization": f"Bearer {refresh}"}, b"")
            if answer.status == 200:
                self._keep_tokens(answer)
                return True
        self._login()
        return True

    def _keep_tokens(self, answer: Answer) -> None:
        tokens = answer.json()
        try:
            self._access_token, self._refresh_token = tokens["access_token"], tokens["refresh_token"]
        except (KeyError, TypeError) as error:
            raise unreachable("the login's answer holds no tokens: is this a Sensorkeep server?") from error


def api_path(path: str) -> str:
    """`path` below /api/v1, unless it names a root of its own (/api/…, /health, /ping, /metrics)."""
    if path.startswith(("/api/", "/health", "/ping", "/metrics")):
        return path
    return API_ROOT + path
