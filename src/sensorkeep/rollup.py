"""Pure arithmetic of rollups: buckets, definitions, and merging of aggregates.

Definitions, for one sensor and one bucket [start, start + hour or day) in UTC:

- count: readings with a numeric value. sum, min, max, average (sum / count): of those; null where count is 0.
- stddev: sample standard deviation, sqrt(m2 / (count - 1)) with m2 the sum of squared deviations; null below 2.
- active_minutes: distinct UTC minutes with at least one reading, numeric or not.
- median, p95, p99: linear interpolation between the closest ranks, as SQL's PERCENTILE_CONT.

A sum or m2 that a double cannot hold (values near 1e308) is null, and with it what is derived from it.

Count, sum, min, max and m2 merge exactly. Percentiles do not, so a bucket also keeps a small picture of its
distribution: values at fixed probabilities, taken as piecewise linear between them. Pictures merge by their counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorkeep.clock import DAY_US, HOUR_US

PERCENTILES = (0.5, 0.95, 0.99)
"""The probabilities of median, p95 and p99."""

HOUR_PROBABILITIES = (0.0, *PERCENTILES, 1.0)
"""What an hour keeps of its distribution: min, median, p95, p99 and max."""


def _day_probabilities() -> tuple[float, ...]:
    """93 probabilities, symmetric about the median and dense in both tails, where alarms and p95/p99 live."""
    tail = [0.0, 0.0001, 0.0005, *(i / 1000 for i in range(1, 10))]
    shoulder = [i / 200 for i in range(2, 20)]
    body = [i / 40 for i in range(4, 20)]
    half = [*tail, *shoulder, *body]
    return (*half, 0.5, *(round(1.0 - p, 4) for p in reversed(half)))


DAY_PROBABILITIES = _day_probabilities()
"""What a day keeps of its distribution. DESIGN, decisions: p95 over a month has a rank error of 0.04 points."""

DAY_PERCENTILE_INDEXES = tuple(DAY_PROBABILITIES.index(p) for p in PERCENTILES)
"""Where PERCENTILES stand in DAY_PROBABILITIES (from 0)."""


def hour_start(time_us: int) -> int:
    """Start of the hour that holds `time_us`, in microseconds."""
    return time_us // HOUR_US * HOUR_US


def day_start(time_us: int) -> int:
    """Start of the UTC day that holds `time_us`, in microseconds."""
    return time_us // DAY_US * DAY_US


@dataclass(frozen=True, slots=True)
class Moments:
    """The part of an aggregate that merges exactly. All but count are None where count is 0, or where a double
    cannot hold them."""

    count: int = 0
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    m2: float | None = None

    @property
    def average(self) -> float | None:
        """Mean of the values."""
        return None if self.sum is None or self.count == 0 else self.sum / self.count

    @property
    def stddev(self) -> float | None:
        """Sample standard deviation; None below two values."""
        return None if self.m2 is None or self.count < 2 else math.sqrt(self.m2 / (self.count - 1))


def moments(values: Sequence[float]) -> Moments:
    """The moments of plain values, in two passes with exact sums."""
    if not values:
        return Moments()
    total = _exact_sum(values)
    mean = math.nan if total is None else total / len(values)
    m2 = _exact_sum((value - mean) * (value - mean) for value in values)
    return Moments(len(values), total, min(values), max(values), m2)


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """The moments of all readings together.

    Sums are compensated. m2 by Chan, Golub, LeVeque (1979), equation 2.1 over all parts at once:
    sum of m2_i + count_i * (mean_i - mean)^2.
    """
    filled = [part for part in parts if part.count]
    if len(filled) < 2:
        return filled[0] if filled else Moments()
    count = sum(part.count for part in filled)
    low = min(part.min for part in filled if part.min is not None)
    high = max(part.max for part in filled if part.max is not None)
    means = [math.nan if part.average is None else part.average for part in filled]
    total = _exact_sum(math.nan if part.sum is None else part.sum for part in filled)
    mean = math.nan if total is None else total / count
    m2 = _exact_sum(
        (math.nan if part.m2 is None else part.m2) + part.count * (own - mean) * (own - mean)
        for part, own in zip(filled, means, strict=True)
    )
    return Moments(count, total, low, high, m2)


def _exact_sum(values: Iterable[float]) -> float | None:
    """Correctly rounded sum, or None where it is not finite."""
    try:
        total = math.fsum(values)
    except (OverflowError, ValueError):
        return None
    return total if math.isfinite(total) else None


def percentile_cont(values: Sequence[float], probability: float) -> float:
    """SQL's PERCENTILE_CONT of at least one value: linear between the two ranks around probability * (n - 1)."""
    ordered = sorted(values)
    rank = probability * (len(ordered) - 1)
    below, above = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    return below + (above - below) * (rank - math.floor(rank))


