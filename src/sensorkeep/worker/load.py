"""From a claim to its readings: out of memory where this process decoded it, else out of storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from sensorkeep.catalog.base import BatchLedger, LatestReadings
from sensorkeep.decode.claim import decode_claim
from sensorkeep.decode.gathered import Entry, gather_each
from sensorkeep.decode.handoff import Handoff
from sensorkeep.decode.newest import newest_of
from sensorkeep.errors import Conflict, NotFound, Poisoned
from sensorkeep.model import Claim, DecodedBatch, WireFormat
from sensorkeep.object_store.base import ObjectStore


class Skip(Exception):
    """There is nothing to do for this claim (a replay that has nothing left to replay): acknowledge it."""


class Loader:
    """Loads the readings that claims stand for."""

    def __init__(
        self, *, object_store: ObjectStore, ledger: BatchLedger, latest: LatestReadings, handoff: Handoff
    ) -> None:
        self._object_store = object_store
        self._ledger = ledger
        self._latest = latest
        self._handoff = handoff

    def take_gathered(self, claims: Iterable[Claim]) -> dict[str, DecodedBatch]:
        """The readings of those claims whose single readings this process parsed, by batch id, made in one go."""
        groups: dict[str, tuple[Entry, ...]] = {}
        for claim in claims:
            if claim.wire_format is WireFormat.GATHERED and claim.replay_of is None:
                handed = self._handoff.take(claim.batch_id)
                if isinstance(handed, tuple):
                    groups[claim.batch_id] = handed
        if not groups:
            return {}
        return dict(zip(groups, gather_each(list(groups.values())), strict=True))

    def load(self, claim: Claim) -> DecodedBatch:
        """The readings of `claim`. Raises Poisoned where they can never be had, Unavailable where not now, Skip."""
        if claim.replay_of is not None:
            return self._load_replay(claim, claim.replay_of)
        batch = self._handoff.take(claim.batch_id)
        if isinstance(batch, DecodedBatch):
            return batch
        return decode_claim(claim, self._payload(claim))

    def offer_newest(self, batches: Mapping[str, DecodedBatch]) -> None:
        """Offer the newest values of batches by id, in the order accepted, so that of equal times the last one stands.

        Ingest offered them too, for look-ups to see at once, but its threads may have overtaken each other.
        """
        records = [record for batch in batches.values() for record in batch.records]
        self._latest.offer(newest_of(list(batches.values())), records, batch_ids=batches.keys(), again=True)

    def _load_replay(self, claim: Claim, batch_id: str) -> DecodedBatch:
        """The quarantined readings of the replayed batch, read by the rules that hold for the replay."""
        try:
            original, positions = self._ledger.reopen(batch_id, claim.batch_id)
        except (NotFound, Conflict):
            raise Skip from None
        rules = replace(
            original,
            naive_timezone=claim.naive_timezone,
            oldest_allowed_us=claim.oldest_allowed_us,
            newest_allowed_us=claim.newest_allowed_us,
        )
        return decode_claim(rules, self._payload(original), only=set(positions) if positions else None)

    def _payload(self, claim: Claim) -> Iterable[bytes]:
        if claim.payload is not None:
            return [claim.payload]
        try:
            return self._object_store.get(claim.object_key or "")
        except NotFound:
            raise Poisoned(f"the payload {claim.object_key} is no longer kept", code="payload_gone") from None
