"""The distributed form on real services, all on this machine: what its own processes cost, and the services beside.

    python -m bench.distributed [--batches 40] [--form verbose|slim] [--workers 1 2] [--rounds 2]

One gateway takes the bulk workload, workers turn it into rows. CPU counts from the first POST until everything can be
queried: that of gateway and workers, and apart from it that of Kafka, SeaweedFS, PostgreSQL and Valkey.

Two figures say how workers add up. `end to end` is the wall rate from the first POST. `drain` is the rate at which
workers alone empty a queue that was filled while they were stopped, with the gateway idle: on a machine with few cores
the only time that a second worker may have a core to itself. The bodies come from several fleets in turn, each with a
key of its own, since what one credential sends stays in order and is worked off by one worker.
"""

from __future__ import annotations

import argparse
import math
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from bench.bulk import CONNECTIONS, WARM_UP, send_all
from bench.contenders import Contender
from bench.processes import Post, ProcessTree
from bench.report import Figure
from bench.server import API_KEY, quantile_ms
from bench.workload import Form, Load, make_loads

TESTS = Path(__file__).parent.parent / "tests"
FLEETS = 8
SERVICES = ("kafka", "seaweedfs", "postgresql", "valkey")


class DistributedResult(NamedTuple):
    """One run."""

    workers: int
    readings_per_own_cpu_second: float
    gateway_cpu_seconds: float
    worker_cpu_seconds: float
    service_cpu_seconds: dict[str, float]
    readings_per_second: float
    drained_per_second: float
    post_p50_ms: float
    post_p99_ms: float
    gateway_resident_mib: float
    worker_resident_mib: float

    @property
    def own_cpu_share(self) -> float:
        """What of the CPU time was ours, and not that of the services."""
        own = self.gateway_cpu_seconds + self.worker_cpu_seconds
        return own / (own + sum(self.service_cpu_seconds.values()))


class _Gateway(Contender):
    """Sends to a gateway; what it costs is asked of each process apart."""

    name = "distributed"
    differs = ""
    version = ""

    def __init__(self, url: str, keys: Sequence[str], loads: Sequence[Load]) -> None:
        self._url = httpx.URL(url)
        self._keys = {id(load.body): keys[i % len(keys)] for i, load in enumerate(loads)}

    def sender(self) -> Callable[[Load], None]:
        """See Contender."""
        assert self._url.port is not None
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        posts = {
            key: Post(self._url.host, self._url.port, "/api/v1/telemetry/bulk", headers | {"X-API-Key": key}, 201)
            for key in self._keys.values()
        }
        return lambda load: posts[self._keys[id(load.body)]](load.body)

    def finish(self) -> None:
        """See Contender."""
        wait_settled(str(self._url))

    def disk_bytes(self) -> int:
        """See Contender. Not told here: it lies in the services."""
        return 0

    def stop(self) -> None:
        """See Contender. Whoever started it ends it."""


def wait_settled(url: str) -> int:
    """Wait until nothing is pending; the readings stored."""
    with httpx.Client(base_url=url + "/api/v1", headers={"X-API-Key": API_KEY}) as client:
        while True:
            totals = client.get("/telemetry/accounting").raise_for_status().json()["all_time"]
            if totals["pending"] == 0:
                return int(totals["stored"])
            time.sleep(0.1)


