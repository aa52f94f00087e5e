"""Bulk ingest end to end, each contender with the same readings in the same run.

    python -m bench.bulk [--batches 100] [--form verbose|slim] [--rounds 3] [--only NAME ...]

Sensorkeep's way is HTTP, gzip, JSON, durable before the answer, duplicates told from new readings, rollups current. CPU
counts from the first POST until all can be queried, of all processes of the server and of nothing else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.contenders import CONTENDERS, Contender, Maker, Missing, Sensorkeep, VictoriaMetricsFull
from bench.postgresql import POSTGRESQL_CONTENDERS
from bench.report import Figure, Notes
from bench.server import BenchServer, quantile_ms
from bench.workload import Form, Load, make_loads

CONNECTIONS = 2
WARM_UP = 2
"""Batches sent first, one by one, that do not count."""


class BulkResult(NamedTuple):
    """One run of one contender."""

    readings_per_cpu_second: float
    readings_per_second: float
    post_p50_ms: float
    post_p99_ms: float
    resident_mib: float
    bytes_per_reading: float
    loop_delay_p99_ms: float
    loop_delay_max_ms: float


class LoopProbe(threading.Thread):
    """Calls /ping again and again; what it waits is the event loop's delay and the network's."""

    def __init__(self, server: BenchServer) -> None:
        super().__init__(daemon=True)
        self._connection = server.connect()
        self._stop_requested = threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        while not self._stop_requested.wait(0.1):
            before = time.perf_counter()
            self._connection.request("GET", "/api/v1/ping")
            self._connection.getresponse().read()
            self.seconds.append(time.perf_counter() - before)

    def end(self) -> list[float]:
        """Stop, and answer the durations."""
        self._stop_requested.set()
        self.join()
        return self.seconds


def send_all(
    contender: Contender, loads: Sequence[Load], connections: int, ended: threading.Event | None = None
) -> list[float]:
    """Send every batch, in order as far as parallel connections allow, until `ended` is set; the durations.

    Raises the first error.
    """
    remaining = iter(loads)
    lock = threading.Lock()
    seconds: list[float] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            send = contender.sender()
            while not errors and not (ended and ended.is_set()):
                with lock:
                    load = next(remaining, None)
                if load is None:
                    return
                before = time.perf_counter()
                send(load)
                seconds.append(time.perf_counter() - before)
        except BaseException as error:  # noqa: BLE001  (raised by the caller's thread)
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return seconds


def run(make: Maker, loads: Sequence[Load]) -> tuple[BulkResult, Contender]:
    """One contender, all batches, until everything can be queried. Raises Missing."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        contender = make(Path(folder))
        try:
            send_all(contender, loads[:WARM_UP], 1)
            contender.finish()
            probe = LoopProbe(contender.server) if isinstance(contender, Sensorkeep) else None
            if probe:
                probe.start()
            cpu, started = contender.tree.cpu_seconds(), time.perf_counter()
            seconds = send_all(contender, loads[WARM_UP:], CONNECTIONS)
            contender.finish()
            wall, cpu = time.perf_counter() - started, contender.tree.cpu_seconds() - cpu
            delays = probe.end() if probe else [0.0]
            resident = contender.tree.resident_mib()
            disk = contender.disk_bytes() / sum(load.readings for load in loads)
        finally:
            contender.stop()
    count = sum(load.readings for load in loads[WARM_UP:])
    result = BulkResult(
        count / cpu,
        count / wall,
        quantile_ms(seconds, 0.5),
        quantile_ms(seconds, 0.99),
        resident,
        disk,
        quantile_ms(delays, 0.99),
        quantile_ms(delays, 1.0),
    )
    return result, contender


def plain_decode_rate(loads: Sequence[Load]) -> float:
    """Readings per CPU-second of gzip.decompress and json.loads alone: the measure of the machine."""
    sample = [load.body for load in loads[:5]]
    started = time.process_time()
    count = sum(len(equipment["sensor"]) for body in sample for equipment in json.loads(gzip.decompress(body)))
    return count / (time.process_time() - started)


