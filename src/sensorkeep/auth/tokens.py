"""Signed tokens (JWT, RFC 7519) by the best current practice of RFC 8725.

One algorithm, fixed here; issuer, audience, times and the explicit type are checked, so a token of another
installation, another purpose or another time is refused. Times are checked by our Clock, never by the library's.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jwt

from sensorkeep.auth.passwords import refuse_weak_secret
from sensorkeep.catalog.base import RefreshToken, Registry
from sensorkeep.clock import MICROSECONDS, Clock, IdSource
from sensorkeep.errors import BadConfig, Unauthenticated
from sensorkeep.limits import (
    ACCESS_TOKEN_SECONDS,
    CLOCK_SKEW_SECONDS,
    CREDENTIAL_BYTES_MAX,
    REFRESH_TOKEN_SECONDS,
    SIGNING_SECRET_BYTES_MIN,
)

ALGORITHM = "HS256"
ISSUER = "sensorkeep"
AUDIENCE = "sensorkeep-api"
ACCESS_TYPE = "at+jwt"
REFRESH_TYPE = "rt+jwt"

_REQUIRED = ["iss", "aud", "sub", "jti", "iat", "nbf", "exp"]


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a valid access token says. `stamp` is the `password_stamp` of the time of issue."""

    username: str
    scopes: frozenset[str]
    stamp: str
    expires_us: int


@dataclass(frozen=True, slots=True)
class RefreshClaims:
    """What a valid refresh token says. Whether it was spent, only the catalog knows."""

    username: str
    token_id: str
    family: str


class TokenIssuer:
    """Issues and verifies tokens. Thread-safe. Raises BadConfig where `secret` is shorter than 32 bytes."""

    def __init__(
        self,
        secret: str,
        clock: Clock,
        access_seconds: int = ACCESS_TOKEN_SECONDS,
        refresh_seconds: int = REFRESH_TOKEN_SECONDS,
        ids: IdSource | None = None,
    ) -> None:
        self._secret = secret.encode()
        if len(self._secret) < SIGNING_SECRET_BYTES_MIN:
            raise BadConfig(
                f"SECRET_KEY: at least {SIGNING_SECRET_BYTES_MIN} bytes are needed to sign tokens; "
                "leave it out to have one generated."
            )
        self._clock = clock
        self._ids = ids or IdSource(clock)
        self.access_seconds = access_seconds
        self.refresh_seconds = refresh_seconds

    def issue_access(self, username: str, scopes: Collection[str], stamp: str) -> str:
        """A new access token."""
        now = self._clock.now_us() // MICROSECONDS
        claims = {"scope": " ".join(sorted(scopes)), "stamp": stamp}
        return self._sign(ACCESS_TYPE, username, now, now + self.access_seconds, self._ids.new(), claims)

    def issue_refresh(self, username: str, family: str | None = None) -> tuple[str, RefreshToken]:
        """A new refresh token and its record for the catalog; a new family where none is named."""
        now = self._clock.now_us() // MICROSECONDS
        expires = now + self.refresh_seconds
        record = RefreshToken(self._ids.new(), family or self._ids.new(), username, expires * MICROSECONDS)
        return self._sign(REFRESH_TYPE, username, now, expires, record.token_id, {"family": record.family}), record

    def verify_access(self, token: str | bytes) -> AccessClaims:
        """The claims of an access token. Raises Unauthenticated."""
        claims = self._verify(token, ACCESS_TYPE)
        scopes = frozenset(_text(claims, "scope").split())
        return AccessClaims(claims["sub"], scopes, _text(claims, "stamp"), claims["exp"] * MICROSECONDS)

    def verify_refresh(self, token: str | bytes) -> RefreshClaims:
        """The claims of a refresh token. Raises Unauthenticated."""
        claims = self._verify(token, REFRESH_TYPE)
        return RefreshClaims(claims["sub"], claims["jti"], _text(claims, "family"))

    def _sign(self, kind: str, username: str, now: int, expires: int, token_id: str, more: dict[str, str]) -> str:
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": username,
            "iat": now,
            "nbf": now,
            "exp": expires,
            "jti": token_id,
            **more,
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM, headers={"typ": kind})

    def _verify(self, token: str | bytes, kind: str) -> dict[str, Any]:
        if len(token) > CREDENTIAL_BYTES_MAX:
            raise _refused()
        try:
            decoded = jwt.decode_complete(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={
                    "require": _REQUIRED,
                    "strict_aud": True,
                    # The three times are checked below, by our clock.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, UnicodeEncodeError):
            # The cause is left out on purpose: it may quote the token.
            raise _refused() from None
        claims: dict[str, Any] = decoded["payload"]
        header: dict[str, Any] = decoded["header"]
        if header.get("typ") != kind or not self._is_timely(claims):
            raise _refused()
        return claims

    def _is_timely(self, claims: dict[str, Any]) -> bool:
        now = self._clock.now_us() / MICROSECONDS
        # `type` and not isinstance: True and 1e999 are no times.
        if any(type(claims[name]) is not int for name in ("iat", "nbf", "exp")):
            return False
        begins: int = max(claims["iat"], claims["nbf"])
        expires: int = claims["exp"]
        return begins <= now + CLOCK_SKEW_SECONDS and now < expires


def password_stamp(password_hash: str) -> str:
    """A short mark of a password hash. Tokens carry it, so that they die with the password they were issued for.

    It tells nothing: the hash it is made from holds 128 random bits.
    """
    return hashlib.blake2b(password_hash.encode(), digest_size=8).hexdigest()


def signing_secret(registry: Registry, configured: str | None, *, demo: bool) -> str:
    """The secret that signs tokens: the configured one, else the installation's own, generated once.

    Raises BadConfig where the configured one is too weak.
    """
    if configured is not None:
        refuse_weak_secret("SECRET_KEY", configured, demo=demo)
        return configured
    return registry.secret("token-signing", secrets.token_urlsafe(48))


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str):
        raise _refused()
    return value


def _refused() -> Unauthenticated:
    """One answer for every fault, so that probing a forged token teaches nothing."""
    return Unauthenticated("The token is not valid or has expired.")
