"""A batch whose write ends the process is found, given up, and holds up nobody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sensorkeep import limits
from sensorkeep.clock import MICROSECONDS, Clock, ManualClock, rfc3339
from sensorkeep.errors import Unavailable, Uncertain
from sensorkeep.ingest.accept import Sender
from sensorkeep.queue.base import Delivery
from sensorkeep.queue.sqlite import SqliteClaimQueue
from sensorkeep.testing.faulty import Crashed
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings
from sensorkeep.tsdb.base import Settled, Write

START_US = 1_767_225_600 * MICROSECONDS
SENDER = Sender("test")
LIVES_MAX = 20


class SharedQueue(SqliteClaimQueue):
    """Counts attempts as a queue of many machines does: those of this worker, and one for what was there before it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path, clock)
        self._before = self._last_seq
        self._attempts: Counter[int] = Counter()

    def fetch(self, max_claims: int, max_readings: int, wait_seconds: float) -> list[Delivery]:
        taken = super().fetch(max_claims, max_readings, wait_seconds)
        self._attempts.update(delivery.token for delivery in taken)
        return [d._replace(attempts=self._attempts[d.token] + (d.token <= self._before)) for d in taken]


class SharedPipeline(Pipeline):
    def _open_queue(self) -> SqliteClaimQueue:
        return SharedQueue(self.directory / "queue.sqlite", self.clock)


@pytest.fixture(params=["one-process", "gateways-and-worker", "shared-queue"])
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind = SharedPipeline if request.param == "shared-queue" else Pipeline
    gateways = 1 if request.param == "one-process" else 2
    made = kind(tmp_path, ManualClock(START_US), settings=PipelineSettings(gateways=gateways))
    yield made
    made.close()


def send(pipeline: Pipeline, name: str) -> str:
    item = f'{{"sensor_id": "{name}", "values": {{"x": 1}}, "timestamp": "{rfc3339(START_US)}"}}'
    return pipeline.acceptor.readings(f"[{item}]".encode(), SENDER).claim.batch_id


def arm(pipeline: Pipeline, killers: set[str]) -> list[list[str]]:
    """Let every write that holds one of these batches end the process; the writes that were tried."""
    tried: list[list[str]] = []
    write: Callable[[Sequence[Write]], list[Settled]] = pipeline.store.write

    def deadly(writes: Sequence[Write]) -> list[Settled]:
        tried.append([item.batch_id for item in writes])
        if killers.intersection(tried[-1]):
            raise Crashed("out of memory")
        return write(writes)

    pipeline.store.write = deadly  # type: ignore[method-assign]
    return tried


def live(pipeline: Pipeline, killers: set[str]) -> tuple[int, list[list[str]]]:
    """One process after the other until nothing waits: (processes that ended, writes that were tried)."""
    writes: list[list[str]] = []
    for deaths in range(LIVES_MAX):
        tried = arm(pipeline, killers)
        try:
            while pipeline.queue.depth().claims:
                pipeline.worker.round()
                pipeline.clock.advance(1)
            return deaths, writes + tried
        except Crashed:
            writes += tried
            if pipeline.is_one_process:
                pipeline.crash()
            else:
                pipeline.crash_worker()
    raise AssertionError("it goes on for ever")


def test_a_batch_that_ends_the_process_is_given_up_and_all_others_are_stored(pipeline: Pipeline) -> None:
    before, killer, after = send(pipeline, "a"), send(pipeline, "killer"), send(pipeline, "b")
    deaths, writes = live(pipeline, {killer})
    assert deaths == limits.CLAIM_DEATHS_MAX
    ledger = pipeline.working.ledger
    assert [ledger.batch(batch_id).state for batch_id in (before, killer, after)] == ["stored", "dead_letter", "stored"]
    assert f"{deaths} processes ended" in (ledger.batch(killer).detail or "")
    assert writes[0] == [before, killer, after]
    assert all(killer not in write or write == [killer] for write in writes[1:]), "it is tried alone from then on"
    totals = ledger.accounting()[1]
    assert (totals.received, totals.stored, totals.quarantined, totals.pending) == (3, 2, 1, 0)


