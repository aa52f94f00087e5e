"""Runs the benchmarks one after the other and writes docs/BENCHMARKS.md.

python -m bench [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from bench import ingest, query, single
from bench.server import bench_server

DOCUMENT = Path(__file__).parent.parent / "docs" / "BENCHMARKS.md"
LIBRARIES = ("duckdb", "pyarrow", "msgspec", "isal", "uvicorn", "fastapi", "SQLAlchemy")

Row = tuple[str, str, str]
"""(what, figure, target of the embedded form: at least / aim)"""


def bulk_rows(batches: int, rounds: int) -> Iterator[Row]:
    """Bulk ingest in both forms."""
    for form in ("verbose", "slim"):
        bodies = ingest.make_bodies(batches, form, days=min(25, batches // 72 + 2))
        results = [ingest.run(bodies, batches * ingest.READINGS_PER_BATCH, 2) for _ in range(rounds)]

        def shown(name: str, digits: int = 0, results: list[ingest.BulkResult] = results) -> str:
            return spread([getattr(result, name) for result in results], digits)

        ratio = spread([r.readings_per_cpu_second / r.baseline_per_cpu_second for r in results], 2)
        yield f"bulk, {form}: readings per CPU-second of the server", shown("readings_per_cpu_second"), ""
        yield f"bulk, {form}: ratio to gzip + json.loads alone, same bytes, same run", ratio, ""
        yield f"bulk, {form}: readings per second", shown("readings_per_second"), ""
        yield f"bulk, {form}: POST p50 / p99, ms", f"{shown('post_p50_ms')} / {shown('post_p99_ms')}", ""
        yield f"bulk, {form}: resident memory afterwards, MiB", shown("resident_mib"), "640 / 400"
        delay = f"{shown('loop_delay_p99_ms', 1)} / {shown('loop_delay_max_ms', 1)}"
        yield f"bulk, {form}: /ping meanwhile, p99 / worst, ms", delay, ""
        yield f"bulk, {form}: bytes on disk per reading, not settled", shown("bytes_per_reading", 1), "16 / 8 settled"


def single_rows(seconds: float, rounds: int) -> Iterator[Row]:
    """Single readings against a plain FastAPI handler that stores nothing."""
    for connections, ours, plain in single.compare(seconds, rounds):
        rate = spread([r.requests_per_cpu_second for r in ours], 0)
        ratios = [a.requests_per_cpu_second / b.requests_per_cpu_second for a, b in zip(ours, plain, strict=True)]
        waits = f"{spread([r.p50_ms for r in ours], 1)} / {spread([r.p99_ms for r in ours], 1)}"
        yield f"single POST, {connections} connections: requests per CPU-second", rate, ""
        yield f"single POST, {connections} connections: ratio to plain FastAPI, same run", spread(ratios, 2), "3 / 5"
        yield f"single POST, {connections} connections: p50 / p99, ms", waits, ""


def query_rows(readings: int, calls: int) -> Iterator[Row]:
    """Queries at the HTTP API."""
    targets = {"history 24 h hourly": "8 / 3", "history 30 d hourly": "30 / 10", "latest": "3 / 1"}
    for name, median, p95, _ in query.run(readings, calls):
        if median:
            yield f"{name}, {readings:,} readings: median / p95, ms", f"{median} / {p95}", targets.get(name, "")


def live_rows(seconds: float) -> Iterator[Row]:
    """One message to 500 clients."""
    for rate in (100, 20):
        command = [sys.executable, "bench/live.py", "--rate", str(rate), "--seconds", str(seconds)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=DOCUMENT.parent.parent)
        result = json.loads(answer.stdout.splitlines()[-1])
        ours = result["sensorkeep"]["microseconds_per_delivery"]
        plain = result["plain_asgi"]["microseconds_per_delivery"]
        yield f"live, 500 clients, {rate} messages/s: µs CPU per delivery", f"{ours} (plain ASGI: {plain})", "8 / 4"


def start_rows(rounds: int) -> Iterator[Row]:
    """Start and idle memory, the data directory being there already."""
    seconds, resident = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            with bench_server(Path(folder)) as server:
                seconds.append(server.start_seconds)
                time.sleep(1)
                resident.append(server.resident_mib())
    yield "start to first answered request, s", spread(seconds[1:], 2), "2 / 1"
    yield "resident memory idle, MiB", spread(resident[1:], 0), "160 / 100"


def spread(values: list[float], digits: int) -> str:
    """median (minimum to maximum)."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def document(rows: list[Row], quick: bool) -> str:
    """The text of docs/BENCHMARKS.md."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`" + (" (`--quick`)" if quick else "") + f" on {time.strftime('%Y-%m-%d')}:"
        f" {os.cpu_count()} cores, Python {platform.python_version()}, {versions}.",
        "",
        "The server is the real program in a process of its own; the load comes from another on the same cores, so",
        "absolute figures are low and vary with what else the machine does. CPU-seconds are those of the server.",
        "Ratios compare with a baseline measured in the same run. Several runs: median (minimum to maximum). The last",
        "column is what the embedded form is meant to reach: at least / aim. Other databases are not compared yet.",
        "",
        "| what | figure | target |",
        "|---|---|---|",
        *(f"| {what} | {figure} | {target} |" for what, figure, target in rows),
        "",
        "The parts alone: `python bench/decode.py`, `python bench/store.py`, `python bench/claim_queue.py`,",
        "`python bench/live.py`, `python -m bench.ingest`, `python -m bench.single`, `python -m bench.query`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, print as it goes, write the document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer runs, fewer readings")
    quick = arguments.parse_args().quick
    rows: list[Row] = []
    for part in (
        start_rows(2 if quick else 5),
        bulk_rows(40 if quick else 150, 1 if quick else 3),
        single_rows(2.0 if quick else 5.0, 1 if quick else 3),
        live_rows(3.0 if quick else 10.0),
        query_rows(2_000_000 if quick else 20_000_000, 50 if quick else 200),
    ):
        for row in part:
            print(" | ".join(row), flush=True)
            rows.append(row)
    DOCUMENT.write_text(document(rows, quick), "utf-8")


if __name__ == "__main__":
    main()
