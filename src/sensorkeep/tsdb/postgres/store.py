"""The time series store on PostgreSQL. How it works, and where:

batches come in through `writing` and are judged and stored by `rows`; `reading` answers from stored buckets and raw;
`maintenance` rolls up (`rolling`) and seals days (`sealing`), whose buckets `sealed` merges later readings into;
`migration` makes the tables. With TimescaleDB the readings are a hypertable and the stored buckets of days with raw are
continuous aggregates; all else is the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from sensorkeep.clock import Clock
from sensorkeep.tsdb.base import BUCKET_SCHEMAS, Period, Settled, StoreStatus, Write
from sensorkeep.tsdb.postgres import migration, sealed
from sensorkeep.tsdb.postgres.engine import Engine
from sensorkeep.tsdb.postgres.maintenance import Maintenance
from sensorkeep.tsdb.postgres.reading import PERIOD_US, Snapshot
from sensorkeep.tsdb.postgres.series import Series
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.writing import Writer
from sensorkeep.tsdb.readings import integers
from sensorkeep.tsdb.shapes import shown
from sensorkeep.tsdb.summary import summarize


class PostgresStore:
    """A TimeSeriesStore in the schema `telemetry` of a database that `migration.upgrade` has prepared.

    Any number of processes may write, read and maintain it at once, each from any number of threads.
    """

    def __init__(self, url: str, *, clock: Clock, raw_retention_days: int) -> None:
        """`url`: `postgresql://user:password@host/database`; `raw_retention_days` 0 keeps raw for ever.

        Raises BadConfig (the URL, or a schema that is not at this version) and Unavailable.
        """
        self._clock = clock
        self._engine = Engine(url)
        try:
            self._extension = migration.require_head(self._engine)
        except BaseException:
            self._engine.close()
            raise
        self._series = Series(self._engine)
        self._writer = Writer(self._engine, self._series, timescale=self._extension is not None)
        self._maintenance = Maintenance(
            self._engine, clock, extension=self._extension, raw_retention_days=raw_retention_days
        )
        self._maintaining = threading.Lock()

    def write(self, writes: Sequence[Write]) -> list[Settled]:
        """See TimeSeriesStore. Late readings are not staged: every batch is settled by it."""
        return self._writer.write(writes, self._clock.now_us())

    def settle(self) -> list[Settled]:
        """See TimeSeriesStore. Nothing is ever staged."""
        return []

    def maintain(self, now_us: int) -> None:
        """See TimeSeriesStore. Of all that call it at once, in many processes, one does the work."""
        if self._maintaining.acquire(blocking=False):
            try:
                self._maintenance.run(now_us)
            finally:
                self._maintaining.release()

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
        with self._engine.snapshot() as session:
            return sealed.export_buckets(session, period, start_us, end_us)

    def import_buckets(self, period: Period, buckets: pa.Table) -> None:
        """See TimeSeriesStore."""
        if buckets.num_rows == 0:
            return
        buckets = buckets.select(BUCKET_SCHEMAS[period].names)
        uuids: list[Any] = buckets["sensor"].unique().to_pylist()
        numbers, now_us = self._series.made(uuids), self._clock.now_us()
        self._engine.run(lambda session: sealed.import_buckets(session, period, buckets, numbers, now_us))

    def status(self) -> StoreStatus:
        """See TimeSeriesStore. `disk_bytes` is all of the database."""
        estimate = statement("estimate_plain")
        if self._extension is not None:
            estimate = statement("estimate_timescale", extension=self._extension)
        with self._engine.snapshot(statement("lock_days_in")) as session:
            ((disk_bytes, readings, empty),) = session.execute(statement("sizes", estimate=estimate)).fetchall()
        return StoreStatus(disk_bytes, 0, readings, empty)

    def close(self) -> None:
        """See TimeSeriesStore."""
        self._engine.close()

    @contextlib.contextmanager
    def _snapshot(self, sensors: Sequence[str], start_us: int, end_us: int) -> Iterator[Snapshot]:
        """One moment of the store, seen for the sensors (uuids)."""
        known = self._series.known(sensors)
        series = [known.get(uuid) for uuid in sensors]
        with self._engine.snapshot(statement("lock_days_in")) as session:
            yield Snapshot(session, series, start_us, end_us)
