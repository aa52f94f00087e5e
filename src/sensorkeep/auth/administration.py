"""Managing users and keys, for the HTTP routes and the command line alike. Every act is in the audit log."""

from __future__ import annotations

import dataclasses
import re
import secrets
import threading
from collections.abc import Iterable
from typing import NamedTuple

from sensorkeep.auth.credentials import Authenticator, new_key_secret, secret_sha256
from sensorkeep.auth.passwords import Passwords, refuse_weak_password
from sensorkeep.auth.scopes import ALL_SCOPES, Scope, known_scopes, user_scopes
from sensorkeep.catalog.base import Accounts, ApiKey, AuditEntry, Registry, User
from sensorkeep.clock import Clock, IdSource
from sensorkeep.errors import BadConfig, Conflict, InvalidInput, NotFound
from sensorkeep.limits import (
    API_KEYS_MAX,
    NAME_CHARS_MAX,
    USERNAME_CHARS_MAX,
    USERS_MAX,
    WS_CONNECTIONS_SETTABLE_MAX,
)

FIRST_USERNAME = "admin"
DEMO_PASSWORD = "admin123"  # noqa: S105 - the seeds' own, and only in demo mode
USERNAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@+-]{{0,{USERNAME_CHARS_MAX - 1}}}")


class Actor(NamedTuple):
    """Who acts: a credential id ("user:admin", "key:…"), "cli" or "anonymous", and from which address."""

    id: str
    client_ip: str


class IssuedKey(NamedTuple):
    """A new key. `secret` is known now and never again."""

    key: ApiKey
    secret: str


