"""The time series store on PostgreSQL. How it works, and where:

batches come in through `writing`, `reading` answers from stored buckets and raw, `maintenance` rolls up, seals and
drops days, `sealed` makes buckets outside of the database; `migration` makes the tables. With TimescaleDB the readings
are a hypertable and the stored buckets of days with raw are continuous aggregates; all else is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sensorkeep.clock import DAY_US, Clock
from sensorkeep.errors import Conflict
from sensorkeep.tsdb.base import BUCKET_SCHEMAS, Period, Settled, StoreStatus, Write
from sensorkeep.tsdb.postgres import migration, sealed
from sensorkeep.tsdb.postgres.engine import Engine, Session
from sensorkeep.tsdb.postgres.maintenance import Maintenance
from sensorkeep.tsdb.postgres.reading import PERIOD_US, Snapshot
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment
from sensorkeep.tsdb.postgres.writing import Writer
from sensorkeep.tsdb.readings import integers
from sensorkeep.tsdb.shapes import shown
from sensorkeep.tsdb.summary import summarize


class PostgresStore:
    """A TimeSeriesStore in the schema `telemetry` of a database that `migration.upgrade` has prepared.

    Any number of processes may write, read and maintain it at once. Of two readings of one identity that different
    processes write at the same moment, either may be the later one.
    """

    def __init__(self, url: str, *, clock: Clock, raw_retention_days: int) -> None:
        """`url`: `postgresql://user:password@host/database`. Raises BadConfig (the URL, or a schema that is not at
        this version) and Unavailable."""
        self._clock = clock
        self._engine = Engine(url)
        try:
            self._extension = migration.require_head(self._engine)
        except BaseException:
            self._engine.close()
            raise
        self._timescale = self._extension is not None
        self._writer = Writer(self._engine, timescale=self._timescale)
        self._maintenance = Maintenance(
            self._engine, timescale_schema=self._extension, raw_retention_days=raw_retention_days
        )

    def write(self, writes: Sequence[Write]) -> list[Settled]:
        """See TimeSeriesStore. Late readings are not staged: every batch is settled by it."""
        return self._writer.write(writes, self._clock.now_us())

    def settle(self) -> list[Settled]:
        """See TimeSeriesStore. Nothing is ever staged."""
        return []

    def maintain(self, now_us: int) -> None:
        """See TimeSeriesStore. Of many processes that call it one does the work."""
        self._maintenance.run(now_us)

    def read_raw(
        self, sensors: Sequence[str], start_us: int, end_us: int, limit: int, after: tuple[int, int] | None = None
    ) -> pa.Table:
        """See TimeSeriesStore."""
        after_sensor = -1
        if after is not None and after[0] >= start_us:
            start_us, after_sensor = after
        with self._snapshot(sensors, start_us, end_us) as snapshot:
            return snapshot.raw(start_us, end_us, limit, after_sensor)

    def read_rollup(
        self, period: Period, sensors: Sequence[str], start_us: int, end_us: int, limit: int,
        after: tuple[int, int] | None = None,
    ) -> pa.Table:  # fmt: skip
        """See TimeSeriesStore."""
        skipped = 0
        if after is not None and after[0] >= start_us:
            # The page begins again with the bucket that the last one may have cut.
            start_us, skipped = after[0], after[1] + 1
        # Buckets are whole: the last one reaches past the range.
        with self._snapshot(sensors, start_us, end_us + PERIOD_US[period]) as snapshot:
            buckets = snapshot.buckets(period, start_us, end_us, limit + skipped)
        if after is not None and skipped:
            time_us, sensor = integers(buckets["time"]), integers(buckets["sensor"])
            later = (time_us > after[0]) | ((time_us == after[0]) & (sensor > after[1]))
            buckets = buckets.filter(pa.array(later))
        return shown(buckets.slice(0, limit))

    def summarize(self, sensors: Sequence[str], start_us: int, end_us: int) -> pa.Table:
        """See TimeSeriesStore."""
        with self._snapshot(sensors, start_us, end_us) as snapshot:
            return summarize(snapshot, start_us, end_us)

    def export_buckets(self, period: Period, start_us: int, end_us: int) -> pa.Table:
        """See TimeSeriesStore."""
        schema = BUCKET_SCHEMAS[period]
        with self._engine.snapshot() as session:
            bounds = {"start": moment(start_us), "end": moment(end_us), "first": -(2**31), "last": 2**31 - 1}
            days = [day for (day,) in session.execute(statement("days_sealed"), bounds).fetchall()]
            bounds["days"] = [moment(day * DAY_US) for day in days]
            rows = session.execute(statement(f"sealed_{period}s"), bounds, binary=True).fetchall()
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema.names)
        arrays = [
            pa.array(column, pa.int64() if name == "time" else schema.field(name).type).cast(schema.field(name).type)
            for name, column in zip(schema.names, columns, strict=True)
        ]
        return pa.table(arrays, schema=schema)

    def import_buckets(self, period: Period, buckets: pa.Table) -> None:
        """See TimeSeriesStore."""
        if buckets.num_rows == 0:
            return
        uuids: list[Any] = buckets["sensor"].to_pylist()
        numbers = self._writer.number(set(uuids))
        table = buckets.set_column(0, "series", pa.array([numbers[uuid] for uuid in uuids], pa.int32()))
        table = table.select(sealed.COLUMNS[period]).cast(sealed.SCHEMAS[period])
        days = np.unique(np.floor_divide(integers(buckets["time"]), DAY_US)).tolist()
        self._engine.run(lambda session: self._import(session, period, table, days))

    def status(self) -> StoreStatus:
        """See TimeSeriesStore. `disk_bytes` is all of the database."""
        estimate = statement("estimate_plain")
        if self._extension is not None:
            estimate = statement("estimate_timescale", schema=self._extension)
        with self._engine.session() as session:
            ((disk_bytes, readings, empty),) = session.execute(statement("sizes", estimate=estimate)).fetchall()
        return StoreStatus(disk_bytes, 0, readings, empty)

    def close(self) -> None:
        """See TimeSeriesStore."""
        self._engine.close()

    def _import(self, session: Session, period: Period, table: pa.Table, days: list[int]) -> None:
        session.execute(statement("lock_writers_out"))
        if session.execute(statement("unsealed_of"), {"days": days}).fetchall():
            raise Conflict("the store holds readings already: bring in the buckets without readings before them")
        session.execute(statement("add_sealed_days"), {"days": days, "now_us": self._clock.now_us()})
        sealed.put(session, period, table)

    @contextlib.contextmanager
    def _snapshot(self, sensors: Sequence[str], start_us: int, end_us: int) -> Iterator[Snapshot]:
        """One moment of the store, seen for the sensors (uuids)."""
        known = self._writer.series_of(set(sensors))
        series = [known.get(uuid) for uuid in sensors]
        with self._engine.snapshot() as session:
            yield Snapshot(session, series, start_us, end_us, timescale=self._timescale)
