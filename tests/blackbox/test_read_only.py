"""A data directory that becomes read-only under a running server: refusals that say so, nothing lost, and it heals."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, running, wait_until

REFUSALS = 3


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write to the folder and what is in it, root neither, for the time of the block: files that are open
    too, as on a disk that the system has made read-only. Skips the test where that cannot be done.

    All but what SQLite maps into memory: who writes to that then is ended by the system (see docs/RELIABILITY.md).
    """
    paths = [str(path) for path in (folder, *folder.rglob("*")) if not path.name.endswith("-shm")]
    if subprocess.run(["chattr", "+i", *paths], capture_output=True, check=False).returncode != 0:
        subprocess.run(["chattr", "-f", "-i", *paths], capture_output=True, check=False)
        pytest.skip("neither root nor a file system with immutable files")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-f", "-i", *paths], capture_output=True, check=False)


def send(server: Server, sensor: str, minutes: int) -> httpx.Response:
    """One reading by the bulk form, so many minutes after the last full hour."""
    moment = hours_ago(3).replace(minute=minutes)
    return server.client.post("/telemetry/bulk", json=[esm_equipment(sensor, [esm_reading(sensor, minutes, moment)])])


def single(server: Server) -> httpx.Response:
    return server.client.post("/temperature_reading", json={"sensor_id": "read-only", "temperature": 1.0})


def test_a_data_directory_that_becomes_read_only_refuses_and_heals_without_a_restart(data_dir: Path) -> None:
    sensor = new_uuid()
    with running(data_dir) as server:
        assert send(server, sensor, 0).status_code == 201
        assert single(server).status_code == 201
        before = server.settled()
        with read_only(data_dir):
            for number in range(REFUSALS):
                for answer in (send(server, sensor, 1 + number), single(server)):
                    problem(answer, 503, "dependency_down")
                    assert int(answer.headers["Retry-After"]) > 0
            health = wait_until(lambda: _degraded(server))
            assert health.status_code == 503
            assert server.anonymous.get("/ping").status_code == 200
            assert server.get(f"/analytics/sensor/{sensor}/history", period="raw")["data"], "it still answers"
        wait_until(lambda: server.anonymous.get("/health").status_code == 200)
        assert send(server, sensor, 10).status_code == 201
        assert single(server).status_code == 201
        after = server.settled()
        assert after["stored"] == before["stored"] + 2
        raw = server.get(f"/analytics/sensor/{sensor}/history", period="raw")["data"]
        assert [row["value"] for row in raw] == [0.0, 10.0]
        assert server.stop() == 0
    assert "Traceback" not in server.log


def _answers(server: Server) -> bool:
    return server.client.get("/telemetry/accounting").status_code == 200


def _degraded(server: Server) -> httpx.Response | None:
    answer = server.anonymous.get("/health")
    return answer if answer.json()["status"] == "degraded" else None


def test_what_was_accepted_before_is_stored_once_it_can_be_written_again(data_dir: Path) -> None:
    sensor = new_uuid()
    server = Server(data_dir, SENSORKEEP_GATHER_SECONDS=5).start()
    try:
        assert send(server, sensor, 0).status_code == 201
        with read_only(data_dir):
            wait_until(lambda: '"worker_waits"' in server.log)
        assert wait_until(lambda: server.settled() if _answers(server) else None)["stored"] == 1
    finally:
        server.stop()
