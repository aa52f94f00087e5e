"""Bulk ingest end to end: HTTP, gzip, durable, deduplicated, queryable; readings per CPU-second of the server.

The same bytes go through a plain decode (gzip and json of the standard library) in the same run, as the measure of the
machine: the ratio to it can be compared between runs.

    python -m bench.ingest [--batches 100] [--form verbose|slim] [--rounds 3]
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from bench.server import API_KEY, BenchServer, bench_server, quantile_ms, summary
from sensorkeep.cli.fleet import FleetOptions, fleet_batches
from sensorkeep.clock import DAY_US, SystemClock

READINGS_PER_BATCH = 20_000
SENSORS = 1_000


class BulkResult(NamedTuple):
    """One run."""

    readings_per_cpu_second: float
    readings_per_second: float
    post_p50_ms: float
    post_p99_ms: float
    baseline_per_cpu_second: float
    resident_mib: float
    bytes_per_reading: float
    loop_delay_p99_ms: float
    loop_delay_max_ms: float


def make_bodies(batches: int, form: str, days: int) -> list[bytes]:
    """The gzip bodies: 1,000 sensors of 250 equipments, a reading a minute, 1 % late, 2 % sent again."""
    options = FleetOptions(
        start_us=SystemClock().now_us() - days * DAY_US,
        rounds_per_batch=READINGS_PER_BATCH // SENSORS,
        form=form,  # type: ignore[arg-type]
    )
    return [gzip.compress(batch.body(), 6) for batch in fleet_batches(options, batches)]


def plain_decode_rate(bodies: list[bytes]) -> float:
    """Readings per CPU-second of gzip.decompress and json.loads alone."""
    sample = bodies[:5]
    started = time.process_time()
    count = sum(len(equipment["sensor"]) for body in sample for equipment in json.loads(gzip.decompress(body)))
    return count / (time.process_time() - started)


class LoopProbe(threading.Thread):
    """Calls /ping again and again; what it waits is the event loop's delay and the network's."""

    def __init__(self, server: BenchServer) -> None:
        super().__init__(daemon=True)
        self._connection = server.connect()
        self._stop_requested = threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        while not self._stop_requested.wait(0.01):
            before = time.perf_counter()
            self._connection.request("GET", "/api/v1/ping")
            self._connection.getresponse().read()
            self.seconds.append(time.perf_counter() - before)

    def end(self) -> list[float]:
        """Stop, and answer the durations."""
        self._stop_requested.set()
        self.join()
        return self.seconds


def post_all(server: BenchServer, bodies: list[bytes], connections: int) -> list[float]:
    """POST every body, in order as far as parallel connections allow; the durations."""
    headers = {"X-API-Key": API_KEY, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    remaining = iter(bodies)
    lock = threading.Lock()
    seconds: list[float] = []

    def work() -> None:
        connection = server.connect()
        while True:
            with lock:
                body = next(remaining, None)
            if body is None:
                return
            before = time.perf_counter()
            connection.request("POST", "/api/v1/telemetry/bulk", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 201:
                raise RuntimeError(f"{answer.status}: {content[:500]!r}")
            seconds.append(time.perf_counter() - before)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def run(bodies: list[bytes], readings: int, connections: int) -> BulkResult:
    """One server, all bodies, until everything is settled."""
    baseline = plain_decode_rate(bodies)
    with tempfile.TemporaryDirectory() as folder, bench_server(Path(folder)) as server:
        post_all(server, bodies[:2], 1)
        server.wait_settled()
        probe = LoopProbe(server)
        probe.start()
        cpu, started = server.cpu_seconds(), time.perf_counter()
        seconds = post_all(server, bodies[2:], connections)
        totals = server.wait_settled()
        wall, cpu = time.perf_counter() - started, server.cpu_seconds() - cpu
        delays = probe.end()
        resident = server.resident_mib()
        count = totals["received"] - readings * 2 // len(bodies)
        disk = server.disk_bytes("readings.duckdb*")
    return BulkResult(
        count / cpu,
        count / wall,
        quantile_ms(seconds, 0.5),
        quantile_ms(seconds, 0.99),
        baseline,
        resident,
        disk / totals["stored"],
        quantile_ms(delays, 0.99),
        quantile_ms(delays, 1.0),
    )


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batches", type=int, default=100)
    arguments.add_argument("--form", default="verbose", choices=["verbose", "slim"])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--connections", type=int, default=2)
    options = arguments.parse_args()
    bodies = make_bodies(options.batches, options.form, days=min(25, options.batches // 72 + 2))
    readings = options.batches * READINGS_PER_BATCH
    results = [run(bodies, readings, options.connections) for _ in range(options.rounds)]
    for name in BulkResult._fields:
        print(f"{options.form} {name}: {summary([getattr(result, name) for result in results])}")
    ratio = statistics.median(r.readings_per_cpu_second / r.baseline_per_cpu_second for r in results)
    print(f"{options.form} ratio to a plain gzip+json decode: {ratio:.2f}")


if __name__ == "__main__":
    main()
