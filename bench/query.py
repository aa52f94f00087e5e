"""Queries at the HTTP API over many stored readings: cold, warm, and while bodies come in without pause.

    python -m bench.query [--readings 40000000] [--calls 200]

Cold is the first call after a start, on a connection that is there already; warm the median of the calls after it.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.bulk import CONNECTIONS, send_all
from bench.contenders import Sensorkeep
from bench.growth import MILLION, fill_apart
from bench.report import Figure
from bench.server import API_KEY, BenchServer, bench_server, quantile_ms
from bench.workload import SEED, make_loads
from sensorkeep.cli.fleet import Fleet, FleetOptions
from sensorkeep.clock import DAY_US, SystemClock

TARGETS = {"history 24 h hourly": "8 / 3", "history 30 d hourly": "30 / 10", "latest": "3 / 1"}
BUSY_BATCHES = 60
COLD_STARTS = 3


class Waits(NamedTuple):
    """Milliseconds that calls took."""

    median: float
    p95: float


def measure(server: BenchServer, path: str, calls: int) -> Waits:
    """Calls on one connection, after a first one that does not count."""
    connection = server.connect()
    seconds = []
    for _ in range(calls + 1):
        before = time.perf_counter()
        connection.request("GET", "/api/v1" + path, headers={"X-API-Key": API_KEY})
        answer = connection.getresponse()
        answer.read()
        seconds.append(time.perf_counter() - before)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
    connection.close()
    return Waits(quantile_ms(seconds[1:], 0.5), quantile_ms(seconds[1:], 0.95))


def measure_first(server: BenchServer, path: str) -> float:
    """Milliseconds of the first call of a path."""
    connection = server.connect()
    connection.request("GET", "/api/v1/ping")
    connection.getresponse().read()
    before = time.perf_counter()
    connection.request("GET", "/api/v1" + path, headers={"X-API-Key": API_KEY})
    connection.getresponse().read()
    waited_ms = (time.perf_counter() - before) * 1e3
    connection.close()
    return waited_ms


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


def figures(directory: Path, what: str, retention_days: int, calls: int) -> Iterator[Figure]:
    """The rows of the table, of the data directory `directory`/data; it has more readings in it afterwards."""
    settings = {"SENSORKEEP_RAW_RETENTION_DAYS": str(retention_days)}
    fleet = Fleet(FleetOptions(start_us=0, seed=SEED))
    paths = calls_for(fleet.equipment_uuids[5], fleet.sensor_uuids[20])
    cold: dict[str, list[float]] = {}
    for _ in range(COLD_STARTS):
        for name in TARGETS:
            with bench_server(directory, **settings) as server:
                _post_one(server)
                cold.setdefault(name, []).append(measure_first(server, paths[name]))
    with bench_server(directory, **settings) as server:
        _post_one(server)
        time.sleep(2)
        for name, path in paths.items():
            waits = measure(server, path, calls)
            yield Figure(f"{name}, {what}: median, ms", [waits.median], 2, TARGETS.get(name, ""))
            yield Figure(f"{name}, {what}: 95th percentile, ms", [waits.p95], 2)
            if name in cold:
                yield Figure(f"{name}, {what}: first call after a start, ms", cold[name], 1)
    with _busy(directory, settings) as server:
        for name in TARGETS:
            waits = measure(server, paths[name], max(10, calls // 4))
            yield Figure(f"{name}, {what}, while ingest runs without pause: median, ms", [waits.median], 1)
            yield Figure(f"{name}, {what}, while ingest runs without pause: 95th percentile, ms", [waits.p95], 1)


def _post_one(server: BenchServer) -> None:
    body = b'{"sensor_id":"bench","temperature":1.5}'
    server.call("POST", "/api/v1/temperature_reading", body, **{"Content-Type": "application/json"})


@contextlib.contextmanager
def _busy(directory: Path, settings: dict[str, str]) -> Iterator[BenchServer]:
    """A server that takes bulk bodies without pause for the time of the block."""
    loads = make_loads("slim", BUSY_BATCHES)
    contender = Sensorkeep(directory, **settings)
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            send_all(contender, loads, CONNECTIONS, ended)

    thread = threading.Thread(target=send)
    try:
        _post_one(contender.server)
        thread.start()
        time.sleep(1)
        yield contender.server
    finally:
        ended.set()
        thread.join()
        contender.stop()


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--readings", type=int, default=40_000_000)
    arguments.add_argument("--calls", type=int, default=200)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fill_apart(Path(folder) / "data", options.readings, 0)
        for figure in figures(Path(folder), f"{options.readings // MILLION} M readings", 0, options.calls):
            print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
