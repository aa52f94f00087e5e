"""The one workload of every benchmark, from a seed: 1,000 sensors of 250 equipments, a reading a minute each.

1 % of the readings come late by 2 hours to 3 days, and 2 % more are exact copies of readings that were sent before. The
same readings are made in each form that a contender takes: what our own decoder makes of the JSON body is what the
others are given, so all of them store the same.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from sensorkeep.cli.fleet import Fleet, FleetOptions, FleetRows, fleet_batches
from sensorkeep.cli.fleet_forms import Encoder
from sensorkeep.clock import MINUTE_US, SystemClock
from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Equipment, Sensor
from sensorkeep.tsdb.readings import integers

SENSORS = 1_000
READINGS_PER_BATCH = 20_000
"""Without the late ones of earlier days and the copies."""
GZIP_LEVEL = 6
SEED = 0

Form = Literal["verbose", "slim"]
METADATA = ("battery", "rssi", "lqi", "battery_voltage")


class Load(NamedTuple):
    """One batch in every form it is sent in."""

    readings: int
    body: bytes
    """The bulk form of Sensorkeep, gzip."""
    lines: bytes
    """Influx line protocol with the value alone, microseconds, gzip."""
    full_lines: bytes
    """The same with all that the body says of a reading: its metadata too."""
    rows: bytes
    """Text rows for PostgreSQL's COPY, all columns."""


def make_loads(form: Form, batches: int, seed: int = SEED) -> list[Load]:
    """The batches, ending now; the first of them a few more days ago than they span. A `seed` has its own sensors."""
    now_us = SystemClock().now_us()
    rounds = READINGS_PER_BATCH // SENSORS
    options = FleetOptions(
        start_us=now_us - (batches + 1) * rounds * MINUTE_US, seed=seed, rounds_per_batch=rounds, form=form
    )
    decode = DecodeOptions(received_us=now_us)
    return [_load(batch.body(), decode) for batch in fleet_batches(options, batches)]


def _load(body: bytes, options: DecodeOptions) -> Load:
    decoder = EsmBulkDecoder(options)
    decoder.feed(body)
    batch = decoder.finish()
    if len(batch.rejections):
        raise RuntimeError(f"the workload has unusable readings: {next(iter(batch.rejections))}")
    lean, full = _lines(batch)
    return Load(
        batch.received,
        gzip.compress(body, GZIP_LEVEL),
        gzip.compress(lean, GZIP_LEVEL),
        gzip.compress(full, GZIP_LEVEL),
        _copy_rows(batch),
    )


def _columns(batch: DecodedBatch) -> Iterator[tuple[str, int, float, tuple[float | None, ...]]]:
    """(sensor uuid, time_us, value, metadata) of each reading."""
    table = batch.readings
    uuids = [batch.sensors[series].uuid for series in integers(table["series"]).tolist()]
    times = integers(table["time"]).tolist()
    metadata = zip(*(_shown(table[name]) for name in METADATA), strict=True)
    values = np.asarray(table["value"].to_numpy()).tolist()
    return zip(uuids, times, values, metadata, strict=True)


def _shown(column: Any) -> list[float | None]:
    """A column's numbers as they were sent: a float of 32 bits has too many digits as one of 64."""
    values: list[float | None] = column.to_pylist()
    return [round(value, 4) if type(value) is float else value for value in values]


def _lines(batch: DecodedBatch) -> tuple[bytes, bytes]:
    lean, full = [], []
    for uuid, time_us, value, metadata in _columns(batch):
        more = "".join(f",{name}={said}" for name, said in zip(METADATA, metadata, strict=True) if said is not None)
        lean.append(f"r,sensor={uuid} value={value} {time_us}\n")
        full.append(f"r,sensor={uuid} value={value}{more} {time_us}\n")
    return "".join(lean).encode(), "".join(full).encode()


def _copy_rows(batch: DecodedBatch) -> bytes:
    times = np.datetime_as_string(batch.readings["time"].cast(pa.timestamp("us")).to_numpy()).tolist()
    rows = (
        "\t".join([uuid, f"{time}Z", str(value), *(r"\N" if said is None else str(said) for said in metadata)])
        for (uuid, _, value, metadata), time in zip(_columns(batch), times, strict=True)
    )
    return ("\n".join(rows) + "\n").encode()


class _NoEncoder(Encoder):
    """For who takes the rows."""

    def objects(self, rows: FleetRows) -> list[bytes]:
        return []


class Growth:
    """The same fleet straight to columns, for the store alone: millions of readings without JSON."""

    def __init__(self, start_us: int, rounds_per_batch: int) -> None:
        self.options = FleetOptions(start_us=start_us, seed=SEED, rounds_per_batch=rounds_per_batch)
        fleet = Fleet(self.options)
        self.equipment = tuple(
            Equipment(uuid=uuid, name=f"Freezer {i}") for i, uuid in enumerate(fleet.equipment_uuids)
        )
        self.sensors = tuple(
            Sensor(
                uuid=uuid, equipment_uuid=fleet.equipment_uuids[fleet.equipment_of[i]], name=f"{i}", type="temperatura"
            )
            for i, uuid in enumerate(fleet.sensor_uuids)
        )

    def batches(self, count: int) -> Iterator[tuple[DecodedBatch, int, int]]:
        """(readings, how many of them are new, end of its last round in microseconds)."""
        for batch in fleet_batches(self.options, count, _NoEncoder):
            table = _table(batch.rows)
            yield (
                DecodedBatch(self.equipment, self.sensors, table),
                batch.fresh + batch.late,
                batch.through_us,
            )


def _table(rows: FleetRows) -> pa.Table:
    sensor, turn, count = rows.sensor, rows.round, len(rows.sensor)
    no_battery, no_radio = sensor % 10 == 0, sensor % 4 == 0
    columns = {
        "series": pa.array(sensor.astype(np.int32)),
        "time": pa.array(rows.time_us, pa.timestamp("us", "UTC")),
        "value": pa.array(rows.value),
        "status": pa.nulls(count, READINGS_SCHEMA.field("status").type),
        "battery": pa.array((100 - turn // 500 % 80).astype(np.float32), mask=no_battery),
        "rssi": pa.array((-40 - (turn + sensor) % 50).astype(np.int16), mask=no_radio),
        "lqi": pa.array((255 - (turn + sensor) % 60).astype(np.int16), mask=no_radio),
        "battery_voltage": pa.array((3.0 - turn // 500 % 80 / 100).astype(np.float32), mask=no_battery),
    }
    return pa.table([columns[name] for name in READINGS_SCHEMA.names], schema=READINGS_SCHEMA)
