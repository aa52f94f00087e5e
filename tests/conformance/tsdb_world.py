"""Builders for the tests of time series stores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sensorkeep.clock import ManualClock
from sensorkeep.limits import MIB
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Equipment, Sensor, external_uuid
from sensorkeep.tsdb.base import TimeSeriesStore, Write
from sensorkeep.tsdb.duckdb import DuckDBStore
from sensorkeep.tsdb.postgres import PostgresStore, migration
from services import POSTGRESQL_URL, TIMESCALE_URL, address, drop_database, has_timescale, make_database

EQUIPMENT = Equipment(uuid=external_uuid("freezer"))
SENSORS = tuple(Sensor(uuid=external_uuid(f"freezer/{i}"), equipment_uuid=EQUIPMENT.uuid) for i in range(4))
UUIDS = [sensor.uuid for sensor in SENSORS]
NOON_US = 1_771_329_600_000_000
"""2026-02-17T12:00:00Z."""
FOREVER_US = 2**60
MANY = 1_000_000


def readings(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows with `series` and `time` (microseconds), and any other column, as READINGS_SCHEMA."""
    columns = {}
    for field in READINGS_SCHEMA:
        kind = pa.string() if pa.types.is_dictionary(field.type) else field.type
        columns[field.name] = pa.array([row.get(field.name) for row in rows], kind)
    return pa.table(columns).cast(READINGS_SCHEMA)


def batch(table: pa.Table, sensors: tuple[Sensor, ...] = SENSORS) -> DecodedBatch:
    """Readings of `sensors` as a batch."""
    return DecodedBatch(equipment=(EQUIPMENT,), sensors=sensors, readings=table)


def write_of(batch_id: str, *rows: tuple[int, int, float | None], **columns: Any) -> Write:
    """A write of rows (sensor, time_us, value), all with the same further columns."""
    table = readings([{"series": row[0], "time": row[1], "value": row[2]} | columns for row in rows])
    return Write(batch_id, batch(table))


def open_store(path: Path | None, clock: ManualClock, raw_retention_days: int = 30) -> DuckDBStore:
    """The embedded store."""
    return DuckDBStore(
        path, clock=clock, raw_retention_days=raw_retention_days, memory_limit_bytes=256 * MIB, threads=1
    )


EMBEDDED = ["file", "memory"]
SHARED = [
    pytest.param(kind, marks=pytest.mark.distributed)
    for kind in ("postgresql", *(["timescaledb"] if has_timescale() else []))
]
"""The stores that many processes share; TimescaleDB where this run was given one."""


@contextmanager
def opened(kind: str, folder: Path, clock: ManualClock, raw_retention_days: int = 30) -> Iterator[TimeSeriesStore]:
    """A new store of a kind of EMBEDDED or SHARED."""
    if kind in EMBEDDED:
        store = open_store(folder / "readings.duckdb" if kind == "file" else None, clock, raw_retention_days)
        try:
            yield store
        finally:
            store.close()
        return
    with postgres_database(kind) as url:
        shared = PostgresStore(url, clock=clock, raw_retention_days=raw_retention_days)
        try:
            yield shared
        finally:
            shared.close()


@contextmanager
def postgres_database(kind: str) -> Iterator[str]:
    """The URL of a new database with the tables of the store."""
    admin_url = os.environ[TIMESCALE_URL] if kind == "timescaledb" else address(POSTGRESQL_URL)
    url = make_database(admin_url)
    try:
        migration.upgrade(url)
        yield url
    finally:
        drop_database(admin_url, url)


def values(store: TimeSeriesStore) -> list[tuple[int, int, float | None]]:
    """Everything in raw as (sensor, time_us, value)."""
    table = store.read_raw(UUIDS, 0, FOREVER_US, MANY)
    return list(zip(whole(table["sensor"]), whole(table["time"]), table["value"].to_pylist(), strict=True))


def whole(column: Any) -> list[int]:
    """A column of integers or times (as microseconds)."""
    return [int(value) for value in column.cast(pa.int64()).to_numpy()]


def buckets(store: TimeSeriesStore, period: Any = "hour") -> list[dict[str, Any]]:
    """Every bucket of every sensor."""
    rows: list[dict[str, Any]] = store.read_rollup(period, UUIDS, 0, FOREVER_US, MANY).to_pylist()
    return rows
