"""How long a body may take: between two pieces, and in all."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from sensorkeep import limits
from sensorkeep.errors import InvalidInput
from sensorkeep.ingest.body import BodyReader


def read(pieces: int, pause_seconds: float) -> tuple[bytes, str]:
    """(what arrived of a body that comes in so many pieces, what the error said)."""
    arrived: list[bytes] = []

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(pause_seconds)
        return {"type": "http.request", "body": b"x", "more_body": len(arrived) < pieces - 1}

    async def run() -> None:
        reader = BodyReader(receive)
        while not reader.complete:
            arrived.append(await reader.chunk())

    said = ""
    try:
        asyncio.run(run())
    except InvalidInput as error:
        said = f"{error.code}: {error.detail}"
    return b"".join(arrived), said


def test_a_body_may_take_a_while_but_not_be_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_IDLE_SECONDS_MAX", 0.2)
    assert read(5, 0.001) == (b"xxxxx", "")
    arrived, said = read(2, 30)
    assert arrived == b""
    assert said == "request_timeout: nothing of the body arrived for 0.2 seconds; send it again"


def test_a_body_that_trickles_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS_MAX", 0.2)
    arrived, said = read(10**9, 0.01)
    assert 0 < len(arrived) < 100
    assert said == "request_timeout: the body took longer than 0.0 hours; send smaller ones"


def test_a_claim_is_never_further_out_of_order_than_housekeeping_allows() -> None:
    assert limits.BODY_SECONDS_MAX <= limits.CLAIM_DISORDER_SECONDS_MAX / 2
