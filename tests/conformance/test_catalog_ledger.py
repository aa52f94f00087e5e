"""What the BatchLedger of the catalog promises."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from catalog_databases import EVERY, KEPT, fresh_database, opened

from sensorkeep.catalog.base import Accounting, BatchLedger, Receipt, Settlement
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.clock import ManualClock
from sensorkeep.errors import Conflict, NotFound
from sensorkeep.limits import EXCERPTS_KEPT_MAX, LEDGER_PORTION_ROWS, PURGE_PORTION_ROWS
from sensorkeep.model import Claim, Counts, Reason, Rejections, WireFormat

NOW_US = 1_790_000_000_000_000
_numbers = itertools.count(1)


@pytest.fixture(params=EVERY)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as database:
        yield database


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_US)


@pytest.fixture
def ledger(database: Database, clock: ManualClock) -> CatalogLedger:
    return CatalogLedger(database, clock)


def claim(
    readings: int, quarantined: int = 0, *, oldest_us: int | None = NOW_US - 5, replay_of: str | None = None,
    batch_id: str | None = None, received_us: int = NOW_US,
) -> Claim:  # fmt: skip
    return Claim(
        batch_id=batch_id or f"b{next(_numbers):06}", wire_format=WireFormat.READINGS, received_us=received_us,
        readings=readings, quarantined=quarantined, payload=b"[{}]", oldest_us=oldest_us, replay_of=replay_of,
    )  # fmt: skip


def rejected(*positions: tuple[int, int], reason: Reason = Reason.TOO_OLD) -> Rejections:
    rejections = Rejections()
    for equipment, sensor in positions:
        rejections.add(equipment, sensor, reason, f"{equipment}/{sensor}")
    return rejections


def receive(ledger: BatchLedger, *claims: Claim) -> None:
    ledger.receive([Receipt(each, 100) for each in claims])


def settle(
    ledger: BatchLedger, batch: Claim, counts: Counts, rejections: Rejections | None = None, dead: str | None = None
) -> None:
    ledger.settle([Settlement(batch, counts, rejections or Rejections(), dead)])


def totals(ledger: BatchLedger) -> Accounting:
    """All time; both views must keep the equation, and no part of either may be negative."""
    both = ledger.accounting()
    for view in both:
        parts = (view.stored, view.updated, view.duplicate, view.quarantined, view.pending)
        assert view.received == sum(parts)
        assert min(parts) >= 0
    return both[1]


def partial(ledger: BatchLedger) -> Claim:
    """A settled batch of five readings, two of them in quarantine."""
    batch = claim(5, 2)
    receive(ledger, batch)
    settle(ledger, batch, Counts(3), rejected((0, 1), (2, 3)))
    return batch


def replay(batch: Claim, replay_id: str = "r1") -> Claim:
    return claim(2, replay_of=batch.batch_id, batch_id=replay_id)


def test_a_receipt_makes_readings_pending_and_a_settlement_ends_them(ledger: BatchLedger) -> None:
    batch = claim(10, 1)
    receive(ledger, batch)
    assert totals(ledger) == Accounting(received=10, quarantined=1, pending=9)
    entry = ledger.batch(batch.batch_id)
    assert (entry.state, entry.readings, entry.quarantined, entry.stored_us) == ("accepted", 10, 1, None)
    settle(ledger, batch, Counts(5, 3, 1), rejected((0, 0)))
    assert totals(ledger) == Accounting(received=10, stored=5, updated=3, duplicate=1, quarantined=1)
    entry = ledger.batch(batch.batch_id)
    assert (entry.state, entry.stored, entry.updated, entry.duplicate) == ("partial", 5, 3, 1)
    assert (entry.stored_us, entry.wire_format) == (NOW_US, "readings")


def test_receipts_that_wait_hold_no_payload(database: Database, clock: ManualClock) -> None:
    ledger = CatalogLedger(database, clock, held=True)
    tracemalloc.start()
    try:
        for _ in range(200):
            ledger.receive([Receipt(msgspec.structs.replace(claim(5), payload=bytes(60_000)), 100)])
        assert tracemalloc.get_traced_memory()[0] < 1_000_000, "of 12 million bytes"
    finally:
        tracemalloc.stop()
    assert totals(ledger).received == 1000


def test_a_batch_with_nothing_set_aside_is_stored(ledger: BatchLedger) -> None:
    batch = claim(4)
    receive(ledger, batch)
    settle(ledger, batch, Counts(4))
    assert ledger.batch(batch.batch_id).state == "stored"
    with pytest.raises(NotFound):
        ledger.batch("none")


def test_receipts_and_settlements_count_once_however_often_they_come(ledger: BatchLedger) -> None:
    first, second = claim(4), claim(6, 6)
    receive(ledger, first)
    receive(ledger, first, second, second)
    assert totals(ledger) == Accounting(received=10, quarantined=6, pending=4)
    for counts in (Counts(4), Counts(duplicate=4)):
        ledger.settle([Settlement(first, counts, Rejections()), Settlement(first, Counts(0, 4), Rejections())])
    receive(ledger, first)
    assert totals(ledger) == Accounting(received=10, stored=4, quarantined=6)
    assert ledger.batch(first.batch_id).stored == 4


def test_a_settlement_enters_a_batch_whose_receipt_was_lost(ledger: BatchLedger) -> None:
    known, lost = claim(1), claim(5, 2)
    receive(ledger, known)
    ledger.settle([Settlement(lost, Counts(3), rejected((0, 0), (0, 1))), Settlement(known, Counts(1), Rejections())])
    assert totals(ledger) == Accounting(received=6, stored=4, quarantined=2)
    receive(ledger, lost)
    assert totals(ledger) == Accounting(received=6, stored=4, quarantined=2)


@pytest.mark.parametrize(
    ("counts", "rejections", "expected"),
    [
        (Counts(8), 2, Accounting(received=10, stored=8, quarantined=2)),
        (Counts(10), 0, Accounting(received=10, stored=10)),
        (Counts(6), 1, Accounting(received=10, stored=6, quarantined=4)),
        (Counts(11), 1, Accounting(received=12, stored=11, quarantined=1)),
    ],
    ids=["rejected more", "rejected fewer", "lost some", "found more"],
)
def test_a_worker_that_disagrees_with_the_receipt_corrects_the_quarantine(
    ledger: BatchLedger, counts: Counts, rejections: int, expected: Accounting
) -> None:
    batch = claim(10, 1)
    receive(ledger, batch)
    settle(ledger, batch, counts, rejected(*((0, i) for i in range(rejections))))
    assert totals(ledger) == expected
    assert ledger.batch(batch.batch_id).quarantined == expected.quarantined
    assert ledger.batch(batch.batch_id).readings == expected.received


def test_a_dead_letter_sets_all_its_readings_aside_with_the_reason(ledger: BatchLedger) -> None:
    batch = claim(5, 1)
    receive(ledger, batch)
    settle(ledger, batch, Counts(), rejected((0, 0)), dead="the payload is gone")
    assert totals(ledger) == Accounting(received=5, quarantined=5)
    entry = ledger.batch(batch.batch_id)
    assert (entry.state, entry.detail, entry.quarantined) == ("dead_letter", "the payload is gone", 5)
    newest = ledger.quarantine(batch.batch_id, None, 10)[0]
    assert (newest.reason, newest.excerpt) == ("dead_letter", "the payload is gone")
    assert len(ledger.quarantine(batch.batch_id, None, 10)) == 2


def test_what_has_ended_is_told_and_a_replay_does_not_undo_that(ledger: BatchLedger) -> None:
    waiting, ended, dead, replayed = claim(3), claim(3), claim(3), partial(ledger)
    receive(ledger, waiting, ended, dead)
    settle(ledger, ended, Counts(3))
    settle(ledger, dead, Counts(), dead="gone")
    ledger.reopen(replayed.batch_id, "r1")
    known = [batch.batch_id for batch in (waiting, ended, dead, replayed)]
    assert ledger.ended([*known, "never heard of"]) == {ended.batch_id, dead.batch_id, replayed.batch_id}
    assert ledger.ended([]) == set()
    assert ledger.ended([waiting.batch_id] * (LEDGER_PORTION_ROWS + 1)) == set()


def test_the_quarantine_is_listed_newest_first_by_page_batch_and_reason(ledger: BatchLedger) -> None:
    first, second = claim(3, 3), claim(2, 2)
    settle(ledger, first, Counts(), rejected((0, 0), (0, 1), (0, 2)))
    settle(ledger, second, Counts(), rejected((7, 8), (9, 9), reason=Reason.BAD_TIMESTAMP))
    page = ledger.quarantine(None, None, 3)
    rest = ledger.quarantine(None, None, 3, before_id=page[-1].id)
    listed = [(row.batch_id, row.equipment, row.sensor, row.excerpt) for row in page + rest]
    assert listed == [
        (second.batch_id, 9, 9, "9/9"),
        (second.batch_id, 7, 8, "7/8"),
        (first.batch_id, 0, 2, "0/2"),
        (first.batch_id, 0, 1, "0/1"),
        (first.batch_id, 0, 0, "0/0"),
    ]
    assert {row.quarantined_us for row in page} == {NOW_US}
    assert len(ledger.quarantine(first.batch_id, None, 10)) == 3
    assert len(ledger.quarantine(None, "bad_timestamp", 10)) == 2
    assert ledger.quarantine(first.batch_id, "bad_timestamp", 10) == []
    assert len(ledger.quarantine(second.batch_id, "bad_timestamp", 10)) == 2


def test_more_rejections_than_one_portion_are_all_entered(ledger: BatchLedger) -> None:
    count = max(EXCERPTS_KEPT_MAX, 2 * LEDGER_PORTION_ROWS) + 1
    batch = claim(count, count)
    settle(ledger, batch, Counts(), rejected(*((i, 0) for i in range(count))))
    rows = ledger.quarantine(batch.batch_id, None, count + 1)
    assert [row.equipment for row in rows] == list(reversed(range(count)))
    assert (rows[0].excerpt, rows[-1].excerpt) == (None, "0/0")


def test_batches_are_listed_newest_first_by_state_and_page(ledger: BatchLedger) -> None:
    def at(age: int, name: str) -> Claim:
        return claim(1, batch_id=name, received_us=NOW_US - age)

    claims = [at(0, "a"), at(1, "b"), at(1, "c"), at(2, "d"), at(3, "e")]
    receive(ledger, *claims)
    settle(ledger, claims[1], Counts(1))
    settle(ledger, claims[3], Counts(), rejected((0, 0)))
    settle(ledger, claims[4], Counts(), dead="broken")

    def ids(state: str | None, before: tuple[int, str] | None = None) -> str:
        return "".join(entry.batch_id for entry in ledger.batches(state, 2, before))  # type: ignore[arg-type]

    assert [ids(None), ids(None, (NOW_US - 1, "c")), ids(None, (NOW_US - 2, "d"))] == ["ac", "bd", "e"]
    assert [ids("accepted"), ids("accepted", (NOW_US, "a")), ids("accepted", (NOW_US - 1, "c"))] == ["ac", "c", ""]
    assert [ids("stored"), ids("partial"), ids("dead_letter")] == ["b", "d", "e"]
    assert [ids("stored", (NOW_US - 1, "b")), ids("partial", (NOW_US, "z"))] == ["", "d"]


def test_the_oldest_pending_time_is_that_of_the_batches_not_settled(ledger: BatchLedger) -> None:
    assert ledger.oldest_pending_us() is None
    old, new, useless = claim(1, oldest_us=50), claim(1, oldest_us=70), claim(1, 1, oldest_us=None)
    receive(ledger, useless)
    assert ledger.oldest_pending_us() is None
    receive(ledger, new, old)
    assert ledger.oldest_pending_us() == 50
    settle(ledger, old, Counts(1))
    assert ledger.oldest_pending_us() == 70
    receive(ledger, claim(1, oldest_us=None))
    assert ledger.oldest_pending_us() == 0


def test_reopen_returns_the_claim_and_the_positions_and_makes_them_pending(ledger: BatchLedger) -> None:
    batch = partial(ledger)
    assert ledger.reopen(batch.batch_id, "r1") == (batch, [(0, 1), (2, 3)])
    assert totals(ledger) == Accounting(received=5, stored=3, pending=2)
    assert ledger.batch(batch.batch_id).state == "accepted"
    assert ledger.quarantine(None, None, 10) == []
    assert ledger.oldest_pending_us() == batch.oldest_us


def test_a_replay_settles_into_its_batch_once(ledger: BatchLedger) -> None:
    batch = partial(ledger)
    ledger.reopen(batch.batch_id, "r1")
    again = replay(batch)
    receive(ledger, again)
    for _ in range(2):
        settle(ledger, again, Counts(1, 1))
        assert totals(ledger) == Accounting(received=5, stored=4, updated=1)
    entry = ledger.batch(batch.batch_id)
    assert (entry.state, entry.stored, entry.updated, entry.quarantined, entry.detail) == ("stored", 4, 1, 0, None)
    with pytest.raises(NotFound):
        ledger.batch(again.batch_id)
    with pytest.raises(Conflict, match="has settled"):
        ledger.reopen(batch.batch_id, "r1")
    with pytest.raises(Conflict, match="nothing in quarantine"):
        ledger.reopen(batch.batch_id, "r2")


def test_readings_rejected_again_return_to_the_quarantine_and_can_be_replayed_again(ledger: BatchLedger) -> None:
    batch = partial(ledger)
    ledger.reopen(batch.batch_id, "r1")
    first = replay(batch)
    settle(ledger, first, Counts(1), rejected((2, 3), reason=Reason.IN_FUTURE))
    assert totals(ledger) == Accounting(received=5, stored=4, quarantined=1)
    assert ledger.batch(batch.batch_id).state == "partial"
    assert [row.reason for row in ledger.quarantine(batch.batch_id, None, 10)] == ["in_future"]
    assert ledger.reopen(batch.batch_id, "r2") == (batch, [(2, 3)])
    settle(ledger, first, Counts(1), rejected((2, 3)))
    assert totals(ledger) == Accounting(received=5, stored=4, pending=1)
    settle(ledger, replay(batch, "r2"), Counts(1))
    assert totals(ledger) == Accounting(received=5, stored=5)


def test_a_dead_letter_is_replayed_as_a_whole(ledger: BatchLedger) -> None:
    batch = claim(5, 1)
    receive(ledger, batch)
    settle(ledger, batch, Counts(), rejected((0, 0)), dead="broken")
    assert ledger.reopen(batch.batch_id, "r1") == (batch, [])
    assert totals(ledger) == Accounting(received=5, pending=5)
    settle(ledger, replay(batch), Counts(4), rejected((0, 0)))
    assert totals(ledger) == Accounting(received=5, stored=4, quarantined=1)
    entry = ledger.batch(batch.batch_id)
    assert (entry.state, entry.detail) == ("partial", None)
    assert ledger.reopen(batch.batch_id, "r2") == (batch, [(0, 0)])


def test_a_replay_that_dies_gives_everything_back(ledger: BatchLedger) -> None:
    batch, dead = partial(ledger), claim(4)
    settle(ledger, dead, Counts(), dead="broken")
    for one, state in ((batch, "partial"), (dead, "dead_letter")):
        before = ledger.quarantine(one.batch_id, None, 10)
        ledger.reopen(one.batch_id, one.batch_id + "r")
        settle(ledger, replay(one, one.batch_id + "r"), Counts(), dead="still broken")
        entry = ledger.batch(one.batch_id)
        assert (entry.state, entry.detail) == (state, "the replay failed: still broken")
        assert ledger.quarantine(one.batch_id, None, 10) == before
    assert totals(ledger) == Accounting(received=9, stored=3, quarantined=6)


def test_a_replay_of_everything_does_not_count_what_was_in_before(ledger: BatchLedger) -> None:
    batch = claim(10)
    receive(ledger, batch)
    settle(ledger, batch, Counts(8))
    assert ledger.batch(batch.batch_id).detail == "2 readings of the receipt were not found in the payload"
    assert ledger.reopen(batch.batch_id, "r1") == (batch, [])
    settle(ledger, replay(batch), Counts(2, 0, 8))
    assert totals(ledger) == Accounting(received=10, stored=10)


def test_reopen_is_refused_where_it_makes_no_sense(ledger: BatchLedger) -> None:
    with pytest.raises(NotFound):
        ledger.reopen("none", "r1")
    waiting = claim(3, 1)
    receive(ledger, waiting)
    with pytest.raises(Conflict, match="not settled"):
        ledger.reopen(waiting.batch_id, "r1")
    batch = partial(ledger)
    ledger.reopen(batch.batch_id, "r1")
    with pytest.raises(Conflict, match="another replay"):
        ledger.reopen(batch.batch_id, "r2")


def test_a_redelivered_first_end_does_not_touch_a_running_replay(ledger: BatchLedger) -> None:
    batch = partial(ledger)
    ledger.reopen(batch.batch_id, "r1")
    settle(ledger, batch, Counts(3), rejected((0, 1), (2, 3)))
    assert totals(ledger) == Accounting(received=5, stored=3, pending=2)


def test_reopen_of_a_running_replay_changes_nothing_and_returns_the_same(ledger: BatchLedger) -> None:
    batch = partial(ledger)
    first = ledger.reopen(batch.batch_id, "r1")
    before = totals(ledger), ledger.batch(batch.batch_id)
    assert ledger.reopen(batch.batch_id, "r1") == first
    assert (totals(ledger), ledger.batch(batch.batch_id)) == before


def test_a_replay_that_was_never_begun_settles_nothing(ledger: BatchLedger) -> None:
    batch = partial(ledger)
    settle(ledger, replay(batch, "r0"), Counts(2))
    ledger.reopen(batch.batch_id, "r1")
    settle(ledger, replay(batch, "r2"), Counts(2))
    assert totals(ledger) == Accounting(received=5, stored=3, pending=2)
    settle(ledger, replay(batch, "r1"), Counts(2))
    assert totals(ledger) == Accounting(received=5, stored=5)


@pytest.mark.parametrize("kind", KEPT)
def test_since_start_counts_what_was_pending_at_the_start_as_received(kind: str, tmp_path: Path) -> None:
    with fresh_database(kind, tmp_path) as database:
        ledger = CatalogLedger(database, ManualClock(NOW_US))
        waiting, batch = claim(7), partial(ledger)
        receive(ledger, waiting)
        assert ledger.accounting()[0] == ledger.accounting()[1]
    with opened(kind, tmp_path) as database:
        ledger = CatalogLedger(database, ManualClock(NOW_US))
        assert ledger.accounting()[0] == Accounting(received=7, pending=7)
        settle(ledger, waiting, Counts(7))
        receive(ledger, claim(2))
        assert ledger.accounting()[0] == Accounting(received=9, stored=7, pending=2)
        ledger.reopen(batch.batch_id, "r1")
        assert ledger.accounting()[0] == Accounting(received=11, stored=7, pending=4)
        settle(ledger, replay(batch), Counts(1), rejected((2, 3)))
        assert ledger.accounting()[0] == Accounting(received=11, stored=8, quarantined=1, pending=2)
        assert totals(ledger) == Accounting(received=14, stored=11, quarantined=1, pending=2)


@pytest.mark.parametrize("kind", KEPT)
def test_what_was_settled_outlives_the_process(kind: str, tmp_path: Path) -> None:
    with fresh_database(kind, tmp_path) as database:
        batch = partial(CatalogLedger(database, ManualClock(NOW_US)))
    with opened(kind, tmp_path) as database:
        ledger = CatalogLedger(database, ManualClock(NOW_US))
        assert ledger.batch(batch.batch_id).stored == 3
        assert ledger.reopen(batch.batch_id, "r1") == (batch, [(0, 1), (2, 3)])


def test_purge_forgets_settled_batches_and_keeps_the_totals(ledger: BatchLedger) -> None:
    old = [claim(2, 1, received_us=NOW_US - 10) for _ in range(PURGE_PORTION_ROWS + 1)]
    waiting, new = claim(1, received_us=NOW_US - 10), partial(ledger)
    receive(ledger, waiting, *old)
    ledger.settle([Settlement(each, Counts(1), rejected((0, 0))) for each in old])
    before = totals(ledger)
    ledger.purge(NOW_US)
    assert totals(ledger) == before
    assert {entry.batch_id for entry in ledger.batches(None, 10)} == {waiting.batch_id, new.batch_id}
    assert {row.batch_id for row in ledger.quarantine(None, None, 10)} == {new.batch_id}


def _work(ledger: BatchLedger, batches: Sequence[Claim]) -> None:
    for batch in batches:
        receive(ledger, batch)
        settle(ledger, batch, Counts(3), rejected((0, 0), (0, 1)))
        ledger.reopen(batch.batch_id, batch.batch_id + "r")
        settle(ledger, replay(batch, batch.batch_id + "r"), Counts(1), rejected((0, 1)))


def test_the_equation_holds_at_every_moment_whatever_threads_do(ledger: BatchLedger) -> None:
    groups = [[claim(5, 1) for _ in range(8)] for _ in range(4)]
    threads = [threading.Thread(target=_work, args=(ledger, group)) for group in groups]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        totals(ledger)
    assert totals(ledger) == Accounting(received=160, stored=128, quarantined=32)
