"""Readings of the Easy Smart Monitor form, field by field, on their way to columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sensorkeep.decode.esm_fields import EsmReading
from sensorkeep.decode.series import SeriesIndex
from sensorkeep.limits import DECODE_ROWS_HELD
from sensorkeep.model import Equipment


ReadAgain = Callable[[], list[EsmReading]]


@dataclass(slots=True)
class Stretch:
    """Consecutive readings of one equipment object, and how to have them again."""

    position: int
    """Index of the object in the body."""
    equipment: Equipment | None
    """None: it has no usable identity."""
    first: int
    """Index in the object of the first reading."""
    count: int
    read_again: ReadAgain
    bad: dict[int, bytes] = field(default_factory=dict)
    """Text of the elements that are no usable readings, by index in the stretch; an empty one stands for each."""


class EsmRows:
    """Rows to convert together. A reading is let go as soon as its fields are noted, while the processor's cache still
    has it: to keep thousands of them takes half as long again."""

    def __init__(self, series: SeriesIndex) -> None:
        self._numbers_of = series.numbers
        self._held: list[EsmReading] = []
        self.stretches: list[Stretch] = []
        self.series: list[int] = []
        self.number: list[object] = []
        self.telemetry: list[object] = []
        self.status: list[object] = []
        self.sensor_status: list[object] = []
        self.collected: list[object] = []
        self.timestamp: list[object] = []
        self.battery: list[object] = []
        self.rssi: list[object] = []
        self.lqi: list[object] = []
        self.battery_voltage: list[object] = []
        self.last: dict[int, EsmReading] = {}
        """The last reading of each sensor, by its number."""

    def add(self, stretch: Stretch, readings: list[EsmReading]) -> None:
        """The next readings."""
        self.stretches.append(stretch)
        self._held += readings
        if len(self._held) >= DECODE_ROWS_HELD:
            self.note()

    def note(self) -> None:
        """Note the fields of what is held."""
        rows, self._held = self._held, []
        numbers = self._numbers_of([row.sensor_id for row in rows])
        self.series += numbers
        self.last.update(zip(numbers, rows, strict=True))
        self.number += [row.number for row in rows]
        self.telemetry += [row.telemetry for row in rows]
        self.status += [row.status for row in rows]
        self.sensor_status += [row.sensor_status for row in rows]
        self.collected += [row.collected for row in rows]
        self.timestamp += [row.timestamp for row in rows]
        self.battery += [row.battery for row in rows]
        self.rssi += [row.rssi for row in rows]
        self.lqi += [row.lqi for row in rows]
        self.battery_voltage += [row.battery_voltage for row in rows]
