"""Logging: JSON lines on standard error, or coloured text on a terminal. Secrets never reach it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sensorkeep.limits import ACCESS_LOG_BYTES_MAX, ACCESS_LOG_SECONDS

request_id_of_context: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
"""The id of the request that is being served; every line logged meanwhile carries it."""

REDACTED = "[redacted]"

_SECRET_NAME = re.compile(
    r"authorization|(x[-_])?api[-_]?key|password|passwd|token|secret|ticket|cookie|credentials", re.IGNORECASE
)
_HARMLESS_NAMES = frozenset({"token_type", "token_id", "credential", "key_id"})
_QUERY = re.compile(r"(?<=[\w/.\-])\?[^\s\"'<>]*=[^\s\"'<>]*")
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w\-.~+/=]{8,}", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"\b(authorization|x[-_]api[-_]key|api[-_]key(?:[-_]ws)?|password|passwd|token|secret|ticket)"
    r"([\"']?\s*[=:]\s*[\"']?)(?!\[redacted\])[^\s\"'&,;}]+",
    re.IGNORECASE,
)
_KEY = re.compile(r"\bsk_\w+_[\w\-]{8,}")


def redact_text(text: str) -> str:
    """`text` without query strings, bearer tokens, API keys and assigned secrets."""
    text = _QUERY.sub("?" + REDACTED, text)
    text = _BEARER.sub(r"\1 " + REDACTED, text)
    text = _ASSIGNED.sub(r"\1\2" + REDACTED, text)
    return _KEY.sub("sk_" + REDACTED, text)


def redact(value: Any) -> Any:
    """`value` with secrets replaced, at any depth."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes):
        return redact_text(value.decode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return {name: REDACTED if _is_secret(str(name)) else redact(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    return value


def _is_secret(name: str) -> bool:
    return name.lower() not in _HARMLESS_NAMES and _SECRET_NAME.search(name) is not None


def redact_event(logger: WrappedLogger, method: str, event: EventDict) -> MutableMapping[str, Any]:
    """structlog processor: nothing secret goes further."""
    safe: MutableMapping[str, Any] = redact(event)
    return safe


def _add_request_id(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    request_id = request_id_of_context.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def _drop_colour_copy(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """uvicorn adds each message a second time, with colour codes."""
    event.pop("color_message", None)
    return event


def _to_json(event: EventDict, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


class Access(msgspec.Struct, frozen=True):
    """One served request. Never a query, a body or a secret."""

    method: str
    route: str
    """The template, not the path."""
    status: int
    ms: float
    bytes: int
    """Of the answer's body."""
    client_ip: str
    request_id: str
    credential: str | None
    """Its id."""
    timestamp: str
    level: str = "info"
    logger: str = "sensorkeep.access"
    event: str = "request"


class AccessLog:
    """Writes the access log in the form of all other lines. On the event loop only.

    Lines are encoded directly, for structlog's way costs more than the budget of a request, and gathered for
    ACCESS_LOG_SECONDS. Of a process that is killed the last ones are missing.
    """

    def __init__(self, handler: logging.StreamHandler[TextIO], *, terminal: bool, enabled: bool = True) -> None:
        self._handler = handler
        self._terminal = terminal
        self._enabled = enabled
        self._lines: list[bytes] = []
        self._bytes = 0
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, access: Access) -> None:
        """Enter one request."""
        if not self._enabled:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(ACCESS_LOG_SECONDS, self.flush)
        line = self._encode(access)
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes > ACCESS_LOG_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered. Call it before the process ends."""
        lines, self._lines, self._bytes = self._lines, [], 0
        if not lines:
            return
        text = "\n".join(_terminal_line(line) if self._terminal else line.decode() for line in lines) + "\n"
        with self._handler.lock or contextlib.nullcontext():
            self._handler.stream.write(text)
            self._handler.stream.flush()


def _terminal_line(line: bytes) -> str:
    access = msgspec.json.decode(line, type=Access)
    who = access.credential or "-"
    return f"{access.timestamp} {access.method} {access.route} {access.status} {access.ms} ms {access.client_ip} {who}"


def configure_logging(
    level: str = "info", stream: TextIO | None = None, *, terminal: bool | None = None, access_log: bool = True
) -> AccessLog:
    """Send structlog and the standard library's loggers, uvicorn's too, to `stream` (None: standard error).

    `level`: debug, info, warning or error. `terminal`: text for people instead of JSON lines (None: where the stream is
    a terminal). `access_log`: whether the returned log of requests writes anything (it is of level info). Give uvicorn
    `log_config=None, access_log=False`: its own set-up would undo this.
    """
    stream = stream or sys.stderr
    if terminal is None:
        terminal = stream.isatty()
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks become text before redaction, so that what an exception says is covered as well.
    after: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _drop_colour_copy,
        structlog.processors.format_exc_info,
        redact_event,
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(serializer=_to_json),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=after))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # It tells of every plugin at each start, and would bury what stops one.
    logging.getLogger("alembic").setLevel(root.level if level == "debug" else max(root.level, logging.WARNING))
    _take_over_uvicorn()
    return AccessLog(handler, terminal=terminal, enabled=access_log and root.isEnabledFor(logging.INFO))


def _take_over_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    # It would log each request a second time, with its query.
    logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL + 1)
