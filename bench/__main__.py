"""Runs the benchmarks one after the other.

python -m bench full            everything, into docs/BENCHMARKS.md (half an hour)
python -m bench quick           the main ratios, in two minutes; only prints
  --check                       fail where a ratio fell more than 20 % below the recorded one
  --record                      make this run's ratios the recorded ones
  --parts slim single ...       only these parts
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench import bulk, distributed, growth, live, query, single
from bench.report import DOCUMENT, Figure, Notes, check, document, not_measured, record
from bench.server import bench_server
from bench.workload import Form

Part = Callable[[], Iterator[Figure]]

QUICK_PEERS = ("victoria-metrics", "timescaledb")


def start_figures(rounds: int) -> Iterator[Figure]:
    """Start and idle memory, the data directory being there already."""
    seconds, resident = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            with bench_server(Path(folder)) as server:
                seconds.append(server.start_seconds)
                time.sleep(1)
                resident.append(server.resident_mib())
    yield Figure("start to first answered request, s", seconds[1:], 2, "2 / 1")
    yield Figure("resident memory idle, MiB", resident[1:], 0, "160 / 100")


def live_figures(seconds: float, rounds: int, cases: tuple[tuple[int, int], ...]) -> Iterator[Figure]:
    """One message to 500 clients, of which some stop reading; `cases` are (messages a second, slow clients)."""
    for rate, slow in cases:
        results = [live.run_apart(500, slow, rate, seconds) for _ in range(rounds)]
        what = f"live, 500 clients{f', {slow} of them slow' if slow else ''}, {rate} messages/s"
        ours = [result["sensorkeep"]["microseconds_per_delivery"] for result in results]
        plain = [result["plain_asgi"]["microseconds_per_delivery"] for result in results]
        yield Figure(f"{what}: µs CPU per delivery", ours, 2, "8 / 4")
        ratios = [b / a for a, b in zip(ours, plain, strict=True)]
        yield Figure(f"{what}: ratio to plain ASGI", ratios, 2, is_ratio=True)
        complete = [result["sensorkeep"]["complete"] for result in results]
        yield Figure(f"{what}: share delivered to those who read", complete, 3)


def grown_figures(readings: int, retention_days: int, calls: int) -> Iterator[Figure]:
    """Growth with retention, then queries on what there is then: raw readings and the rollups of all."""
    with tempfile.TemporaryDirectory() as folder:
        result = growth.fill_apart(Path(folder) / "data", readings, retention_days)
        yield from growth.figures(result)
        if calls:
            yield from growth.http_figures(Path(folder), f"{readings // growth.MILLION} M readings", retention_days)
            what = f"{readings // growth.MILLION} M readings, raw of {result.raw_readings // growth.MILLION} M kept"
            yield from query.figures(Path(folder), what, retention_days, calls)


def parts_of(form: str, rounds: int, notes: Notes) -> dict[str, Part]:
    """The parts of a form, by name, in order."""

    def bulk_part(body: Form, batches: int, rounds: int, peers: tuple[str, ...] | None) -> Part:
        return partial(bulk.figures, body, batches, rounds, notes, peers)

    if form == "quick":
        return {
            "start": partial(start_figures, 1),
            "slim": bulk_part("slim", 20, 1, QUICK_PEERS),
            "verbose": bulk_part("verbose", 12, 1, QUICK_PEERS[:1]),
            "single": partial(single.figures, (64,), 3.0, 2),
            "live": partial(live_figures, 3.0, 1, ((20, 0),)),
            "grown": partial(grown_figures, 3_000_000, 14, 0),
        }
    return {
        "start": partial(start_figures, 5),
        "slim": bulk_part("slim", 75, rounds, None),
        "verbose": bulk_part("verbose", 75, rounds, None),
        "single": partial(single.figures, single.CONNECTIONS, 4.0, rounds),
        "live": partial(live_figures, 5.0, rounds, ((100, 0), (100, 50), (20, 0))),
        "distributed": partial(distributed.figures, "verbose", 82, rounds),
        "grown": partial(grown_figures, 40_000_000, 14, 200),
    }


def main() -> None:
    """Run, print as it goes, and write, record or check."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("form", nargs="?", default="full", choices=["full", "quick"])
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("--record", action="store_true")
    arguments.add_argument("--parts", nargs="+")
    arguments.add_argument("--rounds", type=int, default=3, help="of the full form")
    options = arguments.parse_args()
    load, notes = os.getloadavg()[0], Notes()
    figures: list[Figure] = []
    for name, part in parts_of(options.form, options.rounds, notes).items():
        if options.parts is None or name in options.parts:
            for figure in part():
                print(figure.line(), flush=True)
                figures.append(figure)
    print("\n".join(notes.lines()))
    if options.form == "full" and options.parts is None:
        DOCUMENT.write_text(document(figures, notes, options.form, load), "utf-8")
    if options.record:
        record(figures, options.form)
    if options.check:
        for line in not_measured(figures, options.form):
            print(f"not measured: {line}")
        fallen = check(figures, options.form)
        sys.exit("\n".join(f"fell by more than allowed: {line}" for line in fallen) or 0)


if __name__ == "__main__":
    main()
