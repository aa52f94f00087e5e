"""The whole pipeline under seeded faults and crashes: what was acknowledged is stored once and everything adds up.

A failing seed is told with the command that repeats it. SENSORKEEP_TEST_SEED tries one seed, SENSORKEEP_TEST_SEEDS so
many of them from SENSORKEEP_TEST_FIRST_SEED on.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from checks import check_end, check_moment, check_store_agrees_with_itself
from seeded_life import Simulation

from sensorkeep.testing.faulty import Fault

FIRST_SEED = int(os.environ.get("SENSORKEEP_TEST_FIRST_SEED", "0"))
SEEDS = int(os.environ.get("SENSORKEEP_TEST_SEEDS", "24"))
MEMORY_DISK = Path("/dev/shm")
"""Where a simulation keeps its files if it can: what dies here are processes, and never the power."""


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Thousands of failures are part of the plan; writing them down would cost more than all the rest."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


def _drop(*_: object) -> str:
    raise structlog.DropEvent


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder for the files of a simulation."""
    place = str(MEMORY_DISK) if os.access(MEMORY_DISK, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sensorkeep-simulation-", dir=place) as made:
        yield Path(made)


def simulate(seed: int) -> Simulation:
    """Let a seed happen and check it, at every moment and at its end."""
    with folder() as directory:
        simulation = Simulation(directory, seed)
        chance = random.Random(f"{seed}/checks")

        def on_step() -> None:
            check_moment(simulation)
            if chance.random() < 0.06:
                check_store_agrees_with_itself(simulation)

        try:
            simulation.run(on_step)
            check_end(simulation)
            if chance.random() < 0.2:
                simulation.grow_old()
                check_end(simulation)
        except BaseException:
            print("The last that happened:", *simulation.trace[-40:], sep="\n  ")
            print(f"Repeat it: SENSORKEEP_TEST_SEED={seed} .venv/bin/python -m pytest tests/simulation -k acknowledged")
            raise
        finally:
            simulation.pipeline.close()
        return simulation


def seeds() -> list[int]:
    """Those of this run."""
    one = os.environ.get("SENSORKEEP_TEST_SEED")
    return [int(one)] if one else list(range(FIRST_SEED, FIRST_SEED + SEEDS))


@pytest.mark.parametrize("seed", seeds())
def test_what_was_acknowledged_is_stored_once_whatever_fails_and_whenever_it_dies(seed: int) -> None:
    simulate(seed)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_replays_exactly_in_another_process(hash_seed: str) -> None:
    """Python's own randomness, the order of its sets, must not matter."""
    program = "from test_pipeline import simulate; print(simulate(3).digest)"
    here = Path(__file__).parent
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split()[-1] == simulate(3).digest


def test_the_seeds_hit_every_seam_with_every_kind_of_fault() -> None:
    hits: set[tuple[str, Fault]] = set()
    for seed in range(4):
        faults = simulate(seed).pipeline.faults
        hits |= {(seam, fault) for seam, of_seam in faults.items() for _, fault in of_seam.counts}
    assert {fault for _, fault in hits} == set(Fault)
    assert {seam for seam, _ in hits} == {"attempts", "inventory", "latest", "ledger", "object_store", "queue", "store"}
