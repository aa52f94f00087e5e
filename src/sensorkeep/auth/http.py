"""The routes of users, keys and tokens, and the dependency that protects every route of the API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPBearer, OAuth2PasswordBearer
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from sensorkeep.auth import schemas
from sensorkeep.auth.administration import Actor, Administration
from sensorkeep.auth.credentials import Credential
from sensorkeep.auth.gate import Gate
from sensorkeep.auth.scopes import Scope
from sensorkeep.auth.sessions import Sessions
from sensorkeep.auth.setup import Auth
from sensorkeep.clock import to_us
from sensorkeep.errors import InvalidInput, LimitExceeded, Unauthenticated
from sensorkeep.limits import (
    ERRORS_REPORTED_MAX,
    LOGIN_THREADS_MAX,
    NAME_CHARS_MAX,
    SMALL_BODY_BYTES_MAX,
    WS_TICKET_SECONDS,
)

LOGIN_URL = "/api/v1/auth/login"

_FORM = "application/x-www-form-urlencoded"
_FORM_FIELDS_MAX = 20
_SCOPES_SHOWN = {
    Scope.INGEST: "Send readings",
    Scope.READ: "Query readings",
    Scope.LIVE: "Open live streams",
    Scope.ADMIN: "Manage users and keys",
}
# They describe the API in its documentation; the header values are checked by the Gate, which takes either.
_OAUTH2 = OAuth2PasswordBearer(LOGIN_URL, "Login", {str(k): v for k, v in _SCOPES_SHOWN.items()}, auto_error=False)
_BEARER = HTTPBearer(scheme_name="Bearer", bearerFormat="JWT", auto_error=False)
_API_KEY = APIKeyHeader(name="X-API-Key", scheme_name="ApiKey", auto_error=False)

_ANSWERS: dict[int | str, dict[str, Any]] = {
    401: {"description": "A credential is missing or not valid."},
    403: {"description": "The credential lacks the scope."},
    429: {"description": "Too many requests; `Retry-After` says when to try again."},
}
_LOGIN_ANSWERS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The username or password is wrong, or the token is not valid."},
    422: {"description": "Some fields are not valid."},
    429: _ANSWERS[429],
}

Model = TypeVar("Model", bound=BaseModel)
Dependency = Callable[..., Awaitable[Credential]]


class Requires:
    """Makes the dependencies that protect routes: `Depends(requires(Scope.READ))`.

    Such a dependency answers the Credential, which is `request.state.credential` too; `request.state.rate` is the
    RateState (or None), and the answer gets its header fields. Raises as `Gate.admit`.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __call__(self, scope: Scope | None) -> Dependency:
        """A dependency that asks for `scope`; None asks for any valid credential."""
        asked = [str(scope)] if scope is not None else []

        async def admit(
            request: Request,
            response: Response,
            _bearer: object = Security(_BEARER),
            _oauth2: object = Security(_OAUTH2, scopes=asked),
            _api_key: object = Security(_API_KEY),
        ) -> Credential:
            presented = request.headers.get("authorization"), request.headers.get("x-api-key")
            admission = self._gate.admit_now(scope, *presented)
            if admission is None:
                admission = await run_in_threadpool(self._gate.admit, scope, *presented, _client_ip(request))
            request.state.credential, request.state.rate = admission
            if admission.rate is not None:
                response.headers.update(admission.rate.headers)
            return admission.credential

        return admit


def auth_router(auth: Auth, requires: Requires) -> APIRouter:
    """All routes of this folder; mount it under /api/v1."""
    router = APIRouter()
    router.include_router(_session_routes(auth.sessions))
    router.include_router(_own_routes(auth, requires))
    router.include_router(_key_routes(auth.administration, requires))
    router.include_router(_user_routes(auth.administration, requires))
    return router


