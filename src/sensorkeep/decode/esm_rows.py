"""Readings of the Easy Smart Monitor form, field by field, on their way to columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sensorkeep.decode.arrow import Column
from sensorkeep.decode.esm_fields import EsmMeasurement, EsmReading, SlimReading
from sensorkeep.decode.series import SeriesIndex
from sensorkeep.limits import DECODE_ROWS_HELD
from sensorkeep.model import Equipment

_TEXT = pa.string()
Numbers = npt.NDArray[np.int32]
ReadLast = Callable[[int], list[EsmReading]]


class Stretch(msgspec.Struct):
    """Consecutive readings of one equipment object."""

    position: int
    """Index of the object in the body."""
    equipment: Equipment | None
    """None: it has no usable identity."""
    first: int
    """Index in the object of the first reading."""
    count: int
    read_last: ReadLast
    """Gives the last n of the readings with all that they say; n > 0."""
    describes: bool = True
    """Whether its readings may say anything of their sensors."""
    bad: dict[int, bytes] = {}
    """Text of the elements that are no usable readings, by index in the stretch; an empty one stands for each."""


def last_of(readings: list[EsmReading], count: int) -> list[EsmReading]:
    """A Stretch's `read_last` of readings that are kept."""
    return readings[-count:]


class FieldColumn:
    """The values of one field, gathered some hundred at a time."""

    __slots__ = ("_absent", "_parts", "_type")

    def __init__(self, usual: Any) -> None:
        self._type = usual
        self._absent = 0  # values before the first part, all None
        self._parts: list[Column] = []

    def add(self, values: list[object]) -> None:
        """The next values."""
        if not self._parts and values.count(None) == len(values):
            self._absent += len(values)
            return
        part = _joined(values) if self._type == _TEXT else None
        if part is None:
            try:
                part = pa.array(values, self._type)
            except (pa.ArrowTypeError, pa.ArrowInvalid):
                part = values
        self._parts.append(part)

    def skip(self, count: int) -> None:
        """As many times None."""
        if self._parts:
            self._parts.append(pa.nulls(count, self._type))
        else:
            self._absent += count

    def all(self) -> Column:
        """All values: an Arrow array where each is of the usual type, or None; else a list."""
        absent: list[Column] = [pa.nulls(self._absent, self._type)] if self._absent else []
        parts = absent + self._parts
        if not any(isinstance(part, list) for part in parts):
            return pa.concat_arrays(parts)
        return [value for part in parts for value in (part if isinstance(part, list) else part.to_pylist())]


def _joined(values: list[object]) -> Column | None:
    """An Arrow array of `values` where each is text, of ASCII or all the same; None elsewhere.

    It takes two thirds of the time of `pa.array`, or one third.
    """
    first = values[0]
    if type(first) is str and first == values[-1] and values.count(first) == len(values):
        return pa.repeat(pa.scalar(first, _TEXT), len(values))
    try:
        content = "".join(values)  # type: ignore[arg-type]  # what is no text raises
    except TypeError:
        return None
    if not content.isascii():
        return None
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=offsets[1:])  # type: ignore[arg-type]
    buffers: list[Any] = [None, pa.py_buffer(offsets.data), pa.py_buffer(content.encode())]
    return pa.Array.from_buffers(_TEXT, len(values), buffers)


class EsmRows:
    """Rows to convert together. A reading is let go as soon as its fields are noted, while the processor's cache still
    has it: to keep thousands of them takes half as long again."""

    def __init__(self, series: SeriesIndex) -> None:
        self._numbers_of = series.numbers
        self._held: list[Any] = []  # readings, all of one type
        self.sensors_repeat = True
        """Whether most of the latest readings were not the last ones of their sensor; true while nothing is known."""
        self.stretches: list[Stretch] = []
        self._series: list[Numbers] = []
        self.number = FieldColumn(pa.float64())
        self.telemetry = FieldColumn(_TEXT)
        self.status = FieldColumn(_TEXT)
        self.sensor_status = FieldColumn(_TEXT)
        self.collected = FieldColumn(_TEXT)
        self.timestamp = FieldColumn(_TEXT)
        self.battery = FieldColumn(pa.float64())
        self.rssi = FieldColumn(pa.float64())
        self.lqi = FieldColumn(pa.float64())
        self.battery_voltage = FieldColumn(pa.float64())
        self._not_slim = (
            *(self.telemetry, self.status, self.sensor_status, self.collected),
            *(self.battery, self.rssi, self.lqi, self.battery_voltage),
        )

    def series(self) -> Numbers:
        """The number of each row's sensor, or MISSING, or UNUSABLE."""
        return np.concatenate(self._series) if self._series else np.empty(0, np.int32)

    def add(self, stretch: Stretch, readings: Sequence[EsmMeasurement] | Sequence[SlimReading]) -> None:
        """The next readings."""
        self.stretches.append(stretch)
        if self._held and readings and type(self._held[0]) is not type(readings[0]):
            self.note()
        self._held += readings
        if len(self._held) >= DECODE_ROWS_HELD:
            self.note()

    def note(self) -> None:
        """Note the fields of what is held."""
        rows, self._held = self._held, []
        if not rows:
            return
        numbers = self._numbers_of([row.sensor_id for row in rows])
        self._series.append(np.array(numbers, np.int32))
        self.sensors_repeat = len(rows) >= 4 * len(set(numbers))
        self.number.add([row.number for row in rows])
        self.timestamp.add([row.timestamp for row in rows])
        if isinstance(rows[0], SlimReading):
            for column in self._not_slim:
                column.skip(len(rows))
            return
        self.telemetry.add([row.telemetry for row in rows])
        self.status.add([row.status for row in rows])
        self.sensor_status.add([row.sensor_status for row in rows])
        self.collected.add([row.collected for row in rows])
        self.battery.add([row.battery for row in rows])
        self.rssi.add([row.rssi for row in rows])
        self.lqi.add([row.lqi for row in rows])
        self.battery_voltage.add([row.battery_voltage for row in rows])
