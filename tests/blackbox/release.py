"""A data directory as an earlier release left it: how it is made, and what must be answered from it for ever.

scripts/make_release_fixture.py makes `tests/data/previous-release` with what is here; test_previous_release.py opens it
with the program of today.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness import Server, esm_equipment, esm_reading, stamp

FIXTURE = Path(__file__).parents[1] / "data" / "previous-release"
ARCHIVE = FIXTURE / "data.tar.xz"
EXPECTED = FIXTURE / "expected.json"
SETTINGS = {"SENSORKEEP_RAW_RETENTION_DAYS": 0, "SENSORKEEP_PAYLOAD_RETENTION_DAYS": 0}
"""Nothing may be too old, whenever the tests run."""

START = datetime(2026, 10, 1, tzinfo=UTC)
RANGE: dict[str, object] = {"start_date": "2026-09-25T00:00:00Z", "end_date": "2026-10-10T00:00:00Z"}
EQUIPMENT = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(2)]
SENSORS = [f"00000000-0000-4000-8000-0000000001{n:02}" for n in range(6)]
WAITING = "00000000-0000-4000-8000-000000000009"
SINGLE = "fixture-kitchen"
PASSWORD_OF_MARIA = "a passphrase of an earlier release 1"
CHANGING = {"complete_until", "state", "online", "next_cursor", "uptime_seconds"}
"""Members of answers that depend on the time of asking."""


def fill(server: Server) -> str:
    """A little of everything; the secret of a key."""
    for day in range(3):
        server.stored([_equipment(number, day) for number in range(2)])
    first = SENSORS[0]
    server.stored([esm_equipment(EQUIPMENT[0], [esm_reading(first, 99.5, START)])])  # a correction
    late = [esm_reading(first, -1.0, START - timedelta(days=2)), esm_reading(first, 1.0, "no time")]
    server.stored([esm_equipment(EQUIPMENT[0], late)])
    for minute in range(3):
        body = {"sensor_id": SINGLE, "temperature": 20 + minute / 3, "humidity": 50 + minute,
                "timestamp": stamp(START + timedelta(minutes=minute))}  # fmt: skip
        assert server.client.post("/temperature_reading", json=body).status_code == 201
    general = {"sensor_id": "fixture-station", "timestamp": stamp(START), "values": {"wind speed": 3.5, "co2": 415},
               "status": "ok", "metadata": {"battery": 91}}  # fmt: skip
    assert server.client.post("/readings", json=general).status_code == 201
    with server.login() as admin:
        user = {"username": "maria", "password": PASSWORD_OF_MARIA, "scopes": ["read"]}
        assert admin.post("/users", json=user).status_code == 201
        key = admin.post("/keys", json={"name": "fixture", "scopes": ["ingest", "read"]})
        assert key.status_code == 201
    server.settled()
    secret: str = key.json()["secret"]
    return secret


def leave_waiting(server: Server) -> dict[str, int]:
    """Batches that are accepted and not worked off: their readings by batch id. The server is to be killed then."""
    bulk = [esm_reading(WAITING, n / 7, START + timedelta(minutes=n)) for n in range(40)]
    accepted = server.bulk([esm_equipment(WAITING, bulk, equip_nome="Waits")])
    small = server.client.post(
        "/readings", json=[{"sensor_id": "fixture-waiting", "timestamp": stamp(START), "values": {"x": 1, "y": 2}}]
    )
    assert (accepted.status_code, small.status_code) == (201, 201)
    assert server.accounting()["pending"] == 42
    return {accepted.json()["batch_id"]: 40, small.json()["batch_id"]: 2}


def _equipment(number: int, day: int) -> dict[str, Any]:
    readings = []
    for sensor in SENSORS[3 * number : 3 * number + 3]:
        for hour in range(0, 24, 6):
            moment = START + timedelta(days=day, hours=hour, minutes=7 * number)
            value = (int(sensor[-2:]) + 1) * (day + 1) + hour / 24
            readings.append(
                esm_reading(sensor, value, moment, sensor_nome=f"Sonde {sensor[-1]} °C", sensor_tipo="temperatura",
                            sensor_unidade="°C", sensor_bateria_pct=50 + hour, sensor_sinal_rssi=-60 - hour)
            )  # fmt: skip
        moment = START + timedelta(days=day, hours=1)
        readings.append(esm_reading(sensor, None, moment, sensor_telemetria="unavailable"))
    described = {"equip_nome": f"Freezer {number}", "equip_local": "Loja", "equip_intervalo_coleta": 60}
    return esm_equipment(EQUIPMENT[number], readings, **described)


def answers(server: Server) -> dict[str, Any]:
    """What is asked for, by its path, without what depends on the time of asking."""
    asked: dict[str, dict[str, object]] = {}
    for uuid in EQUIPMENT:
        asked[f"/equipment/{uuid}"] = {}
        for period in ("raw", "hour", "day"):
            asked[f"/analytics/equipment/{uuid}/history?{period}"] = {"period": period, "limit": 5000} | RANGE
    for name in (f"{SINGLE}%2Ftemperature", "fixture-station%2Fwind%20speed", "fixture-station%2Fco2"):
        asked[f"/sensors/{name}"] = {}
        asked[f"/analytics/sensor/{name}/history?raw"] = {"period": "raw"} | RANGE
    for name in (SINGLE, "fixture-station", SENSORS[0]):
        asked[f"/sensor/{name}/latest"] = {}
    asked["/telemetry/quarantine"] = {}
    return {path: _lasting(server.get(path.partition("?")[0], **query)) for path, query in asked.items()}


def _lasting(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {name: _lasting(value) for name, value in answer.items() if name not in CHANGING}
    return [_lasting(value) for value in answer] if isinstance(answer, list) else answer


def differences(found: Any, expected: Any, path: str = "") -> Iterator[str]:
    """Where two answers differ by more than the rounding of their last digits: whether a bucket is kept or computed
    when it is asked for decides in what order numbers are added."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted(found.keys() | expected.keys()):
            yield from differences(found.get(name), expected.get(name), f"{path}.{name}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{path}[{number}]")
    elif isinstance(found, float) and isinstance(expected, float):
        if not math.isclose(found, expected, rel_tol=1e-12):
            yield f"{path}: {found} instead of {expected}"
    elif found != expected:
        yield f"{path}: {found} instead of {expected}"


def pack(data_dir: Path, expected: dict[str, Any]) -> None:
    """Write the fixture."""
    FIXTURE.mkdir(parents=True, exist_ok=True)
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        archive.add(data_dir, arcname="data", filter=_anonymous)
    EXPECTED.write_text(json.dumps(expected, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if entry.name.endswith(("/lock", "-shm")) else entry


def unpack(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The data directory of the fixture, in a new folder, and what is expected of it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    expected: dict[str, Any] = json.loads(EXPECTED.read_text("utf-8"))
    return folder / "data", expected