def _session_routes(sessions: Sessions) -> APIRouter:
    router = APIRouter(prefix="/auth", tags=["auth"])
    turns = asyncio.Semaphore(LOGIN_THREADS_MAX)
    login_body = Depends(_body_of(schemas.Login, form=True))
    documented = {"openapi_extra": _documented(schemas.Login, form=True), "responses": _LOGIN_ANSWERS}

    @router.post("/login", summary="Log in", **documented)  # type: ignore[arg-type]
    @router.post("/device/login", summary="Log in (devices)", **documented)  # type: ignore[arg-type]
    async def login(request: Request, response: Response, body: schemas.Login = login_body) -> schemas.Tokens:
        """Exchange a username and password for tokens. Takes JSON or an OAuth2 password form."""
        response.headers["Cache-Control"] = "no-store"
        password = body.password.get_secret_value()
        async with turns:
            pair = await run_in_threadpool(sessions.login, body.username, password, _client_ip(request))
        return schemas.Tokens.of(pair)

    @router.post(
        "/refresh",
        summary="Refresh the tokens",
        openapi_extra=_documented(schemas.Refresh, form=True, required=False),
        responses=_LOGIN_ANSWERS,
    )
    async def refresh(request: Request, response: Response) -> schemas.Tokens:
        """Exchange a refresh token (in the body, or as `Authorization: Bearer`) for new tokens. It is good for one
        use; the second use of one ends every session that came from the same login."""
        token = await _refresh_token(request)
        response.headers["Cache-Control"] = "no-store"
        return schemas.Tokens.of(await run_in_threadpool(sessions.refresh, token, _client_ip(request)))

    return router


def _own_routes(auth: Auth, requires: Requires) -> APIRouter:
    router = APIRouter(prefix="/auth", tags=["auth"], responses=_ANSWERS)
    anybody = Depends(requires(None))
    listener = Depends(requires(Scope.LIVE))

    @router.get("/me", summary="Who am I?")
    async def me(credential: Credential = anybody) -> schemas.Me:
        """The credential of this request and its scopes."""
        return schemas.Me.of(credential)

    @router.post("/ws-ticket", summary="Get a WebSocket ticket", status_code=201)
    async def ws_ticket(response: Response, credential: Credential = listener) -> schemas.Ticket:
        """A ticket that opens one WebSocket within 30 seconds, so that no key has to be put into a URL."""
        response.headers["Cache-Control"] = "no-store"
        ticket = await run_in_threadpool(auth.tickets.issue, credential)
        return schemas.Ticket(ticket=ticket, expires_in=WS_TICKET_SECONDS)

    return router


def _key_routes(administration: Administration, requires: Requires) -> APIRouter:
    router = APIRouter(prefix="/keys", tags=["keys"], responses=_ANSWERS)
    admin = Depends(requires(Scope.ADMIN))
    key_body = Depends(_body_of(schemas.NewKey))

    @router.post("", summary="Make an API key", status_code=201, openapi_extra=_documented(schemas.NewKey))
    def issue_key(
        request: Request, response: Response, credential: Credential = admin, body: schemas.NewKey = key_body
    ) -> schemas.IssuedKey:
        """The secret is in this answer and nowhere else."""
        try:
            expires_us = None if body.expires_at is None else to_us(body.expires_at)
        except OverflowError:
            raise InvalidInput("expires_at is too far away.", code="invalid_fields") from None
        issued = administration.issue_key(
            body.name,
            body.scopes,
            _actor(credential, request),
            expires_us=expires_us,
            max_ws_connections=body.max_ws_connections,
        )
        response.headers["Cache-Control"] = "no-store"
        return schemas.IssuedKey.with_secret(*issued)

    @router.get("", summary="List the API keys", dependencies=[admin])
    def list_keys() -> schemas.Keys:
        """All keys, newest first, without their secrets."""
        known = administration.keys()
        return schemas.Keys(keys=[schemas.Key.of(key) for key in known])

    @router.delete("/{key_id}", summary="Revoke an API key", status_code=204)
    def revoke_key(key_id: str, request: Request, credential: Credential = admin) -> None:
        """The key is refused from now on."""
        administration.revoke_key(key_id, _actor(credential, request))

    return router


