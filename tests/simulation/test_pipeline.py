"""The whole pipeline under seeded faults and crashes: what was acknowledged is stored once and everything adds up.

A failing seed is printed and replays exactly: SENSORKEEP_TEST_SEED=<seed>. SENSORKEEP_TEST_SEEDS=<n> tries n seeds.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sensorkeep import rollup
from sensorkeep.clock import DAY_US, HOUR_US, MICROSECONDS, MINUTE_US, ManualClock, rfc3339, to_us
from sensorkeep.decode.gathered import TEMPERATURE, Entry
from sensorkeep.decode.temperature import check_time, parse_temperature
from sensorkeep.errors import Conflict, Unavailable
from sensorkeep.ingest.accept import Sender
from sensorkeep.model import external_uuid
from sensorkeep.testing.faulty import Crashed, Fault
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings

SEEDS = int(os.environ.get("SENSORKEEP_TEST_SEEDS", "14"))
STEPS = 45
START_US = 1_767_225_600 * MICROSECONDS  # 2026-01-01T00:00:00Z
BULK_SENSORS = [external_uuid(f"sim/probe-{i}") for i in range(4)]
SINGLE = "sim-single"
SENDER = Sender("simulation")
RATES = {
    Fault.DELAY: 0.05,
    Fault.FAIL_BEFORE: 0.06,
    Fault.FAIL_AFTER: 0.04,
    Fault.CRASH_BEFORE: 0.02,
    Fault.CRASH_AFTER: 0.02,
    Fault.DUPLICATE: 0.05,
}
ATTEMPTS_MAX = 200

Content = tuple[float | None, str | None]


class Reading(NamedTuple):
    """A reading as sent."""

    sensor: str
    time_us: int
    content: Content


class Simulation:
    """A client that sends until it is acknowledged, a process that fails and dies, and what must be true at the end."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self.clock = ManualClock(START_US)
        settings = PipelineSettings(rates=RATES, handoff_bytes=self._random.choice([0, 20_000, 1 << 26]))
        self.pipeline = Pipeline(directory, self.clock, seed, settings)
        self.expected: dict[tuple[str, int], Content] = {}
        self.future: dict[str, list[Reading]] = {}
        """Readings that were quarantined as in_future, by batch."""
        self.acknowledged: list[str] = []
        self.crashes = 0
        self.trace: list[str] = []
        """What happened: the same for the same seed."""

    def run(self) -> None:
        """Everything, up to the rest at the end."""
        self.pipeline.let_faults_happen(True)
        actions = [self._send_bulk, self._send_general, self._send_single, self._work, self._work, self._wait]
        for _ in range(STEPS):
            self._random.choice(actions)()
            self._check_accounting()
        if self.future:
            self.clock.advance(3600)
            self._replay()
        self.pipeline.let_faults_happen(False)
        self._rest()

    def check(self) -> None:
        """Acknowledged readings are stored once, the accounts add up, rollups and newest values follow from raw."""
        totals = self._check_accounting()
        assert totals.pending == 0
        assert self.pipeline.queue.depth().claims == 0
        raw = self._raw()
        assert raw == self.expected
        assert totals.stored == len(raw)
        for batch_id in self.acknowledged:
            state = self.pipeline.ledger.batch(batch_id).state
            assert state in ("stored", "partial"), f"{batch_id} was acknowledged and is {state}"
        self._check_rollups("hour", HOUR_US)
        self._check_rollups("day", DAY_US)
        self._check_latest()

    # --- what happens ---

    def _send_bulk(self) -> None:
        readings = [self._reading(self._random.choice(BULK_SENSORS)) for _ in range(self._random.randint(1, 25))]
        items: list[dict[str, Any]] = [_bulk_item(reading) for reading in readings]
        if self._random.random() < 0.3:
            items.insert(0, {"sensor_uuid": BULK_SENSORS[0], "valor": 1.0, "timestamp": "no time"})
        ahead: list[Reading] = []
        if self._random.random() < 0.15:
            ahead = [Reading(BULK_SENSORS[0], self.clock.now_us() + 20 * MINUTE_US, (5.0, None))]
            items.append(_bulk_item(ahead[0]))
        body = gzip.compress(json.dumps([{"equip_uuid": "sim", "sensor": items}]).encode(), mtime=0)
        chunks = [body[:40], body[40:]]
        accepted = self._until_acknowledged(lambda p: p.acceptor.bulk(iter(chunks), "gzip", SENDER).claim.batch_id)
        self._expect(readings)
        if ahead:
            self.future[accepted] = ahead

    def _send_general(self) -> None:
        readings = [self._reading(external_uuid("sim-general/power")) for _ in range(self._random.randint(1, 10))]
        items = [
            {"sensor_id": "sim-general", "timestamp": rfc3339(r.time_us), "values": {"power": r.content[0] or 0.0}}
            for r in readings
        ]
        readings = [r._replace(content=(r.content[0] or 0.0, None)) for r in readings]
        if self._random.random() < 0.2:
            items[0]["padding"] = "x" * 70_000  # too long to travel inside the claim
        body = json.dumps(items).encode()
        self._until_acknowledged(lambda p: p.acceptor.readings(body, SENDER).claim.batch_id)
        self._expect(readings)

    def _send_single(self) -> None:
        count = self._random.randint(1, 4)
        readings = [self._reading(external_uuid(f"{SINGLE}/temperature")) for _ in range(count)]
        readings = [r._replace(content=(r.content[0] or 0.0, None)) for r in readings]

        def send(pipeline: Pipeline) -> str:
            entries = tuple(self._entry(pipeline, reading) for reading in readings)
            return pipeline.acceptor.gathered(entries, SENDER)

        self._until_acknowledged(send)
        self._expect(readings)

    def _entry(self, pipeline: Pipeline, reading: Reading) -> Entry:
        value = {"temperature": reading.content[0], "sensor_id": SINGLE, "timestamp": rfc3339(reading.time_us)}
        body = json.dumps(value).encode()
        parsed = parse_temperature(body)
        options = pipeline.acceptor.options(SENDER)
        time_us = check_time(parsed.timestamp, options)
        return Entry(TEMPERATURE, options.received_us, 1, "10.0.0.1", body, parsed, time_us)

    def _reading(self, sensor: str) -> Reading:
        """New, late, a copy, or a correction."""
        known = [identity for identity in self.expected if identity[0] == sensor]
        chance = self._random.random()
        content: Content = (round(self._random.gauss(20, 5), 3), None)
        if known and chance < 0.25:
            time_us = self._random.choice(known)[1]
            if chance < 0.12:
                content = self.expected[sensor, time_us]
        elif chance < 0.45:
            time_us = self.clock.now_us() - self._random.randrange(3 * HOUR_US, 3 * DAY_US)
        else:
            time_us = self.clock.now_us() - self._random.randrange(2 * HOUR_US)
            if chance > 0.95 and sensor in BULK_SENSORS:
                content = (None, "unavailable")
        return Reading(sensor, time_us, content)

    def _until_acknowledged(self, send: Callable[[Pipeline], str]) -> str:
        """As a client does: the same again until the answer is a success."""
        for _ in range(ATTEMPTS_MAX):
            try:
                batch_id = send(self.pipeline)
            except Unavailable as error:
                self.trace.append(f"refused: {error.detail}")
                self.clock.advance(0.5)
                self._maybe_work()
            except Crashed as crash:
                self._die(crash)
            else:
                self.trace.append(f"acknowledged {batch_id}")
                self.acknowledged.append(batch_id)
                return batch_id
        raise AssertionError("never acknowledged")

    def _expect(self, readings: Iterable[Reading]) -> None:
        self.expected.update({(sensor, time_us): content for sensor, time_us, content in readings})

    def _maybe_work(self) -> None:
        if self._random.random() < 0.5:
            self._work()

    def _work(self) -> None:
        try:
            self.trace.append(f"worked on {self.pipeline.worker.round()} claims")
        except Unavailable as error:
            self.trace.append(f"worker waits: {error.detail}")
        except Crashed as crash:
            self._die(crash)

    def _wait(self) -> None:
        self.clock.advance(self._random.choice([0.3, 6.0, 600.0, 4000.0]))

    def _die(self, crash: Crashed) -> None:
        self.trace.append(f"died: {crash}")
        self.crashes += 1
        self.pipeline.restart()

    def _replay(self) -> None:
        """Readings that were ahead of the clock are behind it by now."""
        while self._waiting():
            self._work()
        for batch_id, readings in self.future.items():
            self._until_replayed(batch_id)
            while self._waiting():
                self._work()
            for sensor, time_us, content in readings:
                self.expected[sensor, time_us] = content

    def _until_replayed(self, batch_id: str) -> None:
        for _ in range(ATTEMPTS_MAX):
            try:
                self.pipeline.acceptor.replay(batch_id, SENDER)
                return
            except (Unavailable, Conflict) as error:
                self.trace.append(f"replay refused: {error.detail}")
                self._work()
            except Crashed as crash:
                self._die(crash)
        raise AssertionError("never replayed")

    def _waiting(self) -> bool:
        return self.pipeline.queue.depth().claims > 0

    def _rest(self) -> None:
        for _ in range(20):
            self._work()
            self.clock.advance(10)
        self.clock.advance(7200)
        for _ in range(5):
            self._work()
            self.clock.advance(10)

    # --- what must hold ---

    def _check_accounting(self) -> Any:
        for totals in self.pipeline.ledger.accounting():
            parts = (totals.stored, totals.updated, totals.duplicate, totals.quarantined, totals.pending)
            assert totals.received == sum(parts), totals
            assert min(parts) >= 0, totals
        return totals

    def _sensors(self) -> list[str]:
        return [*BULK_SENSORS, external_uuid("sim-general/power"), external_uuid(f"{SINGLE}/temperature")]

    def _raw(self) -> dict[tuple[str, int], Content]:
        sensors = self._sensors()
        table = self.pipeline.store.read_raw(sensors, 0, 2 * START_US, 1_000_000)
        rows = table.select(["sensor", "time", "value", "status"]).to_pylist()
        found = {(sensors[row["sensor"]], to_us(row["time"])): (row["value"], row["status"]) for row in rows}
        assert len(found) == len(rows), "a reading is stored twice"
        return found

    def _check_rollups(self, period: Any, length_us: int) -> None:
        sensors = self._sensors()
        buckets: dict[tuple[str, int], list[tuple[int, Content]]] = defaultdict(list)
        for (sensor, time_us), content in self.expected.items():
            buckets[sensor, time_us // length_us * length_us].append((time_us, content))
        rows = self.pipeline.store.read_rollup(period, sensors, 0, 2 * START_US, 1_000_000).to_pylist()
        assert {(sensors[row["sensor"]], to_us(row["time"])) for row in rows} == buckets.keys()
        for row in rows:
            members = buckets[sensors[row["sensor"]], to_us(row["time"])]
            values = [value for _, (value, _) in members if value is not None]
            moments = rollup.moments(values)
            assert row["count"] == moments.count
            assert row["active_minutes"] == len({time_us // MINUTE_US for time_us, _ in members})
            assert (row["min"], row["max"]) == (moments.min, moments.max)
            assert _close(row["sum"], moments.sum)
            assert _close(row["average"], moments.average)
            assert _close(row["stddev"], moments.stddev)
            for name, probability in zip(("median", "p95", "p99"), rollup.PERCENTILES, strict=True):
                assert _close(row[name], rollup.percentile_cont(values, probability) if values else None)

    def _check_latest(self) -> None:
        for sensor in self._sensors():
            times = [time_us for known, time_us in self.expected if known == sensor]
            if times:
                newest = self.pipeline.latest.reading(sensor)
                assert newest is not None
                assert newest.time_us == max(times)
                assert (newest.value, newest.status) == self.expected[sensor, max(times)]


def _bulk_item(reading: Reading) -> dict[str, Any]:
    value, status = reading.content
    said = {"valor": value} if value is not None else {"sensor_telemetria": status}
    return {"sensor_uuid": reading.sensor, "timestamp": rfc3339(reading.time_us)} | said


def _close(actual: float | None, expected: float | None) -> bool:
    if actual is None or expected is None:
        return actual is expected
    return math.isclose(actual, expected, rel_tol=1e-9, abs_tol=1e-9)


def simulate(directory: Path, seed: int) -> Simulation:
    simulation = Simulation(directory, seed)
    try:
        simulation.run()
        simulation.check()
    except BaseException:
        print(f"SENSORKEEP_TEST_SEED={seed} fails; the last that happened:", *simulation.trace[-30:], sep="\n  ")
        raise
    finally:
        simulation.pipeline.close()
    return simulation


def seeds() -> list[int]:
    one = os.environ.get("SENSORKEEP_TEST_SEED")
    return [int(one)] if one else list(range(SEEDS))


@pytest.mark.parametrize("seed", seeds())
def test_what_was_acknowledged_is_stored_once_whatever_fails_and_whenever_it_dies(tmp_path: Path, seed: int) -> None:
    simulate(tmp_path, seed)


def test_a_seed_replays_exactly(tmp_path: Path) -> None:
    first, second = simulate(tmp_path / "first", 3), simulate(tmp_path / "second", 3)
    assert first.trace == second.trace
    assert first.expected == second.expected


def test_the_seeds_hit_every_seam_with_every_kind_of_fault(tmp_path: Path) -> None:
    hits: set[tuple[str, Fault]] = set()
    for seed in range(3):
        simulation = simulate(tmp_path / str(seed), seed)
        hits |= {(seam, fault) for seam, faults in simulation.pipeline.faults.items() for _, fault in faults.counts}
    assert {fault for _, fault in hits} == set(Fault)
    assert {seam for seam, _ in hits} >= {"object_store", "queue", "store", "ledger", "latest"}
