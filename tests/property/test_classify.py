"""What becomes of the readings of one write: the same as if each were written alone, one after the other."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorkeep.clock import DAY_US
from sensorkeep.model import READINGS_SCHEMA
from sensorkeep.tsdb.readings import DUPLICATE, STORED, UPDATED, Incoming, Known, classify, incoming

Identity = tuple[int, int]


def written(readings: list[tuple[Identity, float]]) -> Incoming:
    """Readings of one day, ((series, microsecond of the day), value) each."""
    series = pa.array([identity[0] for identity, _ in readings], pa.int32())
    columns = [
        series,
        pa.array([20_000 * DAY_US + identity[1] for identity, _ in readings], pa.int64()).cast(
            pa.timestamp("us", "UTC")
        ),
        pa.array([value for _, value in readings], pa.float64()),
        *(pa.nulls(len(readings), field.type) for field in list(READINGS_SCHEMA)[3:]),
    ]
    table = pa.Table.from_arrays(columns, schema=READINGS_SCHEMA)
    return incoming(table, series.to_numpy().astype(np.int64), np.zeros(len(readings), np.int64))


def check(readings: list[tuple[Identity, float]]) -> None:
    content: dict[Identity, float] = {}
    last: dict[Identity, int] = {}
    outcome = []
    for row, (identity, value) in enumerate(readings):
        known = content.get(identity)
        outcome.append(STORED if known is None else DUPLICATE if known == value else UPDATED)
        content[identity], last[identity] = value, row
    verdict = classify(written(readings), np.arange(len(readings)), Known.none())
    assert verdict.outcome.tolist() == outcome
    assert verdict.inserted.tolist() == sorted(last.values())
    assert len(verdict.changed) == 0


identities = st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2**20, DAY_US - 1]))


@given(st.lists(st.tuples(identities, st.sampled_from([1.0, 2.0])), max_size=40))
def test_few_readings_of_few_identities(readings: list[tuple[Identity, float]]) -> None:
    check(readings)


@pytest.mark.parametrize("seed", range(3))
def test_many_readings_of_which_some_repeat(seed: int) -> None:
    """So many that some identities share a slot of the table that repeated ones are found with."""
    source = random.Random(seed)
    some = [(source.randrange(500), source.randrange(DAY_US)) for _ in range(20_000)]
    readings = [(identity, source.choice([1.0, 2.0])) for identity in some + source.sample(some, 3_000)]
    source.shuffle(readings)
    check(readings)
