"""A gateway's memory stays flat whatever the bodies."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cluster import running_cluster
from harness import Server, new_uuid, wait_until

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

MIB = 1 << 20
INFLATED_BYTES = 100 * MIB
GROWTH_BYTES_MAX = 150 * MIB
"""What one gateway may take for a body that is 100 MiB inflated, above what it takes after a small one."""


def large_body() -> tuple[bytes, int]:
    """(gzip of the verbose form that inflates to INFLATED_BYTES, readings in it)."""
    start = datetime.now(UTC).replace(microsecond=0, tzinfo=None) - timedelta(hours=20)
    written, readings = 0, 0
    target = io.BytesIO()
    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1) as out:
        out.write(b"[")
        for equipment in range(10_000):
            sensors = [
                {
                    "sensor_uuid": f"c0000000-0000-4000-8000-{equipment:012d}", "sensor_nome": f"Sensor {equipment}",
                    "sensor_status": "ATIVO", "sensor_tipo": "temperatura", "sensor_unidade": "°C",
                    "sensor_telemetria": str(round(i / 7, 2)),
                    "sensor_datahora_coleta": (start + timedelta(seconds=60 * i, microseconds=equipment)).isoformat(),
                    "sensor_bateria_pct": 88, "sensor_sinal_lqi": 120, "sensor_sinal_rssi": -61,
                    "sensor_fabricante": "Aqara", "sensor_modelo": "WSDCGQ11LM", "sensor_firmware": "3000-0001",
                }
                for i in range(50)
            ]  # fmt: skip
            piece = json.dumps({"equip_uuid": new_uuid(), "equip_nome": f"Room {equipment}", "sensor": sensors})
            written += out.write((b"," if equipment else b"") + piece.encode())
            readings += len(sensors)
            if written >= INFLATED_BYTES:
                break
        out.write(b"]")
    return target.getvalue(), readings


def send(gateway: Server, body: bytes) -> int:
    answer = gateway.client.post(
        "/telemetry/bulk",
        content=body,
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        timeout=120,
    )
    assert answer.status_code == 201, answer.text
    return int(answer.json()["readings"])


def test_bodies_of_100_mib_leave_the_gateways_memory_flat(tmp_path: Path, services: dict[str, str]) -> None:
    body, readings = large_body()
    with running_cluster(tmp_path, services, gateways=1, workers=1) as cluster:
        (gateway,) = cluster.gateways
        gateway.stored([{"equip_uuid": new_uuid(), "sensor": [{"sensor_uuid": new_uuid(), "valor": 1.0}]}])
        before = gateway.resident_bytes()
        peaks = []
        for _ in range(4):
            assert send(gateway, body) == readings
            peaks.append(gateway.peak_bytes() - before)
        print(f"{readings} readings; growth in MiB: {[peak // MIB for peak in peaks]}")
        assert max(peaks) < GROWTH_BYTES_MAX
        totals = wait_until(lambda: _settled(gateway), 200, pause=0.5)
    assert (totals["stored"], totals["duplicate"]) == (readings + 1, readings * 3)


def _settled(gateway: Server) -> dict[str, int] | None:
    totals = gateway.accounting()
    return totals if totals["pending"] == 0 else None