def _user_routes(administration: Administration, requires: Requires) -> APIRouter:
    router = APIRouter(prefix="/users", tags=["users"], responses=_ANSWERS)
    admin = Depends(requires(Scope.ADMIN))
    new_body = Depends(_body_of(schemas.NewUser))
    change_body = Depends(_body_of(schemas.UserChange))

    @router.post("", summary="Add a user", status_code=201, openapi_extra=_documented(schemas.NewUser))
    def add_user(
        request: Request, credential: Credential = admin, body: schemas.NewUser = new_body
    ) -> schemas.UserShown:
        """A user with the scope `admin` is given every scope."""
        actor = _actor(credential, request)
        user = administration.add_user(body.username, body.password.get_secret_value(), body.scopes, actor)
        return schemas.UserShown.of(user)

    @router.get("", summary="List the users", dependencies=[admin])
    def list_users() -> schemas.Users:
        """All users, by name."""
        return schemas.Users(users=[schemas.UserShown.of(user) for user in administration.users()])

    @router.patch("/{username}", summary="Change a user", openapi_extra=_documented(schemas.UserChange))
    def change_user(
        username: str, request: Request, credential: Credential = admin, body: schemas.UserChange = change_body
    ) -> schemas.UserShown:
        """Another password, or `disabled`, ends every session of the user."""
        user = administration.change_user(
            username,
            _actor(credential, request),
            password=None if body.password is None else body.password.get_secret_value(),
            scopes=body.scopes,
            disabled=body.disabled,
        )
        return schemas.UserShown.of(user)

    @router.delete("/{username}", summary="Remove a user", status_code=204)
    def remove_user(username: str, request: Request, credential: Credential = admin) -> None:
        """Its sessions end at once."""
        administration.remove_user(username, _actor(credential, request))

    return router


def _client_ip(request: Request) -> str:
    return request.client.host if request.client is not None else "unknown"


def _actor(credential: Credential, request: Request) -> Actor:
    return Actor(credential.id, _client_ip(request))


async def _refresh_token(request: Request) -> str:
    """The refresh token of the body where there is one, else of the header: some clients add a header to everything."""
    body = await _bounded_body(request)
    if body:
        return _parsed(schemas.Refresh, body, request, form=True).refresh_token.get_secret_value()
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("A refresh token is needed, in the body or as a bearer token.")
    return token.strip()


def _body_of(model: type[Model], *, form: bool = False) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that reads the body as `model`.

    FastAPI's own way would read a body of any size before it asks for a credential, and would repeat the password in
    what it says about a field that is not valid.
    """

    async def read(request: Request) -> Model:
        return _parsed(model, await _bounded_body(request), request, form=form)

    return read


async def _bounded_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > SMALL_BODY_BYTES_MAX:
            raise LimitExceeded(f"The body is larger than {SMALL_BODY_BYTES_MAX} bytes.")
    return bytes(body)


def _parsed(model: type[Model], body: bytes, request: Request, *, form: bool) -> Model:
    """Raises InvalidInput; nothing of what was sent is repeated in it."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    try:
        if media_type == "application/json" or media_type.endswith("+json"):
            return model.model_validate_json(body)
        if form and media_type == _FORM:
            text = body.decode("ascii")
            return model.model_validate(dict(parse_qsl(text, errors="strict", max_num_fields=_FORM_FIELDS_MAX)))
    except ValidationError as error:
        raise _invalid(error) from None
    except ValueError:
        raise InvalidInput("The form cannot be read.") from None
    raise InvalidInput("Send application/json" + (f" or {_FORM}." if form else "."), code="unsupported_media_type")


def _invalid(error: ValidationError) -> InvalidInput:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    if any(fault["type"] == "json_invalid" for fault in faults):
        return InvalidInput("The body is not valid JSON.", code="not_json")
    errors = [
        {"field": ".".join(map(str, fault["loc"]))[:NAME_CHARS_MAX], "reason": fault["msg"]}
        for fault in faults[:ERRORS_REPORTED_MAX]
    ]
    return InvalidInput("Some fields are missing or not valid.", code="invalid_fields", extra={"errors": errors})


def _documented(model: type[BaseModel], *, form: bool = False, required: bool = True) -> dict[str, Any]:
    """The request body in the OpenAPI document, since `_body_of` hides it from FastAPI."""
    schema = model.model_json_schema()
    types = ["application/json", _FORM] if form else ["application/json"]
    return {"requestBody": {"required": required, "content": {name: {"schema": schema} for name in types}}}
