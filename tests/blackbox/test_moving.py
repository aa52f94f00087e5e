"""`export --everything` and `import --everything`: another data directory, the same installation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import PASSWORD, Server, command, esm_reading, hours_ago, new_uuid, running, stamp, wait_until

FREEZER, PROBE, DOOR = new_uuid(), new_uuid(), new_uuid()
STARTED_WITH_KEYS = {"api_key": "None", "api_key_ws": "None"}
"""No static keys: what is let in is in the catalog."""


WINDOW = {"start_date": stamp(hours_ago(24 * 9)), "end_date": stamp(hours_ago(1))}


class Left:
    """The installation that is left, stopped, and what it answered."""

    def __init__(self, server: Server, archive: Path) -> None:
        self.server = server
        self.archive = archive
        self.key = ""
        self.token = ""
        self.too_old = ""
        self.answers: dict[str, Any] = {}


def client_of(server: Server, **headers: str) -> httpx.Client:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Client(base_url=server.url + "/api/v1", timeout=60, headers=fields)


def rounded(document: Any) -> Any:
    """The document without the last bits of its numbers, which depend on who adds up."""
    if isinstance(document, float):
        return round(document, 9)
    if isinstance(document, dict):
        return {name: rounded(value) for name, value in document.items()}
    return [rounded(value) for value in document] if isinstance(document, list) else document


def answers(client: httpx.Client) -> dict[str, Any]:
    """What anybody can ask, but for what depends on the moment."""
    found: dict[str, Any] = {}
    for path, query in [
        (f"/analytics/equipment/{FREEZER}/history", WINDOW | {"period": "raw"}),
        (f"/analytics/equipment/{FREEZER}/history", WINDOW | {"period": "hour"}),
        (f"/analytics/equipment/{FREEZER}/history", WINDOW | {"period": "day"}),
        (f"/analytics/sensor/{PROBE}/history", WINDOW | {"period": "hour"}),
        ("/sensor/station/latest", {}),
        ("/equipment", {}),
        ("/telemetry/batches", {}),
        ("/telemetry/quarantine", {}),
        ("/auth/me", {}),
        ("/keys", {}),
    ]:
        answer = client.get(path, params=query)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        document = answer.json()
        if isinstance(document, dict):
            document.pop("complete_until", None)
        found[f"{path} {query.get('period', '')}"] = rounded(document)
    accounting = client.get("/telemetry/accounting").json()
    found["accounting"] = accounting["all_time"]
    return found


def live(server: Server, left: Left) -> None:
    """Some readings of several days, one that is set aside, a single one, a user and a key."""
    admin = server.login()
    readings = [
        esm_reading(sensor, round(i * 0.37, 2), hours_ago(2 + i * 1.5), sensor_tipo="temperatura")
        for i in range(100)
        for sensor in (PROBE, DOOR)
    ]
    readings.append(esm_reading(PROBE, 99.0, hours_ago(24 * 40)))
    body = [{"equip_uuid": FREEZER, "equip_nome": "Freezer 1", "sensor": readings}]
    answer = server.stored(body, client=admin)
    assert (answer["stored"], answer["quarantined"]) == (200, 1)
    left.too_old = answer["batch_id"]
    assert server.stored(body, client=admin)["duplicate"] == 200
    key = admin.post("/keys", json={"name": "gateway", "scopes": ["ingest", "read"]}).json()
    left.key = key["key"] if "key" in key else key["secret"]
    with client_of(server, X_API_Key=left.key) as client:
        single = {"temperature": 21.5, "sensor_id": "station"}
        assert client.post("/temperature_reading", json=single).status_code == 201
    server.client.headers["Authorization"] = admin.headers["Authorization"]
    server.settled()
    left.token = admin.headers["Authorization"]
    left.answers = answers(admin)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    folder = tmp_path_factory.mktemp("moving")
    with running(folder / "old", **STARTED_WITH_KEYS) as server:
        left = Left(server, folder / "archive")
        live(server, left)
        refused = command("export", left.archive, "--everything", server=server)
        assert refused.returncode == 1
        assert "data_dir_in_use" in refused.stderr
        assert not left.archive.exists()
        assert server.stop() == 0
        exported = command("export", left.archive, "--everything", server=server)
        assert exported.returncode == 0, exported.stderr
        assert "202 readings" not in exported.stderr
        assert "201 readings of" in exported.stdout
        yield left


def test_the_moved_installation_answers_lets_in_and_goes_on_as_before(left: Left, tmp_path: Path) -> None:
    moved = command("import", left.archive, "--everything", "--data-dir", tmp_path / "new")
    assert moved.returncode == 0, moved.stdout + moved.stderr
    assert "totals as before: 403 received" in moved.stdout
    with running(tmp_path / "new", **STARTED_WITH_KEYS) as server:
        with client_of(server, Authorization=left.token) as old_token:
            assert answers(old_token) == left.answers, "the token of before is let in, too"
        with client_of(server, X_API_Key=left.key) as client:
            single = {"temperature": 22.5, "sensor_id": "station"}
            assert client.post("/temperature_reading", json=single).status_code == 201
        admin = server.login()
        replayed = admin.post(f"/telemetry/batches/{left.too_old}/replay", headers={"Prefer": "backfill"})
        assert replayed.status_code == 202, replayed.text

        def stored() -> bool:
            return bool(admin.get(f"/telemetry/batches/{left.too_old}").json()["state"] == "stored")

        wait_until(stored)
        server.client.headers["Authorization"] = admin.headers["Authorization"]
        totals = server.settled()
        assert (totals["received"], totals["stored"], totals["quarantined"]) == (404, 203, 1)


def test_an_import_does_not_go_into_an_installation_in_use(left: Left) -> None:
    refused = command("import", left.archive, "--everything", server=left.server)
    assert refused.returncode == 1
    assert "in use" in refused.stderr
    assert "(conflict)" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_unfinished_import_keeps_servers_from_starting_until_it_is_finished(left: Left, tmp_path: Path) -> None:
    archive = Path(shutil.copytree(left.archive, tmp_path / "archive"))
    payload = next(path for path in sorted((archive / "payloads").rglob("*.gz")))
    content = payload.read_bytes()
    payload.write_bytes(content[:-3])
    arguments = ("import", archive, "--everything", "--data-dir", tmp_path / "new")
    broken = command(*arguments)
    assert broken.returncode == 1
    assert "(corrupt)" in broken.stderr
    assert payload.name in broken.stderr
    assert "import DIRECTORY --everything" in Server(tmp_path / "new").refuse()
    payload.write_bytes(content)
    mended = command(*arguments)
    assert mended.returncode == 0, mended.stderr
    assert "gone on with" in mended.stdout
    with running(tmp_path / "new", **STARTED_WITH_KEYS) as server:
        assert answers(server.login()) == left.answers


def test_an_archive_that_is_none_is_told(tmp_path: Path) -> None:
    got = command("import", tmp_path, "--everything", "--data-dir", tmp_path / "new")
    assert got.returncode == 1
    assert "no manifest.json" in got.stderr
    assert not (tmp_path / "new").exists()
    got = command("export", tmp_path / "archive", "--everything", "--data-dir", tmp_path / "nowhere")
    assert got.returncode == 1
    assert "there is no data directory" in got.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "x", "--without-payloads"),
        ("export", "x.csv", "--data-dir", "d"),
        ("import", "x.csv", "--config", "c.toml"),
        ("import", "a", "b", "--everything"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    got = command(*arguments)
    assert got.returncode == 2, got.stderr
    assert "--everything" in got.stderr


def test_the_manifest_says_what_is_in_it(left: Left) -> None:
    manifest = json.loads((left.archive / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["accounting"]["received"] == 403
    rows = {file["path"]: file["rows"] for file in manifest["files"]}
    assert rows["catalog/users.jsonl.gz"] == 1
    assert rows["catalog/api_keys.jsonl.gz"] >= 1
    assert PASSWORD not in (left.archive / "manifest.json").read_text()
