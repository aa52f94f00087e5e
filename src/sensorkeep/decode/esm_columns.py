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
import pyarrow.compute as pc

from sensorkeep.decode.arrow import ArrowArray, Column
from sensorkeep.decode.esm_descriptions import describe_equipment, describe_sensor, plain_sensor
from sensorkeep.decode.esm_fields import EquipmentFields, EsmMeasurement, EsmReading, SlimReading, encode_reading
from sensorkeep.decode.esm_regular import AlikeObjects
from sensorkeep.decode.esm_rows import EsmRows, Stretch, last_of
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.series import MISSING, UNUSABLE, SeriesIndex, StatusIndex, readings_batch
from sensorkeep.decode.times import parse_times
from sensorkeep.decode.values import limited, numbers, numbers_of_texts, numbers_or_texts, texts
from sensorkeep.limits import EXCERPT_CHARS_MAX, EXCERPTS_KEPT_MAX, EXTERNAL_ID_CHARS_MAX
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

    def equipment(self, fields: EquipmentFields) -> Equipment | None:
        """Enter the description of an equipment; None where it has no usable identity."""
        text = fields.equipment_id
        if type(text) is not str or not 0 < len(text) <= EXTERNAL_ID_CHARS_MAX:
            return None
        equipment = describe_equipment(text, fields)
        self._equipment[equipment.uuid] = equipment
        return equipment

    @property
    def sensors_repeat(self) -> bool:
        """Whether most of the latest readings were not the last ones of their sensor."""
        return self._rows.sensors_repeat

    def add(self, stretch: Stretch, readings: Sequence[EsmMeasurement] | Sequence[SlimReading]) -> None:
        """All readings of an equipment object."""
        self._rows.add(stretch, readings)

    def add_alike(self, stretches: list[Stretch], alike: AlikeObjects) -> None:
        """All readings of several equipment objects."""
        self._rows.add_columns(stretches, alike.sensor_ids, alike.sensors, alike.columns)

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
        rows = self._rows
        if rows.stretches:
            self._rows = EsmRows(self._series)
            rows.note()
            part = self._open if self._open is not None else self._done
            _Chunk(rows, self._options, self._series, self._status, self._only).write(part)
            self._rows.sensors_repeat = rows.sensors_repeat

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
        self._all_series = rows.series()
        self.reason = np.zeros(len(self._all_series), np.uint8)
        self._selected: Flags | None = None
        if only is not None:
            self._selected = np.isin(self._positions(), only)

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

    def _series(self) -> npt.NDArray[np.int32]:
        series = self._all_series
        if series.min() < 0:
            self._mark(series == UNUSABLE, Reason.BAD_READING)
            self._mark(series == MISSING, Reason.MISSING_SENSOR)
        return series

    def _times(self) -> Integers:
        rows, options = self._rows, self._options
        column, other = rows.collected.all(), rows.timestamp.all()
        if isinstance(column, list):
            column = [b if a is None else a for a, b in zip(column, _elements(other), strict=True)]
        elif column.null_count == len(column):
            column = other
        elif column.null_count:
            column = [b if a is None else a for a, b in zip(_elements(column), _elements(other), strict=True)]
        times, missing, bad = parse_times(column, options.naive_timezone)
        if bad.any():
            self._mark(bad, Reason.BAD_TIMESTAMP)
        if missing.any():
            times[missing] = options.received_us
        if times.min() < options.earliest_us:
            self._mark((times < options.earliest_us) & ~bad, Reason.TOO_OLD)
        if times.max() > options.latest_us:
            self._mark(times > options.latest_us, Reason.IN_FUTURE)
        return times

    def _values_and_status(self) -> tuple[npt.NDArray[np.float64], ArrowArray]:
        """`number` is the value, else the telemetry where it is a number or writes one, else that is the status.

        A `status` wins over the telemetry's text, and that over `sensor_status`: the Home Assistant client says there
        that the sensor is in use, and in the telemetry whether its door is open.
        """
        rows = self._rows
        number = rows.number.all()
        values = numbers(number)
        said_status, wrong = texts(rows.status.all())
        sensor_status, wrong_too = texts(rows.sensor_status.all())
        for flags in (wrong, wrong_too):
            if flags is not None:
                self._mark(flags, Reason.BAD_READING)
        without = np.isnan(values)
        if without.any():
            telemetry = rows.telemetry.all()
            words, other = texts(telemetry)
            measured = numbers_of_texts(words) if other is None else numbers_or_texts(telemetry)
            values = np.where(without, measured, values)
            without = np.isnan(values)
            if without.any() and said_status.null_count:
                said_status = pc.coalesce(
                    said_status, pc.if_else(pa.array(without), words, pa.scalar(None, pa.string()))
                )
        if said_status.null_count:
            said_status = pc.coalesce(said_status, sensor_status)
        useless = without & said_status.is_null().to_numpy(zero_copy_only=False) if without.any() else without
        if useless.any():
            self._mark(useless & np.array([x is not None for x in _elements(number)]), Reason.BAD_READING)
            self._mark(useless, Reason.NO_VALUE)
        return values, self._status_index.codes(said_status)

    def _metadata(self) -> list[npt.NDArray[np.float64]]:
        rows = self._rows
        return [
            limited(numbers_or_texts(rows.battery.all()), 0, 100),
            limited(numbers_or_texts(rows.rssi.all()), -200, 100),
            limited(numbers_or_texts(rows.lqi.all()), 0, 255),
            limited(numbers_or_texts(rows.battery_voltage.all()), 0, 1000),
        ]

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
            for number, owner in zip(numbers, owners, strict=True):
                sensors[number] = plain_sensor(*identity(number), uuids[owner])
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


def _elements(column: Column) -> list[object]:
    return column if isinstance(column, list) else column.to_pylist()


def _filter(column: ArrowArray, keep: Flags) -> ArrowArray:
    """The kept elements of an Arrow or numpy array."""
    return column.filter(pa.array(keep)) if isinstance(column, pa.Array) else column[keep]
