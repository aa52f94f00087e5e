"""One day of traffic, the same for every installation that it is played to: fresh, late, repeated and corrected."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from harness import Server, stamp

EQUIPMENT = [f"a0000000-0000-4000-8000-00000000000{i}" for i in range(3)]
SENSOR_IDS = ["balcony", "cellar"]
SEED = 20_261
MINUTES_PER_BATCH = 30


@dataclass(frozen=True)
class Request:
    """One POST: its path, its JSON, and how it is to be answered."""

    path: str
    document: Any
    status: int = 201


def sensor(equipment: int, number: int) -> str:
    return f"b0000000-0000-4000-8000-0000000000{equipment}{number}"


def start_of(now: datetime) -> datetime:
    """The day played: yesterday, from the start of an hour, so that its last hours are still open."""
    return now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=23)


def requests(start: datetime) -> Iterator[Request]:
    """The requests, in order. All figures come from one seed."""
    source = random.Random(SEED)
    held_back: list[Request] = []
    for number in range(24 * 60 // MINUTES_PER_BATCH - 2):
        first = start + timedelta(minutes=number * MINUTES_PER_BATCH)
        batch = Request("/telemetry/bulk", [_equipment(source, e, first) for e in range(3)])
        if number % 7 == 3:
            held_back.append(batch)  # it comes hours late
            continue
        yield batch
        if number % 5 == 0:
            yield batch  # the answer was lost, so it is sent again
        if number % 6 == 1:
            yield Request("/telemetry/bulk", [_correction(source, first)])
        for sensor_id in SENSOR_IDS:
            yield Request("/temperature_reading", _single(source, sensor_id, first))
        yield Request("/readings", _general(source, first))
        if number % 8 == 0:
            yield Request("/telemetry/bulk", [_partly_bad(first)])
            yield Request("/telemetry/bulk", [_wholly_bad()], 422)
    yield from held_back
    yield from held_back[:1]


def play(server: Server, start: datetime) -> None:
    """Send the day; each request waits until it is stored, so that the order is that of one careful sender."""
    for request in requests(start):
        answer = server.client.post(
            request.path,
            content=gzip.compress(json.dumps(request.document).encode()),
            headers={"Content-Encoding": "gzip", "Content-Type": "application/json", "Prefer": "wait=30"},
        )
        assert answer.status_code == request.status, answer.text


def answers(server: Server, start: datetime) -> dict[str, Any]:
    """What the installation answers about the day, without what only its own ids and clock decide."""
    span = {"start_date": stamp(start), "end_date": stamp(start + timedelta(hours=24))}
    asked: dict[str, Any] = {}
    equipment = [row["equipment_uuid"] for row in server.get("/equipment")["equipment"]]
    for uuid in equipment:
        base = f"/analytics/equipment/{uuid}"
        for period in ("raw", "hour", "day"):
            asked[f"{base}/history {period}"] = server.get(f"{base}/history", period=period, limit=50000, **span)
        for period in ("24h", "7d", "30d"):
            asked[f"{base}/stats {period}"] = server.get(f"{base}/stats", period=period)
        asked[f"home-assistant/{uuid}"] = server.get(f"/analytics/home-assistant/{uuid}", hours=48)
        asked[f"equipment/{uuid}"] = server.get(f"/equipment/{uuid}")
    for sensor_id in SENSOR_IDS:
        asked[f"latest {sensor_id}"] = server.get(f"/sensor/{sensor_id}/latest")
    asked["accounting"] = server.get("/telemetry/accounting")["all_time"]
    asked["quarantine"] = server.get("/telemetry/quarantine", limit=500)
    asked["equipment"] = server.get("/equipment")
    return {name: _lasting(answer) for name, answer in asked.items()}


_PASSING = {
    "id",
    "batch_id",
    "quarantined_at",
    "complete_until",
    "next_cursor",
    "client_ip",
    "received_at",
    "stored_at",
}
_MOVING = {"start_date", "end_date"}


def _lasting(answer: Any) -> Any:
    """The answer without what differs from one installation, or one moment, to the next."""
    if isinstance(answer, dict):
        dropped = _PASSING | (_MOVING if "sensors" in answer else set())
        return {name: _lasting(value) for name, value in answer.items() if name not in dropped}
    return [_lasting(item) for item in answer] if isinstance(answer, list) else answer


def _equipment(source: random.Random, equipment: int, first: datetime) -> dict[str, Any]:
    readings: list[dict[str, Any]] = []
    for minute in range(MINUTES_PER_BATCH):
        at = first + timedelta(minutes=minute, seconds=equipment)
        for number in range(2):
            value = round(source.gauss(-18 + 30 * number, 2.5), 2)
            readings.append(
                {
                    "sensor_uuid": sensor(equipment, number), "sensor_nome": f"Sensor {number}",
                    "sensor_tipo": ("temperatura", "umidade")[number], "sensor_unidade": ("°C", "%")[number],
                    "sensor_telemetria": str(value), "sensor_datahora_coleta": at.replace(tzinfo=None).isoformat(),
                    "sensor_bateria_pct": 90 - minute, "sensor_sinal_rssi": -60 - number,
                }
            )  # fmt: skip
        if minute % 10 == 0:
            door = {"sensor_uuid": sensor(equipment, 2), "sensor_nome": "Door", "sensor_tipo": "porta"}
            readings.append(door | {"sensor_telemetria": source.choice(["on", "off"]), "timestamp": stamp(at)})
    return {"equip_uuid": EQUIPMENT[equipment], "equip_nome": f"Freezer {equipment}", "sensor": readings}


def _correction(source: random.Random, first: datetime) -> dict[str, Any]:
    at = first + timedelta(minutes=source.randrange(MINUTES_PER_BATCH))
    reading = {"sensor_uuid": sensor(0, 0), "valor": round(source.gauss(-18, 2.5), 2), "timestamp": stamp(at)}
    return {"equip_uuid": EQUIPMENT[0], "sensor": [reading]}


def _single(source: random.Random, sensor_id: str, at: datetime) -> dict[str, Any]:
    return {
        "sensor_id": sensor_id, "temperature": round(source.gauss(21, 1), 2), "humidity": round(source.gauss(50, 5), 1),
        "timestamp": stamp(at),
    }  # fmt: skip


def _general(source: random.Random, at: datetime) -> list[dict[str, Any]]:
    return [
        {"sensor_id": "greenhouse", "timestamp": stamp(at), "values": {"co2": source.randrange(400, 900)}},
        {"sensor_id": "greenhouse", "timestamp": stamp(at + timedelta(seconds=1)), "status": "open"},
    ]


def _partly_bad(at: datetime) -> dict[str, Any]:
    far = stamp(at + timedelta(days=400))
    return {
        "equip_uuid": EQUIPMENT[1],
        "sensor": [
            {"sensor_uuid": sensor(1, 0), "valor": 1.0, "timestamp": "yesterday, about noon"},
            {"sensor_uuid": sensor(1, 0), "valor": 2.0, "timestamp": far},
            {"sensor_uuid": sensor(1, 1), "valor": 50.0, "timestamp": stamp(at + timedelta(seconds=30))},
        ],
    }


def _wholly_bad() -> dict[str, Any]:
    return {"equip_uuid": EQUIPMENT[2], "sensor": [{"sensor_uuid": sensor(2, 0), "valor": 3.0, "timestamp": "never"}]}
