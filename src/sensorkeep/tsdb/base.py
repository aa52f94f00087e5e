"""The contract of the time series store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

from sensorkeep.model import Counts, DecodedBatch

Period = Literal["hour", "day"]

RAW_COLUMNS = ("sensor", "time", "value", "status", "battery", "rssi", "lqi", "battery_voltage")
"""Columns of `read_raw`. `sensor` (int32) is the index into the sensors asked for; the rest as READINGS_SCHEMA."""

ROLLUP_COLUMNS = (
    "sensor", "time", "count", "sum", "min", "max", "average", "stddev", "active_minutes",
    "median", "p95", "p99", "approximate",
)  # fmt: skip
"""Columns of `read_rollup`; `time` is the start of the bucket (UTC). Definitions: module rollup."""

SUMMARY_COLUMNS = (
    "sensor", "count", "sum", "min", "max", "average", "stddev", "active_minutes", "active_periods",
    "median", "p95", "p99", "approximate",
)  # fmt: skip
"""Columns of `summarize`: one row per sensor that has readings in the range."""

_MOVED_FIELDS: list[pa.Field[Any]] = [
    pa.field("sensor", pa.string(), nullable=False),  # its uuid
    pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("count", pa.int64(), nullable=False),
    *(pa.field(name, pa.float64()) for name in ("sum", "min", "max", "m2", "median", "p95", "p99")),
    pa.field("approximate", pa.bool_(), nullable=False),
]
BUCKET_SCHEMAS: dict[Period, pa.Schema] = {
    "hour": pa.schema([*_MOVED_FIELDS, pa.field("minutes", pa.int64(), nullable=False)]),
    "day": pa.schema(
        [
            *_MOVED_FIELDS,
            pa.field("active_minutes", pa.int32(), nullable=False),
            pa.field("grid", pa.list_(pa.float32())),
        ]
    ),
}
"""Buckets in the form that merges, as they move between stores. `minutes` has bit i set where minute i of the hour has
a reading; `grid` holds the percentiles at rollup.DAY_PROBABILITIES, null where count is 0."""


@dataclass(frozen=True, slots=True)
class Write:
    """One batch to write. `batch_id` makes the write idempotent."""

    batch_id: str
    batch: DecodedBatch
    accepted_us: int = 0
    """When it was accepted. Where several processes write at once, batches may come to be written in another order than
    they were accepted in; a store that many share goes by this."""


class Settled(NamedTuple):
    """A batch all of whose readings are in, and what became of them."""

    batch_id: str
    counts: Counts


class StoreStatus(NamedTuple):
    """Sizes of the store."""

    disk_bytes: int
    staged_readings: int
    """Late readings written and not merged yet."""
    raw_readings: int
    """Estimated number of raw readings kept."""
    empty: bool
    """Nothing was ever written: it has no reading and no bucket."""


class TimeSeriesStore(Protocol):
    """Raw readings and their rollups. Every method is blocking; reads may run on many threads beside one writer.

    Identity is (sensor, time). Errors of the backend raise Unavailable (code `disk_full` where no room is left).
    Rollups are exact at every moment for what is settled: buckets not yet rolled up, and buckets changed since, are
    computed from raw when they are read.
    """

    def write(self, writes: Sequence[Write]) -> list[Settled]:
        """Write the batches, in order, in one transaction, and return those that are settled by it.

        Durable when it returns. Late readings may be staged: durable, but not visible or counted until `settle`;
        their batches are not in the answer. A batch id that was settled before changes nothing and is answered with
        its first counts; one whose readings are still staged changes nothing and is left out.
        Same identity with another content (value, status, metadata): the later one wins and counts as updated; with
        the same content, or accepted before what is stored, it counts as duplicate. Raises with nothing written, or
        with part of it that is not counted again when the batches are written once more.
        """
        ...

    def settle(self) -> list[Settled]:
        """Merge every staged reading and return the batches settled by that. Durable when it returns."""
        ...

    def maintain(self, now_us: int) -> None:
        """Roll up hours and days that are over, redo the changed ones, close days, apply retention, free space.

        Called often; does a bounded part of what is due each time, in transactions of its own. Never changes what
        the reads answer, but for raw readings past the retention. Retention never touches a rollup.
        """
        ...

    def read_raw(
        self, sensors: Sequence[str], start_us: int, end_us: int, limit: int, after: tuple[int, int] | None = None
    ) -> pa.Table:
        """Readings of the sensors (uuids) with start <= time < end, by (time, sensor), at most `limit` rows.

        `after` = (time_us, sensor index) of the last row seen continues a page.
        """
        ...

    def read_rollup(
        self, period: Period, sensors: Sequence[str], start_us: int, end_us: int, limit: int,
        after: tuple[int, int] | None = None,
    ) -> pa.Table:  # fmt: skip
        """Buckets of the sensors that start in [start, end), by (time, sensor), at most `limit` rows.

        A bucket is whole: it holds all its readings so far, those at or after `end_us` too.
        """
        ...

    def summarize(self, sensors: Sequence[str], start_us: int, end_us: int) -> pa.Table:
        """One row per sensor over [start, end), hour-aligned or not.

        Up to 2 days: exact from raw, percentiles too, `active_periods` counts hours. Longer: `start_us` is an hour
        boundary (up to 14 days; counts hours) or a day boundary (counts days), all but percentiles exact; these
        come from the mergeable form and `approximate` is true.
        """
        ...

    def export_buckets(self, period: Period, start_us: int, end_us: int) -> pa.Table:
        """The buckets of every sensor that start in [start, end) and whose raw is gone, with BUCKET_SCHEMAS, by
        (sensor, time)."""
        ...

    def import_buckets(self, period: Period, buckets: pa.Table) -> None:
        """Take in buckets that another store exported. Durable when it returns; repeating it changes nothing.

        Their days then have no raw: later readings merge into them. Hours and days of one day may come in any order,
        but before raw readings: raises Conflict, with nothing changed, where the store holds raw of such a day, or of
        one before it that is not rolled up yet.
        """
        ...

    def status(self) -> StoreStatus:
        """Sizes; raises Unavailable where the store cannot be used."""
        ...

    def close(self) -> None:
        """Finish and release what is held. Idempotent."""
        ...