def compare(
    form: Form, batches: int, rounds: int, makers: Sequence[Maker], notes: Notes
) -> tuple[dict[str, list[BulkResult]], list[float]]:
    """The results of each contender by name, measured in turn, and the rates of a plain decode."""
    loads = make_loads(form, batches)
    results: dict[str, list[BulkResult]] = {}
    plain: list[float] = []
    missing: set[Maker] = set()
    for _ in range(rounds):
        plain.append(plain_decode_rate(loads))
        for make in makers:
            if make in missing:
                continue
            try:
                result, contender = run(make, loads)
            except Missing as reason:
                missing.add(make)
                notes.missing(make.name, str(reason))
                continue
            results.setdefault(contender.name, []).append(result)
            if contender.differs:
                notes.peer(contender.name, contender.version, contender.differs)
    return results, plain


def figures(
    form: Form, batches: int, rounds: int, notes: Notes, peers: Sequence[str] | None = None
) -> Iterator[Figure]:
    """The rows of the table; `peers` None: all that can be had."""
    everyone = (*CONTENDERS, *POSTGRESQL_CONTENDERS)
    if form == "slim":  # there is no metadata in it
        everyone = tuple(make for make in everyone if make.name != VictoriaMetricsFull.name)
    makers = [m for m in everyone if m.name == Sensorkeep.name or peers is None or m.name in peers]
    results, plain = compare(form, batches, rounds, makers, notes)
    ours = results[Sensorkeep.name]
    rates = [result.readings_per_cpu_second for result in ours]
    yield Figure(f"bulk, {form}: readings per CPU-second of the server", rates, 0)
    for name, theirs in results.items():
        if name != Sensorkeep.name:
            ratios = [a / b.readings_per_cpu_second for a, b in zip(rates, theirs, strict=True)]
            yield Figure(f"bulk, {form}: ratio to {name}", ratios, 2, _TARGETS.get(name, ""), is_ratio=True)
    ratios = [a / b for a, b in zip(rates, plain, strict=True)]
    yield Figure(f"bulk, {form}: ratio to gzip + json.loads alone", ratios, 2, is_ratio=True)
    for field, what, digits, target in _DETAILS:
        yield Figure(f"bulk, {form}: {what}", [getattr(result, field) for result in ours], digits, target)
    notes.table(f"Bulk, {form}: all of them", [what for _, what, _, _ in _COLUMNS], _peer_rows(results))


_TARGETS = {"victoria-metrics": "0.7 / 1.2", VictoriaMetricsFull.name: "0.7 / 1.2", "timescaledb": "2.5 / 5"}
_COLUMNS = (
    ("readings_per_cpu_second", "readings per CPU-second", 0, ""),
    ("readings_per_second", "readings per second", 0, ""),
    ("post_p50_ms", "POST p50, ms", 0, ""),
    ("post_p99_ms", "POST p99, ms", 0, ""),
    ("resident_mib", "resident memory afterwards, MiB", 0, "640 / 400"),
    ("bytes_per_reading", "bytes on disk per reading, settled", 1, "16 / 8"),
)
_DETAILS = (
    *_COLUMNS[1:],
    ("loop_delay_p99_ms", "/ping meanwhile, p99, ms", 1, ""),
    ("loop_delay_max_ms", "/ping meanwhile, worst, ms", 1, ""),
)


def _peer_rows(results: dict[str, list[BulkResult]]) -> Iterator[list[str]]:
    for name, runs in results.items():
        medians = ((statistics.median(getattr(r, field) for r in runs), digits) for field, _, digits, _ in _COLUMNS)
        yield [name, *(f"{median:,.{digits}f}" for median, digits in medians)]


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batches", type=int, default=100)
    arguments.add_argument("--form", default="verbose", choices=["verbose", "slim"])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", nargs="*", help="names of peers to measure beside; none: all")
    options = arguments.parse_args()
    notes = Notes()
    for figure in figures(options.form, options.batches, options.rounds, notes, options.only):
        print(figure.line(), flush=True)
    print("\n".join(notes.lines()))


if __name__ == "__main__":
    main()
