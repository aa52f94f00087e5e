"""The rows of batches: from receipts and ends to rows, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import sqlalchemy as sa

from sensorkeep.catalog.base import Batch, Receipt
from sensorkeep.catalog.database import AnyRow
from sensorkeep.catalog.schema import batches
from sensorkeep.catalog.settlement import Change, End
from sensorkeep.errors import Corrupt
from sensorkeep.limits import LEDGER_PORTION_ROWS
from sensorkeep.model import Claim, Counts

_encode_claim = msgspec.msgpack.Encoder().encode
_decode_claim = msgspec.msgpack.Decoder(Claim).decode

RECEIVED = (
    "batch_id", "received_us", "readings", "quarantined", "pending", "wire_bytes", "oldest_us", "object_key",
    "wire_format",
)  # fmt: skip
"""Columns of a batch that was received."""
ReceivedRow = tuple[str, int, int, int, int, int, int | None, str | None, str]
ENDED = ("state", "stored_us", "readings", "stored", "updated", "duplicate", "quarantined", "detail", "claim")
"""Columns of a batch that has ended."""
SHOWN = (
    batches.c.batch_id, batches.c.state, batches.c.received_us, batches.c.stored_us, batches.c.readings,
    batches.c.stored, batches.c.updated, batches.c.duplicate, batches.c.quarantined, batches.c.object_key,
    batches.c.wire_format, batches.c.detail,
)  # fmt: skip
"""Columns of a batch that is shown."""


def received_row(receipt: Receipt) -> ReceivedRow:
    """A receipt as a row of batches, in the order of RECEIVED."""
    claim = receipt.claim
    pending = claim.readings - claim.quarantined
    return (
        claim.batch_id, claim.received_us, claim.readings, claim.quarantined, pending, receipt.wire_bytes,
        oldest_us_of(claim) if pending else None, claim.object_key, claim.wire_format.value,
    )  # fmt: skip


def received_change(rows: Sequence[ReceivedRow]) -> Change:
    """What entering such rows does to the totals."""
    return Change(
        received=sum([row[2] for row in rows]),
        quarantined=sum([row[3] for row in rows]),
        pending=sum([row[4] for row in rows]),
    )


def ended_row(batch_id: str, end: End, now_us: int, claim: bytes | None) -> tuple[object, ...]:
    """The end of a batch, in the order of ENDED and its id."""
    counts = end.counts
    return (
        end.state, now_us, end.readings, counts.stored, counts.updated, counts.duplicate, end.quarantined, end.detail,
        claim, batch_id,
    )  # fmt: skip


def oldest_us_of(claim: Claim) -> int:
    """The earliest reading time that may be in it. What is not known is no later than what was allowed."""
    if claim.oldest_us is not None:
        return claim.oldest_us
    return claim.oldest_allowed_us or 0


def claim_to_keep(claim: Claim, end: End) -> bytes | None:
    """The claim with its inline payload, where a replay may need it."""
    return _encode_claim(claim) if end.quarantined else None


def kept_claim(row: AnyRow) -> Claim:
    """The claim kept for a replay. Raises Corrupt."""
    try:
        return _decode_claim(row.claim)
    except (msgspec.DecodeError, TypeError) as error:
        raise Corrupt(f"the claim of batch {row.batch_id!r} does not read back: {error}") from error


def known_of(connection: sa.Connection, batch_ids: Sequence[str]) -> set[str]:
    """Those that have a row."""
    known: set[str] = set()
    for start in range(0, len(batch_ids), LEDGER_PORTION_ROWS):
        portion = batch_ids[start : start + LEDGER_PORTION_ROWS]
        known.update(connection.execute(sa.select(batches.c.batch_id).where(batches.c.batch_id.in_(portion))).scalars())
    return known


def rows_of(connection: sa.Connection, batch_ids: Sequence[str]) -> Iterator[tuple[str, AnyRow]]:
    """What settling needs of these batches, by id; those there are. Locked until the transaction ends."""
    columns = (batches.c.batch_id, batches.c.state, batches.c.readings, batches.c.quarantined, batches.c.pending,
               batches.c.replay_id)  # fmt: skip
    for start in range(0, len(batch_ids), LEDGER_PORTION_ROWS):
        portion = batch_ids[start : start + LEDGER_PORTION_ROWS]
        # PostgreSQL locks the rows, in the order of their ids; SQLite has one writer and leaves the words out.
        statement = sa.select(*columns).where(batches.c.batch_id.in_(portion)).order_by(batches.c.batch_id)
        for row in connection.execute(statement.with_for_update()):
            yield row.batch_id, row


def locked_row(connection: sa.Connection, batch_id: str) -> AnyRow | None:
    """The row of a batch, locked until the transaction ends."""
    return connection.execute(sa.select(batches).where(batches.c.batch_id == batch_id).with_for_update()).one_or_none()


def update_of(batch_id: str) -> sa.Update:
    """An update of the row of a batch."""
    return sa.update(batches).where(batches.c.batch_id == batch_id)


def counts_of(row: AnyRow) -> Counts:
    """The counts of a row."""
    return Counts(row.stored, row.updated, row.duplicate)


def batch_of(row: AnyRow) -> Batch:
    """A batch of the columns SHOWN."""
    return Batch(
        batch_id=row.batch_id,
        state=row.state,
        received_us=row.received_us,
        stored_us=row.stored_us,
        readings=row.readings,
        stored=row.stored,
        updated=row.updated,
        duplicate=row.duplicate,
        quarantined=row.quarantined,
        object_key=row.object_key,
        wire_format=row.wire_format,
        detail=row.detail,
    )
