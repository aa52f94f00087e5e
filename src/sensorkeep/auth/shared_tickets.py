"""Tickets in Valkey, for every gateway to redeem. They hold no secret: a ticket is named by its hash."""

from __future__ import annotations

import contextlib
import hashlib
from importlib import resources

import msgspec

from sensorkeep.auth.credentials import Credential
from sensorkeep.errors import Unavailable
from sensorkeep.limits import WS_TICKET_SECONDS
from sensorkeep.valkey import Client, Valkey

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Credential).decode

_FOLDER = resources.files("sensorkeep.auth")
_PUT = _FOLDER.joinpath("ticket_put.lua").read_text("ascii")
_TAKE = _FOLDER.joinpath("ticket_take.lua").read_text("ascii")

_GENERATION_SECONDS = 2 * WS_TICKET_SECONDS
"""Life of a generation since the last ticket of it: longer than that of a ticket. A change of the credential begins a
new one, and tickets of an older one are void."""


class SharedTickets:
    """Tickets that any gateway may take, once. Every method blocks for a round trip and raises Unavailable."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey

    def put(self, digest: bytes, credential: Credential) -> None:
        """Keep a ticket by its hash for WS_TICKET_SECONDS."""
        names = (self._name(digest), self._generation_of(credential.id))
        arguments = (_encode(credential), WS_TICKET_SECONDS, _GENERATION_SECONDS)
        self._valkey.run(lambda client: client.eval(_PUT, 2, *names, *arguments))

    def take(self, digest: bytes) -> Credential | None:
        """Take the ticket out; None where there is none, or its credential was changed since it was issued."""

        def take(client: Client) -> bytes | None:
            found: bytes | None = client.eval(_TAKE, 1, self._name(digest))
            return found

        found = self._valkey.run(take)
        return None if found is None else _decode(found)

    def revoke(self, credential_id: str) -> None:
        """End the tickets of a credential that was changed. Raises nothing: where Valkey is down, they end by
        themselves."""
        name = self._generation_of(credential_id)

        def begin_generation(client: Client) -> None:
            with client.pipeline(transaction=True) as pipeline:
                pipeline.incr(name)
                pipeline.expire(name, _GENERATION_SECONDS)
                pipeline.execute()

        with contextlib.suppress(Unavailable):
            self._valkey.run(begin_generation)

    def _name(self, digest: bytes) -> str:
        return self._valkey.name("ticket", digest.hex())

    def _generation_of(self, credential_id: str) -> str:
        digest = hashlib.sha256(credential_id.encode("utf-8", "surrogatepass")).hexdigest()
        return self._valkey.name("ticket-generation", digest)
