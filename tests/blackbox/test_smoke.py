from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta

from harness import Server


def test_a_bulk_reading_is_stored_and_comes_back_in_the_history(server: Server) -> None:
    moment = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    equipment = "550e8400-e29b-41d4-a716-446655440000"
    body = [
        {
            "equip_uuid": equipment,
            "equip_nome": "Freezer 1",
            "sensor": [
                {
                    "sensor_uuid": "660e8400-e29b-41d4-a716-446655440001",
                    "sensor_nome": "Temp",
                    "sensor_tipo": "temperatura",
                    "sensor_unidade": "°C",
                    "valor": value,
                    "timestamp": (moment + timedelta(minutes=minute)).isoformat(),
                }
                for minute, value in enumerate([1.0, 2.0, 3.0, 10.0])
            ],
        }
    ]
    answer = server.client.post(
        "/telemetry/bulk",
        content=gzip.compress(json.dumps(body).encode()),
        headers={"Content-Encoding": "gzip", "Content-Type": "application/json", "Prefer": "wait=30"},
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["stored"] == 4
    history = server.client.get(f"/analytics/equipment/{equipment}/history", params={"period": "hour"})
    assert history.status_code == 200, history.text
    (row,) = history.json()["data"]
    assert (row["avg_value"], row["min_value"], row["max_value"], row["sample_count"]) == (4.0, 1.0, 10.0, 4)
    assert row["sensor_name"] == "Temp"
    assert server.settled()["stored"] >= 4
