"""The embedded time series store: DuckDB in one file, one writer, readers beside it.

How it works, and where: batches come in through `writing`, are judged in `readings` and put into day tables by
`merging`; `maintenance` rolls up, closes and drops days; `reading` and `summary` answer from stored buckets and raw.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from sensorkeep.clock import Clock
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import Period, Settled, StoreStatus, Write
from sensorkeep.tsdb.duckdb import moving, writing
from sensorkeep.tsdb.duckdb import state as states
from sensorkeep.tsdb.duckdb.engine import Engine
from sensorkeep.tsdb.duckdb.maintenance import Maintenance
from sensorkeep.tsdb.duckdb.merging import Transaction
from sensorkeep.tsdb.duckdb.reading import Snapshot, version_of
from sensorkeep.tsdb.duckdb.state import DayState, State
from sensorkeep.tsdb.readings import integers
from sensorkeep.tsdb.shapes import shown
from sensorkeep.tsdb.summary import summarize


class DuckDBStore:
    """A TimeSeriesStore in one file, or in memory."""

    def __init__(
        self, path: Path | None, *, clock: Clock, raw_retention_days: int, memory_limit_bytes: int, threads: int
    ) -> None:
        """Open the file `path`, or make it (its folder exists); None keeps everything in memory.

        `raw_retention_days` 0 keeps raw for ever. `memory_limit_bytes` bounds DuckDB's own memory; what does not fit
        goes to a folder beside the file. Raises DataDirInUse, Corrupt or Unavailable.
        """
        self._clock = clock
        self._engine = Engine(path, memory_limit_bytes=memory_limit_bytes, threads=threads)
        self._writer = threading.RLock()
        self._publishing = threading.Lock()
        self._unreported: dict[str, Counts] = {}
        try:
            with self._engine.transaction() as connection:
                states.create(connection)
                self._state: State = states.load(connection)
        except BaseException:
            self._engine.close()
            raise
        self._maintenance = Maintenance(self._transaction, self._engine.checkpoint, clock, raw_retention_days)

    def write(self, writes: Sequence[Write]) -> list[Settled]:
        """See TimeSeriesStore."""
        with self._writer:
            pending: dict[str, Write] = {}
            for item in writes:
                if item.batch_id not in self._state.unsettled:
                    pending.setdefault(item.batch_id, item)
            with self._engine.snapshot() as connection:
                settled = writing.first_counts(connection, list(pending))
            fresh = [item for batch_id, item in pending.items() if batch_id not in settled]
            if fresh:
                with self._transaction() as transaction:
                    written = writing.write(transaction, fresh)
                settled |= written
            return writing.in_order(writes, settled)

    def settle(self) -> list[Settled]:
        """See TimeSeriesStore."""
        with self._writer:
            while self._state.unsettled:
                with self._transaction() as transaction:
                    settled = writing.settle(transaction)
                # Kept until a call can return them: a later portion may raise.
                self._unreported |= settled
            reported, self._unreported = self._unreported, {}
            return [Settled(batch_id, counts) for batch_id, counts in reported.items()]

    def maintain(self, now_us: int) -> None:
        """See TimeSeriesStore."""
        with self._writer:
            self._maintenance.run(lambda: self._state, now_us)

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
        with self._snapshot(sensors, start_us, end_us) as snapshot:
            buckets = snapshot.buckets(period, start_us, end_us, limit + skipped)
        if after is not None and skipped:
            buckets = _after(buckets, after)
        return shown(buckets.slice(0, limit))

    def summarize(self, sensors: Sequence[str], start_us: int, end_us: int) -> pa.Table:
        """See TimeSeriesStore."""
        with self._snapshot(sensors, start_us, end_us) as snapshot:
            return summarize(snapshot, start_us, end_us)

    def export_buckets(self, period: Period, start_us: int, end_us: int) -> pa.Table:
        """See TimeSeriesStore."""
        with self._moment() as (connection, state):
            return moving.export_buckets(connection, state, period, start_us, end_us)

    def import_buckets(self, period: Period, buckets: pa.Table) -> None:
        """See TimeSeriesStore."""
        if buckets.num_rows == 0:
            return
        with self._writer, self._transaction() as transaction:
            moving.import_buckets(transaction, period, buckets)

    def status(self) -> StoreStatus:
        """See TimeSeriesStore."""
        with self._engine.snapshot() as connection:
            connection.execute("SELECT 1").fetchall()
        state = self._state
        raw = sum(day.row_count for day in state.days.values() if day.state != "sealed")
        empty = not (state.days or state.unsettled)
        return StoreStatus(self._engine.disk_bytes(), state.staged_readings, raw, empty)

    def days(self) -> dict[int, DayState]:
        """The state of every day that has readings, by its number since 1970-01-01."""
        return {day.day: day.state for day in self._state.days.values()}

    @property
    def version(self) -> int:
        """Number of the last committed transaction: it stands still while there is nothing to do."""
        return self._state.version

    def close(self) -> None:
        """See TimeSeriesStore."""
        with self._writer:
            self._engine.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        """A draft of the state and a transaction: both take effect when the block ends, neither where it raises."""
        before = self._state
        draft = before.draft()
        with contextlib.ExitStack() as commit:
            with self._engine.transaction() as connection:
                yield Transaction(connection, draft, self._clock.now_us())
                states.save(connection, before, draft)
                commit.enter_context(self._publishing)
            self._state = states.publish(draft)

    @contextlib.contextmanager
    def _snapshot(self, sensors: Sequence[str], start_us: int, end_us: int) -> Iterator[Snapshot]:
        """What one moment of the store tells of the sensors."""
        with self._moment() as (connection, state):
            yield Snapshot(connection, state, sensors, start_us, end_us)

    @contextlib.contextmanager
    def _moment(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, State]]:
        """A snapshot of the database together with the state of the same moment."""
        while True:
            state = self._state
            with self._engine.snapshot() as connection:
                if version_of(connection) == state.version:
                    yield connection, state
                    return
            with self._publishing:
                pass  # the writer is between its commit and the new state


def _after(buckets: pa.Table, after: tuple[int, int]) -> pa.Table:
    """The buckets that come after `after` (time_us, sensor)."""
    time_us, sensor = integers(buckets["time"]), integers(buckets["sensor"])
    return buckets.filter(pa.array((time_us > after[0]) | ((time_us == after[0]) & (sensor > after[1]))))
