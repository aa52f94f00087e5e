"""Retention over real stores with a clock that is moved by hand: payloads, batches and raw readings age out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sensorkeep import limits
from sensorkeep.catalog.base import Accounting
from sensorkeep.clock import DAY_US, MICROSECONDS, ManualClock, rfc3339
from sensorkeep.errors import Conflict, NotFound
from sensorkeep.ingest.accept import Sender
from sensorkeep.model import external_uuid
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings

START_US = 1_767_225_600 * MICROSECONDS
SENSOR = external_uuid("old/probe")
PAYLOAD_DAYS, RAW_DAYS = 7, 30


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_US)


@pytest.fixture
def pipeline(tmp_path: Path, clock: ManualClock) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path, clock, settings=PipelineSettings(RAW_DAYS, PAYLOAD_DAYS))
    yield pipeline
    pipeline.close()


def send(pipeline: Pipeline, times_us: list[int], *, backfill: bool = False) -> str:
    """A batch with a reading at each time, and one that has none that can be read; its id."""
    items = [{"sensor_uuid": SENSOR, "valor": float(i), "timestamp": rfc3339(t)} for i, t in enumerate(times_us)]
    items.append({"sensor_uuid": SENSOR, "valor": 1.0, "timestamp": "no time"})
    body = gzip.compress(json.dumps([{"equip_uuid": "old", "sensor": items}]).encode())
    return pipeline.acceptor.bulk(iter([body]), "gzip", Sender("test", backfill=backfill)).claim.batch_id


def work(pipeline: Pipeline, rounds: int = 3) -> None:
    for _ in range(rounds):
        pipeline.worker.round()
        pipeline.clock.advance(limits.MAINTAIN_SECONDS)


def payloads(pipeline: Pipeline) -> list[str]:
    return [stored.key.split("/")[-1].partition(".")[0] for stored in pipeline.objects.list()]


def test_payloads_batches_and_quarantine_go_when_their_time_is_over_and_totals_stay(
    pipeline: Pipeline, clock: ManualClock
) -> None:
    old = send(pipeline, [clock.now_us()])
    work(pipeline)
    clock.advance(3 * 86_400)
    young = send(pipeline, [clock.now_us()])
    work(pipeline)
    assert payloads(pipeline) == [old, young]
    clock.advance((PAYLOAD_DAYS - 3) * 86_400 + 3600)
    work(pipeline)
    assert payloads(pipeline) == [young]
    with pytest.raises(NotFound):
        pipeline.ledger.batch(old)
    assert pipeline.ledger.batch(young).state == "partial"
    assert {item.batch_id for item in pipeline.ledger.quarantine(None, None, 10)} == {young}
    assert pipeline.ledger.accounting()[1] == Accounting(received=4, stored=2, quarantined=2)
    assert pipeline.store.read_raw([SENSOR], 0, 2 * START_US, 10).num_rows == 2


def test_a_payload_that_a_waiting_claim_names_stays_however_old_it_is(pipeline: Pipeline, clock: ManualClock) -> None:
    waiting = send(pipeline, [clock.now_us()])
    clock.advance((PAYLOAD_DAYS + 5) * 86_400)  # the worker did not run all that time
    pipeline.restart()
    pipeline.worker._housekeep()
    assert payloads(pipeline) == [waiting]
    work(pipeline)
    assert pipeline.store.read_raw([SENSOR], 0, 2 * START_US, 10).num_rows == 1


def test_the_payload_of_a_slow_upload_stays_though_a_quick_one_that_began_later_is_before_it_in_the_queue(
    pipeline: Pipeline, clock: ManualClock
) -> None:
    quick: list[str] = []

    def slow(body: bytes) -> Iterator[bytes]:
        yield body[:20]
        clock.advance(limits.CLAIM_DISORDER_SECONDS_MAX - 10)
        quick.append(send(pipeline, [clock.now_us()]))
        yield body[20:]

    body = json.dumps([{"equip_uuid": "old", "sensor": [{"sensor_uuid": SENSOR, "valor": 1.0}]}]).encode()
    pipeline.acceptor.bulk(slow(body), "identity", Sender("test"))
    clock.advance((PAYLOAD_DAYS + 5) * 86_400)  # the worker did not run all that time
    pipeline.restart()
    pipeline.worker._housekeep()
    assert len(payloads(pipeline)) == 2
    work(pipeline)
    assert {batch.state for batch in pipeline.ledger.batches(None, 10)} == {"partial", "stored"}


def test_housekeeping_looks_once_an_hour(pipeline: Pipeline, clock: ManualClock) -> None:
    work(pipeline)
    old = send(pipeline, [clock.now_us()])
    work(pipeline)
    key = next(stored.key for stored in pipeline.objects.list())
    clock.advance(PAYLOAD_DAYS * 86_400 - 60)
    work(pipeline)  # an hour has passed: it looks, and the payload is not old enough
    clock.advance(120)
    work(pipeline)
    assert payloads(pipeline) == [old], key
    clock.advance(limits.HOUSEKEEPING_SECONDS)
    work(pipeline)
    assert payloads(pipeline) == []


def test_zero_days_keep_payloads_for_ever(tmp_path: Path, clock: ManualClock) -> None:
    pipeline = Pipeline(tmp_path, clock, settings=PipelineSettings(0, 0))
    batch_id = send(pipeline, [clock.now_us()])
    work(pipeline)
    clock.advance(1000 * 86_400)
    work(pipeline)
    assert payloads(pipeline) == [batch_id]
    assert pipeline.ledger.batch(batch_id).state == "partial"
    pipeline.close()


def test_a_replay_after_the_payload_went_finds_no_batch(pipeline: Pipeline, clock: ManualClock) -> None:
    batch_id = send(pipeline, [clock.now_us()])
    work(pipeline)
    clock.advance((PAYLOAD_DAYS + 1) * 86_400)
    work(pipeline)
    with pytest.raises((NotFound, Conflict)):
        pipeline.acceptor.replay(batch_id, Sender("test"))


def test_backfilled_raw_ages_out_and_its_rollups_stay(pipeline: Pipeline, clock: ManualClock) -> None:
    day_us = START_US - 60 * DAY_US
    times = [day_us + i * 3600 * MICROSECONDS for i in range(24)]
    send(pipeline, times, backfill=True)
    send(pipeline, [clock.now_us()])
    work(pipeline)
    assert pipeline.store.read_raw([SENSOR], day_us, day_us + DAY_US, 100).num_rows == 24
    for _ in range(4):  # nothing is written to the old day for longer than a backfill pauses
        clock.advance(86_400)
        send(pipeline, [clock.now_us()])
        work(pipeline, 8)
    assert pipeline.store.read_raw([SENSOR], day_us, day_us + DAY_US, 100).num_rows == 0
    (day,) = pipeline.store.read_rollup("day", [SENSOR], day_us, day_us + DAY_US, 10).to_pylist()
    assert (day["count"], day["min"], day["max"], day["active_minutes"]) == (24, 0.0, 23.0, 24)
    assert pipeline.store.read_rollup("hour", [SENSOR], day_us, day_us + DAY_US, 100).num_rows == 24


def test_a_batch_whose_claim_is_gone_ends_as_a_dead_letter_that_can_be_replayed(
    pipeline: Pipeline, clock: ManualClock
) -> None:
    lost = send(pipeline, [clock.now_us()])
    (delivery,) = pipeline.queue.fetch(10, 1_000, 0.0)
    pipeline.queue.ack([delivery])  # as if it had not read back
    work(pipeline)
    assert pipeline.ledger.batch(lost).state == "accepted"
    clock.advance(limits.CLAIM_DISORDER_SECONDS_MAX + limits.HOUSEKEEPING_SECONDS)
    waiting = send(pipeline, [clock.now_us()])
    pipeline.worker._housekeep()
    assert pipeline.ledger.batch(lost).state == "dead_letter"
    assert pipeline.ledger.batch(waiting).state == "accepted"
    assert pipeline.ledger.accounting()[1] == Accounting(received=4, quarantined=3, pending=1)
    work(pipeline)
    assert pipeline.ledger.oldest_pending_us() is None
    pipeline.acceptor.replay(lost, Sender("test"))
    work(pipeline)
    assert pipeline.ledger.accounting()[1] == Accounting(received=4, stored=2, quarantined=2)


def test_a_batch_whose_claim_waits_behind_others_or_is_replayed_is_not_taken_for_lost(
    pipeline: Pipeline, clock: ManualClock
) -> None:
    waiting = send(pipeline, [clock.now_us()])
    clock.advance(3 * limits.CLAIM_DISORDER_SECONDS_MAX)
    pipeline.worker._housekeep()
    assert pipeline.ledger.batch(waiting).state == "accepted"
    work(pipeline)
    replay = pipeline.acceptor.replay(waiting, Sender("test"))
    pipeline.ledger.reopen(waiting, replay)
    clock.advance(3 * limits.CLAIM_DISORDER_SECONDS_MAX)
    pipeline.queue.ack(pipeline.queue.fetch(10, 1_000, 0.0))
    pipeline.worker._housekeep()
    assert pipeline.ledger.batch(waiting).state == "accepted"
