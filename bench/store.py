"""Cost of the embedded time series store, in one process, at growing size.

Usage: python bench/store.py [--readings 2000000] [--transaction-minutes 200] [--settle-every 4] [--directory DIR]

The workload: 1,000 sensors with a reading a minute (eight columns), 1 % of them 2 hours to 3 days late, and 2 % more
re-sent. Every transaction writes `--transaction-minutes` of it; every `--settle-every` of them late readings are
settled, and after each a round of maintenance runs. All figures are CPU time of this process: readings stored per
CPU-second (everything included), and for the reads the median in milliseconds. The counts are checked at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, SystemClock
from sensorkeep.limits import MIB
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Equipment, Sensor, external_uuid
from sensorkeep.tsdb.base import Write
from sensorkeep.tsdb.duckdb import DuckDBStore

Integers = NDArray[np.int64]

SENSORS = 1_000
START_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""
STATUSES = pa.array(["ok", "warning", "low_battery", "fault"])
EQUIPMENT = tuple(Equipment(uuid=external_uuid(f"room-{i}")) for i in range(SENSORS // 4))
CATALOG = tuple(
    Sensor(uuid=external_uuid(f"sensor-{i}"), equipment_uuid=EQUIPMENT[i // 4].uuid) for i in range(SENSORS)
)


def mix(sensor: Integers, minute: Integers, salt: int) -> Integers:
    """Pseudo-random 62-bit numbers that are a function of their place: a re-sent reading is the same again."""
    x = sensor.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x ^= minute.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    x ^= np.uint64(salt * 0x165667B19E3779F9 % 2**64)
    for shift, factor in ((29, 0xBF58476D1CE4E5B9), (32, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    return ((x ^ (x >> np.uint64(29))) >> np.uint64(2)).astype(np.int64)


def readings(sensor: Integers, minute: Integers) -> pa.Table:
    """The reading of each (sensor, minute)."""
    noise, other = mix(sensor, minute, 1), mix(sensor, minute, 2)
    time_us = START_US + minute * MINUTE_US + sensor * 59_017 % 58_000_000 + noise % 1_500_000
    wave = 5 * np.sin(minute % 1440 * (2 * np.pi / 1440) + sensor)
    value = np.round(20 + sensor % 50 * 1.5 + wave + noise / 2**61 - 1, 2)
    percent = other % 100
    statuses: Any = pa.array((percent % 4).astype(np.int32), mask=percent < 90)
    no_radio = sensor % 4 == 0
    columns = {
        "series": pa.array(sensor.astype(np.int32)),
        "time": pa.array(time_us, pa.timestamp("us", tz="UTC")),
        "value": pa.array(value),
        "status": pa.DictionaryArray.from_arrays(statuses, STATUSES),
        "battery": pa.array(np.round(100 - minute % 40_000 / 400, 1).astype(np.float32), mask=other % 7 != 0),
        "rssi": pa.array((-40 - other // 7 % 60).astype(np.int16), mask=no_radio),
        "lqi": pa.array((other // 420 % 256).astype(np.int16), mask=no_radio),
        "battery_voltage": pa.array((3 + percent / 100).astype(np.float32), mask=other % 11 != 0),
    }
    return pa.table(columns).cast(READINGS_SCHEMA)


def delay_minutes(sensor: Integers, minute: Integers) -> Integers:
    """How late each reading comes; 0 for 99 %."""
    x = mix(sensor, minute, 3)
    return np.where(x % 100 == 0, 120 + x // 100 % (4320 - 120), 0)


def transactions(total: int, minutes: int) -> Iterator[tuple[pa.Table, int]]:
    """Batches of readings, each with the number of new ones in it."""
    source = np.random.default_rng(0)
    every = np.arange(SENSORS, dtype=np.int64)
    waiting = np.empty((3, 0), np.int64)  # sensor, minute, due
    for first in range(0, total // SENSORS, minutes):
        minute = np.repeat(np.arange(first, first + minutes, dtype=np.int64), SENSORS)
        sensor = np.tile(every, minutes)
        delay = delay_minutes(sensor, minute)
        waiting = np.concatenate([waiting, np.stack([sensor, minute, minute + delay])[:, delay > 0]], axis=1)
        due = waiting[2] < first + minutes
        late, waiting = waiting[:, due], waiting[:, ~due]
        again = source.integers(0, SENSORS, minutes * SENSORS // 50)
        recent, older = source.integers(1, 61, len(again)), source.integers(1, 4321, len(again))
        back = np.where(source.random(len(again)) < 0.7, recent, older)
        sent = (first - back >= 0) & (delay_minutes(again, first - back) == 0)
        on_time = delay == 0
        sensors = np.concatenate([sensor[on_time], late[0], again[sent]])
        yield (
            readings(sensors, np.concatenate([minute[on_time], late[1], (first - back)[sent]])),
            int(on_time.sum()) + late.shape[1],
        )


class Measured:
    """A store and the CPU seconds its parts took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = SystemClock()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self.store = self.open()

    def open(self) -> DuckDBStore:
        return DuckDBStore(self.path, clock=self.clock, raw_retention_days=0, memory_limit_bytes=256 * MIB, threads=1)

    def timed(self, part: str, act: Callable[[], Any]) -> Any:
        """Run `act` and add its CPU time to `part`."""
        started = time.process_time()
        answer = act()
        self.seconds[part] += time.process_time() - started
        for settled in answer or ():
            self.counts.update({name: getattr(settled.counts, name) for name in settled.counts.__struct_fields__})
        return answer

    def report(self, name: str, earlier: dict[str, float], **more: Any) -> dict[str, float]:
        """Print a line of figures; `earlier` is what the last one returned."""
        spent = sum(self.seconds.values())
        stored = self.counts["stored"]
        own = (stored - earlier.get("stored", 0)) / max(spent - earlier.get("spent", 0), 1e-9)
        figures = {
            "readings": stored,
            "readings_per_cpu_second": round(stored / max(spent, 1e-9)),
            "since_last_line": round(own),
            "cpu_us_per_reading": {part: round(s / stored * 1e6, 3) for part, s in self.seconds.items()},
            "bytes_per_reading": round(self.store.status().disk_bytes / stored, 1),
            "resident_mib": round(psutil.Process().memory_info().rss / MIB),
        }
        print(json.dumps({"case": name} | figures | more), flush=True)
        return {"stored": stored, "spent": spent}


