"""Logging in and staying logged in."""

from __future__ import annotations

from typing import NamedTuple

from sensorkeep.auth.administration import Actor, Administration
from sensorkeep.auth.limiter import Kind, RateLimiter, network_of
from sensorkeep.auth.passwords import Passwords
from sensorkeep.auth.tokens import TokenIssuer, password_stamp
from sensorkeep.catalog.base import Accounts, User
from sensorkeep.errors import RateLimited, Unauthenticated, Unavailable
from sensorkeep.limits import USERNAME_CHARS_MAX


class TokenPair(NamedTuple):
    """What a login or a refresh gives. `expires_in`: seconds the access token is good for."""

    access_token: str
    refresh_token: str
    expires_in: int


class Sessions:
    """Turns passwords and refresh tokens into tokens. Thread-safe; every method blocks.

    Only failures count against the limits, five a minute for a username and ten for a client, so that a site whose
    hundred devices sign in from one address is not locked out. The hit is taken before the password is checked and
    given back afterwards: guesses sent all at once do not slip through together.
    """

    def __init__(
        self,
        accounts: Accounts,
        administration: Administration,
        passwords: Passwords,
        issuer: TokenIssuer,
        limiter: RateLimiter,
    ) -> None:
        self._accounts = accounts
        self._administration = administration
        self._passwords = passwords
        self._issuer = issuer
        self._limiter = limiter

    def login(self, username: str, password: str, client_ip: str) -> TokenPair:
        """Raises Unauthenticated (never saying whether the user exists), RateLimited and Unavailable."""
        # A longer name belongs to nobody, and is cut to bound the counters.
        username = username[: USERNAME_CHARS_MAX + 1]
        counted: list[tuple[Kind, str]] = [("login-ip", network_of(client_ip)), ("login-username", username)]
        self._count(counted, username, client_ip)
        try:
            # Again where the user was changed meanwhile: by another login that kept the password anew, or for good.
            pair = self._begin(username, password) or self._begin(username, password)
        except Unavailable:
            self._give_back(counted)
            raise
        if pair is None:
            raise _wrong()
        self._give_back(counted)
        return pair

    def _begin(self, username: str, password: str) -> TokenPair | None:
        """Tokens of a new family; None where the user was changed since the password was checked, which takes time."""
        user = self._accounts.user(username)
        fits = self._passwords.verify(user.password_hash if user else None, password)
        if user is None or user.disabled or not fits:
            raise _wrong()
        if self._passwords.is_outdated(user.password_hash):
            user = self._administration.rehash(user, password)
        refresh_token, record = self._issuer.issue_refresh(user.username)
        return self._pair(user, refresh_token) if self._accounts.put_refresh_token(record, user) else None

    def refresh(self, refresh_token: str | bytes, client_ip: str) -> TokenPair:
        """Spend a refresh token for new ones. One that was spent before ends its whole family: somebody copied it.

        Raises Unauthenticated, RateLimited and Unavailable.
        """
        counted: list[tuple[Kind, str]] = [("login-ip", network_of(client_ip))]
        self._count(counted, "", client_ip)
        claims = self._issuer.verify_refresh(refresh_token)
        successor, record = self._issuer.issue_refresh(claims.username, claims.family)
        try:
            # Read first: once the token is spent, nothing may fail that would keep its successor from the client.
            user = self._accounts.user(claims.username)
            able = user is not None and not user.disabled
            spent = self._accounts.use_refresh_token(claims.token_id, record) if able else None
        except Unavailable:
            self._give_back(counted)
            raise
        if user is None or spent is None or spent.username != claims.username:
            raise Unauthenticated("The refresh token was used before or is no longer valid; log in again.")
        self._give_back(counted)
        return self._pair(user, successor)

    def _pair(self, user: User, refresh_token: str) -> TokenPair:
        access_token = self._issuer.issue_access(user.username, user.scopes, password_stamp(user.password_hash))
        return TokenPair(access_token, refresh_token, self._issuer.access_seconds)

    def _count(self, counted: list[tuple[Kind, str]], username: str, client_ip: str) -> None:
        """Take a hit of each; the first one that is over its limit is entered in the audit log once a minute."""
        for kind, identity in counted:
            try:
                self._limiter.hit(kind, identity)
            except RateLimited:
                if self._is_first_excess(kind, identity):
                    # Only a name that exists is written down: people type their password into the wrong field.
                    known = bool(username) and self._accounts.user(username) is not None
                    subject = username if known else "(unknown)"
                    self._administration.audit(Actor("anonymous", client_ip), f"login.refused.{kind}", subject)
                raise

    def _is_first_excess(self, kind: Kind, identity: str) -> bool:
        try:
            self._limiter.hit("audit", f"{kind}/{identity}")
        except RateLimited:
            return False
        return True

    def _give_back(self, counted: list[tuple[Kind, str]]) -> None:
        for kind, identity in counted:
            self._limiter.give_back(kind, identity)


def _wrong() -> Unauthenticated:
    """One answer, whether or not the user exists."""
    return Unauthenticated("The username or the password is wrong.")
