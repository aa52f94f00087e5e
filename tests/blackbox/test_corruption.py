"""Damaged and unusable data: a bad batch is set aside; a start that could not be right says why and does not happen."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness import Server, running, wait_until
from small_disk import MIB, small_disk

from sensorkeep.model import external_uuid


def send_bulk(server: Server, sensor: str, readings: int) -> str:
    """A batch of readings of the last hours; its id."""
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    items = [
        {"sensor_uuid": sensor, "valor": float(i), "timestamp": (start + timedelta(seconds=i)).isoformat()}
        for i in range(readings)
    ]
    answer = server.client.post("/telemetry/bulk", json=[{"equip_uuid": "damage", "sensor": items}])
    assert answer.status_code == 201, answer.text
    batch_id: str = answer.json()["batch_id"]
    return batch_id


def payload_of(server: Server, batch_id: str) -> Path:
    (path,) = (server.data_dir / "payloads").rglob(f"{batch_id}.json.gz")
    return path


def raw_count(server: Server, sensor: str) -> int:
    answer = server.client.get(f"/analytics/sensor/{sensor}/history", params={"period": "raw"})
    assert answer.status_code == 200, answer.text
    return len(answer.json()["data"])


def test_a_damaged_payload_becomes_a_dead_letter_and_the_rest_goes_on(data_dir: Path) -> None:
    server = Server(data_dir, SENSORKEEP_GATHER_SECONDS=60).start()
    try:
        cut = send_bulk(server, external_uuid("cut"), 500)
        gone = send_bulk(server, external_uuid("gone"), 30)
        whole = send_bulk(server, external_uuid("whole"), 200)
        assert server.accounting()["pending"] == 730
        server.kill()  # the worker still gathers
        content = payload_of(server, cut).read_bytes()
        payload_of(server, cut).write_bytes(content[: len(content) // 2])
        payload_of(server, gone).unlink()
        server.settings["SENSORKEEP_GATHER_SECONDS"] = "0.05"
        server.start()
        totals = server.settled()
        assert (totals["received"], totals["stored"], totals["quarantined"]) == (730, 200, 530)
        for batch_id, reason in ((cut, "truncated"), (gone, "no longer kept")):
            batch = server.client.get(f"/telemetry/batches/{batch_id}").json()
            assert batch["state"] == "dead_letter"
            assert reason in batch["detail"]
        assert server.client.get(f"/telemetry/batches/{whole}").json()["state"] == "stored"
        dead = server.client.get("/telemetry/batches", params={"state": "dead_letter"}).json()["batches"]
        assert {batch["batch_id"] for batch in dead} == {cut, gone}
        assert raw_count(server, external_uuid("whole")) == 200
        assert '"dead_letter"' in server.log

        payload_of(server, cut).write_bytes(content)  # as restored from a backup
        with server.login() as admin:
            assert admin.post(f"/telemetry/batches/{cut}/replay").status_code == 202
        wait_until(lambda: server.accounting()["stored"] == 700)
        assert server.accounting()["quarantined"] == 30
        assert raw_count(server, external_uuid("cut")) == 500
    finally:
        server.stop()


def test_a_damaged_claim_is_told_and_the_rest_goes_on(data_dir: Path) -> None:
    """What becomes of its batch a day later: tests/unit/test_worker_housekeeping.py."""
    server = Server(data_dir, SENSORKEEP_GATHER_SECONDS=60).start()
    try:
        damaged = send_bulk(server, external_uuid("damaged"), 50)
        whole = send_bulk(server, external_uuid("whole"), 20)
        assert server.accounting()["pending"] == 70
        server.kill()
        with sqlite3.connect(data_dir / "queue.sqlite") as connection:
            ((number, claim),) = connection.execute(
                "SELECT seq, claim FROM claims WHERE instr(claim, CAST(? AS BLOB)) > 0", (damaged,)
            ).fetchall()
            flipped = claim[:-3] + bytes([claim[-3] ^ 4]) + claim[-2:]
            connection.execute("UPDATE claims SET claim = ? WHERE seq = ?", (flipped, number))
        connection.close()
        server.settings["SENSORKEEP_GATHER_SECONDS"] = "0.05"
        server.start()
        wait_until(lambda: server.accounting()["stored"] == 20)
        assert server.client.get(f"/telemetry/batches/{whole}").json()["state"] == "stored"
        assert server.client.get(f"/telemetry/batches/{damaged}").json()["state"] == "accepted"
        assert '"claim_damaged"' in server.log
        assert raw_count(server, external_uuid("whole")) == 20
    finally:
        server.stop()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that was used and closed."""
    data_dir = tmp_path_factory.mktemp("healthy") / "data"
    with running(data_dir) as server:
        send_bulk(server, external_uuid("kept"), 1_000)
        server.settled()
        assert server.stop() == 0
    return data_dir


def assert_clear(message: str, *names: str) -> None:
    """One readable error that names what is wrong."""
    assert "Traceback" not in message, message
    assert "error: " in message, message
    for name in names:
        assert name in message, message


@pytest.mark.parametrize("name", ["catalog.sqlite", "queue.sqlite", "readings.duckdb"])
@pytest.mark.parametrize("damage", ["overwritten", "truncated"])
def test_a_damaged_store_stops_the_start_with_a_message_that_names_the_file(
    healthy: Path, tmp_path: Path, name: str, damage: str
) -> None:
    data_dir = tmp_path / "data"
    copy_tree(healthy, data_dir)
    path = data_dir / name
    content = path.read_bytes()
    damaged = b"\xff" * 8192 + content[8192:] if damage == "overwritten" else content[: len(content) // 2 + 100]
    path.write_bytes(damaged)
    message = Server(data_dir).refuse()
    assert_clear(message, str(path), "damaged")
    assert path.read_bytes() == damaged, "a start that failed must leave the evidence as it was"


def copy_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def test_a_read_only_data_directory_stops_the_start_with_a_clear_message() -> None:
    with small_disk(32 * MIB) as disk:
        server = disk.server().start()
        send_bulk(server, external_uuid("kept"), 10)
        server.settled()
        assert server.stop() == 0
        disk.make_read_only()
        assert_clear(server.refuse(), str(disk.place), "Read-only")


def test_a_data_directory_that_is_a_file_stops_the_start_with_a_clear_message(data_dir: Path) -> None:
    data_dir.write_text("not a directory")
    assert_clear(Server(data_dir).refuse(), str(data_dir), "cannot be used")
    assert data_dir.read_text() == "not a directory"


def test_a_payload_folder_that_is_a_file_stops_the_start_with_a_clear_message(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "payloads").write_text("not a directory")
    assert_clear(Server(data_dir).refuse(), str(data_dir / "payloads"))
