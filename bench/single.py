"""Single readings: requests per CPU-second of the server with a durable answer, against a plain FastAPI handler of the
same route that stores nothing, and against a bare protocol server as the limit, in turn in the same run.

    python -m bench.single [--seconds 5] [--rounds 3] [--connections 1 64 256]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.http_load import LoadResult, drive, tool
from bench.processes import ProcessTree, Program, free_port
from bench.report import Figure
from bench.server import API_KEY, bench_server

CONNECTIONS = (1, 64, 256)
Target = tuple[int, ProcessTree]
"""Port and processes of a server."""


@contextlib.contextmanager
def plain_server(kind: str, folder: Path) -> Iterator[Target]:
    """One of bench.plain_servers, in the interpreter and the environment of Sensorkeep."""
    port = free_port()
    program = Program([sys.executable, "-m", "bench.plain_servers", kind, str(port), API_KEY], folder / f"{kind}.log")
    try:
        program.wait_port(port)
        yield port, program.tree
    finally:
        program.stop()


def compare(connections: Sequence[int], seconds: float, rounds: int) -> Iterator[tuple[int, list[list[LoadResult]]]]:
    """(connections, the rounds of [ours, FastAPI, bare])."""
    with contextlib.ExitStack() as servers:
        folder = Path(servers.enter_context(tempfile.TemporaryDirectory()))
        ours = servers.enter_context(bench_server(folder))
        targets: list[Target] = [
            (ours.port, ProcessTree(ours.pid)),
            servers.enter_context(plain_server("fastapi", folder)),
            servers.enter_context(plain_server("bare", folder)),
        ]
        for port, tree in targets:
            drive(port, tree, 16, 1.0)
        for number in connections:
            yield number, [[drive(port, tree, number, seconds) for port, tree in targets] for _ in range(rounds)]


def figures(connections: Sequence[int], seconds: float, rounds: int) -> Iterator[Figure]:
    """The rows of the table."""
    for number, results in compare(connections, seconds, rounds):
        what = f"single POST, {number} connection{'s' if number > 1 else ''} ({tool()})"
        ours, plain, bare = ([result[place] for result in results] for place in range(3))
        target = "3 / 5" if number > 1 else ""
        yield Figure(
            f"{what}: ratio to plain FastAPI that stores nothing", _ratios(ours, plain), 2, target, is_ratio=True
        )
        yield Figure(f"{what}: ratio to a bare protocol server", _ratios(ours, bare), 2)
        yield Figure(f"{what}: requests per CPU-second", [r.requests_per_cpu_second for r in ours], 0)
        yield Figure(f"{what}: requests per second", [r.requests_per_second for r in ours], 0)
        yield Figure(f"{what}: p50, ms", [r.p50_ms for r in ours], 1)
        yield Figure(f"{what}: p99, ms", [r.p99_ms for r in ours], 1)


def _ratios(ours: Sequence[LoadResult], theirs: Sequence[LoadResult]) -> list[float]:
    return [a.requests_per_cpu_second / b.requests_per_cpu_second for a, b in zip(ours, theirs, strict=True)]


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    options = arguments.parse_args()
    for figure in figures(options.connections, options.seconds, options.rounds):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
