"""The bookkeeping of the ledger keeps SPEC section 1.3's equation whatever a worker reports."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.catalog.base import Settlement
from sensorkeep.catalog.settlement import End, end_of_batch, end_of_replay
from sensorkeep.model import Claim, Counts, Reason, Rejections, WireFormat

FEW = st.integers(0, 30)


def settlement(counts: Counts, rejected: int, dead_letter: str | None = None) -> Settlement:
    rejections = Rejections()
    for i in range(rejected):
        rejections.add(0, i, Reason.TOO_OLD)
    claim = Claim(batch_id="b", wire_format=WireFormat.READINGS, received_us=0, readings=0)
    return Settlement(claim, counts, rejections, dead_letter)


def assert_true_to_its_counts(end: End) -> None:
    change = end.change
    assert change.balanced
    assert (change.stored, change.updated, change.duplicate) == (
        end.counts.stored,
        end.counts.updated,
        end.counts.duplicate,
    )
    assert min(end.counts.stored, end.counts.updated, end.counts.duplicate, end.quarantined, change.received) >= 0


@settings(max_examples=200, deadline=None)
@given(FEW, FEW, st.builds(Counts, FEW, FEW, FEW), FEW, st.sampled_from([None, "broken"]))
def test_the_end_of_a_batch_accounts_for_every_reading(
    pending: int, quarantined: int, counts: Counts, rejected: int, dead_letter: str | None
) -> None:
    received = pending + quarantined
    end = end_of_batch(settlement(counts, rejected, dead_letter), received, quarantined, pending)
    assert_true_to_its_counts(end)
    assert end.change.pending == -pending
    assert end.readings == received + end.change.received == end.counts.total + end.quarantined
    if dead_letter is not None:
        assert (end.state, end.counts, end.quarantined) == ("dead_letter", Counts(), received)
    else:
        assert end.counts == counts
        assert end.quarantined >= rejected
        assert end.state == ("partial" if end.quarantined else "stored")


@settings(max_examples=200, deadline=None)
@given(FEW, FEW, st.builds(Counts, FEW, FEW, FEW), FEW)
def test_the_end_of_a_replay_accounts_for_every_reopened_reading(
    before: int, pending: int, counts: Counts, rejected: int
) -> None:
    end = end_of_replay(settlement(counts, rejected), before + pending, pending)
    assert_true_to_its_counts(end)
    assert end.change.pending == -pending
    assert end.readings == before + pending + end.change.received == before + end.counts.total + end.quarantined
    assert (end.counts.stored, end.counts.updated) == (counts.stored, counts.updated)
    assert end.quarantined >= rejected
    if counts.total + rejected == pending:
        assert (end.counts, end.quarantined, end.detail) == (counts, rejected, None)
