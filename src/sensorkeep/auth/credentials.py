"""From what a request presents (a bearer token or an API key) to the credential it stands for."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sensorkeep.auth.passwords import refuse_weak_secret
from sensorkeep.auth.scopes import Scope
from sensorkeep.auth.tokens import TokenIssuer, password_stamp
from sensorkeep.catalog.base import Accounts, ApiKey, User
from sensorkeep.clock import MICROSECONDS, Clock
from sensorkeep.errors import BadConfig, Forbidden, Unauthenticated
from sensorkeep.limits import (
    CREDENTIAL_BYTES_MAX,
    CREDENTIAL_CACHE_ENTRIES_MAX,
    CREDENTIAL_CACHE_SECONDS,
    KEY_USE_NOTED_SECONDS,
    WS_CONNECTIONS_PER_KEY_MAX,
)

Presented = bytes | str | None
"""A header value as the server hands it over (ISO 8859-1 where it is a str)."""

KEY_PREFIX = "sk_"


@dataclass(frozen=True, slots=True)
class Credential:
    """Who a request comes from and what it may do."""

    id: str
    """"user:<username>", "key:<id>" or "static:<setting>"."""
    kind: Literal["user", "key", "static"]
    name: str
    """The username, the key's name, or the setting's name."""
    scopes: frozenset[str]
    max_ws_connections: int
    stamp: str = ""
    """Of a user, the mark of the password at that time (tokens.password_stamp)."""


class StaticKey(NamedTuple):
    """A key from the environment."""

    setting: str
    secret: str
    scopes: frozenset[str]


def static_keys(api_key: str | None, api_key_ws: str | None, *, demo: bool) -> list[StaticKey]:
    """The keys of the settings API_KEY (ingest and read) and API_KEY_WS (live). Raises BadConfig for a weak one."""
    found = []
    for setting, secret, scopes in (
        ("API_KEY", api_key, frozenset({str(Scope.INGEST), str(Scope.READ)})),
        ("API_KEY_WS", api_key_ws, frozenset({str(Scope.LIVE)})),
    ):
        if secret is None:
            continue
        refuse_weak_secret(setting, secret, demo=demo)
        if not (secret.isascii() and secret.isprintable()) or secret != secret.strip():
            raise BadConfig(f"{setting}: only printable ASCII without spaces around it fits into a header.")
        found.append(StaticKey(setting, secret, scopes))
    return found


def new_key_secret(key_id: str) -> str:
    """A new secret for an API key: `sk_<id>_<256 random bits>`. `key_id` holds no underscore."""
    return f"{KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"


def secret_sha256(secret: str | bytes) -> str:
    """What the catalog keeps of a key. A fast hash does: there are 256 random bits to guess, not a password."""
    return hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).hexdigest()


def require(credential: Credential, scope: str | None) -> None:
    """Raises Forbidden where the credential lacks the scope; None asks for no scope."""
    if scope is not None and scope not in credential.scopes:
        raise Forbidden(f"This needs a credential with the scope {str(scope)!r}.")


class Authenticator:
    """Tells credentials. Thread-safe.

    What was found is remembered for CREDENTIAL_CACHE_SECONDS, and never past its expiry, under the SHA-256 of what
    was presented; `forget` ends that at once. So a change made by another process is seen within that time, or when
    that process tells of it (`on_change`), and the catalog is asked twice a minute for a busy credential, not thousands
    of times.
    """

    def __init__(
        self,
        accounts: Accounts,
        issuer: TokenIssuer,
        clock: Clock,
        static: Sequence[StaticKey] = (),
        max_ws_connections: int = WS_CONNECTIONS_PER_KEY_MAX,
    ) -> None:
        self._accounts = accounts
        self._issuer = issuer
        self._clock = clock
        self._monotonic = clock.monotonic
        self._static = [(hashlib.sha256(key.secret.encode()).digest(), key) for key in static]
        self._max_ws_connections = max_ws_connections
        self._lock = threading.Lock()
        self._generation = 0
        # SHA-256 -> (credential, monotonic deadline); one for each header, so that neither can stand for the other.
        self._known_bearers: dict[bytes, tuple[Credential, float]] = {}
        self._known_keys: dict[bytes, tuple[Credential, float]] = {}
        # When keys were used that are not written down yet, by their id.
        self._used_us: dict[str, int] = {}
        self._on_forget: list[Callable[[str], None]] = []
        self._on_change: list[Callable[[str], None]] = []

    def cached(self, authorization: Presented, api_key: Presented = None) -> Credential | None:
        """The credential where it is remembered, else None. Never blocks: for the event loop."""
        if api_key is not None and not _is_bearer(authorization):
            known, presented = self._known_keys, api_key
        elif authorization is not None:
            known, presented = self._known_bearers, authorization
        else:
            return None
        if type(presented) is str:
            presented = presented.encode("latin-1", "replace")
        if len(presented) > CREDENTIAL_BYTES_MAX:
            return None
        entry = known.get(hashlib.sha256(presented).digest())  # type: ignore[arg-type]
        if entry is None or self._monotonic() >= entry[1]:
            return None
        return entry[0]

    def authenticate(self, authorization: Presented, api_key: Presented = None) -> Credential:
        """The credential of a request with these `Authorization` and `X-API-Key` values.

        A bearer token goes before a key. Blocks for a look-up in the catalog where the credential is not remembered.
        Raises Unauthenticated, and Unavailable where the catalog is down.
        """
        return self.cached(authorization, api_key) or self._look_up(authorization, api_key)

    def forget(self, credential_id: str) -> None:
        """Stop believing what is remembered of this credential, here and elsewhere: it was changed or revoked."""
        self.forget_here(credential_id)
        for listener in self._on_change:
            listener(credential_id)

    def forget_here(self, credential_id: str) -> None:
        """The same for this process alone: another one has made the change, and told of it."""
        with self._lock:
            self._generation += 1
            for known in (self._known_bearers, self._known_keys):
                for digest in [digest for digest, entry in known.items() if entry[0].id == credential_id]:
                    del known[digest]
            listeners = list(self._on_forget)
        for listener in listeners:
            listener(credential_id)

    def review(self, held: Collection[Credential]) -> None:
        """Ask the catalog anew about credentials that are held for long, and forget here those that were changed,
        revoked or have expired: whoever did it, nobody need have told. Blocking. Raises Unavailable."""
        kinds = {credential.kind for credential in held}
        known_users = self._accounts.users() if "user" in kinds else []
        known_keys = self._accounts.keys() if "key" in kinds else []
        users = {f"user:{user.username}": user for user in known_users}
        keys = {f"key:{key.id}": key for key in known_keys}
        for credential in held:
            if credential.kind == "user":
                good = _is_user_as_held(users.get(credential.id), credential)
            else:
                good = credential.kind == "static" or self._is_key_as_held(keys.get(credential.id), credential)
            if not good:
                self.forget_here(credential.id)

    def on_forget(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of each credential that is changed or revoked, here or elsewhere. It must return
        at once."""
        with self._lock:
            self._on_forget.append(listener)

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of each credential that this process changes or revokes. It may block, and must
        not raise."""
        self._on_change.append(listener)

    def save_usage(self) -> None:
        """Write down when keys were last used. Blocking; to be called about once a minute and at the end.

        Raises Unavailable; what was not written then is written by the next call.
        """
        with self._lock:
            pending, self._used_us = self._used_us, {}
        try:
            while pending:
                key_id, used_us = next(iter(pending.items()))
                self._accounts.touch_key(key_id, used_us)
                del pending[key_id]
        finally:
            with self._lock:
                self._used_us = pending | self._used_us

    def _look_up(self, authorization: Presented, api_key: Presented) -> Credential:
        with self._lock:
            generation = self._generation
        if api_key is not None and not _is_bearer(authorization):
            presented, known = _bytes(api_key), self._known_keys
            credential, seconds = self._by_key(presented)
        elif _is_bearer(authorization):
            presented, known = _bytes(authorization), self._known_bearers
            credential, seconds = self._by_token(presented[len(b"Bearer ") :].strip())
        else:
            raise Unauthenticated("A credential is needed: a bearer token or an X-API-Key.")
        deadline = self._monotonic() + min(seconds, CREDENTIAL_CACHE_SECONDS)
        with self._lock:
            # A change since the look-up began may have missed it: then the next request looks again.
            if generation == self._generation:
                while len(known) >= CREDENTIAL_CACHE_ENTRIES_MAX:
                    del known[next(iter(known))]
                known[hashlib.sha256(presented).digest()] = (credential, deadline)
        return credential

    def _by_token(self, token: bytes) -> tuple[Credential, float]:
        """The user of an access token, with the scopes that both still have, and the seconds it is good for."""
        claims = self._issuer.verify_access(token)
        user = self._accounts.user(claims.username)
        if user is None or user.disabled or password_stamp(user.password_hash) != claims.stamp:
            raise Unauthenticated("The token is not valid or has expired.")
        credential = Credential(
            f"user:{user.username}",
            "user",
            user.username,
            claims.scopes & user.scopes,
            self._max_ws_connections,
            claims.stamp,
        )
        return credential, self._seconds_until(claims.expires_us)

    def _by_key(self, presented: bytes) -> tuple[Credential, float]:
        found = self._static_key(presented)
        if found is not None:
            return found, CREDENTIAL_CACHE_SECONDS
        key = None
        if presented.startswith(KEY_PREFIX.encode()):
            key = self._accounts.key_by_secret(secret_sha256(presented))
        if key is None or self._has_expired(key):
            raise Unauthenticated("The API key is not valid or has expired.")
        self._note_use(key)
        most = self._max_ws_connections if key.max_ws_connections is None else key.max_ws_connections
        credential = Credential(f"key:{key.id}", "key", key.name, key.scopes, most)
        return credential, CREDENTIAL_CACHE_SECONDS if key.expires_us is None else self._seconds_until(key.expires_us)

    def _static_key(self, presented: bytes) -> Credential | None:
        """The static key with this secret; where both settings hold the same one, it has the scopes of both."""
        digest = hashlib.sha256(presented).digest()
        matching = [key for expected, key in self._static if hmac.compare_digest(expected, digest)]
        if not matching:
            return None
        scopes = frozenset[str]().union(*(key.scopes for key in matching))
        setting = matching[0].setting
        return Credential(f"static:{setting.lower()}", "static", setting, scopes, self._max_ws_connections)

    def _has_expired(self, key: ApiKey) -> bool:
        return key.expires_us is not None and key.expires_us <= self._clock.now_us()

    def _is_key_as_held(self, key: ApiKey | None, held: Credential) -> bool:
        return key is not None and not self._has_expired(key) and held.scopes <= key.scopes

    def _note_use(self, key: ApiKey) -> None:
        now = self._clock.now_us()
        if key.last_used_us is None or now - key.last_used_us >= KEY_USE_NOTED_SECONDS * MICROSECONDS:
            with self._lock:
                self._used_us[key.id] = now

    def _seconds_until(self, time_us: int) -> float:
        return (time_us - self._clock.now_us()) / MICROSECONDS


def _is_user_as_held(user: User | None, held: Credential) -> bool:
    if user is None or user.disabled:
        return False
    return password_stamp(user.password_hash) == held.stamp and held.scopes <= user.scopes


def _is_bearer(authorization: Presented) -> bool:
    if authorization is None:
        return False
    return _bytes(authorization[:7]).lower() == b"bearer "


def _bytes(presented: bytes | str | None) -> bytes:
    """The bytes that came over the wire. No credential of ours has a "?" in place of what ISO 8859-1 lacks."""
    if isinstance(presented, bytes):
        return presented
    return (presented or "").encode("latin-1", "replace")
