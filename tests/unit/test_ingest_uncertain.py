"""What stays of a request whose claim was not published, or perhaps was."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sensorkeep.clock import MICROSECONDS, ManualClock, rfc3339
from sensorkeep.errors import Unavailable, Uncertain
from sensorkeep.ingest.accept import Sender
from sensorkeep.testing.faulty import Fault
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings

START_US = 1_767_225_600 * MICROSECONDS
BODY = gzip.compress(
    json.dumps(
        [{"equip_uuid": "e", "sensor": {"sensor_uuid": "s", "valor": 1.5, "timestamp": rfc3339(START_US)}}]
    ).encode()
)


def send_while_publishing_fails(directory: Path, fault: Fault) -> tuple[Pipeline, Unavailable]:
    pipeline = Pipeline(directory, ManualClock(START_US), settings=PipelineSettings(rates={fault: 1.0}))
    pipeline.faults["queue"].active = True
    with pytest.raises(Unavailable) as caught:
        pipeline.acceptor.bulk(iter([BODY]), "gzip", Sender("key"))
    pipeline.faults["queue"].active = False
    return pipeline, caught.value


def test_the_payload_of_a_claim_that_was_perhaps_published_is_kept_and_the_worker_stores_it(tmp_path: Path) -> None:
    pipeline, error = send_while_publishing_fails(tmp_path, Fault.FAIL_AFTER)
    assert isinstance(error, Uncertain)
    assert error.status == 503
    assert len(list(pipeline.objects.list("telemetry/"))) == 1
    while pipeline.worker.round():
        pass
    assert pipeline.queue.depth().claims == 0
    counts = pipeline.ledger.accounting()[1]
    assert (counts.received, counts.stored, counts.quarantined) == (1, 1, 0)
    pipeline.close()


def test_the_payload_of_a_claim_that_was_not_published_is_deleted(tmp_path: Path) -> None:
    pipeline, error = send_while_publishing_fails(tmp_path, Fault.FAIL_BEFORE)
    assert not isinstance(error, Uncertain)
    assert list(pipeline.objects.list("telemetry/")) == []
    assert pipeline.worker.round() == 0
    pipeline.close()
