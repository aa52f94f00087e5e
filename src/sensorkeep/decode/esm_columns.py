"""Readings of the Easy Smart Monitor form to columns, some thousand rows at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sensorkeep.decode.arrow import ArrowArray
from sensorkeep.decode.esm_descriptions import describe_sensor, plain_sensor
from sensorkeep.decode.esm_fields import EsmMeasurement, EsmReading, SlimReading, encode_reading
from sensorkeep.decode.esm_measured import Measured, measured_at_once, measured_one_by_one
from sensorkeep.decode.esm_rows import EsmRows, Stretch, last_of
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.scan import Scanned
from sensorkeep.decode.series import MISSING, UNUSABLE, SeriesIndex, StatusIndex, readings_batch
from sensorkeep.limits import EXCERPT_CHARS_MAX, EXCERPTS_KEPT_MAX
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Equipment, Reason, Rejections, Sensor

Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

_REASONS = list(Reason)


@dataclass(slots=True)
class _Part:
    """Columns, rejections and descriptions of some rows."""

    chunks: list[pa.RecordBatch] = field(default_factory=list)
    rejections: Rejections = field(default_factory=Rejections)
    sensors: dict[int, Sensor] = field(default_factory=dict)
    rows: int = 0
    bad: array[int] = field(default_factory=lambda: array("I"))
    """Of an open object: indexes of the elements that are no usable readings."""


class EsmColumns:
    """Collects the readings of a body.

    `add` takes readings of a whole equipment object. An object that is decoded in parts goes through `open`,
    `add_part` any number of times, and `close`, or `restart` where its readings turn out to be void; its identity
    is known only at the end, since its fields may come in any order.
    """

    def __init__(self, options: DecodeOptions, only: Set[tuple[int, int]] | None = None) -> None:
        self._options = options
        self._only = None if only is None else np.array(sorted(e << 32 | s for e, s in only), np.int64)
        self._series = SeriesIndex()
        self._status = StatusIndex()
        self._equipment: dict[str, Equipment] = {}
        self._done = _Part()
        self._open: _Part | None = None
        self._rows = EsmRows(self._series)
        self._scanned: list[Stretch] = []
        self._scans: list[Scanned] = []
        """The readings of `_scanned`; where there are some, there are none in `_rows`."""

    def enter(self, equipment: Equipment | None) -> Equipment | None:
        """Enter the description of an equipment, if it has a usable identity; answers it."""
        if equipment is not None:
            self._equipment[equipment.uuid] = equipment
        return equipment

    @property
    def sensors_repeat(self) -> bool:
        """Whether most of the latest readings were not the last ones of their sensor."""
        return self._rows.sensors_repeat

    def add(self, stretch: Stretch, readings: Sequence[EsmMeasurement] | Sequence[SlimReading]) -> None:
        """All readings of an equipment object."""
        self._flush_scans()
        self._rows.add(stretch, readings)

    def add_scanned(self, stretches: list[Stretch], scanned: Scanned) -> None:
        """All readings of several equipment objects."""
        if self._rows.stretches:
            self.flush()
        self._scanned += stretches
        self._scans.append(scanned)

    def open(self) -> None:
        """Begin an object in parts."""
        self.flush()
        self._open = _Part()

    def add_part(self, position: int, readings: list[EsmReading], bad: dict[int, bytes]) -> None:
        """The next readings of the open object, which is at `position` in the body."""
        part = self._part()
        stretch = Stretch(position, _UNKNOWN, part.rows, len(readings), partial(last_of, readings), bad=bad)
        self._rows.add(stretch, readings)
        part.bad.extend(part.rows + i for i in bad)
        part.rows += len(readings)

    def restart(self) -> None:
        """Void the readings of the open object."""
        self._rows = EsmRows(self._series)
        self._open = _Part()

    def close(self, position: int, equipment: Equipment | None) -> None:
        """End the open object."""
        self.flush()
        part, done = self._part(), self._done
        self._open = None
        if equipment is None:
            _reject_all(part, position, done.rejections, self._only)
            return
        done.chunks += part.chunks
        for item in part.rejections:
            done.rejections.add(item.equipment, item.sensor, item.reason, item.excerpt or "")
        for series, sensor in part.sensors.items():
            done.sensors[series] = msgspec.structs.replace(sensor, equipment_uuid=equipment.uuid)

    def flush(self) -> None:
        """Turn what was added into columns."""
        self._flush_scans()
        rows = self._rows
        if rows.stretches:
            self._rows = EsmRows(self._series)
            rows.note()
            self._rows.sensors_repeat = rows.sensors_repeat
            if any(stretch.count for stretch in rows.stretches):
                self._write(rows.stretches, measured_one_by_one(rows, self._status, self._options.naive_timezone))

    def _flush_scans(self) -> None:
        stretches, scans = self._scanned, self._scans
        self._scanned, self._scans = [], []
        if any(stretch.count for stretch in stretches):
            measured = measured_at_once(scans, self._series, self._status, self._options.naive_timezone)
            self._write(stretches, measured)

    def _write(self, stretches: list[Stretch], measured: Measured) -> None:
        part = self._open if self._open is not None else self._done
        _Chunk(stretches, measured, self._options, self._series, self._only).write(part)

    def finish(self, objects: int) -> DecodedBatch:
        """The whole body."""
        self.flush()
        sensors, chunks = self._series.compact(self._done.sensors, self._done.chunks)
        table = pa.Table.from_batches([self._status.complete(chunk) for chunk in chunks], READINGS_SCHEMA)
        table = table.combine_chunks()  # the chunks are small; who reads the table is quicker with one
        used = {sensor.equipment_uuid for sensor in sensors}
        equipment = [e for e in self._equipment.values() if self._only is None or e.uuid in used]
        return DecodedBatch(tuple(equipment), tuple(sensors), table, self._done.rejections, objects=objects)

    def _part(self) -> _Part:
        assert self._open is not None
        return self._open


_UNKNOWN = Equipment(uuid="")
"""The equipment of an open object."""


def _reject_all(part: _Part, position: int, rejections: Rejections, only: Integers | None) -> None:
    """The object has no identity: whatever was said of its readings, but that they are none, this comes first."""
    bad_positions = set(part.bad)
    bad = {item.sensor: item for item in part.rejections if item.sensor in bad_positions}
    wanted = range(part.rows) if only is None else [int(p) & 0xFFFFFFFF for p in only.tolist() if p >> 32 == position]
    for i in wanted:
        item = bad.get(i)
        if item is not None:
            rejections.add(position, i, item.reason, item.excerpt or "")
        elif i < part.rows:
            rejections.add(position, i, Reason.MISSING_EQUIPMENT)


class _Chunk:
    """One conversion. `reason` holds, for each row, 0 or 1 + the index of why it is rejected (the first one found)."""

    def __init__(
        self,
        stretches: list[Stretch],
        measured: Measured,
        options: DecodeOptions,
        series: SeriesIndex,
        only: Integers | None,
    ) -> None:
        self._options = options
        self._series_index = series
        self._stretches = stretches
        self._measured = measured
        counts = np.array([stretch.count for stretch in stretches])
        self._starts = np.cumsum(counts) - counts
        self._owner = np.repeat(np.arange(len(counts)), counts)
        self.reason = np.zeros(len(measured.series), np.uint8)
        self._selected: Flags | None = None
        if only is not None:
            self._selected = np.isin(self._positions(), only)

    def write(self, part: _Part) -> None:
        """Append the usable rows, the rejections and the descriptions to `part`."""
        measured = self._measured
        self._reject_rows_without_equipment()
        self._check_series()
        times = self._times()
        self._mark(measured.bad, Reason.BAD_READING)
        self._mark(measured.no_value, Reason.NO_VALUE)
        keep = self.reason == 0
        if self._selected is not None:
            keep &= self._selected
        if keep.any():
            columns: list[ArrowArray] = [measured.series, times, measured.values, measured.status]
            columns += measured.metadata or ()
            series, times, values, status, *metadata = (
                columns if keep.all() else [_filter(column, keep) for column in columns]
            )
            part.chunks.append(readings_batch(series, times, values, status, metadata or None))
            self._describe(measured.series, keep, part.sensors)
        self._reject(part.rejections)

    def _mark(self, flags: Flags, reason: Reason) -> None:
        if flags.any():
            self.reason[flags & (self.reason == 0)] = _REASONS.index(reason) + 1

    def _positions(self) -> Integers:
        """(position of its object << 32 | position in it) of each row."""
        objects = np.array([stretch.position for stretch in self._stretches])
        shift = np.array([stretch.first for stretch in self._stretches]) - self._starts
        positions: Integers = ((objects << 32) + shift)[self._owner] + np.arange(len(self._owner))
        return positions

    def _reject_rows_without_equipment(self) -> None:
        for stretch, start in zip(self._stretches, self._starts.tolist(), strict=True):
            if stretch.bad:
                self.reason[[start + i for i in stretch.bad]] = _REASONS.index(Reason.BAD_READING) + 1
            if stretch.equipment is None:
                mine = np.zeros(len(self.reason), bool)
                mine[start : start + stretch.count] = True
                self._mark(mine, Reason.MISSING_EQUIPMENT)

    def _check_series(self) -> None:
        series = self._measured.series
        if series.min() < 0:
            self._mark(series == UNUSABLE, Reason.BAD_READING)
            self._mark(series == MISSING, Reason.MISSING_SENSOR)

    def _times(self) -> Integers:
        measured, options = self._measured, self._options
        times, bad = measured.times_us, measured.time_bad
        self._mark(bad, Reason.BAD_TIMESTAMP)
        times[measured.time_missing] = options.received_us
        if times.min() < options.earliest_us:
            self._mark((times < options.earliest_us) & ~bad, Reason.TOO_OLD)
        if times.max() > options.latest_us:
            self._mark(times > options.latest_us, Reason.IN_FUTURE)
        return times

    def _describe(self, series: npt.NDArray[np.int32], keep: Flags, sensors: dict[int, Sensor]) -> None:
        """Enter the description of each sensor of the usable rows from its last row."""
        last = np.full(len(self._series_index), -1)
        last[series[keep]] = np.flatnonzero(keep)
        rows = np.sort(last[last >= 0])
        numbers = series[rows].tolist()
        owners = self._owner[rows].tolist()
        equipment = [stretch.equipment for stretch in self._stretches]
        uuids = ["" if one is None else one.uuid for one in equipment]
        identity = self._series_index.identity
        if not any(stretch.describes for stretch in self._stretches):
            mine = map(plain_sensor, map(identity, numbers), map(uuids.__getitem__, owners))
            sensors.update(zip(numbers, mine, strict=True))
            return
        for number, owner, reading in zip(numbers, owners, self._readings(rows), strict=True):
            sensors[number] = describe_sensor(*identity(number), uuids[owner], reading)

    def _readings(self, rows: Integers) -> Iterator[EsmReading]:
        """The readings of these rows, which ascend, with all that they say."""
        present = -1
        first, readings = 0, []
        for row, owner in zip(rows.tolist(), self._owner[rows].tolist(), strict=True):
            if owner != present:
                stretch = self._stretches[owner]
                readings = stretch.read_last(int(self._starts[owner]) + stretch.count - row)
                present, first = owner, row
            yield readings[row - first]

    def _reject(self, rejections: Rejections) -> None:
        rejected = self.reason != 0 if self._selected is None else (self.reason != 0) & self._selected
        rows = np.flatnonzero(rejected)
        if not len(rows):
            return
        contents = self._contents(rows[: max(EXCERPTS_KEPT_MAX - len(rejections), 0)])
        for position, reason in zip(self._positions()[rows].tolist(), self.reason[rows].tolist(), strict=True):
            content = next(contents, b"").decode("utf-8", "replace")
            rejections.add(position >> 32, position & 0xFFFFFFFF, _REASONS[reason - 1], content)

    def _contents(self, rows: Integers) -> Iterator[bytes]:
        """The start of what the body says in these rows, which ascend."""
        for row, owner, reading in zip(rows.tolist(), self._owner[rows].tolist(), self._readings(rows), strict=True):
            bad = self._stretches[owner].bad.get(row - int(self._starts[owner]))
            yield bad or encode_reading(reading)[: 4 * EXCERPT_CHARS_MAX]


def _filter(column: ArrowArray, keep: Flags) -> ArrowArray:
    """The kept elements of an Arrow or numpy array."""
    return column.filter(pa.array(keep)) if isinstance(column, pa.Array) else column[keep]
