"""Pure bookkeeping: what the end of a batch or of a replay does to its row and to the totals."""

from __future__ import annotations

from typing import NamedTuple

from sensorkeep.catalog.base import BatchState, Settlement
from sensorkeep.model import Counts


class Change(NamedTuple):
    """A change of the totals, in readings. It keeps SPEC section 1.3's equation where `balanced` holds."""

    received: int = 0
    stored: int = 0
    updated: int = 0
    duplicate: int = 0
    quarantined: int = 0
    pending: int = 0

    def plus(self, other: Change) -> Change:
        """Both changes together."""
        return Change(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def balanced(self) -> bool:
        """received == stored + updated + duplicate + quarantined + pending."""
        return self.received == sum(self) - self.received


class End(NamedTuple):
    """How a batch or a replay ended: the counts of its readings and the change of the totals."""

    state: BatchState
    readings: int
    """Readings of the batch; more than its receipt said where the worker accounted for more."""
    counts: Counts
    quarantined: int
    detail: str | None
    change: Change


def end_of_batch(settlement: Settlement, readings: int, quarantined: int, pending: int) -> End:
    """The end of a batch that was received with these readings, of which some were quarantined, the rest pending.

    The receipt and the worker normally agree. Where they do not, nothing is lost from sight: readings that the worker
    did not account for count as quarantined, and those beyond the receipt raise what was received.
    """
    if settlement.dead_letter is not None:
        counts, accounted = Counts(), readings
    else:
        counts = settlement.counts
        accounted = counts.total + len(settlement.rejections)
    total = max(readings, accounted)
    set_aside = total - counts.total
    state: BatchState = "partial" if set_aside else "stored"
    detail = _unaccounted(readings - accounted)
    if settlement.dead_letter is not None:
        state, detail = "dead_letter", settlement.dead_letter
    change = Change(
        received=total - readings,
        stored=counts.stored,
        updated=counts.updated,
        duplicate=counts.duplicate,
        quarantined=set_aside - quarantined,
        pending=-pending,
    )
    return End(state, total, counts, set_aside, detail, change)


def end_of_replay(settlement: Settlement, readings: int, pending: int) -> End:
    """The end of a replay of `pending` readings of a batch; its counts are to be added to the batch's own.

    More readings than were reopened can only be ones that were in before (a replay of everything): duplicates, which
    the batch has counted already.
    """
    counts = settlement.counts
    excess = max(0, counts.total + len(settlement.rejections) - pending)
    known = min(excess, counts.duplicate)
    counts = Counts(counts.stored, counts.updated, counts.duplicate - known)
    raised = excess - known
    set_aside = pending + raised - counts.total
    change = Change(
        received=raised,
        stored=counts.stored,
        updated=counts.updated,
        duplicate=counts.duplicate,
        quarantined=set_aside,
        pending=-pending,
    )
    detail = _unaccounted(set_aside - len(settlement.rejections))
    return End("partial" if set_aside else "stored", readings + raised, counts, set_aside, detail, change)


def _unaccounted(readings: int) -> str | None:
    return f"{readings} readings of the receipt were not found in the payload" if readings > 0 else None
