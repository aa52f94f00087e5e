"""The data directory of the previous release: it answers what it answered, and goes on; a newer one is refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest
from harness import Server, esm_equipment, esm_reading
from release import (
    EQUIPMENT,
    EXPECTED,
    PASSWORD_OF_MARIA,
    RANGE,
    SENSORS,
    SETTINGS,
    START,
    WAITING,
    answers,
    differences,
    unpack,
)  # fmt: skip

SIZE_BYTES_MAX = 400_000


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, object]]]:
    """The old data under the program of today, with what waited worked off."""
    data_dir, expected = unpack(tmp_path_factory.mktemp("previous"))
    server = Server(data_dir, **SETTINGS).start()
    try:
        server.settled()
        yield server, expected
        assert server.stop() == 0
        assert "Traceback" not in server.log
    finally:
        server.stop()


Upgraded = tuple[Server, dict[str, object]]


def test_every_question_has_the_answer_that_it_had(upgraded: Upgraded) -> None:
    server, expected = upgraded
    assert list(differences(answers(server), expected["answers"])) == []


def test_what_was_accepted_and_not_worked_off_is_stored(upgraded: Upgraded) -> None:
    server, expected = upgraded
    before, waiting = expected["accounting"], expected["waiting"]
    assert isinstance(before, dict)
    assert isinstance(waiting, dict)
    for batch_id, readings in waiting.items():
        batch = server.get(f"/telemetry/batches/{batch_id}")
        assert (batch["state"], batch["stored"]) == ("stored", readings)
    totals = server.settled()
    assert totals["received"] == before["received"] + sum(waiting.values())
    assert totals["stored"] == before["stored"] + sum(waiting.values())
    raw = server.get(f"/analytics/equipment/{WAITING}/history", period="raw", **RANGE)["data"]
    assert [row["value"] for row in raw] == [n / 7 for n in range(40)]


def test_users_and_keys_are_let_in(upgraded: Upgraded) -> None:
    server, expected = upgraded
    login = server.anonymous.post("/auth/login", json={"username": "maria", "password": PASSWORD_OF_MARIA})
    assert login.status_code == 200
    by_key = server.anonymous.get("/auth/me", headers={"X-API-Key": str(expected["key"])})
    assert by_key.json()["scopes"] == ["ingest", "read"]


def test_it_goes_on(upgraded: Upgraded) -> None:
    """Corrections of old readings, repeated ones and new ones; and rollups follow."""
    server, _ = upgraded
    history = f"/analytics/sensor/{SENSORS[5]}/history"
    first, second = START + timedelta(minutes=7), START + timedelta(hours=6, minutes=7)
    before = {row["time"]: row for row in server.get(history, period="day", **RANGE)["data"]}
    raw = {row["time"]: row["value"] for row in server.get(history, period="raw", **RANGE)["data"]}
    times = sorted(raw)
    readings = [
        esm_reading(SENSORS[5], raw[times[0]] + 1000, first, sensor_bateria_pct=50, sensor_sinal_rssi=-60),
        esm_reading(SENSORS[5], 3.25, second + timedelta(minutes=1)),
    ]
    answer = server.stored([esm_equipment(EQUIPMENT[1], readings)])
    assert (answer["updated"], answer["stored"]) == (1, 1)
    again = server.stored([esm_equipment(EQUIPMENT[1], readings)])
    assert (again["duplicate"], again["stored"]) == (2, 0)
    day = server.get(history, period="day", **RANGE)["data"][0]
    was = before[day["time"]]
    assert day["sample_count"] == was["sample_count"] + 1
    values = [value for time, value in raw.items() if value is not None and time < "2026-10-02"]
    expected = [1000.0, 3.25, *values]
    assert day["avg_value"] * day["sample_count"] == pytest.approx(sum(expected))


def newer_catalog(data_dir: Path) -> None:
    with sqlite3.connect(data_dir / "catalog.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()


def newer_store(data_dir: Path) -> None:
    with duckdb.connect(str(data_dir / "readings.duckdb")) as connection:
        connection.execute("UPDATE marks SET format_version = 9999")


NEWER: dict[str, Callable[[Path], None]] = {"catalog": newer_catalog, "readings": newer_store}


@pytest.mark.parametrize("what", NEWER)
def test_data_of_a_newer_release_stops_the_start_with_a_clear_message(what: str, tmp_path: Path) -> None:
    data_dir, _ = unpack(tmp_path)
    NEWER[what](data_dir)
    said = Server(data_dir, **SETTINGS).refuse()
    assert "Traceback" not in said
    assert "error: " in said
    assert "9999" in said or "version" in said


def test_the_fixture_is_small() -> None:
    assert sum(path.stat().st_size for path in EXPECTED.parent.iterdir()) < SIZE_BYTES_MAX
