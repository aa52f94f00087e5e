"""Forged and stolen tokens at the door of a running server (RFC 8725). Finer cases: tests/unit/test_auth_tokens.py."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from attacked import SECRET_KEY
from harness import PASSWORD, Server, problem

Claims = dict[str, Any]
Forge = Callable[[Claims, Claims], str]


@pytest.fixture(scope="module")
def genuine(administrator: httpx.Client) -> tuple[Claims, Claims]:
    """Header and claims of a token that the server issued."""
    token = administrator.headers["Authorization"].removeprefix("Bearer ")
    return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})


def ask(server: Server, token: str) -> httpx.Response:
    return server.anonymous.get("/auth/me", headers={"Authorization": f"Bearer {token}"})


def signed(header: Claims, claims: Claims, *, key: Any = SECRET_KEY, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers=header)


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def unsigned(header: Claims, claims: Claims, algorithm: str = "none") -> str:
    return f"{part(header | {'alg': algorithm})}.{part(claims)}."


def renamed(header: Claims, claims: Claims, algorithm: str = "HS512") -> str:
    """A signature by HS256 under a header that names another algorithm."""
    _, content, signature = signed(header, claims).split(".")
    return f"{part(header | {'alg': algorithm})}.{content}.{signature}"


def bringing_its_key(header: Claims, claims: Claims) -> str:
    """Signed with a key of the attacker's, which the header brings along."""
    key = b"a key of more than 32 bytes that the attacker made"
    brought = {"kty": "oct", "k": base64.urlsafe_b64encode(key).decode()}
    return signed(header | {"jwk": brought, "jku": "http://127.0.0.1:1/keys"}, claims, key=key)


FORGERIES: dict[str, Forge] = {
    "without a signature": unsigned,
    "without a signature, spelled otherwise": lambda h, c: unsigned(h, c, "nOnE"),
    "with an empty algorithm": lambda h, c: unsigned(h, c, ""),
    "with our secret and another algorithm": lambda h, c: signed(h | {"alg": "HS512"}, c, algorithm="HS512"),
    "with an algorithm that its signature is not of": renamed,
    "as if our secret were an RSA key": lambda h, c: renamed(h, c, "RS256"),
    "as if our secret were an elliptic curve's": lambda h, c: renamed(h, c, "ES256"),
    "with a key that it brings along": bringing_its_key,
    "with an empty secret": lambda h, c: signed(h, c, key="\0"),
    "with another secret": lambda h, c: signed(h, c, key="another secret of more than 32 bytes!!"),
    "with a key from elsewhere": lambda h, c: signed(h | {"kid": "../../../../dev/null"}, c, key="\0"),
    "expired": lambda h, c: signed(h, c | {"exp": int(time.time()) - 1}),
    "of the future": lambda h, c: signed(h, c | {"iat": int(time.time()) + 3600, "nbf": int(time.time()) + 3600}),
    "without an end": lambda h, c: signed(h, {name: value for name, value in c.items() if name != "exp"}),
    "of another issuer": lambda h, c: signed(h, c | {"iss": "elsewhere"}),
    "for another audience": lambda h, c: signed(h, c | {"aud": "elsewhere"}),
    "for several audiences": lambda h, c: signed(h, c | {"aud": [c["aud"], "elsewhere"]}),
    "of another type": lambda h, c: signed(h | {"typ": "JWT"}, c),
    "for refreshing": lambda h, c: signed(h | {"typ": "rt+jwt"}, c | {"family": "f"}),
    "of somebody unknown": lambda h, c: signed(h, c | {"sub": "nobody"}),
    "of an earlier password": lambda h, c: signed(h, c | {"stamp": "0" * 16}),
}


def test_a_token_made_here_with_nothing_wrong_is_accepted(fortress: Server, genuine: tuple[Claims, Claims]) -> None:
    """Else the refusals below would mean nothing."""
    assert ask(fortress, signed(*genuine)).status_code == 200


@pytest.mark.parametrize("how", FORGERIES)
def test_a_forged_token_is_refused(fortress: Server, genuine: tuple[Claims, Claims], how: str) -> None:
    header, claims = genuine
    answer = ask(fortress, FORGERIES[how](dict(header), dict(claims)))
    problem(answer, 401, "unauthenticated")


def test_a_token_grants_no_scope_that_its_user_lacks(
    fortress: Server, administrator: httpx.Client, genuine: tuple[Claims, Claims]
) -> None:
    body = {"username": "reader", "password": "a passphrase for reading 5", "scopes": ["read"]}
    assert administrator.post("/users", json=body).status_code == 201
    login = fortress.anonymous.post("/auth/login", json={"username": "reader", "password": body["password"]})
    token = login.json()["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    raised = signed(genuine[0], claims | {"scope": "admin ingest live read"})
    assert ask(fortress, raised).json()["scopes"] == ["read"]
    keys = fortress.anonymous.get("/keys", headers={"Authorization": f"Bearer {raised}"})
    problem(keys, 403, "forbidden")


def test_a_stolen_refresh_token_that_is_used_again_ends_every_session_of_its_login(fortress: Server) -> None:
    login = fortress.anonymous.post("/auth/login", json={"username": "admin", "password": PASSWORD}).json()
    stolen = login["refresh_token"]

    def refresh(token: str) -> httpx.Response:
        return fortress.anonymous.post("/auth/refresh", json={"refresh_token": token})

    first = refresh(stolen)
    assert first.status_code == 200
    problem(refresh(stolen), 401, "unauthenticated")
    problem(refresh(first.json()["refresh_token"]), 401, "unauthenticated")
