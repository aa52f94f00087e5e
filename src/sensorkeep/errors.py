"""Every error Sensorkeep raises on purpose, and the one table from error code to HTTP status.

The class says what the caller should do; the code says what happened. Messages say what was wrong and what to do
about it, and never hold a secret or a body.
"""

from __future__ import annotations

from typing import Any, ClassVar

# code -> (HTTP status, title). The title is the same for every occurrence of a code (RFC 9457 section 3.1.3).
PROBLEMS: dict[str, tuple[int, str]] = {
    "bad_request": (400, "The request is malformed"),
    "not_json": (400, "The body is not valid JSON"),
    "not_an_array": (400, "The body is not a JSON array"),
    "empty_body": (400, "The body is empty"),
    "bad_encoding": (400, "The compressed body is truncated or corrupt"),
    "bad_parameter": (400, "A parameter cannot be served"),
    "unauthenticated": (401, "A credential is missing or not valid"),
    "forbidden": (403, "The credential lacks the scope"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "not_acceptable": (406, "None of the accepted media types can be produced"),
    "request_timeout": (408, "The request did not arrive in time"),
    "conflict": (409, "The request conflicts with the present state"),
    "idempotency_in_progress": (409, "The first request with this idempotency key is still running"),
    "already_exists": (409, "It exists already"),
    "payload_gone": (410, "The payload is no longer kept"),
    "too_large": (413, "The request is over a size limit"),
    "unsupported_media_type": (415, "The content type or encoding is not supported"),
    "invalid_fields": (422, "Some fields are not valid"),
    "no_usable_reading": (422, "The request holds no usable reading"),
    "idempotency_mismatch": (422, "The idempotency key was used with another payload"),
    "rate_limited": (429, "Too many requests"),
    "internal": (500, "An unexpected error occurred"),
    "unavailable": (503, "The service cannot do this at the moment"),
    "disk_full": (503, "The disk is full"),
    "dependency_down": (503, "A dependency is down"),
    # Never answered over HTTP: they reach the log, the quarantine or the terminal.
    "poisoned": (500, "A stored payload cannot be used"),
    "corrupt": (500, "Stored data is damaged"),
    "bad_config": (500, "The configuration is not valid"),
    "data_dir_in_use": (500, "Another process has opened the data directory"),
    "wrong_version": (500, "It belongs to another version"),
    "unreachable": (503, "The server cannot be reached"),
}


class SensorkeepError(Exception):
    """Base of the tree. `code` is a key of PROBLEMS; `extra` holds further public members of the problem document,
    `headers` further header fields of the HTTP answer."""

    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        retry_after_seconds: int | None = None,
        extra: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra or {}
        self.headers = headers or {}

    @property
    def status(self) -> int:
        """The HTTP status of this error's code."""
        return PROBLEMS[self.code][0]

    @property
    def title(self) -> str:
        """The title of this error's code."""
        return PROBLEMS[self.code][1]


class InvalidInput(SensorkeepError):
    """What the caller sent cannot be used as it is; sending the same again cannot help."""

    default_code = "bad_request"


class LimitExceeded(InvalidInput):
    """A size limit was exceeded; the message names the limit and its setting."""

    default_code = "too_large"


class Unauthenticated(SensorkeepError):
    """No credential, or one that is not valid."""

    default_code = "unauthenticated"


class Forbidden(SensorkeepError):
    """The credential is valid and lacks the scope."""

    default_code = "forbidden"


class NotFound(SensorkeepError):
    """The named thing does not exist."""

    default_code = "not_found"


class Conflict(SensorkeepError):
    """The present state forbids the act."""

    default_code = "conflict"


class RateLimited(SensorkeepError):
    """Over a rate limit; `retry_after_seconds` is set."""

    default_code = "rate_limited"


class Unavailable(SensorkeepError):
    """A dependency cannot do its part now. The work was not done, or may be repeated safely: retry later."""

    default_code = "unavailable"

    def __init__(self, detail: str, *, code: str | None = None, retry_after_seconds: int = 5) -> None:
        super().__init__(detail, code=code, retry_after_seconds=retry_after_seconds)


class Uncertain(Unavailable):
    """Nobody knows whether the work was done, for its answer did not come. It may be repeated safely; what it needs
    must be kept."""


class Overloaded(SensorkeepError):
    """The work needs more memory than is allowed: all of it will fail again, parts of it may succeed."""

    default_code = "unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after_seconds=30)


class Poisoned(SensorkeepError):
    """A stored payload or claim that can never be used, however often it is tried: set it aside."""

    default_code = "poisoned"


class Corrupt(SensorkeepError):
    """Stored data that does not read back as it was written."""

    default_code = "corrupt"


class BadConfig(SensorkeepError):
    """A setting is unknown, not valid, or unsafe; the message names it. The process must not start."""

    default_code = "bad_config"


class DataDirInUse(SensorkeepError):
    """The data directory is open in another process."""

    default_code = "data_dir_in_use"
