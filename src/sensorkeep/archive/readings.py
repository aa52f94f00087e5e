"""Raw readings: out of a store by day, and into one by pages that may be repeated."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sensorkeep.archive.files import Archive
from sensorkeep.archive.layout import READING_FILE_SCHEMA, READINGS_FOLDER, ArchiveFile
from sensorkeep.archive.progress import Progress
from sensorkeep.archive.writing import ArchiveWriter, NewFile
from sensorkeep.clock import DAY_US, HOUR_US
from sensorkeep.limits import ARCHIVE_PAGE_READINGS, ARCHIVE_SENSORS_AT_ONCE, TIME_OLDEST_US
from sensorkeep.model import NAMESPACE, READINGS_SCHEMA, Counts, DecodedBatch, Sensor
from sensorkeep.tsdb.base import TimeSeriesStore, Write

_END_US = 253_402_300_800_000_000
"""10000-01-01: the end of what dates can name."""
_EPOCH = date(1970, 1, 1)
_WINDOW_US_MIN = 1_000_000
_WINDOW_US_MAX_OF_GROUPS = 2 * HOUR_US
"""With several groups of sensors, each group's window is written after the other's. As long as windows are shorter
than the time after which a reading counts as late, none is late when it comes in."""


class ReadingsExport:
    """Copies the raw readings of `sensors` (uuids) out of a store, by day, in the order of time."""

    def __init__(self, store: TimeSeriesStore, sensors: Sequence[str]) -> None:
        self._store = store
        self._uuids = [
            list(sensors[start : start + ARCHIVE_SENSORS_AT_ONCE])
            for start in range(0, len(sensors), ARCHIVE_SENSORS_AT_ONCE)
        ]
        self._groups = [pa.array(uuids, pa.string()) for uuids in self._uuids]
        self._window_us_max = DAY_US if len(self._groups) < 2 else _WINDOW_US_MAX_OF_GROUPS
        self._window_us = self._window_us_max

    def run(self, writer: ArchiveWriter, progress: Progress, expected: int) -> int:
        """Write a file for every day that has readings; how many there were. `expected` is an estimate of it."""
        total = 0
        with progress("readings", float(expected) if expected else None) as report:
            for day in self._days():
                name = (_EPOCH + timedelta(days=day)).isoformat()
                with writer.file(f"{READINGS_FOLDER}/{name}.parquet") as file:
                    for rows in self._write_day(day, file):
                        total += rows
                        report.update(total, f"{total:,} readings, at {name}")
        return total

    def _days(self) -> Iterator[int]:
        """The days that have readings."""
        first_us = [self._first_us(group, TIME_OLDEST_US) for group in range(len(self._groups))]
        while times := [time_us for time_us in first_us if time_us is not None]:
            day = min(times) // DAY_US
            yield day
            next_us = (day + 1) * DAY_US
            for group, known_us in enumerate(first_us):
                if known_us is not None and known_us < next_us:
                    first_us[group] = self._first_us(group, next_us)

    def _first_us(self, group: int, start_us: int) -> int | None:
        """The time of the first reading from `start_us` on."""
        found = self._store.read_raw(self._uuids[group], start_us, _END_US, 1)
        return None if found.num_rows == 0 else int(found["time"].cast(pa.int64())[0].as_py())

    def _write_day(self, day: int, file: NewFile) -> Iterator[int]:
        """Write the readings of the day; the rows of each part written."""
        with pq.ParquetWriter(cast(Any, file), READING_FILE_SCHEMA, compression="zstd") as parquet:
            waiting: list[pa.Table] = []
            for page in self._pages(day):
                if waiting and sum(part.num_rows for part in waiting) + page.num_rows > ARCHIVE_PAGE_READINGS:
                    yield _write_group(parquet, file, waiting)
                    waiting = []
                waiting.append(page)
            if waiting:
                yield _write_group(parquet, file, waiting)

    def _pages(self, day: int) -> Iterator[pa.Table]:
        """The readings of the day in READING_FILE_SCHEMA, at most ARCHIVE_PAGE_READINGS at once."""
        start_us, day_end_us = day * DAY_US, (day + 1) * DAY_US
        while start_us < day_end_us:
            end_us = min(start_us + self._window_us, day_end_us)
            rows_max = 0
            for group in range(len(self._groups)):
                for page in self._read(group, start_us, end_us):
                    rows_max = max(rows_max, page.num_rows)
                    if page.num_rows:
                        yield page
            start_us = end_us
            # A page that is full was cut out of a longer answer, which costs more than a shorter range.
            if rows_max >= ARCHIVE_PAGE_READINGS:
                self._window_us = max(self._window_us // 2, _WINDOW_US_MIN)
            elif rows_max < ARCHIVE_PAGE_READINGS // 4:
                self._window_us = min(self._window_us * 2, self._window_us_max)

    def _read(self, group: int, start_us: int, end_us: int) -> Iterator[pa.Table]:
        after: tuple[int, int] | None = None
        while True:
            found = self._store.read_raw(self._uuids[group], start_us, end_us, ARCHIVE_PAGE_READINGS, after)
            yield self._named(group, found)
            if found.num_rows < ARCHIVE_PAGE_READINGS:
                return
            last = found.slice(found.num_rows - 1)
            after = (int(last["time"].cast(pa.int64())[0].as_py()), int(last["sensor"][0].as_py()))

    def _named(self, group: int, found: pa.Table) -> pa.Table:
        """The readings with the uuids of their sensors, only those that occur."""
        used, places = np.unique(found["sensor"].to_numpy(), return_inverse=True)
        uuids = self._groups[group].take(pa.array(used, pa.int32()))
        sensor = pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), uuids)
        # In the order in which they occur, so that the same readings give the same bytes.
        status = found["status"].cast(pa.string()).dictionary_encode()
        columns: dict[str, Any] = {name: found[name] for name in found.column_names}
        return pa.table(columns | {"sensor": sensor, "status": status}).cast(READING_FILE_SCHEMA)


def _write_group(parquet: pq.ParquetWriter, file: NewFile, parts: list[pa.Table]) -> int:
    table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    parquet.write_table(table, row_group_size=max(1, table.num_rows))
    file.rows += table.num_rows
    return table.num_rows


class ReadingsImport:
    """Writes the raw readings of an archive into a store. Repeating it changes nothing."""

    def __init__(self, store: TimeSeriesStore, archive: Archive, sensors: Mapping[str, Sensor]) -> None:
        """`sensors`: those of the archive's catalog, by uuid."""
        self._store = store
        self._archive = archive
        self._sensors = sensors
        self._settled: dict[str, Counts] = {}

    def run(self, progress: Progress) -> None:
        """Write every file. Raises Corrupt where not every reading of it came in as one of its own."""
        manifest = self._archive.manifest
        done = 0
        with progress("readings", float(manifest.readings)) as report:
            for file in manifest.reading_files():
                batch_ids = []
                for batch_id, rows in self._write_file(file):
                    batch_ids.append(batch_id)
                    done += rows
                    report.update(done, f"{done:,} readings, {file.path}")
                self._settled.update(dict(self._store.settle()))
                self._check(file, batch_ids)

    def _write_file(self, file: ArchiveFile) -> Iterator[tuple[str, int]]:
        with self._archive.parquet(file, READING_FILE_SCHEMA) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                # By what is in the file: the same page has the same id in every try.
                batch_id = str(uuid.uuid5(NAMESPACE, f"archive/{file.path}/{file.sha256}/{group}"))
                write = Write(batch_id, self._batch(file, table))
                self._settled.update(dict(self._store.write([write])))
                yield batch_id, table.num_rows

    def _batch(self, file: ArchiveFile, table: pa.Table) -> DecodedBatch:
        table = table.unify_dictionaries()
        # One chunk has one dictionary.
        sensor: Any = pa.concat_arrays(table["sensor"].chunks)
        try:
            sensors = tuple(self._sensors[uuid] for uuid in sensor.dictionary.to_pylist())
        except KeyError as error:
            raise self._archive.damaged(file, f"its sensor {error} is not in the catalog") from None
        readings = table.set_column(0, READINGS_SCHEMA.field(0), sensor.indices).cast(READINGS_SCHEMA)
        return DecodedBatch(equipment=(), sensors=sensors, readings=readings)

    def _check(self, file: ArchiveFile, batch_ids: Sequence[str]) -> None:
        counts = sum((self._settled.pop(batch_id, Counts()) for batch_id in batch_ids), Counts())
        # A try that was given up for more than BATCH_IDS_KEPT_DAYS is known by its readings only.
        if counts.stored + counts.duplicate != file.rows:
            raise self._archive.damaged(
                file, f"of its {file.rows} readings {counts.stored} came in and {counts.updated} changed one another"
            )