class Administration:
    """Users and keys. Thread-safe; every method blocks, and raises Unavailable where the catalog is down.

    An act is entered in the audit log before it is done, so that none is done unseen.
    """

    def __init__(
        self,
        accounts: Accounts,
        registry: Registry,
        passwords: Passwords,
        authenticator: Authenticator,
        clock: Clock,
        ids: IdSource,
        *,
        demo: bool,
    ) -> None:
        self._accounts = accounts
        self._registry = registry
        self._passwords = passwords
        self._authenticator = authenticator
        self._clock = clock
        self._ids = ids
        self._demo = demo
        # Look, tell the audit log and act as one. What other processes do meanwhile, the catalog finds out as it acts.
        self._lock = threading.Lock()

    def audit(self, actor: Actor, action: str, subject: str) -> None:
        """Enter an act in the audit log; durable when it returns."""
        self._registry.audit(
            AuditEntry(
                at_us=self._clock.now_us(), actor=actor.id, action=action, subject=subject, client_ip=actor.client_ip
            )
        )

    # --- users ----------------------------------------------------------------------------------------------------

    def users(self) -> list[User]:
        """All users, by name."""
        return self._accounts.users()

    def add_user(self, username: str, password: str, scopes: Iterable[str], actor: Actor) -> User:
        """Raises InvalidInput for a bad name, password or scope, and Conflict (`already_exists`)."""
        if not USERNAME.fullmatch(username):
            raise InvalidInput(
                f"A username has 1 to {USERNAME_CHARS_MAX} letters, digits and . _ @ + -, and begins with "
                "a letter or a digit.",
                code="invalid_fields",
            )
        refuse_weak_password(password, username, demo=self._demo)
        user = User(username, self._passwords.hash(password), user_scopes(scopes))
        with self._lock:
            if self._accounts.user(username) is not None:
                raise Conflict(f"There is a user {username!r} already.", code="already_exists")
            if len(self._accounts.users()) >= USERS_MAX:
                raise Conflict(f"There are {USERS_MAX} users; remove one first.")
            self.audit(actor, "user.add", username)
            self._accounts.add_user(user)
        return user

    def change_user(
        self,
        username: str,
        actor: Actor,
        *,
        password: str | None = None,
        scopes: Iterable[str] | None = None,
        disabled: bool | None = None,
    ) -> User:
        """Change what is given. Another password, or being disabled, ends every session of the user at once.

        Raises NotFound, InvalidInput, and Conflict where nobody with `admin` would be left.
        """
        password_hash = None
        if password is not None:
            refuse_weak_password(password, username, demo=self._demo)
            password_hash = self._passwords.hash(password)
        granted = None if scopes is None else user_scopes(scopes)
        given = {"password": password_hash, "scopes": granted, "disabled": disabled}
        changed = sorted(name for name, value in given.items() if value is not None)
        with self._lock:
            user = self._existing(username)
            if not changed:
                return user
            if disabled or (granted is not None and Scope.ADMIN not in granted):
                self._keep_an_administrator(username)
            self.audit(actor, f"user.change.{','.join(changed)}", username)
            user = self._accounts.change_user(
                username, password_hash=password_hash, scopes=granted, disabled=disabled, keeping=Scope.ADMIN
            )
        self._authenticator.forget(f"user:{username}")
        return user

    def remove_user(self, username: str, actor: Actor) -> None:
        """Raises NotFound, and Conflict where nobody with `admin` would be left."""
        with self._lock:
            self._existing(username)
            self._keep_an_administrator(username)
            self.audit(actor, "user.remove", username)
            self._accounts.delete_user(username, keeping=Scope.ADMIN)
        self._authenticator.forget(f"user:{username}")

    def rehash(self, user: User, password: str) -> User:
        """Keep the password under today's parameters, unless it was changed since the user was read."""
        renewed = self._passwords.hash(password)
        if not self._accounts.replace_password_hash(user.username, user.password_hash, renewed):
            return user
        return dataclasses.replace(user, password_hash=renewed)

    def _existing(self, username: str) -> User:
        user = self._accounts.user(username)
        if user is None:
            raise NotFound("There is no such user.")
        return user

    def _keep_an_administrator(self, leaving: str) -> None:
        able = [user.username for user in self._accounts.users() if Scope.ADMIN in user.scopes and not user.disabled]
        if able == [leaving]:
            raise Conflict("This is the last user with the scope 'admin'; give it to another user first.")

    # --- keys -----------------------------------------------------------------------------------------------------

    def keys(self) -> list[ApiKey]:
        """All keys, newest first, with the time of their last use."""
        self._authenticator.save_usage()
        return self._accounts.keys()

    def issue_key(
        self,
        name: str,
        scopes: Iterable[str],
        actor: Actor,
        *,
        expires_us: int | None = None,
        max_ws_connections: int | None = None,
    ) -> IssuedKey:
        """Make a key; `expires_us` None lets it live until it is revoked. Raises InvalidInput (`invalid_fields`)."""
        now = self._clock.now_us()
        if not 1 <= len(name) <= NAME_CHARS_MAX or not name.isprintable():
            raise InvalidInput(f"A key's name has 1 to {NAME_CHARS_MAX} printable characters.", code="invalid_fields")
        if expires_us is not None and expires_us <= now:
            raise InvalidInput("The expiry of the key is in the past.", code="invalid_fields")
        if max_ws_connections is not None and not 1 <= max_ws_connections <= WS_CONNECTIONS_SETTABLE_MAX:
            raise InvalidInput(
                f"max_ws_connections is between 1 and {WS_CONNECTIONS_SETTABLE_MAX}.", code="invalid_fields"
            )
        key_id = self._ids.new().replace("-", "")
        secret = new_key_secret(key_id)
        key = ApiKey(key_id, name, secret_sha256(secret), known_scopes(scopes), now, expires_us, max_ws_connections)
        with self._lock:
            if len(self._accounts.keys()) >= API_KEYS_MAX:
                raise Conflict(f"There are {API_KEYS_MAX} keys; revoke one first.")
            self.audit(actor, "key.issue", key_id)
            self._accounts.put_key(key)
        return IssuedKey(key, secret)

    def revoke_key(self, key_id: str, actor: Actor) -> None:
        """End a key at once. Raises NotFound."""
        with self._lock:
            known = self._accounts.keys()
            if all(key.id != key_id for key in known):
                raise NotFound("There is no such key.")
            self.audit(actor, "key.revoke", key_id)
            self._accounts.delete_key(key_id)
        self._authenticator.forget(f"key:{key_id}")


def ensure_admin(
    accounts: Accounts,
    registry: Registry,
    password: str | None,
    demo: bool,
    *,
    passwords: Passwords,
    clock: Clock,
) -> str | None:
    """On the first start, where there is no user, create the user "admin" with all scopes.

    Answers the password where the caller did not give one (in demo mode "admin123", else 24 random characters), to be
    printed once; else None. Raises BadConfig, naming SENSORKEEP_ADMIN_PASSWORD, for a weak one. Of several processes
    that make the first start at the same moment, the last one's password stands.
    """
    if accounts.users():
        return None
    generated = None
    if password is None:
        password = generated = DEMO_PASSWORD if demo else secrets.token_urlsafe(18)
    try:
        refuse_weak_password(password, FIRST_USERNAME, demo=demo)
    except InvalidInput as error:
        raise BadConfig(f"SENSORKEEP_ADMIN_PASSWORD: {error.detail}") from error
    registry.audit(
        AuditEntry(
            at_us=clock.now_us(), actor="first-start", action="user.add", subject=FIRST_USERNAME, client_ip="local"
        )
    )
    accounts.put_user(User(FIRST_USERNAME, passwords.hash(password), frozenset(map(str, ALL_SCOPES))))
    return generated
