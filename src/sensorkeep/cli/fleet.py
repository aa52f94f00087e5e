"""A made-up fleet of sensors: what it measures and in what order its readings arrive. Pure and seeded.

A reading is a function of (seed, sensor, round, revision) alone, so a reading sent again is an exact copy, and a late
one is the one that was held back. Same options, same bytes.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sensorkeep.cli.fleet_forms import ENCODERS, Encoder, FleetForm, Integers, zone_of
from sensorkeep.clock import MICROSECONDS
from sensorkeep.errors import InvalidInput
from sensorkeep.limits import SIMULATED_LATE_ROWS_MAX

Hashes = npt.NDArray[np.uint64]

_MASK = 2**64 - 1
_RESENT_RECENTLY = 0.7
"""Share of the exact re-sends that are of the last 60 rounds; the others go back up to three days."""
_CORRECTED_ROUNDS = 60
"""A correction comes within this many rounds after its reading."""
# (sensor_tipo, sensor_unidade, quantity)
_KINDS = (
    ("temperatura", "°C", "temperature"),
    ("umidade", "%", "humidity"),
    ("pressao", "hPa", "pressure"),
    ("potencia", "W", "power"),
)
_BINARY_KIND = ("porta", None, "door")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """A fleet and its habits. Fractions are of the readings (`binary`: of the sensors), from 0 to 1.

    Raises InvalidInput (`bad_parameter`) for what no fleet can be, and where more than SIMULATED_LATE_ROWS_MAX
    readings would be held back.
    """

    start_us: int
    """When its first round begins."""
    seed: int = 0
    equipment: int = 250
    sensors: int = 1000
    """Of all equipment together; each sensor measures once a round."""
    interval_seconds: float = 60.0
    """Length of a round."""
    rounds_per_batch: int = 1
    late: float = 0.01
    """Held back and sent `late_seconds` after they were due, those from before the start included."""
    late_seconds: tuple[float, float] = (2 * 3600.0, 72 * 3600.0)
    resent: float = 0.02
    """Exact copies of readings that were sent in an earlier batch, on top of the others."""
    corrections: float = 0.0
    """Sent again with another value some rounds later."""
    unavailable: float = 0.0
    """Text instead of a number (bulk forms)."""
    binary: float = 0.0
    """Sensors that say on or off (bulk forms)."""
    form: FleetForm = "verbose"
    timezone: str = "UTC"
    """Zone of the verbose form's times, which are sent without it."""

    def __post_init__(self) -> None:
        fractions = (self.late, self.resent, self.corrections, self.unavailable, self.binary)
        if not all(0 <= fraction <= 1 for fraction in fractions):
            raise InvalidInput("fractions must be from 0 to 1", code="bad_parameter")
        if not (1 <= self.equipment <= self.sensors and self.rounds_per_batch >= 1 and self.interval_seconds > 0):
            detail = "a fleet has at least one equipment, and a sensor for each, and a positive interval"
            raise InvalidInput(detail, code="bad_parameter")
        zone_of(self.timezone)
        if self.held_back > SIMULATED_LATE_ROWS_MAX:
            detail = (
                f"{self.held_back} late readings would be held back: a longer interval or fewer late ones are needed"
            )
            raise InvalidInput(detail, code="bad_parameter")

    @property
    def interval_us(self) -> int:
        """Length of a round in microseconds."""
        return round(self.interval_seconds * MICROSECONDS)

    @property
    def late_rounds(self) -> tuple[int, int]:
        """Shortest and longest delay of a late reading, in rounds."""
        low, high = (max(round(seconds / self.interval_seconds), 1) for seconds in self.late_seconds)
        return low, max(low, high)

    @property
    def held_back(self) -> int:
        """Readings that are held back at any time, to be sent late."""
        return round(self.late * self.sensors * sum(self.late_rounds) / 2)


class FleetRows(NamedTuple):
    """Readings in columns, in the order they are sent: what the server must end up with, the last of each
    (sensor, time) winning."""

    sensor: Integers
    """Index of the sensor."""
    round: Integers
    time_us: Integers
    value: npt.NDArray[np.float64]
    """NaN where the reading is text."""
    status: list[str | None]


@dataclass(frozen=True, slots=True)
class FleetBatch:
    """What the fleet sends at once. `objects` are JSON: equipment objects, or readings in the other forms."""

    number: int
    through_us: int
    """End of its last round."""
    objects: list[bytes]
    rows: FleetRows
    fresh: int
    late: int
    corrected: int
    resent: int

    @property
    def readings(self) -> int:
        """Readings in it."""
        return len(self.rows.time_us)

    def body(self) -> bytes:
        """The objects as one JSON array."""
        return b"[" + b",".join(self.objects) + b"]"


