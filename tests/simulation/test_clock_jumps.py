"""The wall clock of a running server is set forward and back: nothing stops or is lost, and it says what it refuses.

The whole application in this process, over HTTP, with a clock whose wall time can be set. Of limits by the minute:
tests/unit/test_auth_limiter.py; of jumps by seed among faults: test_pipeline.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sensorkeep.app.application import Application
from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, SystemClock, rfc3339
from sensorkeep.config import load_config

PASSWORD = "correct horse battery 9"
KEY = "static-ingest-read-key-0001"
HOUR, DAY = HOUR_US, DAY_US


class SteppedClock(SystemClock):
    """The machine's clock, whose wall time somebody sets. Monotonic time does not notice."""

    def __init__(self) -> None:
        self.offset_us = 0

    def now_us(self) -> int:
        return super().now_us() + self.offset_us

    def set(self, offset_us: int) -> None:
        """Let it differ by so much from the machine's."""
        self.offset_us = offset_us


class House:
    """A server, its clock, and a device whose own clock is right."""

    def __init__(self, application: Application, clock: SteppedClock, client: TestClient) -> None:
        self.application = application
        self.clock = clock
        self.client = client
        self._real = SystemClock()

    def time(self, before_us: int = 0) -> str:
        """The time of the device."""
        return rfc3339(self._real.now_us() - before_us)

    def send(self, sensor: str, *times: str | None, status: int = 201) -> dict[str, Any]:
        """Readings of these times, which waits until they are stored."""
        items = [
            {"sensor_uuid": sensor, "valor": float(number), **({} if time is None else {"timestamp": time})}
            for number, time in enumerate(times)
        ]
        answer = self.client.post(
            "/api/v1/telemetry/bulk",
            json=[{"equip_uuid": "clock", "sensor": items}],
            headers={"X-API-Key": KEY, "Prefer": "wait=30"},
        )
        assert answer.status_code == status, answer.text
        self.check_accounts()
        document: dict[str, Any] = answer.json()
        return document

    def get(self, path: str, **parameters: object) -> Any:
        """JSON of a GET that must succeed."""
        answer = self.client.get(f"/api/v1{path}", params=parameters, headers={"X-API-Key": KEY})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def history(self, sensor: str, period: str) -> list[dict[str, Any]]:
        """Some weeks around today."""
        start, end = self.time(20 * DAY), self.time(-60 * DAY)
        rows: list[dict[str, Any]] = self.get(
            f"/analytics/sensor/{sensor}/history", period=period, start_date=start, end_date=end
        )["data"]
        return rows

    def check_accounts(self) -> None:
        """The accounting equation."""
        for totals in self.get("/telemetry/accounting").values():
            parts = ("stored", "updated", "duplicate", "quarantined", "pending")
            assert totals["received"] == sum(totals[part] for part in parts)

    def login(self) -> dict[str, str]:
        """Tokens of the admin."""
        answer = self.client.post("/api/v1/auth/login", json={"username": "admin", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        tokens: dict[str, str] = answer.json()
        return tokens

    def is_known(self, token: str) -> bool:
        """Whether an access token is taken."""
        answer = self.client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code in (200, 401)
        return bool(answer.status_code == 200)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    for name in [name for name in os.environ if name.startswith("SENSORKEEP_")]:
        monkeypatch.delenv(name)
    clock = SteppedClock()
    config = load_config(data_dir=tmp_path / "data", api_key=KEY, admin_password=PASSWORD, gather_seconds=0.01)
    application = Application(config, clock)
    application.first_start()
    application.start()
    try:
        with TestClient(application.asgi()) as client:
            yield House(application, clock, client)
            assert client.get("/api/v1/health").json()["status"] == "healthy"
    finally:
        application.close()


def test_a_clock_set_back_sets_readings_of_the_right_time_aside_until_it_is_put_right(house: House) -> None:
    house.send("a", house.time(HOUR))
    house.clock.set(-2 * HOUR)
    refused = house.send("a", house.time(), status=422)
    assert [error["reason"] for error in refused["errors"]] == ["in_future"]
    mixed = house.send("a", house.time(3 * HOUR), house.time())
    assert (mixed["stored"], mixed["quarantined"]) == (1, 1)
    house.clock.set(0)
    tokens = house.login()
    admin = {"Authorization": f"Bearer {tokens['access_token']}"}
    replay = house.client.post(f"/api/v1/telemetry/batches/{mixed['batch_id']}/replay", headers=admin)
    assert replay.status_code == 202
    house.send("b", house.time())  # behind the replay
    assert house.get(f"/telemetry/batches/{mixed['batch_id']}")["state"] == "stored"
    assert len(house.history("a", "raw")) == 3
    assert sum(row["sample_count"] for row in house.history("a", "hour")) == 3


def test_a_clock_set_forward_takes_readings_of_the_right_time_as_late_ones(house: House) -> None:
    house.send("a", house.time(HOUR), None)
    house.clock.set(2 * DAY)
    answer = house.send("a", house.time(), house.time(MINUTE_US), None)
    assert (answer["stored"], answer["quarantined"]) == (3, 0)
    house.clock.set(0)
    answer = house.send("a", house.time(), None)
    assert answer["stored"] == 2
    raw = house.history("a", "raw")
    assert len(raw) == 7
    assert [row["time"] for row in raw] == sorted(row["time"] for row in raw)
    assert sum(row["sample_count"] for row in house.history("a", "hour")) == 7
    assert sum(row["sample_count"] for row in house.history("a", "day")) == 7
    latest = house.get("/sensor/a/latest")["timestamp"]
    assert latest == raw[-1]["time"], "the newest by its time, though it lies ahead"


def test_jumps_back_and_forth_lose_and_double_nothing(house: House) -> None:
    sent = 0
    for offset in (0, HOUR, -HOUR, 3 * DAY, -MINUTE_US, 0, -DAY, 0):
        house.clock.set(offset)
        answer = house.send("a", None, house.time(5 * DAY))
        sent += answer["stored"]
        again = house.send("a", house.time(5 * DAY - sent))
        sent += again["stored"]
        assert answer["stored"] + answer["updated"] + answer["duplicate"] == 2
    house.clock.set(0)
    assert len(house.history("a", "raw")) == sent
    assert sum(row["sample_count"] for row in house.history("a", "day")) == sent


def test_access_tokens_end_by_the_clock_and_a_new_login_is_always_possible(house: House) -> None:
    """Of tokens that were not used before: what was is believed for half a minute more."""
    before = house.login()
    house.clock.set(HOUR)
    assert not house.is_known(before["access_token"]), "it has expired"
    refreshed = house.client.post("/api/v1/auth/refresh", json={"refresh_token": before["refresh_token"]})
    assert refreshed.status_code == 200, "a refresh token lives for a week"
    ahead = house.login()
    house.clock.set(-HOUR)
    assert not house.is_known(ahead["access_token"]), "it was issued in the future"
    assert house.is_known(house.login()["access_token"])
    house.clock.set(8 * DAY)
    late = house.client.post("/api/v1/auth/refresh", json={"refresh_token": ahead["refresh_token"]})
    assert late.status_code == 401
    assert house.is_known(house.login()["access_token"])
    house.get("/equipment")  # keys do not end


def test_a_clock_far_ahead_costs_raw_readings_past_the_retention_and_no_rollup(house: House) -> None:
    """What docs/RELIABILITY.md says is not promised, and what is."""
    house.send("a", house.time(HOUR), house.time(2 * HOUR))
    house.clock.set(40 * DAY)
    refused = house.send("a", house.time(), status=422)
    assert [error["reason"] for error in refused["errors"]] == ["too_old"]
    house.send("b", None)
    house.clock.set(0)
    answer = house.send("a", house.time())
    assert answer["stored"] == 1
    assert sum(row["sample_count"] for row in house.history("a", "hour")) == 3
    assert sum(row["sample_count"] for row in house.history("a", "day")) == 3
