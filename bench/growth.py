"""The store at growing size, up to 40 million readings with retention: readings per CPU-second of the process.

    python -m bench.growth [--readings 40000000] [--minutes 200] [--retention-days 14] [--directory DIR] [--http]

First the store alone, in one process without HTTP and JSON, so that nothing hides what growth costs: the workload as
columns, 200,000 readings a transaction, late ones settled every fourth, a round of maintenance after each, and a clock
that follows the readings, so that days are closed and dropped as in a server of that age. The counts are checked at
the end. Then the server: the readings that follow, over HTTP, against the first million in an empty directory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.bulk import CONNECTIONS, WARM_UP, send_all
from bench.contenders import Sensorkeep
from bench.report import Figure
from bench.workload import READINGS_PER_BATCH, SENSORS, Growth, Load, make_loads
from sensorkeep.app.backends import open_backends
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.clock import MICROSECONDS, MINUTE_US, SystemClock
from sensorkeep.config import load_config
from sensorkeep.limits import MIB
from sensorkeep.tsdb.base import TimeSeriesStore, Write

MILLION = 1_000_000
SETTLE_EVERY = 4
HTTP_BATCHES = 150
"""Bodies sent once the store has grown: two days, so that days are closed meanwhile."""
HTTP_MINUTES = (HTTP_BATCHES + 1) * READINGS_PER_BATCH // SENSORS
CATCH_UP_SECONDS = 15
"""How long the store may keep house before it is read: changed buckets of several days are redone in each second."""


class Point(NamedTuple):
    """How far it was, and what it had cost."""

    stored: int
    cpu_seconds: float


class GrowthResult(NamedTuple):
    """One run."""

    points: list[Point]
    parts: dict[str, float]
    """CPU microseconds for each reading, of write, settle and maintain."""
    bytes_per_raw_reading: float
    raw_readings: int
    resident_mib: float

    def rate(self, first: int, last: int) -> float:
        """Readings per CPU-second between two numbers of stored readings."""
        at = [min(self.points, key=lambda point: abs(point.stored - wanted)) for wanted in (first, last)]
        return (at[1].stored - at[0].stored) / (at[1].cpu_seconds - at[0].cpu_seconds)


class _ReadingsClock(SystemClock):
    """The wall time of the readings that come in; pauses are measured in real time."""

    def __init__(self, now_us: int) -> None:
        self.time_us = now_us

    def now_us(self) -> int:
        """See Clock."""
        return self.time_us


class _Measured:
    """A store, and the CPU seconds that its parts took."""

    def __init__(self, store: TimeSeriesStore) -> None:
        self.store = store
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self.points = [Point(0, 0.0)]

    def timed(self, part: str, act: Callable[[], Any]) -> None:
        """Run `act` and add its CPU time to `part`."""
        started = time.process_time()
        answer = act()
        self.seconds[part] += time.process_time() - started
        for settled in answer or ():
            self.counts.update({name: getattr(settled.counts, name) for name in settled.counts.__struct_fields__})

    def mark(self) -> None:
        """Note how far it is."""
        self.points.append(Point(self.counts["stored"], sum(self.seconds.values())))


def fill(directory: Path, readings: int, minutes: int, retention_days: int) -> GrowthResult:
    """Write the workload, up to HTTP_MINUTES ago, into a data directory."""
    system = SystemClock()
    rounds = readings // SENSORS // minutes * minutes
    growth = Growth(system.now_us() // MINUTE_US * MINUTE_US - (rounds + HTTP_MINUTES) * MINUTE_US, minutes)
    clock = _ReadingsClock(growth.options.start_us)
    config = load_config(data_dir=directory, raw_retention_days=retention_days)
    backends = open_backends(config, "serve", clock)
    CatalogInventory(backends.database).describe(growth.equipment, growth.sensors)
    measured = _Measured(backends.store)
    expected = 0
    for number, (batch, new, through_us) in enumerate(growth.batches(rounds // minutes)):
        clock.time_us = through_us
        measured.timed("write", partial(backends.store.write, [Write(f"fill-{number}", batch)]))
        if number % SETTLE_EVERY == SETTLE_EVERY - 1:
            measured.timed("settle", backends.store.settle)
        measured.timed("maintain", partial(backends.store.maintain, clock.now_us()))
        expected += new
        measured.mark()
    measured.timed("settle", backends.store.settle)
    measured.mark()
    if measured.counts["stored"] != expected:
        raise RuntimeError(f"{measured.counts['stored']} readings were stored, {expected} are expected")
    _catch_up(backends.store, clock)
    status = backends.store.status()
    backends.close()
    size = sum(file.stat().st_size for file in directory.glob("readings.duckdb*"))
    return GrowthResult(
        measured.points,
        {part: seconds / expected * 1e6 for part, seconds in measured.seconds.items()},
        size / status.raw_readings,
        status.raw_readings,
        psutil.Process().memory_info().rss / MIB,
    )


def _catch_up(store: TimeSeriesStore, clock: _ReadingsClock) -> None:
    """Keep house for a while, as an idle server does; under load the redoing of changed buckets pauses."""
    until = time.monotonic() + CATCH_UP_SECONDS
    while time.monotonic() < until:
        clock.time_us += MICROSECONDS
        store.maintain(clock.now_us())
        time.sleep(0.01)


def _fill_and_send(directory: Path, readings: int, minutes: int, retention_days: int, results: Any) -> None:
    for name in [name for name in os.environ if name.startswith("SENSORKEEP_")]:  # as bench.server does
        del os.environ[name]
    results.put(fill(directory, readings, minutes, retention_days))


def fill_apart(directory: Path, readings: int, retention_days: int, minutes: int = 200) -> GrowthResult:
    """`fill` in a process of its own, so that nothing else is in its memory."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    child = context.Process(target=_fill_and_send, args=(directory, readings, minutes, retention_days, results))
    child.start()
    while child.is_alive() and results.empty():
        time.sleep(0.1)
    if results.empty():
        raise RuntimeError("filling the store failed; see above")
    result: GrowthResult = results.get()
    child.join()
    return result


