"""kill -9 under load: what was answered 201 is there, once, and everything adds up."""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from harness import API_KEY, Server, wait_until

from sensorkeep.clock import to_us

ROUNDS = int(os.environ.get("SENSORKEEP_TEST_KILL_ROUNDS", "3"))


class Load:
    """Threads that send numbered readings and remember which were answered 201."""

    def __init__(self, url: str, round_number: int, start: datetime) -> None:
        self._url = url
        self._round = round_number
        self._start = start
        self._stop = threading.Event()
        self.bulk_acknowledged: dict[tuple[int, datetime], float] = {}
        self.single_acknowledged: dict[tuple[str, datetime], float] = {}
        self._threads = [
            threading.Thread(target=self._send_bulk, args=(0,)),
            threading.Thread(target=self._send_bulk, args=(1,)),
            threading.Thread(target=self._send_single, args=(0,)),
            threading.Thread(target=self._send_single, args=(1,)),
        ]
        for thread in self._threads:
            thread.start()

    def has_begun(self) -> bool:
        """Whether some of each kind were answered."""
        return len(self.bulk_acknowledged) >= 50 and len(self.single_acknowledged) >= 5

    def end(self) -> None:
        """Stop sending."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send_bulk(self, lane: int) -> None:
        sensor = self._round * 2 + lane
        with httpx.Client(base_url=self._url, headers={"X-API-Key": API_KEY}, timeout=10) as client:
            number = 0
            while not self._stop.is_set():
                moments = [self._start + timedelta(seconds=number + i) for i in range(50)]
                number += 50
                readings = [
                    {"sensor_uuid": uuid(100 + sensor), "valor": value(moment), "timestamp": moment.isoformat()}
                    for moment in moments
                ]
                body = [{"equip_uuid": uuid(1), "sensor": readings}]
                try:
                    answer = client.post(
                        "/api/v1/telemetry/bulk",
                        content=gzip.compress(json.dumps(body).encode()),
                        headers={"Content-Encoding": "gzip", "Content-Type": "application/json"},
                    )
                except httpx.HTTPError:
                    return
                assert answer.status_code == 201, answer.text
                self.bulk_acknowledged.update({(sensor, moment): value(moment) for moment in moments})

    def _send_single(self, lane: int) -> None:
        name = f"single-{self._round}-{lane}"
        with httpx.Client(base_url=self._url, headers={"X-API-Key": API_KEY}, timeout=10) as client:
            number = 0
            while not self._stop.is_set():
                moment = self._start + timedelta(seconds=number)
                number += 1
                body = {"sensor_id": name, "temperature": value(moment), "timestamp": moment.isoformat()}
                try:
                    answer = client.post("/api/v1/temperature_reading", json=body)
                except httpx.HTTPError:
                    return
                assert answer.status_code == 201, answer.text
                self.single_acknowledged[name, moment] = value(moment)


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def value(moment: datetime) -> float:
    return to_us(moment) % 1_000_003 / 7


def raw_values(server: Server, path: str) -> dict[int, float]:
    """The raw history of a sensor; fails on a time that comes twice."""
    found: dict[int, float] = {}
    cursor = None
    while True:
        parameters = {"period": "raw", "limit": "50000"} | ({"cursor": cursor} if cursor else {})
        answer = server.client.get(f"/analytics/sensor/{path}/history", params=parameters)
        assert answer.status_code == 200, answer.text
        for row in answer.json()["data"]:
            moment = to_us(datetime.fromisoformat(row["time"]))
            assert moment not in found, f"{path} has {row['time']} twice"
            found[moment] = row["value"]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found


def check(server: Server, loads: list[Load]) -> None:
    """Everything acknowledged is there once, and the rollups are those of the raw readings."""
    totals = server.settled()
    kept = 0
    expected: dict[str, dict[int, float]] = {}
    for load in loads:
        for (sensor, moment), number in load.bulk_acknowledged.items():
            expected.setdefault(uuid(100 + sensor), {})[to_us(moment)] = number
        for (name, moment), number in load.single_acknowledged.items():
            expected.setdefault(f"{name}%2Ftemperature", {})[to_us(moment)] = number
    for path, readings in expected.items():
        found = raw_values(server, path)
        missing = readings.keys() - found.keys()
        assert not missing, f"{len(missing)} acknowledged readings of {path} are missing"
        assert {moment: found[moment] for moment in readings} == pytest.approx(readings)
        hours = server.client.get(f"/analytics/sensor/{path}/history", params={"period": "hour"}).json()["data"]
        assert sum(row["sample_count"] for row in hours) == len(found)
        kept += len(found)
    assert totals["stored"] == kept, "a reading was counted that is not there, or is there uncounted"


def test_nothing_acknowledged_is_lost_or_doubled_by_kill_9(data_dir: Path) -> None:
    seed = int(os.environ.get("SENSORKEEP_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}")
    chance = random.Random(seed)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    server = Server(data_dir).start()
    loads: list[Load] = []
    try:
        for number in range(ROUNDS):
            load = Load(server.url, number, start)
            loads.append(load)
            wait_until(load.has_begun)
            threading.Event().wait(chance.uniform(0.0, 1.0))
            server.kill()
            load.end()
            server.start()
        check(server, loads)
    finally:
        server.stop()


def test_sigterm_answers_what_is_in_flight_and_loses_nothing(data_dir: Path) -> None:
    server = Server(data_dir).start()
    load = Load(server.url, 0, datetime.now(UTC).replace(microsecond=0) - timedelta(days=1))
    try:
        wait_until(load.has_begun)
        assert server.stop() == 0, server.log[-2000:]
    finally:
        load.end()
    assert not [line for line in server.log.splitlines() if '"level":"error"' in line or "Traceback" in line]
    server.start()
    try:
        check(server, [load])
    finally:
        server.stop()


def test_a_data_directory_in_use_is_refused_with_a_clear_message(data_dir: Path) -> None:
    first = Server(data_dir).start()
    try:
        with pytest.raises(AssertionError, match=r"is open in process \d+"):
            Server(data_dir).start()
    finally:
        first.stop()
