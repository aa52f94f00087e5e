"""What every protected route asks: who is there, within the rate, with the scope?"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sensorkeep.auth.credentials import Authenticator, Credential, Presented, require
from sensorkeep.auth.limiter import RateLimiter, RateState, network_of
from sensorkeep.errors import Unauthenticated

_NONE_GIVEN = "A credential is needed: a bearer token or an X-API-Key."


class Admission(NamedTuple):
    """A request that may go on. `rate` is None where requests are not limited."""

    credential: Credential
    rate: RateState | None


class Gate:
    """Admits requests. Thread-safe."""

    def __init__(self, authenticator: Authenticator, limiter: RateLimiter) -> None:
        self._authenticator = authenticator
        self._limiter = limiter

    def admit_now(self, scope: str | None, authorization: Presented, api_key: Presented = None) -> Admission | None:
        """As `admit` where the credential is remembered or there is none; None where `admit` must be called, on a
        thread. Never blocks: for the event loop.
        """
        credential = self._authenticator.cached(authorization, api_key)
        if credential is not None:
            return self._pass(credential, scope)
        if authorization is None and api_key is None:
            raise Unauthenticated(_NONE_GIVEN)
        return None

    def admit(self, scope: str | None, authorization: Presented, api_key: Presented, client_ip: str) -> Admission:
        """Admit a request that presents these header values. Blocking.

        Raises Unauthenticated, Forbidden, RateLimited (too many requests of the credential, or too many refused
        credentials from this client) and Unavailable.
        """
        if authorization is None and api_key is None:
            raise Unauthenticated(_NONE_GIVEN)
        try:
            credential = self._authenticator.authenticate(authorization, api_key)
        except Unauthenticated:
            # Only the refused pay: one device with an old key must not lock out the others behind its address.
            self._limiter.hit("credential-failure", network_of(client_ip))
            raise
        return self._pass(credential, scope)

    def review(self, held: Collection[Credential]) -> None:
        """End those of the credentials that may no longer be believed (Authenticator.review). Blocking."""
        self._authenticator.review(held)

    def _pass(self, credential: Credential, scope: str | None) -> Admission:
        rate = self._limiter.hit("request", credential.id)
        require(credential, scope)
        return Admission(credential, rate)
