"""Writing batches: one transaction, with the batch ids and their first counts in it.

Many writers work side by side. Each takes its locks in one order (sql/postgres_write.sql), so that none waits for
another in a circle. Late readings need no staging here: an index finds any reading. Only a batch of very many days is
written in several transactions, and what is in is noted with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sensorkeep.errors import Unavailable
from sensorkeep.limits import POSTGRES_DAYS_AT_ONCE_MAX
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import Settled, Write
from sensorkeep.tsdb.postgres.engine import Engine, Session
from sensorkeep.tsdb.postgres.rows import Batches, Target
from sensorkeep.tsdb.postgres.series import Series
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment
from sensorkeep.tsdb.readings import Integers, count, gather

_DAYS_TRIES = 3
"""Tries to find the days of a write, which go only where the store is made anew under a running process."""


class _DaysMissing(Exception):
    """A day that was there before is not known to the store any more."""


class _Portion(NamedTuple):
    """Days written in one transaction. `until_day`: where the next one goes on; None for the last."""

    days: list[int]
    until_day: int | None


@dataclass(frozen=True, slots=True)
class _Progress:
    """A batch that is written now: the counts of what is in already, and the day from which it is not."""

    counts: Counts
    until_day: int


class Writer:
    """Writes for one process. Thread-safe."""

    def __init__(self, engine: Engine, series: Series, *, timescale: bool) -> None:
        self._engine = engine
        self._series = series
        self._timescale = timescale
        self._days: set[int] = set()

    def write(self, writes: Sequence[Write], now_us: int) -> list[Settled]:
        """See TimeSeriesStore.write; every batch is settled by it."""
        fresh: dict[str, Write] = {}
        for item in writes:
            fresh.setdefault(item.batch_id, item)
        if not fresh:
            return []
        # In the order accepted, so that the last reading of an identity is the one that stays.
        batches = self._gather(sorted(fresh.values(), key=lambda item: item.accepted_us))
        counts: dict[str, Counts] = {}
        for portion in _portions(np.unique(batches.days).tolist()):
            counts = self._write(batches, portion, now_us)
        return [Settled(batch_id, counts[batch_id]) for batch_id in fresh]

    def _gather(self, writes: list[Write]) -> Batches:
        # Batches made in one go share their sensors.
        shared = {id(item.batch.sensors): item.batch.sensors for item in writes}
        numbers = self._series.made(sensor.uuid for sensors in shared.values() for sensor in sensors)
        incoming = gather(writes, numbers.__getitem__)
        table = incoming.table.drop_columns(["position"])
        accepted_us = np.fromiter((item.accepted_us for item in writes), np.int64, len(writes))
        return Batches(
            ids=[item.batch_id for item in writes],
            table=table.set_column(3, "status", _texts(table["status"])),
            series=incoming.series,
            time_us=incoming.time_us,
            batch=incoming.batch,
            accepted_us=accepted_us[incoming.batch],
            days=incoming.days,
        )

    def _write(self, batches: Batches, portion: _Portion, now_us: int) -> dict[str, Counts]:
        for _ in range(_DAYS_TRIES):
            self._make_days(portion.days, now_us)
            try:
                return self._engine.run(lambda session: self._write_portion(session, batches, portion, now_us))
            except _DaysMissing:
                self._days.clear()
        raise Unavailable("the time series store forgets its days; is another program at work in its schema?")

    def _make_days(self, days: list[int], now_us: int) -> None:
        """Enter the days and make their partitions, in a transaction of its own: its locks must be held shortly."""
        missing = [day for day in days if day not in self._days]
        if missing:
            self._engine.run(lambda session: _make_days(session, missing, now_us))
            self._days.update(missing)

    def _write_portion(self, session: Session, batches: Batches, portion: _Portion, now_us: int) -> dict[str, Counts]:
        """Write what the portion has of batches that are not settled; the counts of those that are settled now."""
        session.execute(statement("lock_writers"))
        if self._timescale:
            session.execute(statement("tune_timescale"), prepare=False)
        ours = _claim(session, batches.ids, now_us)
        counts = _known_counts(session, [batch_id for batch_id in batches.ids if batch_id not in ours])
        ((marking_us, open_days, sealed_days),) = session.execute(
            statement("writing_state"), {"days": portion.days}
        ).fetchall()
        target = Target(session, marking_us, open_days or [], sealed_days or [], now_us)
        if len(target.open_days) + len(target.sealed_days) < len(portion.days):
            raise _DaysMissing
        rows = _rows_to_write(batches, portion, ours)
        outcome = target.put(batches, rows)
        written = count(outcome, batches.batch[rows], len(batches.ids))
        sums = {
            batch_id: ours[batch_id].counts + new
            for batch_id, new in zip(batches.ids, written, strict=True)
            if batch_id in ours
        }
        newest_us = int(batches.time_us[rows].max()) if len(rows) else None
        _save_counts(session, sums, portion.until_day, newest_us)
        return counts | sums


def _portions(days: list[int]) -> Iterator[_Portion]:
    for first in range(0, max(1, len(days)), POSTGRES_DAYS_AT_ONCE_MAX):
        part = days[first : first + POSTGRES_DAYS_AT_ONCE_MAX]
        last = first + POSTGRES_DAYS_AT_ONCE_MAX >= len(days)
        yield _Portion(part, None if last else part[-1] + 1)


def _make_days(session: Session, days: list[int], now_us: int) -> None:
    session.execute(statement("lock_days"))
    made = session.execute(statement("add_days"), {"days": days, "now": moment(now_us)}).fetchall()
    if made:
        session.execute(statement("make_days"), {"days": sorted(day for (day,) in made)})


def _claim(session: Session, batch_ids: list[str], now_us: int) -> dict[str, _Progress]:
    """Those of the batches that are not settled, ours until the transaction ends; two who claim one take turns."""
    claim = {"batch_ids": batch_ids, "now": moment(now_us)}
    found = session.execute(statement("claim_batches"), claim).fetchall()
    return {batch_id: _Progress(Counts(*counts), until_day) for batch_id, *counts, until_day in found}


def _known_counts(session: Session, batch_ids: list[str]) -> dict[str, Counts]:
    if not batch_ids:
        return {}
    found = session.execute(statement("known_batches"), {"batch_ids": batch_ids}).fetchall()
    return {batch_id: Counts(*counts) for batch_id, *counts in found}


def _save_counts(session: Session, counts: dict[str, Counts], until_day: int | None, newest_us: int | None) -> None:
    if counts:
        session.execute(
            statement("save_counts"),
            {
                "batch_ids": list(counts),
                "stored": [item.stored for item in counts.values()],
                "updated": [item.updated for item in counts.values()],
                "duplicate": [item.duplicate for item in counts.values()],
                "until_day": until_day,
                "newest": None if newest_us is None else moment(newest_us),
            },
        )


def _rows_to_write(batches: Batches, portion: _Portion, ours: dict[str, _Progress]) -> Integers:
    """Positions, ascending, of the readings of the portion's days that are not in yet."""
    nothing = 2**31  # a day that no reading has
    from_day = np.array([ours[batch_id].until_day if batch_id in ours else nothing for batch_id in batches.ids])
    wanted: NDArray[np.bool_] = batches.days >= from_day[batches.batch]
    if portion.until_day is not None or (len(portion.days) and (batches.days < portion.days[0]).any()):
        wanted &= (batches.days >= portion.days[0]) & (batches.days <= portion.days[-1])
    return np.flatnonzero(wanted)


def _texts(status: Any) -> Any:
    """A column of few different texts as texts. PostgreSQL's hold every character but NUL, for which U+FFFD stands:
    such a reading must not hold up the others."""
    chunks = []
    for chunk in status.chunks:
        texts = chunk.dictionary
        if pc.any(pc.match_substring(texts, "\0")).as_py():
            texts = pc.replace_substring(texts, "\0", "\N{REPLACEMENT CHARACTER}")
        chunks.append(texts.take(chunk.indices))
    return pa.chunked_array(chunks, pa.string())
