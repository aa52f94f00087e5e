"""Senders that never give up, and what must be there in the end."""

from __future__ import annotations

import gzip
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from harness import API_KEY, DEADLINE_SECONDS, Server, wait_until

from sensorkeep.clock import HOUR_US, MINUTE_US, to_us
from sensorkeep.rollup import moments, percentile_cont

READINGS_PER_BATCH = 40
DURABLE, REFUSED = 201, 503


class Load:
    """Threads that send numbered readings to all gateways in turn, each batch until it is answered 201.

    Anything but 201, 503 with Retry-After, or a connection that ends is a failure. `expected` holds, by sensor, what
    was answered 201; nothing is sent that never was answered so, once `end` has returned.
    """

    def __init__(self, gateways: Sequence[Server], name: str, lanes: int = 2) -> None:
        self._urls = [gateway.url for gateway in gateways]
        self._name = name
        self._ending = threading.Event()
        self._start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=30)
        self.expected: dict[str, dict[int, float]] = {}
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self._last_durable = time.monotonic()
        self._lock = threading.Lock()
        senders: list[Callable[[int], None]] = [self._send_bulk, self._send_single]
        self._threads = [
            threading.Thread(target=send, args=(lane,), name=f"load-{send.__name__}-{lane}")
            for lane in range(lanes)
            for send in senders
        ]
        for thread in self._threads:
            thread.start()

    def batches(self) -> int:
        """How many requests were answered 201 so far."""
        return self.answers[DURABLE]

    def wait_for(self, batches: int) -> None:
        """Wait until so many more requests were answered 201."""
        wanted = self.batches() + batches
        wait_until(lambda: self.batches() >= wanted or self.failures)
        assert not self.failures, self.failures[0]

    def end(self) -> None:
        """Stop sending, once every batch begun is answered 201."""
        self._ending.set()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS * 2)
            assert not thread.is_alive(), f"{thread.name} still waits for an answer"
        assert not self.failures, self.failures[0]

    def _send_bulk(self, lane: int) -> None:
        sensor = f"{self._name}-bulk-{lane}"
        numbers = itertools.count(lane)
        while not self._ending.is_set():
            number = next(numbers)
            # Now and then hours back, so that readings come late; no two batches share a time.
            first = self._start + timedelta(hours=number % 7 * 4, seconds=number // 7 * READINGS_PER_BATCH)
            times = [first + timedelta(seconds=i) for i in range(READINGS_PER_BATCH)]
            readings = [{"sensor_uuid": sensor, "valor": value(at), "timestamp": at.isoformat()} for at in times]
            body = gzip.compress(json.dumps([{"equip_uuid": self._name, "sensor": readings}]).encode(), 1)
            headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
            self._send("/telemetry/bulk", body, headers, number, {sensor: times})

    def _send_single(self, lane: int) -> None:
        name = f"{self._name}-single-{lane}"
        numbers = itertools.count(lane)
        while not self._ending.is_set():
            number = next(numbers)
            at = self._start + timedelta(hours=28, seconds=number)
            body = json.dumps({"sensor_id": name, "temperature": value(at), "timestamp": at.isoformat()}).encode()
            headers = {"Content-Type": "application/json"}
            self._send("/temperature_reading", body, headers, number, {f"{name}/temperature": [at]})

    def _send(
        self, path: str, body: bytes, headers: dict[str, str], number: int, held: dict[str, list[datetime]]
    ) -> None:
        """Send until it is answered 201, to another gateway each time."""
        deadline = time.monotonic() + DEADLINE_SECONDS * 2
        for attempt in itertools.count():
            url = self._urls[(number + attempt) % len(self._urls)]
            try:
                answer = httpx.post(
                    f"{url}/api/v1{path}", content=body, headers={"X-API-Key": API_KEY} | headers, timeout=30
                )
            except httpx.HTTPError:
                self.answers[0] += 1  # the gateway is gone: whether it was accepted is not known
                self._ending.wait(0.05)
            else:
                self.answers[answer.status_code] += 1
                if answer.status_code == DURABLE:
                    break
                if answer.status_code != REFUSED or "retry-after" not in answer.headers:
                    self.failures.append(f"{path} was answered {answer.status_code}: {answer.text}")
                    return
                self._ending.wait(0.1)
            if time.monotonic() > deadline:
                self.failures.append(f"{path} was not accepted in time: {dict(self.answers)}")
                return
        with self._lock:
            for sensor, times in held.items():
                self.expected.setdefault(sensor, {}).update({to_us(at): value(at) for at in times})


def value(moment: datetime) -> float:
    """The value of the reading of that moment: a re-sent one is a duplicate."""
    return to_us(moment) // 1_000_000 % 1_000_003 / 7


def raw_values(server: Server, sensor: str) -> dict[int, float]:
    """The raw history of a sensor; fails on a time that comes twice."""
    found: dict[int, float] = {}
    cursor: dict[str, str] = {}
    while True:
        page = history(server, sensor, "raw", limit="50000", **cursor)
        for row in page["data"]:
            at_us = to_us(datetime.fromisoformat(row["time"]))
            assert at_us not in found, f"{sensor} has {row['time']} twice"
            found[at_us] = row["value"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


def history(server: Server, sensor: str, period: str, **parameters: str) -> dict:  # type: ignore[type-arg]
    """One page of a sensor's history."""
    path = f"/analytics/sensor/{sensor.replace('/', '%2F')}/history"
    answer = server.client.get(path, params={"period": period} | parameters)
    assert answer.status_code == 200, answer.text
    page: dict = answer.json()  # type: ignore[type-arg]
    return page


def check(server: Server, loads: Sequence[Load]) -> dict[str, int]:
    """Everything answered 201 is stored once, the accounting is exact, and rollups equal a recomputation from raw."""
    totals = settled(server)
    kept = 0
    for load in loads:
        for sensor, readings in load.expected.items():
            found = raw_values(server, sensor)
            assert found == pytest.approx(readings), sensor
            check_hours(server, sensor, readings)
            kept += len(found)
    assert (totals["stored"], totals["updated"], totals["quarantined"]) == (kept, 0, 0), totals
    return totals


def check_hours(server: Server, sensor: str, readings: dict[int, float]) -> None:
    """The hourly rollups of the sensor equal a recomputation."""
    hours: dict[int, list[float]] = {}
    minutes: dict[int, set[int]] = {}
    for at_us, number in readings.items():
        hours.setdefault(at_us // HOUR_US * HOUR_US, []).append(number)
        minutes.setdefault(at_us // HOUR_US * HOUR_US, set()).add(at_us // MINUTE_US)
    rows = {to_us(datetime.fromisoformat(row["time"])): row for row in history(server, sensor, "hour")["data"]}
    assert rows.keys() == hours.keys(), sensor
    for start_us, values in hours.items():
        row, exact = rows[start_us], moments(values)
        assert (row["sample_count"], row["active_minutes"]) == (exact.count, len(minutes[start_us])), (sensor, row)
        wanted = [exact.average, exact.min, exact.max, exact.stddev, *(percentile_cont(values, p) for p in (0.5, 0.95))]
        names = ("avg_value", "min_value", "max_value", "stddev_value", "median_value", "p95_value")
        assert [row[name] for name in names] == pytest.approx(wanted), (sensor, row)


def settled(server: Server, seconds: float = DEADLINE_SECONDS * 2) -> dict[str, int]:
    """The totals once nothing is pending and the queue is empty."""

    def totals() -> dict[str, int] | None:
        now = server.accounting()
        if now["pending"]:
            return None
        detailed = server.client.get("/health/detailed").json()
        return now if detailed["services"]["queue"].get("claims") == 0 else None

    return wait_until(totals, seconds, pause=0.1)
