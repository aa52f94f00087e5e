"""The command line against a real server: the README's commands, accounts, files, a made-up fleet, and errors."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import vega_datasets
from harness import API_KEY, PASSWORD, Server, command, running, wait_until

SEATTLE = Path(vega_datasets.__file__).parent / "_data" / "seattle-temps.csv"
README = Path(__file__).parents[2] / "README.md"
ADMIN = {"SENSORKEEP_USERNAME": "admin", "SENSORKEEP_PASSWORD": PASSWORD}
READER = {"SENSORKEEP_CLIENT_KEY": API_KEY}
DEAD_URL = "http://127.0.0.1:9"
COLUMNS = ("--map", "time=date", "--map", "temperature=temp", "--sensor-id", "seattle", "--timezone", "UTC")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose totals are those of these tests."""
    with running(tmp_path_factory.mktemp("cli") / "data") as server:
        yield server


def assert_says(code: int, *, got: subprocess.CompletedProcess[str], words: str) -> None:
    """A command ended with this code, said these words, and showed no traceback."""
    output = got.stdout + got.stderr
    assert got.returncode == code, output
    assert re.search(words, output), output
    assert "Traceback" not in output, output


def add_key(server: Server, name: str, *scopes: str) -> tuple[str, str]:
    """(id, secret) of a new key."""
    added = command("key", "add", name, *(f"--scope={scope}" for scope in scopes), server=server)
    assert_says(0, got=added, words=f"scopes: {', '.join(scopes)}")
    return re.findall(r"key id: (\S+)", added.stdout)[0], re.findall(r"secret: (\S+)", added.stdout)[0]


def test_a_key_is_issued_works_at_once_is_listed_and_revoked(own: Server) -> None:
    key_id, secret = add_key(own, "kitchen sensor", "ingest", "read")
    other_id, other_secret = add_key(own, "lost", "read")
    with httpx.Client(base_url=own.url + "/api/v1", headers={"X-API-Key": secret}) as client:
        body = {"temperature": 25.5, "humidity": 60.2, "pressure": 1012.5, "sensor_id": "cli_001"}
        assert client.post("/temperature_reading", json=body).status_code == 201
        assert client.get("/sensor/cli_001/latest").json()["temperature"] == 25.5
        assert_says(0, got=command("key", "revoke", other_id, server=own), words=f"revoked {other_id}")
        listed = command("key", "list", server=own)
        assert_says(0, got=listed, words=f"{key_id}\tkitchen sensor\tingest read")
        assert other_id not in listed.stdout
        assert secret not in listed.stdout + listed.stderr
        refused = client.get("/sensor/cli_001/latest", headers={"X-API-Key": other_secret})
        assert refused.status_code == 401
    assert_says(1, got=command("key", "revoke", other_id, server=own), words="not_found")
    assert_says(
        1, got=command("key", "add", "x", "--scope", "everything", server=own), words="Scopes are one or more of"
    )


def login_status(server: Server, username: str, password: str) -> int:
    return server.anonymous.post("/auth/login", json={"username": username, "password": password}).status_code


def test_a_user_is_added_logs_in_gets_a_new_password_and_is_removed(own: Server) -> None:
    first, second = "a first good password", "a second good password"
    added = command("user", "add", "maria", "--scope", "read", "--password-stdin", server=own, text=first + "\n")
    assert_says(0, got=added, words="added maria with scopes read")
    assert first not in added.stdout + added.stderr
    assert login_status(own, "maria", first) == 200
    assert_says(0, got=command("user", "list", server=own), words="maria\tread\tyes")
    changed = command("user", "password", "maria", "--password-stdin", server=own, text=second + "\n")
    assert_says(0, got=changed, words="changed the password of maria")
    assert login_status(own, "maria", second) == 200
    assert login_status(own, "maria", first) == 401
    assert_says(0, got=command("user", "remove", "maria", server=own), words="removed maria")
    assert login_status(own, "maria", second) == 401
    generated = command("user", "add", "joana", server=own)
    assert_says(0, got=generated, words="shown only now")
    assert login_status(own, "joana", re.findall(r"password: (\S+)", generated.stdout)[0]) == 200