@dataclass(frozen=True, slots=True)
class Distribution:
    """The picture of `count` values: `values[i]` is their percentile at `probabilities[i]` (0 and 1 included)."""

    count: int
    probabilities: Sequence[float]
    values: Sequence[float]


def mixture_percentiles(parts: Sequence[Distribution], probabilities: Sequence[float]) -> list[float]:
    """Percentiles of the mixture of `parts`, each weighted by its count; at least one count is above 0.

    Every part is a density that is constant between its points (a step where two points are equal). The mixture's
    distribution function is then piecewise linear between all the points, and is inverted exactly: bisection finds
    the two points around each probability, and a line between them the value.
    """
    mixture = _Mixture([part for part in parts if part.count])
    targets = np.asarray(probabilities, np.float64) * mixture.total
    low = np.zeros(len(targets), np.int64)
    high = np.full(len(targets), len(mixture.points) - 1)
    while np.any(low < high):
        middle = (low + high) // 2
        reached = mixture.mass_up_to(mixture.points[middle]) >= targets
        high = np.where(reached, middle, high)
        low = np.where(reached, low, np.minimum(middle + 1, high))
    right = mixture.points[low]
    left = mixture.points[np.maximum(low - 1, 0)]
    mass_left = mixture.mass_up_to(left)
    mass_right = mixture.mass_below(right)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(mass_right > mass_left, (targets - mass_left) / (mass_right - mass_left), 1.0)
    share = np.clip(share, 0.0, 1.0)
    # Weighted ends, not left + share * (right - left): the difference of two doubles may overflow.
    return [float(value) for value in left * (1.0 - share) + right * share]


class _Mixture:
    """Uniform pieces [low, high] of mass (in readings), from every part's neighbouring points."""

    def __init__(self, parts: Sequence[Distribution]) -> None:
        lows, highs, masses = [], [], []
        for part in parts:
            # Stored points may be rounded to single precision, so that two may come out of order by one bit.
            points = np.maximum.accumulate(np.asarray(part.values, np.float64))
            lows.append(points[:-1])
            highs.append(points[1:])
            masses.append(np.diff(np.asarray(part.probabilities, np.float64)) * part.count)
        self._low = np.concatenate(lows)
        self._high = np.concatenate(highs)
        self._mass = np.concatenate(masses)
        self._flat = self._low == self._high
        # Halves, because the width of a piece may overflow.
        self._half_width = np.where(self._flat, 1.0, self._high / 2 - self._low / 2)
        self.points: NDArray[np.float64] = np.unique(np.concatenate([self._low, self._high]))
        self.total = float(self._mass.sum())

    def mass_up_to(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mass at or below each point."""
        return self._mass_at(points, points[:, None] >= self._low)

    def mass_below(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mass strictly below each point: without the steps that stand on it."""
        return self._mass_at(points, points[:, None] > self._low)

    def _mass_at(self, points: NDArray[np.float64], steps: NDArray[np.bool_]) -> NDArray[np.float64]:
        ramps = np.clip((points[:, None] / 2 - self._low / 2) / self._half_width, 0.0, 1.0)
        mass: NDArray[Any] = np.where(self._flat, steps, ramps) @ self._mass
        return mass