class Fleet:
    """The sensors of a fleet: their identities and their readings."""

    def __init__(self, options: FleetOptions) -> None:
        self.options = options
        count = options.sensors
        self.equipment_of: Integers = np.arange(count, dtype=np.int64) * options.equipment // count
        """Equipment index of each sensor."""
        self.equipment_uuids = [self._uuid("equipment", i) for i in range(options.equipment)]
        self.sensor_uuids = [self._uuid("sensor", i) for i in range(count)]
        self.equipment_ids = [f"station_{i:04d}" for i in range(options.equipment)]
        """External ids of the equipment in the readings form."""
        first = np.searchsorted(self.equipment_of, self.equipment_of)
        self._place = np.arange(count) - first
        """Position of each sensor within its equipment."""
        everyone = np.arange(count, dtype=np.int64)
        is_text = options.form in ("verbose", "slim")
        self.is_binary = self._chance(everyone, everyone * 0, 5, options.binary if is_text else 0.0)
        self._unavailable = options.unavailable if is_text else 0.0

    def quantity(self, sensor: int) -> str:
        """Name of what the sensor measures, unique within its equipment."""
        place = int(self._place[sensor])
        name = self.kind(sensor)[2]
        return name if place < len(_KINDS) else f"{name}_{place // len(_KINDS) + 1}"

    def kind(self, sensor: int) -> tuple[str, str | None, str]:
        """(sensor_tipo, sensor_unidade, quantity) of the sensor."""
        return _BINARY_KIND if self.is_binary[sensor] else _KINDS[int(self._place[sensor]) % len(_KINDS)]

    def rows(self, sensor: Integers, rounds: Integers, revision: Integers) -> FleetRows:
        """The readings of these sensors in these rounds; revision 1 is the corrected one."""
        options = self.options
        noise = self._hash(sensor, rounds, 1)
        # A fixed phase for each sensor and a little jitter, both within the round, so that times never collide.
        phase = (sensor * 59_017_000) % max(options.interval_us * 9 // 10, 1)
        jitter = (noise % np.uint64(max(options.interval_us // 40, 1))).astype(np.int64)
        time_us = options.start_us + rounds * options.interval_us + phase + jitter
        unit = (noise >> np.uint64(11)).astype(np.float64) / 2**53
        wave = 5 * np.sin((rounds % 1440) * (2 * np.pi / 1440) + sensor)
        value = np.round(20 + (sensor % 50) * 1.5 + wave + (unit - 0.5) * 2 + revision * 0.5, 2)
        status: list[str | None] = [None] * len(value)
        is_text = self.is_binary[sensor]
        for i in np.flatnonzero(is_text):
            status[i] = "on" if (int(noise[i]) >> 7 ^ int(revision[i])) & 1 else "off"
        gone = self._chance(sensor, rounds, 6, self._unavailable)
        for i in np.flatnonzero(gone):
            status[i] = "unavailable"
        value[is_text | gone] = np.nan
        return FleetRows(sensor, rounds, time_us, value, status)

    def delay(self, sensor: Integers, rounds: Integers) -> Integers:
        """Rounds by which each reading is late; 0: on time."""
        low, high = self.options.late_rounds
        chosen = self._hash(sensor, rounds, 4) % np.uint64(high - low + 1)
        return np.where(self._chance(sensor, rounds, 3, self.options.late), low + chosen.astype(np.int64), 0)

    def corrected_after(self, sensor: Integers, rounds: Integers) -> Integers:
        """Rounds after which each reading is corrected; 0: never. Late readings are not."""
        chosen = self._hash(sensor, rounds, 8) % np.uint64(_CORRECTED_ROUNDS)
        corrected = self._chance(sensor, rounds, 7, self.options.corrections) & (self.delay(sensor, rounds) == 0)
        return np.where(corrected, 1 + chosen.astype(np.int64), 0)

    def _uuid(self, kind: str, index: int) -> str:
        source = random.Random(f"{self.options.seed}/{kind}/{index}")  # noqa: S311  (identities, not secrets)
        return str(uuid.UUID(int=source.getrandbits(128), version=4))

    def _chance(self, sensor: Integers, rounds: Integers, salt: int, fraction: float) -> npt.NDArray[np.bool_]:
        scaled = (self._hash(sensor, rounds, salt) >> np.uint64(11)).astype(np.float64) / 2**53
        return scaled < fraction

    def _hash(self, sensor: Integers, rounds: Integers, salt: int) -> Hashes:
        """64 well mixed bits of (seed, sensor, round, salt): two rounds of multiply and xor-shift."""
        seeded = np.uint64(((self.options.seed * 64 + salt) * 0x165667B19E3779F9) & _MASK)
        mixed: Hashes = sensor.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed ^ (rounds.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)) ^ seeded
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(29))


class _Held:
    """(sensor, round) pairs kept until the batch they are sent in."""

    def __init__(self) -> None:
        self._by_batch: dict[int, list[tuple[Integers, Integers]]] = {}

    def put(self, batch: Integers, sensor: Integers, rounds: Integers) -> None:
        if not len(batch):
            return
        order = np.argsort(batch, kind="stable")
        numbers, starts = np.unique(batch[order], return_index=True)
        for number, part in zip(numbers, np.split(order, starts[1:]), strict=True):
            self._by_batch.setdefault(int(number), []).append((sensor[part], rounds[part]))

    def take(self, number: int) -> tuple[Integers, Integers]:
        parts = self._by_batch.pop(number, [])
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *(part[0] for part in parts)]), np.concatenate([empty, *(p[1] for p in parts)])


