"""Cost of making claims durable: the SQLite queue against a plain loop of one commit per claim, in the same run.

Usage: python bench/claim_queue.py [--seconds 3] [--rounds 3] [--directory DIR]

The rounds are interleaved, so that a change of the machine's speed meets both. Claims carry 300 bytes inline. One
line of JSON per case, with the median of the rounds: claims per second, CPU microseconds per claim (all threads, the
kernel's part included), p50 and p99 of a publish in milliseconds, and both ratios to the plain loop.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from sensorkeep.clock import SystemClock
from sensorkeep.model import Claim, WireFormat
from sensorkeep.queue.sqlite import SqliteClaimQueue

PRODUCERS = (1, 64)
DRAIN_CLAIMS = 2_000


class Result(NamedTuple):
    """One case of one round."""

    claims_per_second: float
    cpu_us_per_claim: float
    p50_ms: float
    p99_ms: float


def make_claim(number: int) -> Claim:
    return Claim(
        batch_id=f"018bcfe5-0000-7000-8000-{number:012d}",
        wire_format=WireFormat.GATHERED,
        received_us=1_700_000_000_000_000 + number,
        readings=10,
        payload=b"x" * 300,
    )


def measure(publish: Callable[[Claim], None], producers: int, seconds: float) -> Result:
    """Publish from `producers` threads for `seconds`."""
    latencies: list[list[float]] = [[] for _ in range(producers)]
    started, cpu = time.perf_counter(), time.process_time()

    def produce(own: list[float]) -> None:
        claim = make_claim(len(latencies))
        before = time.perf_counter()
        while before - started < seconds:
            publish(claim)
            after = time.perf_counter()
            own.append(after - before)
            before = after

    threads = [threading.Thread(target=produce, args=(own,)) for own in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    every = sorted(latency for own in latencies for latency in own)
    return Result(
        len(every) / wall, cpu / len(every) * 1e6, every[len(every) // 2] * 1e3, every[len(every) * 99 // 100] * 1e3
    )


def plain(directory: Path, seconds: float) -> Result:
    """One thread, one INSERT and one synced COMMIT per claim."""
    connection = sqlite3.connect(directory / "plain.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS claims (seq INTEGER PRIMARY KEY, claim BLOB NOT NULL)")
    encode = msgspec.msgpack.Encoder().encode

    def publish(claim: Claim) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO claims (claim) VALUES (?)", (encode(claim),))
        connection.execute("COMMIT")

    result = measure(publish, 1, seconds)
    connection.close()
    return result


def drain(queue: SqliteClaimQueue) -> Result:
    """Fetch and acknowledge all that waits."""
    started, cpu, claims, latencies = time.perf_counter(), time.process_time(), 0, []
    while True:
        before = time.perf_counter()
        deliveries = queue.fetch(DRAIN_CLAIMS, 1_000_000, 0.0)
        if not deliveries:
            break
        queue.ack(deliveries)
        latencies.append(time.perf_counter() - before)
        claims += len(deliveries)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    latencies.sort()
    middle, high = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
    return Result(claims / wall, cpu / claims * 1e6, middle * 1e3, high * 1e3)


def main() -> None:
    """Run the rounds and print the medians."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=3.0, help="length of one case")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--directory", type=Path, default=None, help="where to write; its disk is what is measured")
    options = arguments.parse_args()
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        for _ in range(options.rounds):
            results.setdefault("plain loop", []).append(plain(Path(folder), options.seconds))
            queue = SqliteClaimQueue(Path(folder) / "queue.db", SystemClock())
            for producers in PRODUCERS:
                result = measure(lambda claim: queue.publish([claim]), producers, options.seconds)  # noqa: B023
                results.setdefault(f"queue, {producers} producers", []).append(result)
            results.setdefault(f"fetch and ack by {DRAIN_CLAIMS}", []).append(drain(queue))
            queue.close()
    base = None
    for case, rounds in results.items():
        median = Result(*(statistics.median(column) for column in zip(*rounds, strict=True)))
        base = base or median
        line = {name: round(value, 2) for name, value in median._asdict().items()}
        line["rate_ratio"] = round(median.claims_per_second / base.claims_per_second, 2)
        line["cpu_ratio"] = round(median.cpu_us_per_claim / base.cpu_us_per_claim, 2)
        print(json.dumps({"case": case, **line}))


if __name__ == "__main__":
    main()