def test_a_batch_that_ends_a_process_long_after_its_start_is_given_up_too(pipeline: Pipeline) -> None:
    pipeline.worker.round()
    assert pipeline.worker.caught_up.is_set()
    before, killer, after = send(pipeline, "a"), send(pipeline, "killer"), send(pipeline, "b")
    deaths, _ = live(pipeline, {killer})
    assert deaths == limits.CLAIM_DEATHS_MAX + 1, "the first of them was not noted"
    ledger = pipeline.working.ledger
    assert [ledger.batch(batch_id).state for batch_id in (before, killer, after)] == ["stored", "dead_letter", "stored"]


def test_a_given_up_batch_can_be_replayed_once_the_fault_is_mended(pipeline: Pipeline) -> None:
    killer = send(pipeline, "killer")
    live(pipeline, {killer})
    pipeline.acceptor.replay(killer, SENDER)
    live(pipeline, set())
    assert pipeline.working.ledger.batch(killer).state == "stored"


def test_a_replay_that_ends_the_process_is_given_up_too(pipeline: Pipeline) -> None:
    killer, other = send(pipeline, "killer"), send(pipeline, "other")
    live(pipeline, {killer})
    replay = pipeline.acceptor.replay(killer, SENDER)
    live(pipeline, {replay})
    batch = pipeline.working.ledger.batch(killer)
    assert (batch.state, batch.quarantined) == ("dead_letter", 1)
    assert pipeline.working.ledger.batch(other).state == "stored"


def test_a_process_that_is_ended_from_outside_costs_no_batch(pipeline: Pipeline) -> None:
    batches = [send(pipeline, str(number)) for number in range(5)]
    for _ in range(3 * limits.CLAIM_DEATHS_MAX):
        arm(pipeline, set())
        pipeline.queue.fetch(1, 1, 0.0)  # taken, and then the process is gone
        if pipeline.is_one_process:
            pipeline.crash()
        else:
            pipeline.crash_worker()
    deaths, _ = live(pipeline, set())
    assert deaths == 0
    assert {pipeline.working.ledger.batch(batch_id).state for batch_id in batches} == {"stored"}


def test_an_outage_is_no_end_of_a_process_however_long_it_is(pipeline: Pipeline) -> None:
    batch_id = send(pipeline, "a")
    write = pipeline.store.write

    def down(_: Sequence[Write]) -> list[Settled]:
        raise Unavailable("down")

    pipeline.store.write = down  # type: ignore[assignment, method-assign]
    for _ in range(3 * limits.CLAIM_DEATHS_MAX):
        with pytest.raises(Unavailable):
            pipeline.worker.round()
    pipeline.store.write = write  # type: ignore[method-assign]
    assert pipeline.working.attempts.unfinished([batch_id]) == {}
    pipeline.worker.round()
    assert pipeline.working.ledger.batch(batch_id).state == "stored"


def test_an_attempt_that_cannot_be_crossed_out_is_crossed_out_later(pipeline: Pipeline) -> None:
    batch_id = send(pipeline, "a")
    attempts = pipeline.working.attempts
    end, calls = attempts.end, []

    def flaky(batch_ids: Sequence[str]) -> None:
        calls.append(list(batch_ids))
        if len(calls) == 1:
            raise Unavailable("down")
        end(batch_ids)

    attempts.end = flaky  # type: ignore[method-assign]
    pipeline.worker.round()
    assert attempts.unfinished([batch_id]) == {batch_id: 1}
    send(pipeline, "b")
    pipeline.worker.round()
    assert attempts.unfinished([batch_id]) == {}


def test_an_attempt_of_which_nobody_knows_whether_it_was_noted_is_crossed_out(pipeline: Pipeline) -> None:
    batch_id = send(pipeline, "a")
    attempts = pipeline.working.attempts
    begin = attempts.begin

    def uncertain(batch_ids: Sequence[str]) -> None:
        begin(batch_ids)
        raise Uncertain("the answer was lost")

    attempts.begin = uncertain  # type: ignore[method-assign]
    with pytest.raises(Uncertain):
        pipeline.worker.round()
    assert attempts.unfinished([batch_id]) == {}


def test_while_all_goes_well_nothing_is_noted(pipeline: Pipeline) -> None:
    pipeline.worker.round()
    assert pipeline.worker.caught_up.is_set()

    def never(_: Sequence[str]) -> None:
        raise AssertionError("noted")

    pipeline.working.attempts.begin = never  # type: ignore[assignment, method-assign]
    batch_id = send(pipeline, "a")
    pipeline.worker.round()
    assert pipeline.working.ledger.batch(batch_id).state == "stored"
