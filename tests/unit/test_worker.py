"""The worker over real stores: a failure or a crash at any step loses nothing and counts nothing twice."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sensorkeep import limits
from sensorkeep.catalog.base import Accounting
from sensorkeep.clock import DAY_US, HOUR_US, MICROSECONDS, ManualClock, rfc3339
from sensorkeep.errors import Conflict, NotFound, Unavailable
from sensorkeep.ingest.accept import Sender
from sensorkeep.model import external_uuid
from sensorkeep.testing.faulty import Crashed
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings

START_US = 1_767_225_600 * MICROSECONDS
SENSOR = external_uuid("worker/probe")
SENDER = Sender("test")


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path, ManualClock(START_US))
    yield pipeline
    pipeline.close()


def send(pipeline: Pipeline, first: int, count: int, *, value: float = 1.0, late_us: int = 0, **extra: Any) -> str:
    """A batch of `count` readings numbered from `first`, a second apart; its id."""
    start_us = START_US - HOUR_US - late_us
    items: list[dict[str, Any]] = [
        {"sensor_uuid": SENSOR, "valor": value, "timestamp": rfc3339(start_us + number * MICROSECONDS)}
        for number in range(first, first + count)
    ]
    if extra:
        items.append({"sensor_uuid": SENSOR, "valor": value} | extra)
    body = gzip.compress(json.dumps([{"equip_uuid": "worker", "sensor": items}]).encode())
    return pipeline.acceptor.bulk(iter([body]), "gzip", SENDER).claim.batch_id


def totals(pipeline: Pipeline) -> Accounting:
    """All-time totals, which must add up."""
    found = pipeline.ledger.accounting()[1]
    parts = (found.stored, found.updated, found.duplicate, found.quarantined, found.pending)
    assert found.received == sum(parts), found
    return found


def raw_count(pipeline: Pipeline) -> int:
    return pipeline.store.read_raw([SENSOR], 0, 2 * START_US, 100_000).num_rows


def work_to_rest(pipeline: Pipeline) -> None:
    """Rounds until nothing waits; a dependency that is down is tried again."""
    for _ in range(30):
        try:
            pipeline.worker.round()
        except Unavailable:
            continue
        if not pipeline.queue.depth().claims:
            return
        pipeline.clock.advance(1)
    raise AssertionError("the queue is not empty")


def break_once(pipeline: Pipeline, part: Any, method: str, error: BaseException, *, after: bool) -> None:
    """The next call of the method raises, before or after it was done."""
    original: Callable[..., Any] = getattr(part, method)

    def broken(*args: Any, **kwargs: Any) -> Any:
        setattr(part, method, original)
        if after:
            original(*args, **kwargs)
        if isinstance(error, Crashed):
            pipeline.life.dead = True
        raise error

    setattr(part, method, broken)


STEPS = [
    ("store", "write"),
    ("store", "settle"),
    ("ledger", "settle"),
    ("latest", "save"),
    ("queue", "ack"),
    ("inventory", "describe"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("part", "method"), STEPS, ids=[f"{part}.{method}" for part, method in STEPS])
def test_a_step_that_fails_is_tried_again_and_nothing_is_lost_or_counted_twice(
    pipeline: Pipeline, part: str, method: str, after: bool
) -> None:
    send(pipeline, 0, 10)
    work_to_rest(pipeline)  # what comes now can be late
    send(pipeline, 5, 10)
    send(pipeline, 0, 20, late_us=DAY_US)
    send(pipeline, 5, 2, value=2.0)
    break_once(pipeline, getattr(pipeline, part), method, Unavailable("down"), after=after)
    with pytest.raises(Unavailable):
        pipeline.worker.round()
    work_to_rest(pipeline)
    found = totals(pipeline)
    assert (found.stored, found.updated, found.duplicate, found.pending) == (35, 2, 5, 0)
    assert raw_count(pipeline) == 35


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("part", "method"), STEPS, ids=[f"{part}.{method}" for part, method in STEPS])
def test_a_crash_at_a_step_is_made_up_for_by_the_next_process(
    pipeline: Pipeline, part: str, method: str, after: bool
) -> None:
    send(pipeline, 0, 10)
    work_to_rest(pipeline)
    send(pipeline, 5, 10)
    send(pipeline, 0, 20, late_us=DAY_US)
    send(pipeline, 5, 2, value=2.0)
    break_once(pipeline, getattr(pipeline, part), method, Crashed("dead"), after=after)
    with pytest.raises(Crashed):
        pipeline.worker.round()
    pipeline.restart()
    work_to_rest(pipeline)
    found = totals(pipeline)
    assert (found.stored, found.updated, found.duplicate, found.pending) == (35, 2, 5, 0)
    assert raw_count(pipeline) == 35
    newest = pipeline.latest.reading(SENSOR)
    assert newest is not None
    assert newest.time_us == START_US - HOUR_US + 14 * MICROSECONDS


def test_a_receipt_that_was_lost_is_entered_when_the_batch_settles(pipeline: Pipeline) -> None:
    break_once(pipeline, pipeline.ledger, "receive", Unavailable("down"), after=False)
    send(pipeline, 0, 10)  # durable is durable: a refusal now would have a device send it anew
    assert totals(pipeline).received == 0
    work_to_rest(pipeline)
    assert totals(pipeline) == Accounting(received=10, stored=10)
    newest = pipeline.latest.reading(SENSOR)
    assert newest is not None, "what is stored is the newest value too"


def test_a_claim_that_could_not_be_published_leaves_no_payload(pipeline: Pipeline) -> None:
    break_once(pipeline, pipeline.queue, "publish", Unavailable("full", code="disk_full"), after=False)
    with pytest.raises(Unavailable):
        send(pipeline, 0, 10)
    assert list(pipeline.objects.list()) == []
    items = [{"sensor_id": "s", "timestamp": rfc3339(START_US), "values": {"v": 1.0}, "padding": "x" * 70_000}]
    break_once(pipeline, pipeline.queue, "publish", Unavailable("full", code="disk_full"), after=False)
    with pytest.raises(Unavailable):
        pipeline.acceptor.readings(json.dumps(items).encode(), SENDER)
    assert list(pipeline.objects.list()) == []
    assert totals(pipeline).received == 0


def refuse(pipeline: Pipeline, bad: set[str]) -> None:
    """The store raises something unforeseen for writes that hold one of these batches."""
    original = pipeline.store.write

    def write(writes: Any) -> Any:
        if any(write.batch_id in bad for write in writes):
            raise RuntimeError("unforeseen")
        return original(writes)

    pipeline.store.write = write  # type: ignore[method-assign]


def test_one_batch_that_the_store_cannot_take_becomes_a_dead_letter_and_the_others_are_stored(
    pipeline: Pipeline,
) -> None:
    batches = [send(pipeline, 10 * i, 10) for i in range(5)]
    refuse(pipeline, {batches[2]})
    for attempt in range(1, limits.CLAIM_ATTEMPTS_MAX):
        with pytest.raises(Unavailable):
            pipeline.worker.round()
        assert pipeline.ledger.batch(batches[2]).state == "accepted", f"given up after {attempt} tries"
    work_to_rest(pipeline)
    dead = pipeline.ledger.batch(batches[2])
    assert (dead.state, dead.quarantined) == ("dead_letter", 10)
    assert "RuntimeError" in (dead.detail or "")
    assert totals(pipeline) == Accounting(received=50, stored=40, quarantined=10)
    assert raw_count(pipeline) == 40
    assert pipeline.worker.stopped_because is None


def test_a_dead_letter_is_replayed_whole(pipeline: Pipeline) -> None:
    batch_id = send(pipeline, 0, 10)
    refuse(pipeline, {batch_id})
    work_to_rest(pipeline)
    assert pipeline.ledger.batch(batch_id).state == "dead_letter"
    pipeline.restart()  # the release that was at fault is replaced
    pipeline.acceptor.replay(batch_id, SENDER)
    work_to_rest(pipeline)
    assert pipeline.ledger.batch(batch_id).state == "stored"
    assert totals(pipeline) == Accounting(received=10, stored=10)


def test_a_replay_tries_the_quarantined_readings_alone_and_once(pipeline: Pipeline) -> None:
    batch_id = send(pipeline, 0, 5, timestamp=rfc3339(START_US + HOUR_US))
    work_to_rest(pipeline)
    assert totals(pipeline) == Accounting(received=6, stored=5, quarantined=1)
    pipeline.acceptor.replay(batch_id, SENDER)  # too early still
    work_to_rest(pipeline)
    assert totals(pipeline) == Accounting(received=6, stored=5, quarantined=1)
    pipeline.clock.advance(3600)
    pipeline.acceptor.replay(batch_id, SENDER)
    pipeline.acceptor.replay(batch_id, SENDER)  # asked for twice before the worker came
    work_to_rest(pipeline)
    assert totals(pipeline) == Accounting(received=6, stored=6)
    assert pipeline.ledger.batch(batch_id).state == "stored"
    newest = pipeline.latest.reading(SENSOR)
    assert newest is not None
    assert newest.time_us == START_US + HOUR_US


def test_a_replay_that_the_worker_would_pass_over_is_refused(pipeline: Pipeline) -> None:
    batch_id = send(pipeline, 0, 3, timestamp="no time")
    with pytest.raises(Conflict):
        pipeline.acceptor.replay(batch_id, SENDER)  # not settled yet
    work_to_rest(pipeline)
    replay = pipeline.acceptor.replay(batch_id, SENDER)
    pipeline.ledger.reopen(batch_id, replay)
    with pytest.raises(Conflict):
        pipeline.acceptor.replay(batch_id, SENDER)  # the other one runs
    work_to_rest(pipeline)
    assert pipeline.ledger.batch(batch_id).state == "partial"
    pipeline.acceptor.replay(batch_id, SENDER)
    good = send(pipeline, 10, 1)
    work_to_rest(pipeline)
    with pytest.raises(Conflict, match="quarantined"):
        pipeline.acceptor.replay(good, SENDER)


def test_payloads_that_are_gone_are_set_aside_at_once_and_too_many_of_them_stop_the_worker(pipeline: Pipeline) -> None:
    for i in range(limits.WORKER_FAILURES_MAX):
        send(pipeline, 10 * i, 10)
    for stored in list(pipeline.objects.list()):
        pipeline.objects.delete(stored.key)
    pipeline.restart()  # what was decoded is gone with the process
    pipeline.worker.run()  # returns by itself
    assert pipeline.worker.stopped_because is not None
    assert f"{limits.WORKER_FAILURES_MAX} of the last" in pipeline.worker.stopped_because
    quarantined = 10 * limits.WORKER_FAILURES_MAX
    assert totals(pipeline) == Accounting(received=quarantined, quarantined=quarantined)


def hide_payloads(pipeline: Pipeline) -> Callable[[], None]:
    """As with the wrong bucket in the settings: no payload is found. Returns what brings them back."""
    get = pipeline.objects.get

    def missing(key: str) -> Any:
        raise NotFound(key)

    def bring_back() -> None:
        pipeline.objects.get = get  # type: ignore[method-assign]

    pipeline.objects.get = missing  # type: ignore[method-assign]
    return bring_back


@pytest.mark.parametrize("gateways", [1, 2], ids=["one-process", "gateways-and-worker"])
def test_a_worker_that_stops_for_good_gives_up_no_more_than_it_takes_to_know_and_keeps_the_rest(
    tmp_path: Path, gateways: int
) -> None:
    pipeline = Pipeline(tmp_path, ManualClock(START_US), settings=PipelineSettings(gateways=gateways))
    bring_back = hide_payloads(pipeline)
    for i in range(10 * limits.WORKER_FAILURES_MAX):  # all of them are taken in one round
        send(pipeline, i, 1)
    pipeline.restart()
    pipeline.worker.run()
    assert pipeline.worker.stopped_for_good
    ledger = pipeline.working.ledger
    assert ledger.accounting()[1].quarantined == limits.WORKER_FAILURES_MAX
    assert pipeline.queue.depth().claims == 9 * limits.WORKER_FAILURES_MAX
    bring_back()  # the settings are put right
    pipeline.restart()
    work_to_rest(pipeline)
    dead = limits.WORKER_FAILURES_MAX
    found = pipeline.working.ledger.accounting()[1]
    assert found == Accounting(received=10 * dead, stored=9 * dead, quarantined=dead)
    pipeline.close()


def test_a_store_that_refuses_everything_stops_the_worker_though_all_can_be_loaded(pipeline: Pipeline) -> None:
    batches = {send(pipeline, i, 1) for i in range(3 * limits.WORKER_FAILURES_MAX)}
    refuse(pipeline, batches)
    while pipeline.worker.stopped_because is None:
        with contextlib.suppress(Unavailable):
            pipeline.worker.round()
    assert pipeline.worker.stopped_for_good
    assert totals(pipeline).quarantined == limits.WORKER_FAILURES_MAX


def lose_payloads(pipeline: Pipeline, batch_ids: list[str]) -> None:
    for stored in list(pipeline.objects.list()):
        if any(batch_id in stored.key for batch_id in batch_ids):
            pipeline.objects.delete(stored.key)


def test_few_dead_payloads_among_many_good_ones_of_one_round_do_not_stop_the_worker(pipeline: Pipeline) -> None:
    bad = [send(pipeline, 100 * i, 5) for i in range(2 * limits.WORKER_FAILURES_MAX) for _ in range(3)][::3]
    lose_payloads(pipeline, bad)
    pipeline.restart()
    work_to_rest(pipeline)
    assert pipeline.worker.stopped_because is None
    assert totals(pipeline).quarantined == 5 * len(bad)


def test_few_failures_among_many_successes_do_not_stop_the_worker(pipeline: Pipeline) -> None:
    bad = []
    for i in range(limits.WORKER_FAILURES_MAX // 2):
        send(pipeline, 100 * i, 5)
        bad.append(send(pipeline, 100 * i + 50, 5))
    lose_payloads(pipeline, bad)
    pipeline.restart()
    work_to_rest(pipeline)
    assert pipeline.worker.stopped_because is None
    assert (totals(pipeline).stored, totals(pipeline).quarantined) == (5 * len(bad), 5 * len(bad))


def test_an_error_that_nobody_foresaw_stops_the_worker_loudly_and_keeps_the_claims(pipeline: Pipeline) -> None:
    send(pipeline, 0, 10)
    break_once(pipeline, pipeline.ledger, "settle", RuntimeError("a bug"), after=False)
    pipeline.worker.run()
    assert pipeline.worker.stopped_because == "RuntimeError: a bug"
    assert not pipeline.worker.stopped_for_good, "a new start may heal it"
    assert totals(pipeline).pending == 10
    pipeline.restart()
    work_to_rest(pipeline)
    assert totals(pipeline) == Accounting(received=10, stored=10)


def test_it_has_caught_up_once_what_waited_is_settled(pipeline: Pipeline) -> None:
    send(pipeline, 0, 10)
    pipeline.restart()
    assert not pipeline.worker.caught_up.is_set()
    work_to_rest(pipeline)
    pipeline.worker.round()
    assert pipeline.worker.caught_up.is_set()
    assert totals(pipeline).pending == 0


def test_nobody_waits_for_a_worker_that_could_not_begin(pipeline: Pipeline) -> None:
    break_once(pipeline, pipeline.pubsub, "subscribe", Unavailable("not now"), after=False)
    with pytest.raises(Unavailable):
        pipeline.worker.run()
    assert pipeline.worker.caught_up.is_set()


@pytest.mark.parametrize(("readings", "taken"), [(4, 2), (7, 1)])
def test_a_worker_that_is_behind_waits_for_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readings: int, taken: int
) -> None:
    monkeypatch.setattr(limits, "GATHER_READINGS_MAX", 10)
    monkeypatch.setattr(limits, "GATHER_READINGS_ENOUGH", 8)
    pipeline = Pipeline(tmp_path, ManualClock(START_US), settings=PipelineSettings(gather_seconds=3600.0))
    try:
        pipeline.worker.caught_up.set()
        for number in range(3):
            send(pipeline, readings * number, readings)
        assert pipeline.worker.round() == taken  # or it would wait an hour for what does not fit
    finally:
        pipeline.close()


def test_the_reading_accepted_later_wins_though_the_earlier_batch_failed_for_a_while(pipeline: Pipeline) -> None:
    first, second = send(pipeline, 0, 10, value=1.0), send(pipeline, 0, 10, value=2.0)
    write = pipeline.store.write
    refuse(pipeline, {first})
    with pytest.raises(Unavailable):
        pipeline.worker.round()
    assert pipeline.ledger.batch(second).state == "accepted", "it waits for the one before it"
    pipeline.store.write = write  # type: ignore[method-assign]
    work_to_rest(pipeline)
    values = pipeline.store.read_raw([SENSOR], 0, 2 * START_US, 100)["value"].to_pylist()
    assert set(values) == {2.0}
    newest = pipeline.latest.reading(SENSOR)
    assert newest is not None
    assert newest.value == 2.0


def test_a_maintenance_that_fails_is_told_and_stops_nothing(pipeline: Pipeline) -> None:
    send(pipeline, 0, 10)
    work_to_rest(pipeline)
    break_once(pipeline, pipeline.store, "maintain", RuntimeError("unforeseen"), after=False)
    pipeline.clock.advance(60)
    pipeline.worker.round()
    assert "unforeseen" in (pipeline.worker.maintenance_failed_because or "")
    send(pipeline, 20, 10)
    work_to_rest(pipeline)
    pipeline.clock.advance(60)
    pipeline.worker.round()
    assert totals(pipeline) == Accounting(received=20, stored=20)
    assert pipeline.worker.maintenance_failed_because is None


def test_a_maintenance_that_fails_again_and_again_is_logged_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def maintain(now_us: int) -> None:
        raise Unavailable("the disk is away", code="dependency_down")

    monkeypatch.setattr(pipeline.store, "maintain", maintain)
    with capture_logs() as logs:
        for _ in range(3):
            pipeline.clock.advance(60)
            pipeline.worker.round()
    (line,) = [line for line in logs if line["event"] == "maintenance_failed"]
    assert "the disk is away" in line["because"]
    assert not line["exc_info"], "an outage needs no traceback"


def test_a_claim_that_is_delivered_twice_is_stored_and_acknowledged_once(pipeline: Pipeline) -> None:
    send(pipeline, 0, 10)
    work_to_rest(pipeline)
    send(pipeline, 0, 5, late_us=DAY_US)
    fetch, settle = pipeline.queue.fetch, pipeline.store.settle
    taken = fetch(10, 1_000, 0.0)
    pipeline.queue.fetch = lambda *_: list(taken)  # type: ignore[method-assign]
    pipeline.store.settle = list  # type: ignore[method-assign]
    for _ in range(2):
        pipeline.worker.round()
    pipeline.queue.fetch, pipeline.store.settle = fetch, settle  # type: ignore[method-assign]
    work_to_rest(pipeline)
    assert totals(pipeline) == Accounting(received=15, stored=15)
    assert pipeline.queue.depth().claims == 0


def test_a_claim_that_is_delivered_twice_in_one_round_is_stored_and_acknowledged_once(pipeline: Pipeline) -> None:
    send(pipeline, 0, 5)
    fetch = pipeline.queue.fetch
    pipeline.queue.fetch = lambda *most: 2 * fetch(*most)  # type: ignore[method-assign]
    pipeline.worker.round()
    pipeline.queue.fetch = fetch  # type: ignore[method-assign]
    work_to_rest(pipeline)
    assert totals(pipeline) == Accounting(received=5, stored=5)
    assert pipeline.queue.depth().claims == 0


@pytest.mark.parametrize("method", ["ended", "unfinished"])
def test_a_copy_of_a_claim_that_is_held_is_given_back_where_the_round_fails_early(
    pipeline: Pipeline, method: str
) -> None:
    send(pipeline, 0, 5)
    work_to_rest(pipeline)
    settle, pipeline.store.settle = pipeline.store.settle, list  # type: ignore[method-assign]
    held = send(pipeline, 50, 1, timestamp=rfc3339(START_US - DAY_US))  # the late one makes it wait
    pipeline.worker.round()
    pipeline.worker.caught_up.clear()
    pipeline.queue.rate = 1.0
    part = pipeline.ledger if method == "ended" else pipeline.working.attempts
    for _ in range(10):
        break_once(pipeline, part, method, Unavailable("down"), after=False)
        with pytest.raises(Unavailable):
            pipeline.worker.round()
    assert pipeline.ledger.batch(held).state == "accepted"
    assert pipeline.queue.redelivered > 10
    pipeline.queue.rate = 0.0
    pipeline.store.settle = settle  # type: ignore[method-assign]
    work_to_rest(pipeline)
    assert pipeline.queue.depth().claims == 0


def test_a_claim_that_comes_again_after_its_end_changes_nothing(pipeline: Pipeline) -> None:
    send(pipeline, 0, 5, value=1.0)
    pipeline.queue.rate = 1.0
    work_to_rest(pipeline)
    send(pipeline, 0, 5, value=2.0)
    for _ in range(4):
        pipeline.worker.round()
    assert pipeline.queue.redelivered > 4
    newest = pipeline.latest.find([SENSOR])[0][SENSOR]
    assert newest.value == 2.0
    assert totals(pipeline) == Accounting(received=10, stored=5, updated=5)


def test_a_dead_letter_that_comes_again_stays_one(pipeline: Pipeline) -> None:
    dead = send(pipeline, 0, 5)
    write = pipeline.store.write
    refuse(pipeline, {dead})
    work_to_rest(pipeline)
    pipeline.store.write = write  # type: ignore[method-assign]
    pipeline.queue.rate = 1.0
    for _ in range(3):
        pipeline.worker.round()
    assert pipeline.queue.redelivered
    assert raw_count(pipeline) == 0
    assert totals(pipeline) == Accounting(received=5, quarantined=5)


def test_the_newest_value_is_the_one_accepted_last_though_the_process_dies_in_between(pipeline: Pipeline) -> None:
    send(pipeline, 0, 1)
    work_to_rest(pipeline)
    late = rfc3339(START_US - DAY_US)
    send(pipeline, 50, 1, value=1.0, timestamp=late)  # the late one makes its batch wait for a merge
    send(pipeline, 50, 1, value=2.0)
    settle = pipeline.store.settle
    pipeline.store.settle = list  # type: ignore[method-assign]
    for _ in range(2):
        pipeline.worker.round()
    pipeline.store.settle = settle  # type: ignore[method-assign]
    pipeline.crash()
    work_to_rest(pipeline)
    assert pipeline.latest.find([SENSOR])[0][SENSOR].value == 2.0
    assert totals(pipeline).updated == 1
