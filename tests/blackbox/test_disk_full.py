"""A full disk: 503 with disk_full, nothing acknowledged is lost, and all is well again once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from harness import Server, wait_until
from small_disk import MIB, SmallDisk, small_disk

from sensorkeep.clock import to_us
from sensorkeep.model import external_uuid

SINGLES_MAX = 3_000
"""Single readings after which a full disk must have been noticed: their claims do not fit into a file's slack."""


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk(48 * MIB) as disk:
        yield disk


class Sender:
    """Sends numbered readings and keeps which were acknowledged; anything but 201 and a full disk is a failure."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=20)
        self._sent = 0
        self.acknowledged: dict[int, float] = {}
        self.sensor = external_uuid("full")

    def bulk(self, readings: int) -> bool:
        """One batch; whether it was acknowledged."""
        rows = self._rows(readings)
        items = [{"sensor_uuid": self.sensor, "valor": value, "timestamp": time} for time, value in rows]
        answer = self._server.client.post("/telemetry/bulk", json=[{"equip_uuid": "full", "sensor": items}])
        return self._check(answer, rows)

    def single(self) -> bool:
        """One reading in the general form; whether it was acknowledged."""
        rows = self._rows(1)
        body = {"sensor_id": "full-single", "timestamp": rows[0][0], "values": {"temperature": rows[0][1]}}
        return self._check(self._server.client.post("/readings", json=body), rows)

    def check_stored(self) -> None:
        """Every acknowledged reading is there once, and the accounts add up."""
        totals = self._server.settled()
        assert totals["quarantined"] == 0
        found = raw_values(self._server, self.sensor) | raw_values(self._server, "full-single%2Ftemperature")
        missing = self.acknowledged.keys() - found.keys()
        assert not missing, f"{len(missing)} of {len(self.acknowledged)} acknowledged readings are missing"
        assert {time_us: found[time_us] for time_us in self.acknowledged} == self.acknowledged
        assert totals["stored"] == len(found)

    def _rows(self, count: int) -> list[tuple[str, float]]:
        self._sent += count
        numbers = range(self._sent - count, self._sent)
        return [((self._start + timedelta(milliseconds=100 * i)).isoformat(), i / 7) for i in numbers]

    def _check(self, answer: httpx.Response, rows: list[tuple[str, float]]) -> bool:
        if answer.status_code == 201:
            self.acknowledged |= {to_us(datetime.fromisoformat(time)): value for time, value in rows}
            return True
        assert (answer.status_code, answer.json()["code"]) == (503, "disk_full"), answer.text
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["Content-Type"] == "application/problem+json"
        return False


def raw_values(server: Server, sensor: str) -> dict[int, float]:
    """The raw history of a sensor by time in microseconds; fails on a time that comes twice."""
    answer = server.client.get(f"/analytics/sensor/{sensor}/history", params={"period": "raw", "limit": 100_000})
    if answer.status_code == 404:
        return {}
    assert answer.status_code == 200, answer.text
    assert answer.json()["next_cursor"] is None
    times = [to_us(datetime.fromisoformat(row["time"])) for row in answer.json()["data"]]
    assert len(times) == len(set(times)), "a reading is there twice"
    return dict(zip(times, (row["value"] for row in answer.json()["data"]), strict=True))


def send_until_refused(sender: Sender) -> None:
    assert not all(sender.single() for _ in range(SINGLES_MAX)), "the full disk was never noticed"


def test_a_full_payload_store_refuses_bulk_and_keeps_taking_small_readings(disk: SmallDisk, data_dir: Path) -> None:
    with running_on(disk, data_dir, SENSORKEEP_OBJECT_STORE_URL=f"file://{disk.place}/payloads") as server:
        sender = Sender(server)
        assert sender.bulk(1_000)
        disk.fill()
        assert not sender.bulk(1_000)
        assert not sender.bulk(1)
        assert sender.single()  # it travels inside its claim, whose disk has room
        health = server.anonymous.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "degraded")
        disk.free()
        assert sender.bulk(1_000)
        sender.check_stored()
        wait_until(lambda: server.anonymous.get("/health").status_code == 200)


def test_a_full_queue_refuses_everything_and_leaves_no_payload(disk: SmallDisk, data_dir: Path) -> None:
    with running_on(disk, data_dir, SENSORKEEP_QUEUE_URL=f"sqlite://{disk.place}/queue.sqlite") as server:
        sender = Sender(server)
        assert sender.bulk(100)
        server.settled()
        disk.fill()
        send_until_refused(sender)
        payloads = stored_payloads(server)
        refused = sum(not sender.bulk(100) for _ in range(20))
        assert refused, "the queue took batches while its disk was full"
        assert len(stored_payloads(server)) == len(payloads) + 20 - refused
        disk.free()
        assert sender.bulk(100)
        assert sender.single()
        sender.check_stored()


def test_a_full_time_series_store_delays_and_loses_nothing(disk: SmallDisk, data_dir: Path) -> None:
    with running_on(disk, data_dir, SENSORKEEP_TSDB_URL=f"duckdb://{disk.place}/readings.duckdb") as server:
        sender = Sender(server)
        assert sender.bulk(1_000)
        server.settled()
        disk.fill()
        for _ in range(5):
            assert sender.bulk(16_000)  # durable in the payload store and the queue
        wait_until(lambda: '"worker_waits"' in server.log)
        assert server.accounting()["pending"] > 0
        assert sender.single()
        disk.free()
        sender.check_stored()
        assert server.anonymous.get("/health").status_code == 200


def test_a_full_catalog_loses_nothing(disk: SmallDisk, data_dir: Path) -> None:
    with running_on(disk, data_dir, SENSORKEEP_CATALOG_URL=f"sqlite://{disk.place}/catalog.sqlite") as server:
        sender = Sender(server)
        assert sender.bulk(100)
        assert sender.single()
        server.settled()
        disk.fill()
        # The claim is what is durable, and its disk has room: nothing is refused, the ledger catches up later.
        assert all(sender.single() for _ in range(50))
        assert all(sender.bulk(100) for _ in range(5))
        disk.free()
        wait_until(lambda: sender.bulk(100))
        sender.check_stored()
        assert server.client.get("/telemetry/batches", params={"state": "dead_letter"}).json()["batches"] == []


def test_everything_on_one_full_disk_loses_nothing_and_goes_on_without_a_restart(disk: SmallDisk) -> None:
    server = disk.server().start()
    try:
        sender = Sender(server)
        assert sender.bulk(5_000)
        disk.fill()
        send_until_refused(sender)
        assert not sender.bulk(5_000)
        assert server.anonymous.get("/ping").status_code == 200
        disk.free()
        assert sender.bulk(5_000)
        assert sender.single()
        sender.check_stored()
        assert server.stop() == 0, server.log[-2000:]
        server.start()
        sender.check_stored()
        assert "Traceback" not in server.log
    finally:
        server.stop()


def test_a_server_stopped_on_a_full_disk_has_everything_after_its_next_start(disk: SmallDisk) -> None:
    server = disk.server(SENSORKEEP_GATHER_SECONDS=30).start()
    try:
        sender = Sender(server)
        assert sender.bulk(5_000)
        disk.fill()
        send_until_refused(sender)
        server.kill()
        disk.free()
        server.start()
        sender.check_stored()
    finally:
        server.stop()


def stored_payloads(server: Server) -> list[Path]:
    return [path for path in (server.data_dir / "payloads").rglob("*.json.gz") if path.is_file()]


@contextmanager
def running_on(disk: SmallDisk, data_dir: Path, **settings: object) -> Iterator[Server]:
    """A server with its data on the usual disk but for the part that `settings` put on the small one. It must end
    cleanly."""
    server = disk.server(data_dir, **settings).start()
    try:
        yield server
        assert server.stop() == 0, server.log[-2000:]
    finally:
        server.stop()
