"""Readings of the Easy Smart Monitor form to columns, some thousand rows at a time."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sensorkeep.decode.arrow import ArrowArray
from sensorkeep.decode.esm_fields import EsmEquipment, EsmReading, describe_equipment, describe_sensor, encode_reading
from sensorkeep.decode.esm_rows import EsmRows, ReadAgain, Stretch
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.series import MISSING, UNUSABLE, SeriesIndex, StatusIndex, readings_batch
from sensorkeep.decode.times import parse_times
from sensorkeep.decode.values import limited, numbers, numbers_of_texts, numbers_or_texts, texts
from sensorkeep.limits import EXCERPT_CHARS_MAX, EXCERPTS_KEPT_MAX, EXTERNAL_ID_CHARS_MAX
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Equipment, Reason, Rejections, Sensor, canonical_uuid

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

    def equipment(self, fields: EsmEquipment) -> Equipment | None:
        """Enter the description of an equipment; None where it has no usable identity."""
        text = fields.equipment_id
        if type(text) is not str or not 0 < len(text) <= EXTERNAL_ID_CHARS_MAX:
            return None
        equipment = describe_equipment(canonical_uuid(text), text, fields)
        self._equipment[equipment.uuid] = equipment
        return equipment

    def add(self, stretch: Stretch, readings: list[EsmReading]) -> None:
        """All readings of an equipment object."""
        self._rows.add(stretch, readings)

    def open(self) -> None:
        """Begin an object in parts."""
        self.flush()
        self._open = _Part()

    def add_part(
        self, position: int, readings: list[EsmReading], bad: dict[int, bytes], read_again: ReadAgain
    ) -> None:
        """The next readings of the open object, which is at `position` in the body."""
        part = self._part()
        self._rows.add(Stretch(position, _UNKNOWN, part.rows, len(readings), read_again, bad), readings)
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
        rows = self._rows
        if rows.stretches:
            self._rows = EsmRows(self._series)
            rows.note()
            part = self._open if self._open is not None else self._done
            _Chunk(rows, self._options, self._series, self._status, self._only).write(part)

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
    bad = {item.sensor: item for item in part.rejections if item.reason == Reason.BAD_READING}
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
        rows: EsmRows,
        options: DecodeOptions,
        series: SeriesIndex,
        status: StatusIndex,
        only: Integers | None,
    ) -> None:
        self._options = options
        self._series_index = series
        self._status_index = status
        self._rows = rows
        self._stretches = rows.stretches
        counts = np.array([stretch.count for stretch in rows.stretches])
        self._starts = np.cumsum(counts) - counts
        self._owner = np.repeat(np.arange(len(counts)), counts)
        self.reason = np.zeros(len(rows.series), np.uint8)
        self._selected: Flags | None = None
        if only is not None:
            self._selected = np.isin(self._positions(), only)
        self._read_again: tuple[int, list[EsmReading]] = (-1, [])

    def write(self, part: _Part) -> None:
        """Append the usable rows, the rejections and the descriptions to `part`."""
        if not len(self.reason):
            return
        self._reject_rows_without_equipment()
        series = self._series()
        times = self._times()
        values, status = self._values_and_status()
        metadata = self._metadata()
        keep = self.reason == 0
        if self._selected is not None:
            keep &= self._selected
        if keep.any():
            columns: list[ArrowArray] = [series, times, values, status, *metadata]
            kept = columns if keep.all() else [_filter(column, keep) for column in columns]
            part.chunks.append(readings_batch(*kept))
            self._describe(series, keep, part.sensors)
        self._reject(part.rejections)

    def _mark(self, flags: Flags, reason: Reason) -> None:
        self.reason[flags & (self.reason == 0)] = _REASONS.index(reason) + 1

    def _positions(self) -> Integers:
        """(position of its object << 32 | position in it) of each row."""
        objects = np.array([stretch.position for stretch in self._stretches])
        shift = np.array([stretch.first for stretch in self._stretches]) - self._starts
        return (objects << 32)[self._owner] + np.arange(len(self._owner)) + shift[self._owner]

    def _reject_rows_without_equipment(self) -> None:
        for stretch, start in zip(self._stretches, self._starts.tolist(), strict=True):
            if stretch.bad:
                self.reason[[start + i for i in stretch.bad]] = _REASONS.index(Reason.BAD_READING) + 1
            if stretch.equipment is None:
                mine = np.zeros(len(self.reason), bool)
                mine[start : start + stretch.count] = True
                self._mark(mine, Reason.MISSING_EQUIPMENT)

    def _series(self) -> npt.NDArray[np.int32]:
        series = np.array(self._rows.series, np.int32)
        if series.min() < 0:
            self._mark(series == UNUSABLE, Reason.BAD_READING)
            self._mark(series == MISSING, Reason.MISSING_SENSOR)
        return series

    def _times(self) -> Integers:
        rows, options = self._rows, self._options
        column = rows.collected
        absent = column.count(None)
        if absent == len(column):
            column = rows.timestamp
        elif absent:
            column = [b if a is None else a for a, b in zip(column, rows.timestamp, strict=True)]
        times, missing, bad = parse_times(column, options.naive_timezone)
        if bad.any():
            self._mark(bad, Reason.BAD_TIMESTAMP)
        if missing.any():
            times[missing] = options.received_us
        if options.oldest_allowed_us is not None and times.min() < options.oldest_allowed_us:
            self._mark((times < options.oldest_allowed_us) & ~bad, Reason.TOO_OLD)
        if times.max() > options.latest_us:
            self._mark(times > options.latest_us, Reason.IN_FUTURE)
        return times

    def _values_and_status(self) -> tuple[npt.NDArray[np.float64], ArrowArray]:
        """`number` is the value, else the telemetry where it is a number or writes one, else that is the status."""
        rows = self._rows
        values = numbers(rows.number)
        said_status, wrong = texts(rows.status)
        sensor_status, wrong_too = texts(rows.sensor_status)
        for flags in (wrong, wrong_too):
            if flags is not None:
                self._mark(flags, Reason.BAD_READING)
        if said_status.null_count:
            said_status = pc.coalesce(said_status, sensor_status)
        without = np.isnan(values)
        if without.any():
            words, other = texts(rows.telemetry)
            measured = numbers_of_texts(words) if other is None else numbers_or_texts(rows.telemetry)
            values = np.where(without, measured, values)
            without = np.isnan(values)
            if without.any() and said_status.null_count:
                said_status = pc.coalesce(
                    said_status, pc.if_else(pa.array(without), words, pa.scalar(None, pa.string()))
                )
            useless = without & said_status.is_null().to_numpy(zero_copy_only=False)
            if useless.any():
                self._mark(useless & np.array([x is not None for x in rows.number]), Reason.BAD_READING)
                self._mark(useless, Reason.NO_VALUE)
        return values, self._status_index.codes(said_status)

    def _metadata(self) -> list[npt.NDArray[np.float64]]:
        rows = self._rows
        return [
            limited(numbers_or_texts(rows.battery), 0, 100),
            limited(numbers_or_texts(rows.rssi), -200, 100),
            limited(numbers_or_texts(rows.lqi), 0, 255),
            limited(numbers_or_texts(rows.battery_voltage), 0, 1000),
        ]

    def _describe(self, series: npt.NDArray[np.int32], keep: Flags, sensors: dict[int, Sensor]) -> None:
        """Enter the description of each sensor of the usable rows from its last row."""
        last = np.full(len(self._series_index), -1)
        if keep.all():
            last[series] = np.arange(len(series))
        else:
            last[series[keep]] = np.flatnonzero(keep)
        at_end = np.full(len(self._series_index) - UNUSABLE, -1)  # the numbers of no sensor lead to the two last places
        at_end[series] = np.arange(len(series))
        for index in np.flatnonzero(last >= 0).tolist():
            row = int(last[index])
            equipment = self._stretches[self._owner[row]].equipment
            assert equipment is not None
            reading = self._rows.last[index] if row == at_end[index] else self._reading(row)
            sensors[index] = describe_sensor(*self._series_index.identity(index), equipment.uuid, reading)

    def _reading(self, row: int) -> EsmReading:
        owner = int(self._owner[row])
        if self._read_again[0] != owner:
            self._read_again = owner, self._stretches[owner].read_again()
        return self._read_again[1][row - int(self._starts[owner])]

    def _reject(self, rejections: Rejections) -> None:
        rejected = self.reason != 0 if self._selected is None else (self.reason != 0) & self._selected
        rows = np.flatnonzero(rejected)
        if not len(rows):
            return
        for row, position in zip(rows.tolist(), self._positions()[rows].tolist(), strict=True):
            content = self._content(row) if len(rejections) < EXCERPTS_KEPT_MAX else b""
            reason = _REASONS[int(self.reason[row]) - 1]
            rejections.add(position >> 32, position & 0xFFFFFFFF, reason, content.decode("utf-8", "replace"))

    def _content(self, row: int) -> bytes:
        """The start of what the body says."""
        owner = int(self._owner[row])
        bad = self._stretches[owner].bad.get(row - int(self._starts[owner]))
        return bad or encode_reading(self._reading(row))[: 4 * EXCERPT_CHARS_MAX]


def _filter(column: ArrowArray, keep: Flags) -> ArrowArray:
    """The kept elements of an Arrow or numpy array."""
    return column.filter(pa.array(keep)) if isinstance(column, pa.Array) else column[keep]
