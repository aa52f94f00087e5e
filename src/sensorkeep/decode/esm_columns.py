"""Readings of the Easy Smart Monitor form to columns, some thousand rows at a time."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from itertools import chain

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sensorkeep.decode.arrow import ArrowArray
from sensorkeep.decode.esm_fields import EsmEquipment, EsmReading, describe_equipment, describe_sensor, encode_reading
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.series import SeriesIndex, StatusIndex, readings_batch
from sensorkeep.decode.times import parse_times
from sensorkeep.decode.values import limited, numbers, numbers_of_texts, numbers_or_texts, texts
from sensorkeep.limits import EXCERPT_CHARS_MAX, EXCERPTS_KEPT_MAX, EXTERNAL_ID_CHARS_MAX
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Equipment, Reason, Rejections, Sensor, canonical_uuid

Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

_REASONS = list(Reason)
_TEXT_TYPE = pa.dictionary(pa.int32(), pa.string())


@dataclass(slots=True)
class _Part:
    """Columns, rejections and descriptions of some rows."""

    chunks: list[pa.RecordBatch] = field(default_factory=list)
    rejections: Rejections = field(default_factory=Rejections)
    sensors: dict[int, Sensor] = field(default_factory=dict)
    rows: int = 0


@dataclass(slots=True)
class _Rows:
    """Consecutive readings of one equipment object. `bad` maps an index in `readings` to the element's text."""

    position: int
    equipment: Equipment | None
    first: int
    readings: list[EsmReading]
    bad: dict[int, bytes]


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
        self._pending: list[_Rows] = []

    def equipment(self, fields: EsmEquipment) -> Equipment | None:
        """Enter the description of an equipment; None where it has no usable identity."""
        text = fields.equipment_id
        if type(text) is not str or not 0 < len(text) <= EXTERNAL_ID_CHARS_MAX:
            return None
        equipment = describe_equipment(canonical_uuid(text), text, fields)
        self._equipment[equipment.uuid] = equipment
        return equipment

    def add(
        self, position: int, equipment: Equipment | None, readings: list[EsmReading], bad: dict[int, bytes]
    ) -> None:
        """All readings of the equipment object at `position` in the body; `bad` as `read_elements` gives it."""
        self._pending.append(_Rows(position, equipment, 0, readings, bad))

    def open(self) -> None:
        """Begin an object in parts."""
        self.flush()
        self._open = _Part()

    def add_part(self, position: int, readings: list[EsmReading], bad: dict[int, bytes]) -> None:
        """The next readings of the open object, which is at `position` in the body."""
        part = self._part()
        self._pending.append(_Rows(position, _UNKNOWN, part.rows, readings, bad))
        part.rows += len(readings)

    def restart(self) -> None:
        """Void the readings of the open object."""
        self._pending.clear()
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
        pending, self._pending = self._pending, []
        if pending:
            part = self._open if self._open is not None else self._done
            _Chunk(pending, self._options, self._series, self._status, self._only).write(part)

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
        pending: list[_Rows],
        options: DecodeOptions,
        series: SeriesIndex,
        status: StatusIndex,
        only: Integers | None,
    ) -> None:
        self._options = options
        self._series_index = series
        self._status_index = status
        self._pending = pending
        self._rows: list[EsmReading] = list(chain.from_iterable([rows.readings for rows in pending]))
        counts = np.array([len(rows.readings) for rows in pending])
        self._owner = np.repeat(np.arange(len(pending)), counts)
        starts = np.cumsum(counts) - counts
        firsts = np.array([rows.first for rows in pending])
        self._sensor_position = np.arange(len(self._rows)) - np.repeat(starts - firsts, counts)
        self._object_position = np.repeat(np.array([rows.position for rows in pending]), counts)
        self._elements = {int(starts[i]) + j: text for i, r in enumerate(pending) for j, text in r.bad.items()}
        self.reason = np.zeros(len(self._rows), np.uint8)
        self._selected: Flags | None = None
        if only is not None:
            self._selected = np.isin(self._object_position << 32 | self._sensor_position, only)

    def write(self, part: _Part) -> None:
        """Append the usable rows, the rejections and the descriptions to `part`."""
        if not self._rows:
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
            self._describe(series, np.flatnonzero(keep), part.sensors)
        self._reject(part.rejections)

    def _mark(self, flags: Flags, reason: Reason) -> None:
        self.reason[flags & (self.reason == 0)] = _REASONS.index(reason) + 1

    def _reject_rows_without_equipment(self) -> None:
        if self._elements:
            self.reason[list(self._elements)] = _REASONS.index(Reason.BAD_READING) + 1
        missing = np.array([rows.equipment is None for rows in self._pending])
        if missing.any():
            self._mark(missing[self._owner], Reason.MISSING_EQUIPMENT)

    def _series(self) -> npt.NDArray[np.int32]:
        column: list[object] = [row.sensor_id for row in self._rows]
        try:
            encoded: ArrowArray = pa.array(column, _TEXT_TYPE)
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            wrong = np.array([x is not None and type(x) is not str for x in column])
            self._mark(wrong, Reason.BAD_READING)
            encoded = pa.array([x if type(x) is str else None for x in column], _TEXT_TYPE)
        codes = pc.fill_null(encoded.indices, -1).to_numpy()
        # The last one is where the index -1, no text at all, leads.
        series: npt.NDArray[np.int32] = np.array(
            [*map(self._series_of, encoded.dictionary.to_pylist()), _MISSING], np.int32
        )[codes]
        if series.min() < 0:
            self._mark(series == _TOO_LONG, Reason.BAD_READING)
            self._mark(series == _MISSING, Reason.MISSING_SENSOR)
        return series

    def _series_of(self, text: str) -> int:
        if not text:
            return _MISSING
        return self._series_index.of(text) if len(text) <= EXTERNAL_ID_CHARS_MAX else _TOO_LONG

    def _times(self) -> Integers:
        rows, options = self._rows, self._options
        column: list[object] = [row.collected for row in rows]
        if None in column:
            column = [row.timestamp if row.collected is None else row.collected for row in rows]
        times, missing, bad = parse_times(column, options.naive_timezone)
        if bad.any():
            self._mark(bad, Reason.BAD_TIMESTAMP)
        if missing.any():
            times[missing] = options.received_us
        if options.oldest_allowed_us is not None:
            self._mark((times < options.oldest_allowed_us) & ~bad, Reason.TOO_OLD)
        self._mark(times > options.latest_us, Reason.IN_FUTURE)
        return times

    def _values_and_status(self) -> tuple[npt.NDArray[np.float64], ArrowArray]:
        """`number` is the value, else the telemetry where it is a number or writes one, else that is the status."""
        rows = self._rows
        number: list[object] = [row.number for row in rows]
        values = numbers(number)
        said_status, wrong = texts([row.status for row in rows])
        sensor_status, wrong_too = texts([row.sensor_status for row in rows])
        for flags in (wrong, wrong_too):
            if flags is not None:
                self._mark(flags, Reason.BAD_READING)
        if said_status.null_count:
            said_status = pc.coalesce(said_status, sensor_status)
        without = np.isnan(values)
        if without.any():
            telemetry: list[object] = [row.telemetry for row in rows]
            words, other = texts(telemetry)
            measured = numbers_of_texts(words) if other is None else numbers_or_texts(telemetry)
            values = np.where(without, measured, values)
            without = np.isnan(values)
            if without.any() and said_status.null_count:
                said_status = pc.coalesce(
                    said_status, pc.if_else(pa.array(without), words, pa.scalar(None, pa.string()))
                )
            useless = without & said_status.is_null().to_numpy(zero_copy_only=False)
            if useless.any():
                self._mark(useless & np.array([x is not None for x in number]), Reason.BAD_READING)
                self._mark(useless, Reason.NO_VALUE)
        return values, self._status_index.codes(said_status)

    def _metadata(self) -> list[npt.NDArray[np.float64]]:
        rows = self._rows
        return [
            limited(numbers_or_texts([row.battery for row in rows]), 0, 100),
            limited(numbers_or_texts([row.rssi for row in rows]), -200, 100),
            limited(numbers_or_texts([row.lqi for row in rows]), 0, 255),
            limited(numbers_or_texts([row.battery_voltage for row in rows]), 0, 1000),
        ]

    def _describe(self, series: npt.NDArray[np.int32], kept: Integers, sensors: dict[int, Sensor]) -> None:
        """Enter the description of each sensor of the usable rows from its last row."""
        last = np.full(len(self._series_index), -1)
        last[series[kept]] = kept
        for index in np.flatnonzero(last >= 0).tolist():
            row = int(last[index])
            equipment = self._pending[self._owner[row]].equipment
            assert equipment is not None
            uuid, text = self._series_index.identity(index)
            sensors[index] = describe_sensor(uuid, text, equipment.uuid, self._rows[row])

    def _reject(self, rejections: Rejections) -> None:
        rejected = self.reason != 0 if self._selected is None else (self.reason != 0) & self._selected
        for row in np.flatnonzero(rejected).tolist():
            content = b""
            if len(rejections) < EXCERPTS_KEPT_MAX:
                content = self._elements.get(row) or encode_reading(self._rows[row])[: 4 * EXCERPT_CHARS_MAX]
            reason = _REASONS[int(self.reason[row]) - 1]
            rejections.add(
                int(self._object_position[row]),
                int(self._sensor_position[row]),
                reason,
                content.decode("utf-8", "replace"),
            )


_MISSING = -1
_TOO_LONG = -2


def _filter(column: ArrowArray, keep: Flags) -> ArrowArray:
    """The kept elements of an Arrow or numpy array."""
    return column.filter(pa.array(keep)) if isinstance(column, pa.Array) else column[keep]
