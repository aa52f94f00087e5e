"""Queries at the HTTP API over many stored readings: median and 95th percentile of each call.

python -m bench.query [--readings 40000000] [--calls 200]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.server import API_KEY, BenchServer, bench_server, quantile_ms
from sensorkeep.app.backends import open_backends
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.cli.fleet import Fleet, FleetOptions
from sensorkeep.clock import DAY_US, MINUTE_US, Clock, SystemClock
from sensorkeep.config import load_config
from sensorkeep.data_dir import DataDir
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Equipment, Sensor
from sensorkeep.tsdb.base import TimeSeriesStore, Write

SENSORS = 1_000
ROUNDS_PER_WRITE = 200
CATCH_UP_SECONDS = 15
"""How long the store may keep house before it is read: changed buckets of several days are redone in each second."""


def fill(directory: Path, readings: int) -> float:
    """Write a reading a minute of every sensor, up to now, into a data directory; the rate of readings a second."""
    clock = SystemClock()
    config = load_config(data_dir=directory, raw_retention_days=0)
    rounds = readings // SENSORS
    fleet = Fleet(FleetOptions(start_us=clock.now_us() // MINUTE_US * MINUTE_US - rounds * MINUTE_US))
    data_dir = DataDir(directory)
    backends = open_backends(config, data_dir, clock)
    equipment = tuple(Equipment(uuid=uuid, name=f"Freezer {i}") for i, uuid in enumerate(fleet.equipment_uuids))
    sensors = tuple(
        Sensor(
            uuid=uuid, equipment_uuid=fleet.equipment_uuids[fleet.equipment_of[i]], name=f"Temp {i}", type="temperatura"
        )
        for i, uuid in enumerate(fleet.sensor_uuids)
    )
    CatalogInventory(backends.database).describe(equipment, sensors)
    started = time.perf_counter()
    for number, table in enumerate(_tables(fleet, rounds)):
        backends.store.write([Write(f"fill-{number}", DecodedBatch(equipment, sensors, table))])
        if number % 8 == 7:
            backends.store.maintain(clock.now_us())
    seconds = time.perf_counter() - started
    _catch_up(backends.store, clock)
    for part in (backends.store, backends.queue, backends.object_store, backends.database):
        part.close()
    data_dir.close()
    return readings / seconds


def _catch_up(store: TimeSeriesStore, clock: Clock) -> None:
    """Keep house for a while, as an idle server does; under load the redoing of changed buckets pauses."""
    until = clock.monotonic() + CATCH_UP_SECONDS
    while clock.monotonic() < until:
        store.maintain(clock.now_us())
        time.sleep(0.01)


def _tables(fleet: Fleet, rounds: int) -> Iterator[pa.Table]:
    for start in range(0, rounds, ROUNDS_PER_WRITE):
        numbers = np.arange(start, min(start + ROUNDS_PER_WRITE, rounds))
        sensor = np.tile(np.arange(SENSORS), len(numbers))
        rows = fleet.rows(sensor, np.repeat(numbers, SENSORS), np.zeros(len(sensor), np.int64))
        nothing = {
            field.name: pa.nulls(len(sensor), field.type)
            for field in READINGS_SCHEMA
            if field.name not in ("series", "time", "value")
        }
        columns = {
            "series": pa.array(sensor.astype(np.int32)),
            "time": pa.array(rows.time_us).cast(pa.timestamp("us", "UTC")),
            "value": pa.array(rows.value),
            **nothing,
        }
        yield pa.table([columns[name] for name in READINGS_SCHEMA.names], schema=READINGS_SCHEMA)


def measure(server: BenchServer, path: str, calls: int) -> tuple[float, float, int]:
    """(median ms, p95 ms, bytes) of a call on one connection, after a first one."""
    connection = server.connect()
    seconds = []
    size = 0
    for _ in range(calls + 1):
        before = time.perf_counter()
        connection.request("GET", "/api/v1" + path, headers={"X-API-Key": API_KEY})
        answer = connection.getresponse()
        size = len(answer.read())
        seconds.append(time.perf_counter() - before)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
    return quantile_ms(seconds[1:], 0.5), quantile_ms(seconds[1:], 0.95), size


def calls_for(equipment: str, sensor: str) -> dict[str, str]:
    """The calls measured, by name."""
    now_us = SystemClock().now_us()

    def since(days: int) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((now_us - days * DAY_US) / 1e6))

    history = f"/analytics/equipment/{equipment}/history"
    return {
        "history 24 h hourly": f"{history}?period=hour&start_date={since(1)}",
        "history 30 d hourly": f"{history}?period=hour&start_date={since(30)}",
        "history 30 d daily": f"{history}?period=day&start_date={since(30)}",
        "raw 24 h of one sensor": f"/analytics/sensor/{sensor}/history?period=raw&start_date={since(1)}",
        "stats 24 h": f"/analytics/equipment/{equipment}/stats?period=24h",
        "stats 30 d": f"/analytics/equipment/{equipment}/stats?period=30d",
        "home assistant 24 h": f"/analytics/home-assistant/{equipment}?hours=24",
        "latest": "/sensor/bench/latest",
    }


def run(readings: int, calls: int) -> Iterator[tuple[str, float, float, int]]:
    """(call, median ms, p95 ms, bytes of the answer), with what was filled first."""
    with tempfile.TemporaryDirectory() as folder:
        rate = fill(Path(folder) / "data", readings)
        yield f"(filled {readings:,} readings at {rate:,.0f}/s)", 0.0, 0.0, 0
        fleet = Fleet(FleetOptions(start_us=0))
        with bench_server(Path(folder), SENSORKEEP_RAW_RETENTION_DAYS="0") as server:
            body = b'{"sensor_id":"bench","temperature":1.5}'
            server.call("POST", "/api/v1/temperature_reading", body, **{"Content-Type": "application/json"})
            for name, path in calls_for(fleet.equipment_uuids[5], fleet.sensor_uuids[20]).items():
                yield name, *measure(server, path, calls)


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--readings", type=int, default=40_000_000)
    arguments.add_argument("--calls", type=int, default=200)
    options = arguments.parse_args()
    for name, median, p95, size in run(options.readings, options.calls):
        print(f"{name}: median {median} ms, p95 {p95} ms, {size:,} bytes")


if __name__ == "__main__":
    main()