def test_doctor_finds_nothing_wrong_beside_a_running_server_and_without_one(own: Server, data_dir: Path) -> None:
    beside = command("doctor", server=own)
    assert_says(0, got=beside, words="data\tok")
    assert_says(0, got=beside, words="decoder\tok\t(compiled|in Python)")
    assert_says(0, got=command("doctor", "--data-dir", data_dir), words="does not exist yet")
    with running(data_dir) as server:
        assert server.stop() == 0
    healthy = command("doctor", "--data-dir", data_dir)
    assert_says(0, got=healthy, words="accounting\tok")
    assert "error" not in healthy.stdout


def test_doctor_exits_with_1_where_a_store_is_damaged(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "queue.sqlite").write_bytes(b"\xff" * 10_000)
    assert_says(1, got=command("doctor", "--data-dir", data_dir), words="data\terror\t.*queue.sqlite.* damaged")


def temperatures(path: Path, time: str, value: str) -> list[tuple[str, float]]:
    """The rows of a CSV file as (time to the minute, value)."""
    with path.open(newline="") as file:
        return [(row[time].replace("/", "-").replace("T", " ")[:16], float(row[value])) for row in csv.DictReader(file)]


@pytest.mark.timeout(150)
def test_a_year_is_imported_exported_the_same_and_imported_again_without_a_change(
    archive: Server, tmp_path: Path
) -> None:
    source = tmp_path / "seattle-temps.csv"
    shutil.copy(SEATTLE, source)
    before = archive.settled()
    refused = command("import", source, *COLUMNS, "--backfill", server=archive, **READER)
    assert_says(1, got=refused, words="forbidden")
    imported = command("import", source, *COLUMNS, "--backfill", server=archive, **ADMIN)
    assert_says(0, got=imported, words="8759 rows read: 8759 readings received, 0 quarantined")
    after = archive.settled()
    assert (after["stored"] - before["stored"], after["received"] - before["received"]) == (8759, 8759)

    exported = tmp_path / "out.csv"
    whole = ("--equipment", "seattle", "--start", "2010-01-01", "--end", "2011-01-01")
    assert_says(0, got=command("export", exported, *whole, server=archive, **READER), words="8759 rows of 1 equipment")
    assert temperatures(exported, "time", "value") == temperatures(source, "date", "temp")
    assert_says(1, got=command("export", exported, *whole, server=archive, **READER), words="already_exists")
    days = tmp_path / "days.jsonl"
    assert_says(0, got=command("export", days, "--period", "day", *whole, server=archive, **READER), words="365 rows")
    assert sum(json.loads(line)["sample_count"] for line in days.read_text().splitlines()) == 8759

    again = command("import", exported, "--backfill", server=archive, **ADMIN)
    assert_says(0, got=again, words="0 stored, 0 updated, 8759 duplicate")
    assert archive.settled()["stored"] == after["stored"]


def test_a_fleet_with_faults_ends_with_nothing_queued_and_true_accounts(own: Server) -> None:
    before = own.settled()
    options = ("--batches", 30, "--sensors", 40, "--speed", 0, "--seed", 7)
    trouble = ("--faults", 0.2, "--late", 0.05, "--duplicates", 0.05, "--corrections", 0.02)
    ran = command("simulate", *options, *trouble, server=own, **ADMIN)
    assert_says(0, got=ran, words="0 quarantined")
    assert " 0 objects unsent" in ran.stdout
    assert "faults made on purpose" in ran.stdout
    made = {
        name: int(re.findall(rf"(\d+) {name}", ran.stdout)[0]) for name in ("readings in", "fresh", "late", "copies")
    }
    totals = own.settled()
    assert totals["quarantined"] == before["quarantined"]
    assert totals["stored"] - before["stored"] == made["fresh"] + made["late"]
    assert totals["received"] - before["received"] >= made["readings in"]  # unheard answers are sent again


