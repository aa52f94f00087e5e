"""The deployed clients of the predecessor systems, unchanged, against the real server."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from pathlib import Path

import httpx
from harness import PASSWORD, Server, esm_equipment, esm_reading, hours_ago, new_uuid, running, wait_until

from sensorkeep.cli.client import Credential
from sensorkeep.cli.home_assistant import Faults, HomeAssistantClient

FAULT_FRACTION = 0.3
SEED = 20240115
ESM_BODY = """[{
    "equip_uuid": "550e8400-e29b-41d4-a716-446655440000",
    "equip_nome": "Freezer Teste",
    "sensor": [{
      "sensor_uuid": "660e8400-e29b-41d4-a716-446655440001",
      "sensor_tipo": "temperatura",
      "valor": 25.5,
      "timestamp": "2024-01-15T10:00:00Z"
    }]
  }]"""


class HomeAssistant:
    """One deployed client with a faulty network that makes a reading a second, some of them sent with each round."""

    def __init__(self, url: str) -> None:
        credential = Credential(username="admin", password=PASSWORD)
        faults = Faults(FAULT_FRACTION, random.Random(SEED))
        self.client = HomeAssistantClient(url, credential, faults=faults, timeout_seconds=30)
        self.equipment, self.sensor = new_uuid(), new_uuid()
        self.made = 0
        self.longest = 0
        self._start = hours_ago(12)

    def round(self, count: int) -> None:
        """Make readings, then send all that is queued."""
        moments = [self._start + timedelta(seconds=self.made + i) for i in range(count)]
        body = esm_equipment(self.equipment, [esm_reading(self.sensor, m.minute + m.second / 60, m) for m in moments])
        self.client.enqueue([json.dumps(body).encode()])
        self.made += count
        self.longest = max(self.longest, self.client.queued)
        self.client.send()

    def drained(self) -> bool:
        """Whether the queue is empty, after one more try."""
        self.client.send()
        return self.client.queued == 0


def test_the_deployed_home_assistant_client_ends_with_an_empty_queue_and_nothing_twice(data_dir: Path) -> None:
    with running(data_dir, SENSORKEEP_ACCESS_TOKEN_SECONDS=10) as server:
        home = HomeAssistant(server.url)

        def refreshed_and_busy() -> bool:
            home.round(20)
            return home.client.refreshes >= 1 and home.made >= 1000

        wait_until(refreshed_and_busy, pause=0.1)
        wait_until(home.drained)
        home.client.close()
        assert home.longest > 1, "no fault made the queue grow: this run shows nothing"
        assert home.client.logins == 1, "the refresh token was good, so there was no need to log in again"

        totals = server.settled()
        assert totals["stored"] == home.made
        assert (totals["updated"], totals["quarantined"]) == (0, 0)
        assert totals["duplicate"] > 0, "no answer was lost: this run shows nothing"
        hours = server.get(f"/analytics/equipment/{home.equipment}/history")["data"]
        assert sum(row["sample_count"] for row in hours) == home.made


def test_the_client_logs_in_again_when_its_tokens_died_with_the_servers_secret(data_dir: Path) -> None:
    with running(data_dir, SECRET_KEY="first-secret-of-32-characters-at-least") as server:
        client = HomeAssistantClient(server.url, Credential(username="admin", password=PASSWORD), timeout_seconds=30)
        reading = esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, hours_ago(1))])
        client.enqueue([json.dumps(reading).encode()])
        assert client.send().success
        port = server.url.rpartition(":")[2]
        server.stop()
    with running(data_dir, SECRET_KEY="second-secret-of-32-characters-at-least", SENSORKEEP_PORT=port) as server:
        client.enqueue([json.dumps(reading).encode()])
        wait_until(lambda: client.send().success)
        assert (client.queued, client.logins, client.refreshes) == (0, 2, 0)
        totals = server.settled()
        assert (totals["stored"], totals["duplicate"]) == (1, 1)
    client.close()


def test_the_three_curl_lines_of_easy_smart_monitor_work_as_they_stand(archive: Server) -> None:
    login = httpx.post(
        f"{archive.url}/api/v1/auth/login",
        headers={"Content-Type": "application/json"},
        content=json.dumps({"username": "admin", "password": PASSWORD}),
    )
    assert login.status_code == 200, login.text
    bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}

    sent = httpx.post(
        f"{archive.url}/api/v1/telemetry/bulk",
        headers={"Content-Type": "application/json", **bearer},
        content=ESM_BODY,
    )
    assert sent.status_code == 201, sent.text
    assert (sent.json()["received"], sent.json()["quarantined"]) == (1, 0)
    archive.settled()

    history = f"{archive.url}/api/v1/analytics/equipment/550e8400-e29b-41d4-a716-446655440000/history?period=hour"
    answer = httpx.get(history, headers=bearer)
    assert answer.status_code == 200, answer.text
    assert answer.json()["period"] == "hour"
    assert answer.json()["data"] == [], "the reading is older than the seven days that are answered by default"
    answer = httpx.get(history + "&start_date=2024-01-15T10:00:00Z&end_date=2024-01-15T11:00:00Z", headers=bearer)
    assert (answer.json()["data"][0]["avg_value"], answer.json()["data"][0]["sample_count"]) == (25.5, 1)
