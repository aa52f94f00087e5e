"""The errors in the OpenAPI document: every operation names those that it can answer, all of them problem documents.

FastAPI documents none by itself but a 422 of a form that is never answered here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from sensorkeep.errors import PROBLEMS

_MEDIA_TYPE = "application/problem+json"
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_SCHEMA = {
    "title": "Problem",
    "description": "An error, as RFC 9457 has it. Some have further members, such as `errors`.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:sensorkeep:error:not_found"]},
        "title": {"type": "string", "description": "The same for every occurrence of a code."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong, and what to do about it."},
        "instance": {"type": "string", "description": "The request's id."},
        "code": {"type": "string", "enum": sorted(PROBLEMS)},
    },
}
_CONFLICTS = frozenset(
    {
        ("post", "/api/v1/telemetry/batches/{batch_id}/replay"),
        ("post", "/api/v1/keys"),
        ("post", "/api/v1/users"),
        ("patch", "/api/v1/users/{username}"),
        ("delete", "/api/v1/users/{username}"),
    }
)
"""Operations that the present state may forbid."""
_HEADERS = {
    429: ("Retry-After", "Seconds after which to try again."),
    503: ("Retry-After", "Seconds after which to try again."),
}
_FRAMEWORK = ("HTTPValidationError", "ValidationError")


def document_problems(api: FastAPI) -> None:
    """Let the OpenAPI document of `api` name the errors of every operation."""
    describe = api.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = _SCHEMA
        for name in _FRAMEWORK:
            schemas.pop(name, None)
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                _document(operation, set(_statuses(method, path, operation)))
        return document

    api.openapi = openapi  # type: ignore[method-assign]


def _statuses(method: str, path: str, operation: dict[str, Any]) -> Iterator[int]:
    """The errors that an operation can answer, by what it takes."""
    takes = {parameter["in"] for parameter in operation.get("parameters", ())}
    if operation.get("security") or path == "/metrics":  # which is open to loopback alone
        yield from (401, 403, 429, 503)
    if "query" in takes:
        yield 400
    if "path" in takes:
        yield 404
    if "requestBody" in operation:
        yield from (400, 413, 415, 422, 429, 503)
    if (method, path) in _CONFLICTS:
        yield 409


def _document(operation: dict[str, Any], statuses: set[int]) -> None:
    responses: dict[str, Any] = operation["responses"]
    if _is_frameworks(responses.get("422")):
        del responses["422"]
    for status in sorted(statuses - {int(known) for known in responses}):
        responses[str(status)] = {"description": _description(status)}
    for status, response in ((int(known), response) for known, response in responses.items()):
        if status >= 400:
            response.setdefault("content", {}).setdefault(_MEDIA_TYPE, {"schema": _PROBLEM})
        if status in _HEADERS:
            name, text = _HEADERS[status]
            response.setdefault("headers", {})[name] = {"description": text, "schema": {"type": "integer"}}


def _is_frameworks(response: dict[str, Any] | None) -> bool:
    """Whether this is the answer that FastAPI documents by itself."""
    return response is not None and any(name in str(response) for name in _FRAMEWORK)


def _description(status: int) -> str:
    titles = [title for code_status, title in PROBLEMS.values() if code_status == status]
    return "; ".join(f"{title}." for title in titles)
