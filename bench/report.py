"""The figures of a run: as a table in docs/BENCHMARKS.md, and checked against what was recorded."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

DOCUMENT = Path(__file__).parent.parent / "docs" / "BENCHMARKS.md"
RECORDED = Path(__file__).parent / "recorded.json"
FALL_MAX = 0.20
"""A ratio that is lower than the recorded one by more than this share fails the check."""
LIBRARIES = ("duckdb", "pyarrow", "msgspec", "isal", "uvicorn", "fastapi", "SQLAlchemy")

_ABOUT = """\
The servers are the real programs in processes of their own; the load comes from another process on the same cores, so
absolute figures are low and vary with what else the machine does. CPU-seconds are those of all processes of a server
and of nothing else. Ratios compare with a peer that was measured in turn, in the same run. Several runs: median, and
minimum to maximum. The last column is what the embedded form is meant to reach: at least / aim.

The workload (`bench/workload.py`): 1,000 sensors of 250 equipments, a reading a minute, 1 % late by 2 hours to 3 days,
2 % exact copies of earlier readings; batches of 20,000 readings, gzip 6, on two connections. All get the same readings.
Sensorkeep answers after an fsync, tells copies from new readings, and keeps exact rollups."""
_COMMANDS = f"""\
`make bench` measures all; `make bench-quick` the main ratios in two minutes, and fails where one is more than
{FALL_MAX:.0%} below `bench/recorded.json`. The parts alone: `python -m bench.bulk`, `bench.single`, `bench.growth`,
`bench.query`, `bench.live`, `bench.decode`, `bench.claim_queue`."""


class Figure(NamedTuple):
    """One row of the table: the values of all runs."""

    name: str
    values: Sequence[float]
    digits: int
    target: str = ""
    """What the embedded form is meant to reach: at least / aim."""
    is_ratio: bool = False
    """Compared with a peer of the same run, more is better: what the check looks at."""

    @property
    def median(self) -> float:
        """The middle of the runs."""
        return statistics.median(self.values)

    def cells(self) -> tuple[str, str, str, str]:
        """name, median, spread, target."""
        low, middle, high = (f"{v:,.{self.digits}f}" for v in (min(self.values), self.median, max(self.values)))
        return self.name, middle, "" if len(self.values) == 1 else f"{low} to {high}", self.target

    def line(self) -> str:
        """The row for a terminal."""
        return " | ".join(self.cells())


class Notes:
    """What is to be said of the peers, once each."""

    def __init__(self) -> None:
        self._peers: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._tables: list[str] = []

    def peer(self, name: str, peer_version: str, differs: str) -> None:
        """A peer that was measured, and what it does not do."""
        self._peers[f"{name} {peer_version}".strip()] = differs

    def missing(self, name: str, reason: str) -> None:
        """A peer that could not be had."""
        self._missing[name] = reason

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table of its own; the first cell of a row names it."""
        head = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        self._tables += [*head, *(f"| {' | '.join(row)} |" for row in rows), ""]

    def lines(self) -> list[str]:
        """Tables and lists for the document."""
        return [
            *self._tables,
            "What the peers do not do, or do differently:",
            "",
            *(f"- {name}: {differs}." for name, differs in self._peers.items()),
            *(f"- {name}: not measured: {reason}." for name, reason in self._missing.items()),
        ]


def machine() -> str:
    """The processor and its cores."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores ({model}), {platform.system()} {platform.release().split('-')[0]}"


def document(figures: Sequence[Figure], notes: Notes, form: str, load: float) -> str:
    """The text of docs/BENCHMARKS.md; `load` is the machine's load average before the run."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        "# Benchmarks",
        "",
        f"Written by `python -m bench {form}` on {time.strftime('%Y-%m-%d')}: {machine()},",
        f"Python {platform.python_version()}, {versions}.",
        f"Other programs were running beside it: a load average of {load:.1f} at the start." if load >= 0.5 else "",
        "",
        *_ABOUT.splitlines(),
        "",
        "| what | median | minimum to maximum | target |",
        "|---|---|---|---|",
        *(f"| {' | '.join(figure.cells())} |" for figure in figures),
        "",
        *notes.lines(),
        "",
        *_COMMANDS.splitlines(),
        "",
    ]
    return "\n".join(lines)


def record(figures: Sequence[Figure], form: str) -> None:
    """Keep the ratios of this run as what the next ones are checked against."""
    recorded = _recorded()
    recorded[form] = recorded.get(form, {}) | {
        figure.name: round(figure.median, 3) for figure in figures if figure.is_ratio
    }
    RECORDED.write_text(json.dumps(recorded, indent=2) + "\n", "utf-8")


def check(figures: Sequence[Figure], form: str) -> list[str]:
    """What is wrong with the ratios of this run, one line each; a peer that is missing is no fault."""
    expected = _recorded().get(form, {})
    if not expected:
        return [f"nothing is recorded for {form!r}: run `python -m bench {form} --record`"]
    return [
        f"{figure.name}: {figure.median:.2f}, recorded {expected[figure.name]:.2f}"
        for figure in figures
        if figure.is_ratio and figure.name in expected and figure.median < expected[figure.name] * (1 - FALL_MAX)
    ]


def not_measured(figures: Sequence[Figure], form: str) -> list[str]:
    """The recorded ratios that this run does not have."""
    return sorted(_recorded().get(form, {}).keys() - {figure.name for figure in figures})


def _recorded() -> dict[str, dict[str, float]]:
    if not RECORDED.exists():
        return {}
    recorded: dict[str, dict[str, float]] = json.loads(RECORDED.read_text("utf-8"))
    return recorded