@contextmanager
def installation(workers: int) -> Iterator[tuple[Any, Any]]:
    """(cluster, services) of the tests, made for the time of the block."""
    for folder in (TESTS, TESTS / "blackbox", TESTS / "distributed"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    from cluster import Cluster

    from services import Services, make_database, settings

    with tempfile.TemporaryDirectory() as name, Services(Path(name) / "services") as services:
        chosen = settings(services.addresses(), make_database(services.postgresql.url))
        extra = {"API_KEY": API_KEY, "SENSORKEEP_ACCESS_LOG": "false", "SENSORKEEP_LOG_LEVEL": "warning",
                 "SENSORKEEP_GATHER_SECONDS": "0.5"}  # fmt: skip
        cluster = Cluster(Path(name), chosen | extra, gateways=1, workers=workers)
        try:
            yield cluster.start(), services
        finally:
            cluster.stop()


def measure(loads: Sequence[Load], workers: int) -> DistributedResult:
    """One run: everything sent and stored, then as much again stored from a queue that waits."""
    half = WARM_UP + (len(loads) - WARM_UP) // 2
    with installation(workers) as (cluster, services):
        gateway = _Gateway(cluster.gateways[0].url, _new_keys(cluster), loads)
        trees = {name: ProcessTree(getattr(services, name).process.pid) for name in SERVICES}
        own = [ProcessTree(node.process.pid) for node in (*cluster.gateways, *cluster.workers)]
        send_all(gateway, loads[:WARM_UP], 1)
        gateway.finish()
        before = [tree.cpu_seconds() for tree in own]
        services_before = {name: tree.cpu_seconds() for name, tree in trees.items()}
        started = time.perf_counter()
        seconds = send_all(gateway, loads[WARM_UP:half], CONNECTIONS)
        gateway.finish()
        wall = time.perf_counter() - started
        used = [tree.cpu_seconds() - first for tree, first in zip(own, before, strict=True)]
        services_used = {name: tree.cpu_seconds() - services_before[name] for name, tree in trees.items()}
        resident = [tree.resident_mib() for tree in own]
        drained = _drain(cluster, gateway, loads[half:])
    count = sum(load.readings for load in loads[WARM_UP:half])
    return DistributedResult(
        workers,
        count / sum(used),
        used[0],
        sum(used[1:]),
        services_used,
        count / wall,
        drained,
        quantile_ms(seconds, 0.5),
        quantile_ms(seconds, 0.99),
        resident[0],
        sum(resident[1:]) / workers,
    )


def _make_loads(form: Form, batches: int) -> list[Load]:
    """Batches of all fleets in turn."""
    fleets = [make_loads(form, math.ceil(batches / FLEETS), seed) for seed in range(FLEETS)]
    return [load for turn in zip(*fleets, strict=True) for load in turn][:batches]


def _new_keys(cluster: Any) -> list[str]:
    """One for each fleet."""
    said = [cluster.command("key", "add", f"fleet {i}", "--scope", "ingest").stdout for i in range(FLEETS)]
    return re.findall(r"sk_\S+", "\n".join(said))


def _drain(cluster: Any, gateway: _Gateway, loads: Sequence[Load]) -> float:
    """Readings per second at which the workers store what was sent while they were stopped (by a signal, so that
    starting them again costs nothing)."""
    for worker in cluster.workers:
        worker.process.send_signal(signal.SIGSTOP)
    send_all(gateway, loads, CONNECTIONS)
    started = time.perf_counter()
    for worker in cluster.workers:
        worker.process.send_signal(signal.SIGCONT)
    gateway.finish()
    return sum(load.readings for load in loads) / (time.perf_counter() - started)


def lines(result: DistributedResult) -> Iterator[str]:
    """A run as text."""
    yield f"{result.workers} worker(s): {result.readings_per_own_cpu_second:,.0f} readings per CPU-second of our own"
    yield f"  gateway {result.gateway_cpu_seconds:.2f} s, workers {result.worker_cpu_seconds:.2f} s of CPU"
    services = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.service_cpu_seconds.items())
    yield f"  services: {services}"
    yield f"  {result.readings_per_second:,.0f} readings/s end to end, {result.drained_per_second:,.0f} drained"
    yield f"  POST p50 {result.post_p50_ms} ms, p99 {result.post_p99_ms} ms"
    yield f"  resident: gateway {result.gateway_resident_mib:.0f} MiB, a worker {result.worker_resident_mib:.0f} MiB"


def figures(form: Form, batches: int, rounds: int) -> Iterator[Figure]:
    """The rows of the table."""
    loads = _make_loads(form, batches)
    results = [(measure(loads, 1), measure(loads, 2)) for _ in range(rounds)]
    one = [result for result, _ in results]
    name = f"distributed, {form}"
    own = [result.readings_per_own_cpu_second for result in one]
    yield Figure(f"{name}: readings per CPU-second of gateway and worker", own, 0, "120,000")
    services = [result.readings_per_own_cpu_second * result.own_cpu_share for result in one]
    yield Figure(f"{name}: readings per CPU-second of these and all services", services, 0)
    for workers, of_runs in enumerate(zip(*results, strict=True), 1):
        drained = [result.drained_per_second for result in of_runs]
        yield Figure(f"{name}: readings per second that {workers} worker(s) take out of a full queue", drained, 0)
        rates = [result.readings_per_second for result in of_runs]
        yield Figure(f"{name}: readings per second, end to end, {workers} worker(s)", rates, 0)
    added = [two.drained_per_second / alone.drained_per_second - 1 for alone, two in results]
    yield Figure(f"{name}: what a second worker adds, of the first (2 cores for all)", added, 2, "0.8")
    yield Figure(f"{name}: resident memory of the gateway, MiB", [result.gateway_resident_mib for result in one], 0)
    yield Figure(f"{name}: resident memory of the worker, MiB", [result.worker_resident_mib for result in one], 0)


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batches", type=int, default=40)
    arguments.add_argument("--form", default="verbose", choices=["verbose", "slim"])
    arguments.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    arguments.add_argument("--rounds", type=int, default=2)
    options = arguments.parse_args()
    loads = _make_loads(options.form, options.batches)
    for _ in range(options.rounds):
        for workers in options.workers:
            print("\n".join(lines(measure(loads, workers))), flush=True)


if __name__ == "__main__":
    main()
