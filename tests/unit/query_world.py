"""A small world for the query tests: the real store and catalog in memory, and the routes over them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

import httpx
import pyarrow as pa
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from sensorkeep.catalog.base import Receipt, Settlement
from sensorkeep.catalog.database import open_database
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.clock import ManualClock, to_us
from sensorkeep.errors import SensorkeepError
from sensorkeep.limits import MIB, RAW_RETENTION_DAYS
from sensorkeep.model import (
    READINGS_SCHEMA,
    Claim,
    DecodedBatch,
    Equipment,
    LatestReading,
    LatestRecord,
    Rejections,
    Sensor,
    WireFormat,
)
from sensorkeep.query.http import query_router
from sensorkeep.query.service import QueryService
from sensorkeep.tsdb.base import Write
from sensorkeep.tsdb.duckdb import DuckDBStore

NOW_US = to_us(datetime(2024, 1, 15, 12, 34, 56, 789_012, tzinfo=UTC))
FREEZER = Equipment(
    uuid="550e8400-e29b-41d4-a716-446655440000", name="Freezer 1", location="Loja", status="ATIVO", interval_seconds=60
)
TEMPERATURE = Sensor(
    uuid="660e8400-e29b-41d4-a716-446655440001",
    equipment_uuid=FREEZER.uuid,
    name="Temp, inside",
    type="temperatura",
    unit="°C",
)
DOOR = Sensor(uuid="660e8400-e29b-41d4-a716-446655440002", equipment_uuid=FREEZER.uuid, name='The "door"', type="porta")


class Reading(NamedTuple):
    """One reading to be written."""

    sensor: Sensor
    time_us: int
    value: float | None
    status: str | None = None
    battery: float | None = None
    rssi: int | None = None
    lqi: int | None = None
    battery_voltage: float | None = None


def at(text: str) -> int:
    """Microseconds of an ISO time in UTC on 15 January 2024 (`10:30`), or of a full one (`2024-01-14T10:30`)."""
    return to_us(datetime.fromisoformat(text if "T" in text else f"2024-01-15T{text}").replace(tzinfo=UTC))


def decoded(readings: Sequence[Reading], equipment: Iterable[Equipment] = (FREEZER,)) -> DecodedBatch:
    """The readings as a decoder gives them."""
    sensors = list(dict.fromkeys(reading.sensor for reading in readings))
    columns = list(zip(*readings, strict=True))[1:]
    series = [sensors.index(reading.sensor) for reading in readings]
    arrays = [pa.array(column, field.type) for column, field in zip([series, *columns], READINGS_SCHEMA, strict=True)]
    return DecodedBatch(tuple(equipment), tuple(sensors), pa.Table.from_arrays(arrays, schema=READINGS_SCHEMA))


class World:
    """Store, catalog, service and a client of the API."""

    def __init__(self, display_timezone: tzinfo = UTC) -> None:
        self.clock = ManualClock(NOW_US)
        self.store = open_store(self.clock)
        self.database = open_database("sqlite://")
        self.inventory = CatalogInventory(self.database)
        self.latest = CatalogLatestReadings(self.database)
        self.ledger = CatalogLedger(self.database, self.clock)
        self.service = QueryService(
            self.store, self.inventory, self.latest, self.ledger, self.clock, display_timezone=display_timezone
        )
        self._batches = 0

    def accept(self, readings: Sequence[Reading], equipment: Iterable[Equipment] = (FREEZER,)) -> tuple[Write, Claim]:
        """Enter a batch as ingest does; it is pending until `store_batch`."""
        batch = decoded(readings, equipment)
        self._batches += 1
        claim = Claim(
            batch_id=f"batch-{self._batches}",
            wire_format=WireFormat.ESM_BULK,
            received_us=self.clock.now_us(),
            readings=len(readings),
            oldest_us=min(reading.time_us for reading in readings),
            newest_us=max(reading.time_us for reading in readings),
        )
        self.inventory.describe(batch.equipment, batch.sensors)
        self.ledger.receive([Receipt(claim, 100)])
        newest = [
            LatestReading(
                sensor_uuid=reading.sensor.uuid,
                time_us=reading.time_us,
                value=reading.value,
                status=reading.status,
                battery=reading.battery,
                rssi=reading.rssi,
                lqi=reading.lqi,
                battery_voltage=reading.battery_voltage,
            )
            for reading in readings
        ]
        self.latest.offer(newest)
        return Write(claim.batch_id, batch), claim

    def store_batch(self, write: Write, claim: Claim) -> None:
        """Write and settle an accepted batch as the worker does."""
        settled = self.store.write([write]) or self.store.settle()
        ends = [Settlement(claim, end.counts, Rejections()) for end in settled if end.batch_id == claim.batch_id]
        assert len(ends) == 1
        self.ledger.settle(ends)

    def feed(self, readings: Sequence[Reading], equipment: Iterable[Equipment] = (FREEZER,)) -> None:
        """Accept a batch and store it."""
        self.store_batch(*self.accept(readings, equipment))

    def record(self, record: LatestRecord) -> None:
        """Make a single-reading request known, as ingest does."""
        self.latest.offer([], [record])

    def close(self) -> None:
        """Release what is held."""
        self.store.close()
        self.database.close()


def open_store(clock: ManualClock) -> DuckDBStore:
    """An empty store in memory."""
    return DuckDBStore(
        None, clock=clock, raw_retention_days=RAW_RETENTION_DAYS, memory_limit_bytes=256 * MIB, threads=2
    )


def make_app(world: World, requires: object = None) -> FastAPI:
    """The routes under /api/v1, with problem documents as the real application answers them."""

    async def allow() -> None:
        return None

    app = FastAPI()
    app.include_router(query_router(world.service, requires or (lambda scope: allow)), prefix="/api/v1")  # type: ignore[arg-type]

    @app.exception_handler(SensorkeepError)
    async def problem(_request: Request, error: SensorkeepError) -> JSONResponse:
        document = {"title": error.title, "status": error.status, "detail": error.detail, "code": error.code}
        return JSONResponse(document | error.extra, error.status, media_type="application/problem+json")

    return app


class Client:
    """A blocking client of the API's root."""

    def __init__(self, app: FastAPI) -> None:
        self._runner = asyncio.Runner()
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver/api/v1")

    def get(
        self, path: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """GET a path below the API's root, or a whole URL."""
        return self._runner.run(self._http.get(path, params=params, headers=headers))

    def get_all(self, paths: Sequence[str]) -> list[httpx.Response]:
        """GET all of them at the same time."""

        async def gather() -> list[httpx.Response]:
            return await asyncio.gather(*(self._http.get(path) for path in paths))

        return self._runner.run(gather())

    def close(self) -> None:
        """Release what is held."""
        self._runner.run(self._http.aclose())
        self._runner.close()
