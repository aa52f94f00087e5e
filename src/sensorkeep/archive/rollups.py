"""Buckets whose readings are gone: the only rollups that cannot be computed anew from the readings of an archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from sensorkeep.archive.files import Archive
from sensorkeep.archive.layout import ROLLUP_FILES
from sensorkeep.archive.progress import Progress
from sensorkeep.archive.writing import ArchiveWriter, NewFile
from sensorkeep.clock import DAY_US, HOUR_US, rfc3339
from sensorkeep.limits import ARCHIVE_DAYS, ARCHIVE_HOURS, TIME_OLDEST_US
from sensorkeep.rollup import day_start
from sensorkeep.tsdb.base import BUCKET_SCHEMAS, Period, TimeSeriesStore

_PERIOD_US: dict[Period, int] = {"hour": HOUR_US, "day": DAY_US}
_AT_ONCE: dict[Period, int] = {"hour": ARCHIVE_HOURS, "day": ARCHIVE_DAYS}
"""Buckets moved at once."""
_PARTS_AT_ONCE_MAX = 4_096


def export_rollups(
    store: TimeSeriesStore, sensors: Sequence[str], writer: ArchiveWriter, now_us: int, progress: Progress
) -> None:
    """Write the buckets of `sensors` (uuids) that no reading stands for any more."""
    start_us = _first_us(store, sensors, now_us)
    for period, path in ROLLUP_FILES.items():
        schema = BUCKET_SCHEMAS[period]
        with (
            writer.file(path) as file,
            pq.ParquetWriter(cast(Any, file), schema, compression="zstd") as parquet,
            progress(f"{period}s", float(now_us - start_us)) as report,
        ):
            waiting: list[pa.Table] = []
            for end_us, buckets in _windows(store, period, len(sensors), start_us, now_us):
                waiting += [buckets] if buckets.num_rows else []
                del buckets  # the next ones may take as much room
                if sum(part.num_rows for part in waiting) >= _AT_ONCE[period]:
                    _write_group(parquet, file, waiting)
                    waiting = []
                report.update(end_us - start_us, f"{file.rows:,} {period}s, at {rfc3339(end_us)}")
            _write_group(parquet, file, waiting)


def import_rollups(store: TimeSeriesStore, archive: Archive, progress: Progress) -> None:
    """Bring the buckets in. Repeating it changes nothing."""
    for period, path in ROLLUP_FILES.items():
        file = archive.manifest.file(path)
        if file is None:
            continue
        done = 0
        with progress(f"{period}s", float(file.rows)) as report, archive.parquet(file, BUCKET_SCHEMAS[period]) as found:
            for portion in found.iter_batches(_AT_ONCE[period]):
                store.import_buckets(period, pa.Table.from_batches([portion]))
                done += portion.num_rows
                report.update(done, f"{done:,} {period}s")


def count_rollups(store: TimeSeriesStore, sensors: Sequence[str], period: Period, now_us: int) -> int:
    """How many buckets of a period the store has whose readings are gone."""
    start_us = _first_us(store, sensors, now_us)
    windows = _windows(store, period, len(sensors), start_us, now_us, whole_days=False)
    return sum(buckets.num_rows for _, buckets in windows)


def _first_us(store: TimeSeriesStore, sensors: Sequence[str], now_us: int) -> int:
    """Start of the first day that may have such buckets; `now_us` where there is none.

    The buckets before the first reading are all stored, so that finding the first of them costs little.
    """
    if not sensors:
        return now_us
    oldest_us = day_start(TIME_OLDEST_US)
    readings = store.read_raw(sensors, oldest_us, now_us, 1)
    end_us = day_start(_time_us(readings)) if readings.num_rows else now_us
    buckets = store.read_rollup("day", sensors, oldest_us, end_us, 1)
    return _time_us(buckets) if buckets.num_rows else end_us


def _time_us(table: pa.Table) -> int:
    return int(table["time"].cast(pa.int64())[0].as_py())


def _windows(
    store: TimeSeriesStore, period: Period, sensors: int, start_us: int, end_us: int, *, whole_days: bool = True
) -> Iterator[tuple[int, pa.Table]]:
    """The buckets of [start, end), about as many as move at once, and the end of each part.

    `whole_days`: a day stays together, however many they are: where they come in so, the buckets of one sensor are
    found in fewer places.
    """
    least_us = DAY_US if whole_days else _PERIOD_US[period]
    buckets_max = max(1, sensors) * least_us // _PERIOD_US[period]
    length_us = min(max(1, _AT_ONCE[period] // buckets_max), _PARTS_AT_ONCE_MAX) * least_us
    while start_us < end_us:
        yield min(start_us + length_us, end_us), store.export_buckets(period, start_us, start_us + length_us)
        start_us += length_us


def _write_group(parquet: pq.ParquetWriter, file: NewFile, parts: list[pa.Table]) -> None:
    if parts:
        table = pa.concat_tables(parts)
        parquet.write_table(table, row_group_size=table.num_rows)
        file.rows += table.num_rows
