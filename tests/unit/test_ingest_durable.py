"""What becomes of a request that is durable while what comes after fails."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from structlog.testing import capture_logs

from sensorkeep import limits
from sensorkeep.auth.credentials import Credential
from sensorkeep.auth.gate import Admission, Gate
from sensorkeep.auth.scopes import Scope
from sensorkeep.catalog.base import Batch, BatchLedger
from sensorkeep.clock import MICROSECONDS, ManualClock, SystemClock, rfc3339
from sensorkeep.decode.gathered import TEMPERATURE, Entry
from sensorkeep.decode.temperature import parse_temperature
from sensorkeep.errors import Unavailable
from sensorkeep.ingest.accept import Sender
from sensorkeep.ingest.announce import SettledWaiters
from sensorkeep.ingest.http import IngestRoutes
from sensorkeep.pubsub.base import READINGS_CHANNEL
from sensorkeep.testing.faulty import Fault
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings

START_US = 1_767_225_600 * MICROSECONDS
BULK = [{"equip_uuid": "e", "sensor": {"sensor_uuid": "s", "valor": 1.5, "timestamp": rfc3339(START_US)}}]
DEADLINE_SECONDS = 20.0
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


class HangingLedger:
    """A catalog that does not say what became of a batch."""

    def __init__(self) -> None:
        self.answers = threading.Event()

    def batch(self, batch_id: str) -> Batch:
        self.answers.wait(DEADLINE_SECONDS)
        raise Unavailable(f"nobody knows of {batch_id}")


class LateLedger:
    """A catalog that says at the second time that a batch is stored."""

    def __init__(self, ledger: BatchLedger) -> None:
        self._ledger = ledger
        self._asked = 0
        self.answers = threading.Event()

    def batch(self, batch_id: str) -> Batch:
        self._asked += 1
        batch = self._ledger.batch(batch_id)
        return batch if self._asked == 1 else msgspec.structs.replace(batch, state="stored")


def answer_of_one_that_waits(pipeline: Pipeline, ledger: HangingLedger | LateLedger) -> dict[str, Any]:
    """The answer to `Prefer: wait=1`, where no notice comes and nobody looks in between."""
    unused = cast(Any, None)
    admission = Admission(Credential("c", "key", "c", frozenset({Scope.INGEST}), 1), None)
    routes = IngestRoutes(
        unused, acceptor=pipeline.acceptor, gatherer=unused, waiters=SettledWaiters(pipeline.pubsub),
        ledger=cast(BatchLedger, ledger), idempotency=unused,
        gate=cast(Gate, SimpleNamespace(admit_now=lambda *_: admission)), clock=SystemClock(), display_time=unused,
    )  # fmt: skip
    headers = [(b"prefer", b"wait=1")]
    scope = {"type": "http", "path": "/api/v1/telemetry/bulk", "method": "POST", "headers": headers}
    answered: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(BULK).encode()}

    async def send(message: Any) -> None:
        answered.append(message)

    async def ask() -> None:
        try:
            await asyncio.wait_for(routes(scope, receive, send), 3.0)
        finally:
            ledger.answers.set()  # the loop ends only after its threads

    try:
        asyncio.run(ask())
    finally:
        routes.close()
    assert answered[0]["status"] == 201
    answer: dict[str, Any] = json.loads(answered[1]["body"])
    return answer


@pytest.fixture
def no_look_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLED_POLL_SECONDS", 10.0)


@pytest.mark.usefixtures("no_look_in_between")
def test_who_waits_for_its_rows_waits_no_longer_than_it_said_though_the_catalog_hangs(pipeline: Pipeline) -> None:
    assert answer_of_one_that_waits(pipeline, HangingLedger())["status"] == "accepted"


@pytest.mark.usefixtures("no_look_in_between")
def test_who_waits_for_its_rows_looks_once_more_before_its_time_is_over(pipeline: Pipeline) -> None:
    assert answer_of_one_that_waits(pipeline, LateLedger(pipeline.ledger))["status"] == "stored"