def test_quarantined_readings_are_replayed_once_they_can_be_used(own: Server) -> None:
    old = (datetime.now(UTC) - timedelta(days=60)).isoformat()
    sensors = [
        {"sensor_uuid": "replayed", "valor": 1.0, "timestamp": old},
        {"sensor_uuid": "replayed", "valor": 2.0, "timestamp": datetime.now(UTC).isoformat()},
    ]
    answer = own.client.post("/telemetry/bulk", json=[{"equip_uuid": "replayed", "sensor": sensors}]).json()
    assert answer["quarantined"] == 1
    own.settled()
    assert_says(1, got=command("replay", answer["batch_id"], server=own, **READER), words="forbidden")
    replayed = command("replay", answer["batch_id"], "--backfill", server=own, **ADMIN)
    assert_says(0, got=replayed, words=f"replaying {answer['batch_id']}")
    path = f"/telemetry/batches/{answer['batch_id']}"
    batch = wait_until(lambda: (found := own.client.get(path).json())["state"] == "stored" and found)
    assert (batch["stored"], batch["quarantined"]) == (2, 0)
    assert_says(1, got=command("replay", answer["batch_id"], server=own, **ADMIN), words="conflict")
    assert_says(1, got=command("replay", "no-such-batch", server=own, **ADMIN), words="not_found")
    assert_says(0, got=command("replay", "--all", server=own, **ADMIN), words="nothing to replay|replaying")
    assert_says(2, got=command("replay", server=own, **ADMIN), words="nothing to replay")


def test_errors_are_readable_and_tell_by_their_exit_code(own: Server, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(f"time,sensor_id,temperature\n{datetime.now(UTC).isoformat()},x,1.5\n,x,2.5\n")
    wrong_key = {"SENSORKEEP_CLIENT_KEY": "not-a-key-of-this-server"}
    assert_says(1, got=command("import", rows, server=own, **wrong_key), words="unauthenticated")
    assert_says(2, got=command("import", tmp_path / "absent.csv", server=own, **READER), words="absent.csv")
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert_says(2, got=command("import", picture, server=own, **READER), words="format")
    partly = command("import", rows, server=own, **READER)
    assert_says(1, got=partly, words="1 rows refused")
    assert (tmp_path / "rows.csv.refused.jsonl").exists()
    assert_says(2, got=command("export", tmp_path / "out.doc", server=own, **READER), words="format")
    assert_says(2, got=command("nonsense"), words="No such command")
    unknown = command("serve", SENSORKEEP_NONSENSE="1")
    assert_says(1, got=unknown, words="unknown setting SENSORKEEP_NONSENSE")
    assert_says(1, got=command("key", "list", "--data-dir", tmp_path / "nowhere"), words="no data directory")


def test_a_server_that_is_down_is_told_with_exit_code_3() -> None:
    # The other commands try for some 40 seconds before they say so.
    down = command("simulate", "--url", DEAD_URL, "--batches", 1, server=None, **ADMIN)
    assert_says(3, got=down, words="unreachable")


def test_the_commands_of_the_readme_work(own: Server) -> None:
    """Every shell block that speaks to the server, with its address and key put in."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    calls = [block for block in blocks if "curl" in block]
    assert len(calls) == 3
    for block in calls:
        script = "set -e\n" + block.replace("http://127.0.0.1:8000", own.url).replace("curl ", "curl -sS --fail ")
        ran = subprocess.run(
            ["sh", "-c", script], env=os.environ | {"KEY": API_KEY}, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}{ran.stderr}"
    history = own.client.get("/analytics/equipment/550e8400-e29b-41d4-a716-446655440000/history")
    assert [row["avg_value"] for row in history.json()["data"]] == [-18.4]
    assert own.client.get("/sensor/sensor_001/latest").json()["pressure"] == 1012.5
