"""Errors as `application/problem+json` (RFC 9457), the same for FastAPI routes and raw ASGI code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Send

from sensorkeep.errors import PROBLEMS, InvalidInput, SensorkeepError
from sensorkeep.limits import FIELD_ERRORS_REPORTED_MAX

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:sensorkeep:error:"

_log = structlog.get_logger("sensorkeep.web")

Header = tuple[bytes, bytes]

_CODE_BY_STATUS = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_fields",
    429: "rate_limited",
    503: "unavailable",
}
"""Our codes for the plain HTTP errors that the framework raises."""
_INTERNAL_DETAIL = "The request could not be completed. The log has the details under the request id."


def problem_response(error: SensorkeepError, request_id: str) -> tuple[int, list[Header], bytes]:
    """(status, headers, body) that answer `error`. `instance` is the request id, as a URI reference.

    What only the operator may know stays inside: a status of 500 is answered without its detail.
    """
    hidden = error.status == 500
    document: dict[str, Any] = {} if hidden else dict(error.extra)
    document |= {
        "type": TYPE_PREFIX + ("internal" if hidden else error.code),
        "title": PROBLEMS["internal"][1] if hidden else error.title,
        "status": error.status,
        "detail": _INTERNAL_DETAIL if hidden else error.detail,
        "instance": quote(request_id, safe="-._~!$&'()*+,;=:@"),
        "code": "internal" if hidden else error.code,
    }
    return _response(error.status, document, error)


def _response(status: int, document: dict[str, Any], error: SensorkeepError) -> tuple[int, list[Header], bytes]:
    body = msgspec.json.encode(document)
    fields = {"content-type": MEDIA_TYPE, "content-length": str(len(body))}
    if error.retry_after_seconds is not None:
        fields["retry-after"] = str(error.retry_after_seconds)
    if status == 401:
        fields["www-authenticate"] = "Bearer"
    fields |= {name.lower(): value for name, value in error.headers.items()}
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    return status, headers, body


async def send_problem(send: Send, error: SensorkeepError, request_id: str) -> None:
    """Answer `error` from raw ASGI code that has not begun to answer."""
    status, headers, body = problem_response(error, request_id)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def report_problem(error: Exception) -> None:
    """Tell the operator what the answer hides (500), and that something was not available (503)."""
    if not isinstance(error, SensorkeepError) or error.status == 500:
        _log.error("request failed", exc_info=error)
    elif error.status > 500:
        _log.warning("request refused", code=error.code, detail=error.detail)


def internal_error() -> SensorkeepError:
    """What is answered for an exception that nobody expected."""
    return SensorkeepError(_INTERNAL_DETAIL, code="internal")


def field_errors(errors: Iterable[Any], code: str = "invalid_fields") -> SensorkeepError:
    """The answer to pydantic's `errors`: where and why, never the value, which may be a secret."""
    listed = list(errors)
    fields = [
        {"path": ".".join(str(part) for part in item["loc"]), "message": str(item["msg"])}
        for item in listed[:FIELD_ERRORS_REPORTED_MAX]
    ]
    detail = f"{fields[0]['path']}: {fields[0]['message']}" if fields else "A field is not valid."
    return InvalidInput(detail, code=code, extra={"errors": fields, "error_count": len(listed)})


def install_problem_handlers(app: FastAPI) -> None:
    """Let `app` answer every error as a problem document."""

    async def on_error(request: Request, error: Exception) -> Response:
        if isinstance(error, SensorkeepError):  # The middleware reports the unexpected ones, which reach it too.
            report_problem(error)
        return _as_response(_translate(error), request)

    for kind in (SensorkeepError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, on_error)


def _translate(error: Exception) -> SensorkeepError:
    if isinstance(error, SensorkeepError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid_request(error)
    if isinstance(error, HTTPException):
        return _http_error(error)
    return internal_error()


def _invalid_request(error: RequestValidationError) -> SensorkeepError:
    """A body that is no JSON, or a query that cannot be served (SPEC, Query), is a 400; any other field a 422."""
    items = list(error.errors())
    if any(item["type"] == "json_invalid" for item in items):
        return InvalidInput("The body is not valid JSON.", code="not_json")
    only_query = all(item["loc"][:1] == ("query",) for item in items)
    return field_errors(items, "bad_parameter" if only_query else "invalid_fields")


def _http_error(error: HTTPException) -> SensorkeepError:
    code = _CODE_BY_STATUS.get(error.status_code)
    if code is None:
        code = "bad_request" if error.status_code < 500 else "internal"
    return SensorkeepError(str(error.detail), code=code, headers=dict(error.headers or {}))


def _as_response(error: SensorkeepError, request: Request) -> Response:
    status, headers, body = problem_response(error, request.scope.get("state", {}).get("request_id", ""))
    response = Response(body, status)
    response.raw_headers = headers
    return response
