"""The laws of test_rollups over PostgreSQL and TimescaleDB: there no reading is staged, and of two contents of one
identity the one accepted later stays, in whatever order their batches are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_rollups import BATCHES, REVISITS, Content, Model, Row, Run, batch_of, step
from tsdb_world import SHARED, postgres_database

from sensorkeep.clock import DAY_US, MINUTE_US
from sensorkeep.tsdb.base import Write
from sensorkeep.tsdb.postgres import PostgresStore

SMALL_STEPS = {"rolling._SERIES_FIRST": 1, "rolling._SERIES_MAX": 2, "reading._BUCKETS_MIN": 1}
"""So that three sensors take several steps."""


Spot = tuple[int, int, int, int]
"""Sensor, hours back from the present hour, minute, microsecond."""


class SharedModel(Model):
    """The model of a store that many processes write to."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: dict[tuple[int, int], int] = {}

    def write(self, batches: Sequence[tuple[str, list[Row]]], now_us: int) -> set[str]:
        """Everything is settled at once."""
        self.write_accepted([(batch_id, rows, now_us) for batch_id, rows in batches], now_us)
        return {batch_id for batch_id, _ in batches}

    def write_accepted(self, batches: Sequence[tuple[str, list[Row], int]], now_us: int) -> None:
        """As `write`, each batch with the time it was accepted."""
        new = {}
        for batch_id, rows, accepted_us in batches:
            if batch_id not in self.counts and batch_id not in new:
                new[batch_id] = (rows, accepted_us)
        self.counts |= {batch_id: [0, 0, 0] for batch_id in new}
        self.settled |= new.keys()
        ordered = sorted(new.items(), key=lambda item: item[1][1])
        self._apply([(batch_id, row) for batch_id, (rows, at) in ordered for row in self._counted(batch_id, rows, at)],
                    now_us)  # fmt: skip

    def _counted(self, batch_id: str, rows: Sequence[Row], accepted_us: int) -> list[Row]:
        """Those that are not older than what is stored; the others are duplicates. Of sealed days nothing is known."""
        counted = []
        for row in rows:
            identity = (row.sensor, row.time_us)
            if row.time_us // DAY_US not in self.sealed and self.accepted.get(identity, accepted_us) > accepted_us:
                self.counts[batch_id][2] += 1
                continue
            self.accepted[identity] = accepted_us
            counted.append(row)
        return counted


class SharedRun(Run):
    """Drives a store on PostgreSQL and the model with the same calls."""

    def __init__(self, url: str, retention_days: int) -> None:
        self.url = url
        super().__init__(Path(), retention_days)
        self.model: SharedModel = SharedModel()

    def _open(self) -> Any:
        return PostgresStore(self.url, clock=self.clock, raw_retention_days=self.retention_days)

    def write_late_claims(
        self, batches: list[list[tuple[tuple[int, int, int, int], Content]]], lags: list[int]
    ) -> None:
        """Batches that were accepted some minutes ago, or in another order than they are written in."""
        named = []
        for rows, lag in zip(batches, lags, strict=False):
            batch_id = f"batch-{len(self.batches):05d}"
            made = [
                Row(sensor, (self.hour - back) * 60 * MINUTE_US + minute * MINUTE_US + microsecond, content)
                for (sensor, back, minute, microsecond), content in rows
            ]
            self.batches[batch_id] = made
            self.written_us[batch_id] = self.clock.now_us()
            named.append((batch_id, made, self.clock.now_us() - lag * MINUTE_US))
        self._write_accepted(named)

    def _write(self, named: list[tuple[str, list[Row]]]) -> None:
        self._write_accepted([(batch_id, rows, self.clock.now_us()) for batch_id, rows in named])

    def _write_accepted(self, named: list[tuple[str, list[Row], int]]) -> None:
        answered = self.store.write([Write(batch_id, batch_of(rows), at_us) for batch_id, rows, at_us in named])
        self.model.write_accepted(named, self.clock.now_us())
        self._assert_settled(answered, {batch_id for batch_id, _, _ in named})

    def settle(self) -> None:
        assert self.store.settle() == []

    def maintain(self, times: int) -> None:
        for _ in range(times):
            self.store.maintain(self.clock.now_us())
        with psycopg.connect(self.url) as connection:
            sealed = connection.execute("SELECT day FROM telemetry.days WHERE sealed").fetchall()
        for (day,) in sealed:
            if day not in self.model.sealed:
                assert self.retention_days, "retention 0 keeps raw for ever"
                assert (day + 1 + self.retention_days) * DAY_US <= self.clock.now_us()
                # The time of the last write is kept to the minute.
                assert self.model.written[day] <= self.clock.now_us() - DAY_US + MINUTE_US, "it was still written to"
                self.model.seal(day)


LAGS = st.lists(st.sampled_from([0, 0, 1, 5, 90]), min_size=3, max_size=3)
STEPS = st.one_of(
    *[step("write", BATCHES)] * 3,
    *[step("write_late_claims", BATCHES, LAGS)] * 2,
    *[step("revisit", REVISITS)] * 3,
    step("redeliver", st.lists(st.integers(0, 20), min_size=1, max_size=3)),
    *[step("pass_time", st.sampled_from([1, 2, 7, 24, 60]))] * 2,
    *[step("let_days_age", st.sampled_from([3, 6]))] * 2,
    *[step("maintain", st.sampled_from([1, 3, 12]))] * 2,
    step("reopen"),
    step("raw_is_last_write_wins"),
    *[step("rollups_equal_a_recomputation", st.sampled_from(["hour", "day"]), st.sampled_from([3, 10_000]))] * 2,
    *[step("summaries_add_up", st.sampled_from([1, 2, 7, 20]), st.sampled_from([0, 1, 17 * MINUTE_US]))] * 2,
)


@pytest.mark.parametrize("kind", SHARED)
@settings(
    max_examples=8,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(retention_days=st.sampled_from([0, 2, 2, 5]), steps=st.lists(STEPS, min_size=12, max_size=30))
def test_any_interleaving_leaves_raw_rollups_and_counts_as_a_plain_model(
    kind: str, retention_days: int, steps: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SMALL_STEPS.items():
        monkeypatch.setattr(f"sensorkeep.tsdb.postgres.{name}", value)
    with postgres_database(kind) as url:
        run = SharedRun(url, retention_days)
        for name, *arguments in steps:
            getattr(run, name)(*arguments)
        run.check_all()
