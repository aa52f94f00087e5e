"""What must come of a simulation: SPEC section 1 in plain Python, from what was sent and what the queue took.

It knows nothing of how the product does it. Claims count in the order in which the queue took them; of two readings of
one identity the later one stands.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sensorkeep.clock import MICROSECONDS, MINUTE_US
from sensorkeep.limits import FUTURE_TOLERANCE_SECONDS, TIME_OLDEST_US
from sensorkeep.model import Claim

Position = tuple[int, int]


class Content(NamedTuple):
    """What a reading says."""

    value: float | None
    status: str | None = None
    battery: float | None = None


class Said(NamedTuple):
    """A reading as it was sent. `time_us` is None where it says no time that can be read."""

    position: Position
    sensor: str
    time_us: int | None
    content: Content


@dataclass
class Fate:
    """What became of a batch."""

    readings: int
    stored: int = 0
    updated: int = 0
    duplicate: int = 0
    quarantined: dict[Position, str] = field(default_factory=dict)
    """Reasons by position."""


class Outcome:
    """What must be there after claims were worked off, in their order."""

    def __init__(self) -> None:
        self.readings: dict[tuple[str, int], Content] = {}
        """All that were ever stored, by (sensor, time in microseconds)."""
        self.fates: dict[str, Fate] = {}

    @property
    def totals(self) -> dict[str, int]:
        """The accounting."""
        counted: Counter[str] = Counter(received=0, stored=0, updated=0, duplicate=0, quarantined=0)
        for fate in self.fates.values():
            counted["received"] += fate.readings
            counted["quarantined"] += len(fate.quarantined)
            for name in ("stored", "updated", "duplicate"):
                counted[name] += getattr(fate, name)
        return dict(counted)

    def enter(self, fate: Fate, said: Iterable[Said], claim: Claim, received_us: int) -> None:
        """One claim after the other."""
        for reading in said:
            reason = _reason(reading, claim, received_us)
            if reason is not None:
                fate.quarantined[reading.position] = reason
                continue
            assert reading.time_us is not None
            identity = (reading.sensor, reading.time_us)
            before = self.readings.get(identity)
            if before is None:
                fate.stored += 1
            elif before == reading.content:
                fate.duplicate += 1
            else:
                fate.updated += 1
            self.readings[identity] = reading.content


class Expectation:
    """Told of everything that the queue takes and of every replay that begins, it says what must come of it."""

    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self._said: dict[str, Sequence[Said]] = {}
        self._replays: dict[str, bool] = {}
        self.dead: set[str] = set()
        """Batches that end as dead letters."""

    def published(self, claims: Iterable[Claim], said: Sequence[Said]) -> None:
        """The queue has taken these claims, which hold these readings."""
        for claim in claims:
            self.claims.append(claim)
            self._said[claim.batch_id] = said

    def began_replay(self, replay_id: str, *, has_payload: bool) -> None:
        """A replay has taken its readings out of the quarantine; `has_payload`: they can still be read."""
        self._replays[replay_id] = has_payload

    def claim(self, batch_id: str) -> Claim:
        """The claim of a batch."""
        return next(claim for claim in reversed(self.claims) if claim.batch_id == batch_id)

    def usable(self, batch_id: str) -> list[Said]:
        """The readings of a batch that are not set aside when it comes."""
        claim = self.claim(batch_id)
        return [said for said in self._said[batch_id] if _reason(said, claim, claim.received_us) is None]

    def outcome(self) -> Outcome:
        """What must be there when nothing waits any more."""
        outcome = Outcome()
        rules = {claim.batch_id: claim for claim in self.claims}
        for claim in self.claims:
            if claim.replay_of is not None:
                self._replay(outcome, claim, rules[claim.replay_of])
                continue
            said = self._said[claim.batch_id]
            fate = outcome.fates[claim.batch_id] = Fate(len(said))
            if claim.batch_id in self.dead:
                fate.quarantined = {reading.position: "dead_letter" for reading in said}
            else:
                outcome.enter(fate, said, claim, claim.received_us)
        return outcome

    def _replay(self, outcome: Outcome, replay: Claim, original: Claim) -> None:
        if not self._replays.get(replay.batch_id, False):
            return
        fate = outcome.fates[original.batch_id]
        again = [r for r in self._said[original.batch_id] if r.position in fate.quarantined]
        fate.quarantined = {}
        outcome.enter(fate, again, replay, original.received_us)


def _reason(reading: Said, claim: Claim, received_us: int) -> str | None:
    """Why a reading is set aside, by the rules of SPEC section 3."""
    if reading.time_us is None:
        return "bad_timestamp"
    if reading.time_us < max(TIME_OLDEST_US, claim.oldest_allowed_us or TIME_OLDEST_US):
        return "too_old"
    newest_us = claim.newest_allowed_us
    if newest_us is None:
        newest_us = received_us + FUTURE_TOLERANCE_SECONDS * MICROSECONDS
    return "in_future" if reading.time_us > newest_us else None


Buckets = dict[tuple[str, int], list[tuple[int, Content]]]


def buckets_of(readings: dict[tuple[str, int], Content], length_us: int) -> Buckets:
    """Readings by (sensor, start of their hour or day)."""
    buckets: Buckets = defaultdict(list)
    for (sensor, time_us), content in readings.items():
        buckets[sensor, time_us // length_us * length_us].append((time_us, content))
    return dict(buckets)


def assert_bucket(row: dict[str, Any], members: Sequence[tuple[int, Content]]) -> None:
    """A bucket is what its readings give. Percentiles of one that says to be approximate are not looked at."""
    values = sorted(content.value for _, content in members if content.value is not None)
    assert row["count"] == len(values), row
    assert row["active_minutes"] == len({time_us // MINUTE_US for time_us, _ in members}), row
    expected: dict[str, float | None] = dict.fromkeys(
        ("sum", "average", "min", "max", "stddev", "median", "p95", "p99")
    )
    if values:
        expected |= {"sum": math.fsum(values), "average": statistics.fmean(values)}
        expected |= {"min": values[0], "max": values[-1]}
        expected |= {
            "median": _percentile(values, 0.5),
            "p95": _percentile(values, 0.95),
            "p99": _percentile(values, 0.99),
        }
    if len(values) > 1:
        expected["stddev"] = statistics.stdev(values)
    for name, value in expected.items():
        if not (row["approximate"] and name in ("median", "p95", "p99")):
            assert _close(row[name], value), (name, value, row)


def _percentile(ordered: Sequence[float], probability: float) -> float:
    """PERCENTILE_CONT of SQL: linear between the two neighbours of the rank."""
    rank = probability * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def _close(actual: float | None, expected: float | None) -> bool:
    if actual is None or expected is None:
        return actual is expected
    return math.isclose(actual, expected, rel_tol=1e-9, abs_tol=1e-7)
