"""Laws of the embedded store: whatever the interleaving, raw is last-write-wins and rollups equal a recomputation."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sensorkeep import rollup
from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock
from sensorkeep.limits import BATCH_IDS_KEPT_DAYS, MIB
from sensorkeep.model import READINGS_SCHEMA, Counts, DecodedBatch, Equipment, Sensor, external_uuid
from sensorkeep.tsdb.base import Settled, Write
from sensorkeep.tsdb.duckdb import DuckDBStore

FIRST_DAY = 20_500
EQUIPMENT = Equipment(uuid=external_uuid("freezer"))
SENSORS = [Sensor(uuid=external_uuid(f"freezer/{i}"), equipment_uuid=EQUIPMENT.uuid) for i in range(3)]
UUIDS = [sensor.uuid for sensor in SENSORS]
PERIODS_US = {"hour": HOUR_US, "day": DAY_US}


class Content(NamedTuple):
    """What a reading says."""

    value: float | None
    status: str | None
    battery: float | None


class Row(NamedTuple):
    """A reading."""

    sensor: int
    time_us: int
    content: Content


Identity = tuple[int, int]


def batch_of(rows: Sequence[Row]) -> DecodedBatch:
    """The rows as a decoded batch."""
    table = pa.table(
        {
            "series": pa.array([row.sensor for row in rows], pa.int32()),
            "time": pa.array([row.time_us for row in rows], pa.timestamp("us", tz="UTC")),
            "value": pa.array([row.content.value for row in rows], pa.float64()),
            "status": pa.array([row.content.status for row in rows], pa.string()).dictionary_encode(),
            "battery": pa.array([row.content.battery for row in rows], pa.float32()),
            "rssi": pa.nulls(len(rows), pa.int16()),
            "lqi": pa.nulls(len(rows), pa.int16()),
            "battery_voltage": pa.nulls(len(rows), pa.float32()),
        }
    )
    return DecodedBatch(equipment=(EQUIPMENT,), sensors=tuple(SENSORS), readings=table.cast(READINGS_SCHEMA))


@dataclasses.dataclass
class Bucket:
    """A bucket as the definitions say: all values, the minutes, and whether the store may only approximate it."""

    values: list[float] = dataclasses.field(default_factory=list)
    minutes: set[int] = dataclasses.field(default_factory=set)
    approximate: bool = False

    def add(self, row: Row) -> None:
        """Count a reading."""
        self.minutes.add(row.time_us // MINUTE_US)
        if row.content.value is not None:
            self.values.append(row.content.value)


class Model:
    """The store in plain Python."""

    def __init__(self) -> None:
        self.raw: dict[Identity, Content] = {}
        self.staged: list[tuple[str, Row]] = []
        self.counts: dict[str, list[int]] = {}
        self.settled: set[str] = set()
        self.watermark_us: int | None = None
        self.sealed: dict[int, dict[tuple[str, Identity], Bucket]] = {}
        self.written: dict[int, int] = {}

    def write(self, batches: Sequence[tuple[str, list[Row]]], now_us: int) -> set[str]:
        """Apply the fresh rows, stage the late ones; the ids answered."""
        times = [row.time_us for batch_id, rows in batches for row in rows if batch_id not in self.counts]
        before = self.watermark_us
        if times:
            before = max(times) if before is None else before
            self.watermark_us = max(before, *times)
        fresh: list[tuple[str, Row]] = []
        for batch_id, rows in batches:
            if batch_id in self.counts:
                continue
            self.counts[batch_id] = [0, 0, 0]
            for row in rows:
                late = before is not None and row.time_us < rollup.hour_start(before - 3 * HOUR_US)
                (self.staged if late else fresh).append((batch_id, row))
        self._apply(fresh, now_us)
        waiting = {batch_id for batch_id, _ in self.staged}
        self.settled |= {batch_id for batch_id, _ in batches} - waiting
        return {batch_id for batch_id, _ in batches} & self.settled

    def settle(self, now_us: int) -> set[str]:
        """Apply the staged rows; the ids settled by it."""
        staged, self.staged = self.staged, []
        self._apply(staged, now_us)
        waiting = {batch_id for batch_id, _ in staged}
        self.settled |= waiting
        return waiting

    def seal(self, day: int) -> None:
        """Keep the buckets of the day and forget its raw."""
        self.sealed[day] = self._buckets_of(day)
        self.raw = {key: content for key, content in self.raw.items() if key[1] // DAY_US != day}

    def buckets(self, period: str) -> dict[Identity, Bucket]:
        """All buckets by (start, sensor)."""
        found: dict[Identity, Bucket] = {}
        for day in {time_us // DAY_US for _, time_us in self.raw} | set(self.sealed):
            of_day = self.sealed[day] if day in self.sealed else self._buckets_of(day)
            found |= {key: bucket for (kind, key), bucket in of_day.items() if kind == period}
        return found

    def _buckets_of(self, day: int) -> dict[tuple[str, Identity], Bucket]:
        found: dict[tuple[str, Identity], Bucket] = {}
        for (sensor, time_us), content in self.raw.items():
            if time_us // DAY_US == day:
                _add(found, Row(sensor, time_us, content))
        return found

    def _apply(self, rows: Iterable[tuple[str, Row]], now_us: int) -> None:
        merged: dict[Identity, Content] = {}
        for batch_id, row in rows:
            day = row.time_us // DAY_US
            known = merged if day in self.sealed else self.raw
            identity = (row.sensor, row.time_us)
            outcome = 0 if identity not in known else 2 if known[identity] == row.content else 1
            known[identity] = row.content
            self.counts[batch_id][outcome] += 1
            if outcome != 2:
                self.written[day] = now_us
        for (sensor, time_us), content in merged.items():
            _add(self.sealed[time_us // DAY_US], Row(sensor, time_us, content))
        self._mark_approximate(merged)

    def _mark_approximate(self, merged: dict[Identity, Content]) -> None:
        """A sealed bucket that had values and got more only has approximate percentiles."""
        gained: dict[tuple[int, str, Identity], int] = {}
        for (sensor, time_us), content in merged.items():
            for period, length_us in PERIODS_US.items():
                key = (time_us // DAY_US, period, (time_us // length_us * length_us, sensor))
                gained[key] = gained.get(key, 0) + (content.value is not None)
        for (day, period, identity), count in gained.items():
            bucket = self.sealed[day][period, identity]
            bucket.approximate |= 0 < count < len(bucket.values)


def _add(buckets: dict[tuple[str, Identity], Bucket], row: Row) -> None:
    for period, length_us in PERIODS_US.items():
        key = (period, (row.time_us // length_us * length_us, row.sensor))
        buckets.setdefault(key, Bucket()).add(row)


def assert_close(actual: float | None, expected: float | None, what: str) -> None:
    """Equal but for the last bits."""
    if expected is None or actual is None:
        assert actual == expected, what
    else:
        assert math.isclose(actual, expected, rel_tol=1e-9, abs_tol=1e-9), f"{what}: {actual} != {expected}"


def assert_moments(row: dict[str, Any], bucket: Bucket) -> None:
    """What must be exact in every bucket and summary."""
    expected = rollup.moments(bucket.values)
    assert row["count"] == expected.count
    assert row["active_minutes"] == len(bucket.minutes)
    assert (row["min"], row["max"]) == (expected.min, expected.max)
    for name, value in (("sum", expected.sum), ("average", expected.average), ("stddev", expected.stddev)):
        assert_close(row[name], value, name)


def assert_percentiles(row: dict[str, Any], bucket: Bucket) -> None:
    """Exact, or within the values where the row says that it is approximate."""
    for name, probability in zip(("median", "p95", "p99"), rollup.PERCENTILES, strict=True):
        if not bucket.values:
            assert row[name] is None
        elif row["approximate"]:
            slack = 1e-6 * max(abs(value) for value in bucket.values)  # grids are single precision
            assert min(bucket.values) - slack <= row[name] <= max(bucket.values) + slack
        else:
            assert_close(row[name], rollup.percentile_cont(bucket.values, probability), name)


CONTENTS = st.one_of(
    st.builds(Content, st.sampled_from([0.0, 1.5, -2.0, 1e9, 0.1]), st.sampled_from([None, "ok"]), st.just(None)),
    st.builds(Content, st.just(1.5), st.none(), st.sampled_from([50.0, 49.5])),
    st.builds(Content, st.none(), st.sampled_from(["on", "unavailable"]), st.none()),
)
OFFSETS = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 5, 6]), st.integers(20, 30), st.integers(40, 24 * 6))
"""Hours back from the present hour: mostly fresh, some late, some days late."""
SPOTS = st.tuples(st.integers(0, 2), OFFSETS, st.sampled_from([0, 1, 59]), st.sampled_from([0, 1, 59_999_999]))
BATCHES = st.lists(st.lists(st.tuples(SPOTS, CONTENTS), max_size=6), min_size=1, max_size=3)


class Run:
    """Drives a store and the model with the same calls."""

    def __init__(self, folder: Path, retention_days: int) -> None:
        self.folder = folder
        self.retention_days = retention_days
        self.hour = FIRST_DAY * 24 + 30
        self.clock = ManualClock(self.hour * HOUR_US)
        self.model = Model()
        self.batches: dict[str, list[Row]] = {}
        self.written_us: dict[str, int] = {}
        self.store = self._open()

    def _open(self) -> DuckDBStore:
        return DuckDBStore(
            self.folder / "readings.duckdb",
            clock=self.clock,
            raw_retention_days=self.retention_days,
            memory_limit_bytes=128 * MIB,
            threads=1,
        )

    def write(self, batches: list[list[tuple[tuple[int, int, int, int], Content]]]) -> None:
        self._write_new(
            [
                Row(sensor, (self.hour - back) * HOUR_US + minute * MINUTE_US + microsecond, content)
                for (sensor, back, minute, microsecond), content in rows
            ]
            for rows in batches
        )

    def revisit(self, picks: list[tuple[int, int, Content]]) -> None:
        """Write at or near the times of earlier readings, however old: re-sent, corrected, merged into sealed days."""
        known = [row for rows in self.batches.values() for row in rows]
        if known:
            chosen = [(known[pick % len(known)], shift_us, content) for pick, shift_us, content in picks]
            self._write_new([[Row(row.sensor, row.time_us + shift_us, content) for row, shift_us, content in chosen]])

    def _write_new(self, batches: Iterable[list[Row]]) -> None:
        named = []
        for rows in batches:
            batch_id = f"batch-{len(self.batches):05d}"
            self.batches[batch_id] = rows
            self.written_us[batch_id] = self.clock.now_us()
            named.append((batch_id, rows))
        self._write(named)

    def redeliver(self, picks: list[int]) -> None:
        kept_us = self.clock.now_us() - BATCH_IDS_KEPT_DAYS * DAY_US
        known = [batch_id for batch_id in self.batches if self.written_us[batch_id] >= kept_us]
        if known:
            chosen = [known[-1 - pick % len(known)] for pick in picks]
            self._write([(batch_id, self.batches[batch_id]) for batch_id in chosen])

    def _write(self, named: list[tuple[str, list[Row]]]) -> None:
        answered = self.store.write([Write(batch_id, batch_of(rows)) for batch_id, rows in named])
        self._assert_settled(answered, self.model.write(named, self.clock.now_us()))

    def settle(self) -> None:
        self._assert_settled(self.store.settle(), self.model.settle(self.clock.now_us()))

    def _assert_settled(self, answered: list[Settled], expected: set[str]) -> None:
        assert len(answered) == len({settled.batch_id for settled in answered})
        assert {settled.batch_id for settled in answered} == expected
        for settled in answered:
            assert settled.counts == Counts(*self.model.counts[settled.batch_id]), settled.batch_id

    def pass_time(self, hours: int) -> None:
        self.hour += hours
        self.clock.advance(hours * 3600)

    def let_days_age(self, days: int) -> None:
        """Long quiet, well kept: with a retention the older days are sealed."""
        self.settle()
        self.pass_time(days * 24)
        self.maintain(12)

    def maintain(self, times: int) -> None:
        for _ in range(times):
            self.store.maintain(self.clock.now_us())
        for day, state in self.store.days().items():
            if state == "sealed" and day not in self.model.sealed:
                assert self.retention_days, "retention 0 keeps raw for ever"
                assert (day + 1 + self.retention_days) * DAY_US <= self.clock.now_us()
                assert self.model.written[day] <= self.clock.now_us() - DAY_US, "the day was still being written"
                assert not any(row.time_us // DAY_US == day for _, row in self.model.staged)
                self.model.seal(day)

    def reopen(self) -> None:
        self.store.close()
        self.store = self._open()

    def raw_is_last_write_wins(self) -> None:
        table = self.store.read_raw(UUIDS, 0, 2**60, 100_000)
        rows = zip(*(table[name].to_pylist() for name in ("sensor", "value", "status", "battery")), strict=True)
        times = table["time"].cast(pa.int64()).to_pylist()
        found = [((row[0], time_us), Content(*row[1:])) for row, time_us in zip(rows, times, strict=True)]
        assert found == sorted(self.model.raw.items(), key=lambda item: (item[0][1], item[0][0]))

    def rollups_equal_a_recomputation(self, period: Any, limit: int) -> None:
        expected = self.model.buckets(period)
        found = []
        after = None
        while True:
            page = self.store.read_rollup(period, UUIDS, 0, 2**60, limit, after)
            starts = [int(start) for start in page["time"].cast(pa.int64()).to_numpy()]
            found += list(zip(starts, page.to_pylist(), strict=True))
            if page.num_rows < limit:
                break
            after = (starts[-1], found[-1][1]["sensor"])
        assert [(start, row["sensor"]) for start, row in found] == sorted(expected)
        for start, row in found:
            bucket = expected[start, row["sensor"]]
            assert row["approximate"] == bucket.approximate
            assert_moments(row, bucket)
            assert_percentiles(row, bucket)

    def summaries_add_up(self, days: int, odd_us: int) -> None:
        end_us = self.hour * HOUR_US + odd_us
        start_us = end_us // DAY_US * DAY_US - days * DAY_US
        sealed = [day for day in self.model.sealed if start_us < (day + 1) * DAY_US and day * DAY_US < end_us]
        if any(end_us // DAY_US == day for day in sealed):
            return  # the end of an hour without raw cannot be told exactly
        expected: dict[int, Bucket] = {}
        for (start, sensor), bucket in self.model.buckets("hour").items():
            if start // DAY_US in sealed:
                whole = expected.setdefault(sensor, Bucket())
                whole.values += bucket.values
                whole.minutes |= bucket.minutes
        for (sensor, time_us), content in self.model.raw.items():
            if start_us <= time_us < end_us:
                expected.setdefault(sensor, Bucket()).add(Row(sensor, time_us, content))
        table = self.store.summarize(UUIDS, start_us, end_us)
        assert table["sensor"].to_pylist() == sorted(expected)
        for row in table.to_pylist():
            assert row["approximate"] == (end_us - start_us > 2 * DAY_US or bool(sealed))
            assert_moments(row, expected[row["sensor"]])
            assert_percentiles(row, expected[row["sensor"]])

    def check_all(self) -> None:
        """The end: everything merged and kept, and all reads once more."""
        self.settle()
        self.maintain(3)
        self.raw_is_last_write_wins()
        self.rollups_equal_a_recomputation("hour", 10_000)
        self.rollups_equal_a_recomputation("day", 10_000)
        self.store.close()


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """A call of Run."""
    return st.tuples(st.just(name), *arguments)


WRITES = step("write", BATCHES)
SHIFTS = st.sampled_from([0, 0, 1, MINUTE_US, HOUR_US])
REVISITS = st.lists(st.tuples(st.integers(0, 50), SHIFTS, CONTENTS), min_size=1, max_size=5)
STEPS = st.one_of(
    *[WRITES] * 3,
    *[step("revisit", REVISITS)] * 3,
    step("redeliver", st.lists(st.integers(0, 20), min_size=1, max_size=3)),
    *[step("settle")] * 2,
    *[step("pass_time", st.sampled_from([1, 2, 7, 24, 60]))] * 2,
    *[step("let_days_age", st.sampled_from([3, 6]))] * 2,
    *[step("maintain", st.sampled_from([1, 3, 12]))] * 2,
    step("reopen"),
    step("raw_is_last_write_wins"),
    *[step("rollups_equal_a_recomputation", st.sampled_from(["hour", "day"]), st.sampled_from([3, 10_000]))] * 2,
    *[step("summaries_add_up", st.sampled_from([1, 2, 7, 20]), st.sampled_from([0, 1, 17 * MINUTE_US]))] * 2,
)


@settings(
    max_examples=20,
    deadline=None,
    database=None,
    # Shrinking replays a database hundreds of times and takes minutes; the failing steps and their seed are printed.
    phases=[Phase.generate],
    report_multiple_bugs=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(retention_days=st.sampled_from([0, 2, 2, 5]), steps=st.lists(STEPS, min_size=12, max_size=30))
def test_any_interleaving_leaves_raw_rollups_and_counts_as_a_plain_model(
    retention_days: int, steps: list[tuple[Any, ...]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), retention_days)
        for name, *arguments in steps:
            getattr(run, name)(*arguments)
        run.check_all()