def fleet_batches(
    options: FleetOptions, batches: int | None = None, encode: Callable[[Fleet], Encoder] | None = None
) -> Iterator[FleetBatch]:
    """What the fleet sends, batch after batch (`batches` None: for ever). Pure: same options, same bytes.

    `encode` makes the encoder of another form than that of the options.

    The benchmark fleet is `FleetOptions(start_us=…, rounds_per_batch=20)`: 1,000 sensors on 250 equipments, a reading
    a minute, 1 % late by 2 hours to 3 days, 2 % exact copies, in verbose form.
    """
    fleet = Fleet(options)
    encoder = (encode or ENCODERS[options.form])(fleet)
    late, corrections = _Held(), _Held()
    _hold_from_before(fleet, late, None if batches is None else batches * options.rounds_per_batch)
    number = 0
    while batches is None or number < batches:
        yield _batch(fleet, encoder, number, late, corrections)
        number += 1


def _hold_from_before(fleet: Fleet, late: _Held, rounds: int | None) -> None:
    """Readings due before the start that arrive after it, so that the share of late ones is right from the start."""
    options, (low, high) = fleet.options, fleet.options.late_rounds
    count = options.held_back
    source = np.random.default_rng([options.seed, 1])
    # A delay d leaves d rounds to be late in: delays are drawn in proportion to their length.
    delays = np.sqrt(source.random(count) * (high**2 - low**2) + low**2).astype(np.int64)
    arrivals = (source.random(count) * delays).astype(np.int64)
    sensors = source.integers(0, options.sensors, count)
    pairs = np.column_stack([sensors, arrivals - delays])
    _, kept = np.unique(pairs, axis=0, return_index=True)
    if rounds is not None:
        kept = kept[arrivals[kept] < rounds]
    late.put(arrivals[kept] // options.rounds_per_batch, pairs[kept, 0], pairs[kept, 1])


def _batch(fleet: Fleet, encoder: Encoder, number: int, late: _Held, corrections: _Held) -> FleetBatch:
    options = fleet.options
    per_batch = options.rounds_per_batch
    first = number * per_batch
    rounds = np.repeat(np.arange(first, first + per_batch, dtype=np.int64), options.sensors)
    sensors = np.tile(np.arange(options.sensors, dtype=np.int64), per_batch)
    delay, after = fleet.delay(sensors, rounds), fleet.corrected_after(sensors, rounds)
    held, wrong = delay > 0, after > 0
    late.put((rounds[held] + delay[held]) // per_batch, sensors[held], rounds[held])
    corrections.put((rounds[wrong] + after[wrong]) // per_batch, sensors[wrong], rounds[wrong])
    fresh = sensors[~held], rounds[~held]
    arrived, corrected = late.take(number), corrections.take(number)
    resent = _resent(fleet, number)
    # A copy is of what was last sent: the correction, where that is in a batch up to this one.
    changed = fleet.corrected_after(*resent)
    copies_revision = ((changed > 0) & ((resent[1] + changed) // per_batch <= number)).astype(np.int64)
    parts = (fresh, arrived, corrected, resent)
    counts = [len(part[0]) for part in parts]
    revision = np.concatenate([np.repeat(np.array([0, 0, 1]), counts[:3]), copies_revision])
    sensor = np.concatenate([part[0] for part in parts])
    # By equipment, as it is sent; stable, so that a correction stays behind what it corrects.
    order = np.argsort(fleet.equipment_of[sensor], kind="stable")
    rows = fleet.rows(sensor[order], np.concatenate([part[1] for part in parts])[order], revision[order])
    through_us = options.start_us + (first + per_batch) * options.interval_us
    return FleetBatch(number, through_us, encoder.objects(rows), rows, *counts)


def _resent(fleet: Fleet, number: int) -> tuple[Integers, Integers]:
    """Readings of earlier batches that are sent once more in this one."""
    options = fleet.options
    first = number * options.rounds_per_batch
    source = np.random.default_rng([options.seed, 2, number])
    count = round(options.resent * options.sensors * options.rounds_per_batch) if number else 0
    recent = source.integers(1, 61, count)
    older = source.integers(1, max(round(72 * 3600 / options.interval_seconds), 1) + 1, count)
    rounds = np.maximum(first - np.where(source.random(count) < _RESENT_RECENTLY, recent, older), 0)
    sensors = source.integers(0, options.sensors, count)
    sent = fleet.delay(sensors, rounds) == 0
    return sensors[sent], rounds[sent]
