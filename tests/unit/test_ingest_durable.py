"""What becomes of a request that is durable while what comes after fails."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sensorkeep.clock import MICROSECONDS, ManualClock, rfc3339
from sensorkeep.decode.gathered import TEMPERATURE, Entry
from sensorkeep.decode.temperature import parse_temperature
from sensorkeep.ingest.accept import Sender
from sensorkeep.pubsub.base import READINGS_CHANNEL
from sensorkeep.testing.faulty import Fault
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings

START_US = 1_767_225_600 * MICROSECONDS
BULK = [{"equip_uuid": "e", "sensor": {"sensor_uuid": "s", "valor": 1.5, "timestamp": rfc3339(START_US)}}]
SINGLE = b'{"sensor_id": "a", "temperature": 1.5}'


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path, ManualClock(START_US), settings=PipelineSettings(rates={Fault.FAIL_BEFORE: 1.0}))
    yield pipeline
    pipeline.close()


def send_bulk(pipeline: Pipeline) -> str:
    body = gzip.compress(json.dumps(BULK).encode())
    return pipeline.acceptor.bulk(iter([body]), "gzip", Sender("key")).claim.batch_id


def send_single(pipeline: Pipeline) -> str:
    entry = Entry(TEMPERATURE, START_US, 1, "", SINGLE, parse_temperature(SINGLE), START_US)
    return pipeline.acceptor.gathered((entry,), Sender(""))


@pytest.mark.parametrize("send", [send_bulk, send_single])
def test_live_listeners_hear_what_is_accepted_while_the_catalog_is_down(
    pipeline: Pipeline, send: Callable[[Pipeline], str]
) -> None:
    heard: list[bytes] = []
    pipeline.pubsub.subscribe(READINGS_CHANNEL, heard.append)
    pipeline.faults["ledger"].active = True
    with capture_logs() as logs:
        batch_id = send(pipeline)
    assert pipeline.faults["ledger"].total(Fault.FAIL_BEFORE) == 1
    assert len(heard) == 1
    lines = [(line["event"], line["log_level"], line["batch_id"], line["code"]) for line in logs]
    assert lines == [("receipt_waits", "warning", batch_id, "dependency_down")]
    assert "exc_info" not in logs[0], "an outage is no bug: no traceback"
    pipeline.faults["ledger"].active = False
    while pipeline.worker.round():
        pass
    assert pipeline.ledger.batch(batch_id).state == "stored"


def test_a_receipt_is_entered_though_nobody_could_be_told(pipeline: Pipeline) -> None:
    def fail(_: bytes) -> None:
        raise RuntimeError("a listener's own mistake")

    pipeline.pubsub.subscribe(READINGS_CHANNEL, fail)
    with capture_logs() as logs:
        batch_id = send_bulk(pipeline)
    assert pipeline.ledger.batch(batch_id).state == "accepted"
    assert [line["event"] for line in logs] == ["announcement_failed"]