def median_ms(act: Callable[[], pa.Table], rounds: int = 15) -> float:
    """Median CPU time of a read in milliseconds."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        act()
        times.append((time.process_time() - started) * 1e3)
    return round(statistics.median(times), 2)


def reads(store: DuckDBStore, end_us: int) -> dict[str, float]:
    """What four sensors cost to read, up to `end_us`."""
    uuids = [sensor.uuid for sensor in CATALOG[500:504]]
    days_us = end_us // DAY_US * DAY_US
    hours_us = end_us // HOUR_US * HOUR_US
    cases: dict[str, Callable[[], pa.Table]] = {
        "hourly_24h_ms": lambda: store.read_rollup("hour", uuids, end_us - DAY_US, end_us, 10_000),
        "hourly_30d_ms": lambda: store.read_rollup("hour", uuids, end_us - 30 * DAY_US, end_us, 10_000),
        "daily_1y_ms": lambda: store.read_rollup("day", uuids, end_us - 365 * DAY_US, end_us, 10_000),
        "raw_24h_ms": lambda: store.read_raw(uuids, end_us - DAY_US, end_us, 10_000),
        "summary_24h_ms": lambda: store.summarize(uuids, end_us - DAY_US, end_us),
        "summary_7d_ms": lambda: store.summarize(uuids, hours_us - 7 * DAY_US, end_us),
        "summary_30d_ms": lambda: store.summarize(uuids, days_us - 30 * DAY_US, end_us),
    }
    return {name: median_ms(act) for name, act in cases.items()}


def catch_up(measured: Measured) -> float:
    """Maintain until nothing changes any more, as an idle worker does; the CPU seconds."""
    started = time.process_time()
    deadline = time.monotonic() + 120
    quiet = 0
    while quiet < 80 and time.monotonic() < deadline:
        before = measured.store.version
        measured.store.maintain(measured.clock.now_us())
        quiet = quiet + 1 if measured.store.version == before else 0
        time.sleep(0.05 if quiet else 0)  # under load the redoing pauses; let it come round
    return round(time.process_time() - started, 2)


def run(path: Path, total: int, minutes: int, settle_every: int) -> None:
    """Write everything, then read."""
    measured = Measured(path)
    marks = [mark for mark in (1_000_000, 5_000_000, 10_000_000, 20_000_000, 30_000_000, 40_000_000) if mark < total]
    earlier: dict[str, float] = {}
    expected, end_us = 0, START_US
    for number, (table, new) in enumerate(transactions(total, minutes)):
        batch = DecodedBatch(equipment=EQUIPMENT, sensors=CATALOG, readings=table)
        writes = [Write(f"batch-{number:08d}", batch)]
        measured.timed("write", partial(measured.store.write, writes))
        if number % settle_every == settle_every - 1:
            measured.timed("settle", measured.store.settle)
        measured.timed("maintain", lambda: measured.store.maintain(measured.clock.now_us()))
        expected += new
        end_us = START_US + (number + 1) * minutes * MINUTE_US
        if marks and measured.counts["stored"] >= marks[0]:
            earlier = measured.report(f"write to {marks.pop(0):,}", earlier)
    measured.timed("settle", measured.store.settle)
    measured.report("write all", earlier, counts=measured.counts, as_expected=measured.counts["stored"] == expected)
    print(json.dumps({"case": "reads under load"} | reads(measured.store, end_us)))
    caught_up = catch_up(measured)
    print(json.dumps({"case": "reads when idle", "catch_up_cpu_seconds": caught_up} | reads(measured.store, end_us)))
    started = time.perf_counter()
    measured.store.close()
    closed = time.perf_counter()
    measured.store = measured.open()
    opened = time.perf_counter()
    measured.report("reopen", {}, close_seconds=round(closed - started, 3), open_seconds=round(opened - closed, 3))
    measured.store.close()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--readings", type=int, default=2_000_000)
    parser.add_argument("--transaction-minutes", type=int, default=200)
    parser.add_argument("--settle-every", type=int, default=4)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        run(
            Path(folder) / "readings.duckdb",
            arguments.readings,
            arguments.transaction_minutes,
            arguments.settle_every,
        )


if __name__ == "__main__":
    main()