def figures(result: GrowthResult) -> Iterator[Figure]:
    """The rows of the table. Short of 4 million readings the last half stands for the end."""
    total = result.points[-1].stored
    millions = total // MILLION
    first, last = result.rate(0, MILLION), result.rate(total // 2, total)
    name = f"growth to {millions} M readings, store alone"
    yield Figure(f"{name}: readings per CPU-second, the first million", [first], 0)
    yield Figure(f"{name}: readings per CPU-second, the last half", [last], 0)
    yield Figure(f"{name}: ratio of the last half to the first million", [last / first], 2, "0.5 / 0.8", is_ratio=True)
    yield Figure(
        f"{name}: bytes on disk per raw reading kept, rollups included", [result.bytes_per_raw_reading], 1, "16 / 8"
    )
    yield Figure(f"{name}: resident memory at the end, MiB", [result.resident_mib], 0)


def http_figures(directory: Path, what: str, retention_days: int) -> Iterator[Figure]:
    """The rows of the table of a server on `directory`/data, which `fill` has made; it has more readings afterwards."""
    loads = make_loads("slim", HTTP_BATCHES)
    with tempfile.TemporaryDirectory() as empty:
        first = _http_rate(Path(empty), loads[: MILLION // READINGS_PER_BATCH + WARM_UP], retention_days)
    last = _http_rate(directory, loads, retention_days)
    yield Figure("growth, over HTTP, slim: readings per CPU-second, the first million", [first], 0)
    yield Figure(f"growth, over HTTP, slim: readings per CPU-second, after {what}", [last], 0)
    name = f"growth, over HTTP, slim: ratio after {what} to the first million"
    yield Figure(name, [last / first], 2, "0.5 / 0.8", is_ratio=True)


def _http_rate(directory: Path, loads: Sequence[Load], retention_days: int) -> float:
    """Readings per CPU-second of a server on this directory."""
    server = Sensorkeep(directory, SENSORKEEP_RAW_RETENTION_DAYS=str(retention_days))
    try:
        send_all(server, loads[:WARM_UP], 1)
        server.finish()
        cpu = server.tree.cpu_seconds()
        send_all(server, loads[WARM_UP:], CONNECTIONS)
        server.finish()
        return sum(load.readings for load in loads[WARM_UP:]) / (server.tree.cpu_seconds() - cpu)
    finally:
        server.stop()


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--readings", type=int, default=2 * MILLION)
    arguments.add_argument("--minutes", type=int, default=200, help="of readings in one transaction")
    arguments.add_argument("--retention-days", type=int, default=14)
    arguments.add_argument("--directory", type=Path, default=None)
    arguments.add_argument("--http", action="store_true", help="go on over HTTP")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        result = fill(Path(folder) / "data", options.readings, options.minutes, options.retention_days)
        print(json.dumps({part: round(cost, 3) for part, cost in result.parts.items()}))
        for figure in figures(result):
            print(figure.line())
        if options.http:
            what = f"{options.readings // MILLION} M readings"
            for figure in http_figures(Path(folder), what, options.retention_days):
                print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
