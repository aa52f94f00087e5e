"""Writing batches: one transaction, with the batch ids and their first counts in it.

Many writers work side by side. Each takes its locks in one order (sql/postgres_write.sql), so that none waits for
another in a circle. Late readings need no staging here: an index finds any reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pgpq import ArrowToPostgresBinaryEncoder

from sensorkeep.clock import HOUR_US
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import Settled, Write
from sensorkeep.tsdb.postgres import sealed
from sensorkeep.tsdb.postgres.engine import Engine, Retry, Session
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import bound_of, moment, partition_of
from sensorkeep.tsdb.readings import (
    CONTENT_COLUMNS,
    DUPLICATE,
    UPDATED,
    Incoming,
    Integers,
    Known,
    classify,
    count,
    gather,
    same_content,
)

_COPY_INCOMING = "COPY incoming FROM STDIN WITH (FORMAT BINARY)"
_COPIED = ("series", "time", *CONTENT_COLUMNS, "position")


class Writer:
    """Writes for one process. Thread-safe."""

    def __init__(self, engine: Engine, *, timescale: bool) -> None:
        self._engine = engine
        self._timescale = timescale
        self._series: dict[str, int] = {}
        self._days: set[int] = set()

    def write(self, writes: Sequence[Write], now_us: int) -> list[Settled]:
        """See TimeSeriesStore.write; every batch is settled by it."""
        fresh: dict[str, Write] = {}
        for item in writes:
            fresh.setdefault(item.batch_id, item)
        if not fresh:
            return []
        self._number(sensor.uuid for item in fresh.values() for sensor in item.batch.sensors)
        incoming = gather(list(fresh.values()), self._series.__getitem__)
        self._prepare_days(np.unique(incoming.days).tolist(), now_us)
        counts = self._engine.run(lambda session: _write(session, list(fresh), incoming, now_us))
        return [Settled(batch_id, counts[batch_id]) for batch_id in fresh]

    def series_of(self, uuids: Iterable[str]) -> dict[str, int]:
        """The numbers of those sensors that have readings."""
        asked = list(uuids)
        unknown = [uuid for uuid in asked if uuid not in self._series]
        if unknown:
            with self._engine.session() as session:
                found = session.execute(statement("find_series"), {"uuids": unknown}).fetchall()
            self._series.update(found)
        return {uuid: self._series[uuid] for uuid in asked if uuid in self._series}

    def number(self, uuids: Iterable[str]) -> dict[str, int]:
        """The numbers of the sensors; those seen first get one."""
        asked = list(uuids)
        self._number(asked)
        return {uuid: self._series[uuid] for uuid in asked}

    def _number(self, uuids: Iterable[str]) -> None:
        asked = sorted(set(uuids))
        missing = [uuid for uuid in asked if uuid not in self.series_of(asked)]
        if missing:
            with self._engine.session() as session:
                session.execute(statement("add_series"), {"uuids": missing})
            self.series_of(missing)

    def _prepare_days(self, days: list[int], now_us: int) -> None:
        """Enter the days, and make their partitions, in transactions of their own."""
        for day in days:
            if day not in self._days:
                self._engine.run(lambda session, day=day: self._prepare_day(session, day, now_us))  # type: ignore[misc]
                self._days.add(day)

    def _prepare_day(self, session: Session, day: int, now_us: int) -> None:
        session.execute(statement("lock_days"))
        session.execute(statement("add_day"), {"day": day, "now_us": now_us})
        (found,) = session.execute(statement("days_of"), {"days": [day]}).fetchall()
        if found[1] or self._timescale:
            return  # of a sealed day there are no readings, and the extension makes its chunks itself
        name = partition_of(day)
        (row,) = session.execute(statement("partition_exists"), {"name": f"telemetry.{name}"}).fetchall()
        if not row[0]:
            bounds = {"partition": name, "start": bound_of(day), "end": bound_of(day + 1)}
            for step in ("create_partition", "check_partition", "attach_partition"):
                session.execute(statement(step, **bounds))


def _write(session: Session, batch_ids: list[str], incoming: Incoming, now_us: int) -> dict[str, Counts]:
    session.execute(statement("lock_writers"))
    claimed = session.execute(statement("claim_batches"), {"batch_ids": batch_ids, "now_us": now_us}).fetchall()
    ours = {batch_id for (batch_id,) in claimed}
    known = _known_counts(session, [batch_id for batch_id in batch_ids if batch_id not in ours])
    wanted = np.array([batch_id in ours for batch_id in batch_ids], np.bool_)
    rows = np.flatnonzero(wanted[incoming.batch]) if len(incoming.batch) else np.empty(0, np.int64)
    outcome = _Rows(session, incoming, rows, now_us).apply()
    counts = dict(zip(batch_ids, count(outcome, incoming.batch[rows], len(batch_ids)), strict=True))
    _save_counts(session, {batch_id: counts[batch_id] for batch_id in batch_ids if batch_id in ours})
    return counts | known


def _known_counts(session: Session, batch_ids: list[str]) -> dict[str, Counts]:
    if not batch_ids:
        return {}
    found = session.execute(statement("known_batches"), {"batch_ids": batch_ids}).fetchall()
    return {batch_id: Counts(*counts) for batch_id, *counts in found}


def _save_counts(session: Session, counts: dict[str, Counts]) -> None:
    counted = {batch_id: counts_of for batch_id, counts_of in counts.items() if counts_of.total}
    if counted:
        session.execute(
            statement("save_counts"),
            {
                "batch_ids": list(counted),
                "stored": [item.stored for item in counted.values()],
                "updated": [item.updated for item in counted.values()],
                "duplicate": [item.duplicate for item in counted.values()],
            },
        )


@dataclass(slots=True)
class _Rows:
    """Rows of a write (positions, ascending) on their way into the tables."""

    session: Session
    incoming: Incoming
    rows: Integers
    now_us: int

    def apply(self) -> Integers:
        """Put them in; the outcome of each."""
        outcome = np.empty(len(self.rows), np.int64)
        if len(self.rows) == 0:
            return outcome
        days = self.incoming.days[self.rows]
        found = self.session.execute(statement("days_of"), {"days": np.unique(days).tolist()}).fetchall()
        if len(found) < len(np.unique(days)):
            raise Retry("a day was dropped meanwhile")
        is_sealed = np.isin(days, np.array([day for day, sealed_day in found if sealed_day], np.int64))
        for day in np.unique(days[is_sealed]).tolist():
            of_day = days == day
            outcome[of_day] = self._merge(day, self.rows[of_day])
        if not is_sealed.all():
            outcome[~is_sealed] = self._insert(self.rows[~is_sealed])
            parameters = {"days": np.unique(days[~is_sealed]).tolist(), "now_us": self.now_us}
            self.session.execute(statement("touch_days"), parameters)
        return outcome

    def _merge(self, day: int, rows: Integers) -> Integers:
        """Readings of a day whose raw is gone: only what this write itself repeats can be recognized."""
        verdict = classify(self.incoming, rows, Known.none())
        sealed.merge(self.session, day, self.incoming.table.take(verdict.inserted))
        return verdict.outcome

    def _insert(self, rows: Integers) -> Integers:
        """Insert the last reading of each identity where there is none; judge the rest by what is there."""
        outcome, last = self._alone(rows)
        self._copy(last)
        found = self.session.execute(statement("insert_new")).fetchall()
        there = np.sort(np.array([position for (position,) in found], np.int64))
        if len(there) == 0:
            self._mark_dirty(last)
            return outcome
        outcome, changed = self._judge(rows, outcome, there)
        self._update(changed)
        self._mark_dirty(np.concatenate([np.setdiff1d(last, there), changed]))
        return outcome

    def _alone(self, rows: Integers) -> tuple[Integers, Integers]:
        """The outcomes as if nothing were stored yet, and the position of the last reading of each identity."""
        outcome, last = np.empty(len(rows), np.int64), []
        days = self.incoming.days[rows]
        for day in np.unique(days).tolist():
            of_day = days == day
            verdict = classify(self.incoming, rows[of_day], Known.none())
            outcome[of_day] = verdict.outcome
            last.append(verdict.inserted)
        return outcome, np.sort(np.concatenate(last))

    def _judge(self, rows: Integers, outcome: Integers, there: Integers) -> tuple[Integers, Integers]:
        """The outcomes, and which of the positions `there` say something new, given what is stored of them."""
        stored = self._stored(there)
        identities = _identities(self.incoming, rows)
        order = np.argsort(identities, kind="stable")
        first = rows[order[np.searchsorted(identities[order], _identities(self.incoming, there))]]
        same_first = _same(self.incoming.table, first, stored)
        outcome = outcome.copy()
        outcome[np.searchsorted(rows, first)] = np.where(same_first, DUPLICATE, UPDATED)
        return outcome, there[~_same(self.incoming.table, there, stored)]

    def _stored(self, positions: Integers) -> pa.Table:
        """What is stored of the identities at `positions`, in that order."""
        self.session.execute(statement("by_index"))
        found = self.session.execute(statement("known_readings"), self._bounds(positions), binary=True).fetchall()
        if len(found) < len(positions):
            raise Retry("a reading was dropped meanwhile")
        by_position = {row[0]: row[1:] for row in found}
        columns = zip(*(by_position[position] for position in positions.tolist()), strict=True)
        schema = self.incoming.table.schema
        return pa.table(
            {
                name: pa.array(column, pa.string() if name == "status" else schema.field(name).type)
                for name, column in zip(CONTENT_COLUMNS, columns, strict=True)
            }
        )

    def _update(self, positions: Integers) -> None:
        """Write over the readings at `positions`. Raises Retry where another transaction did meanwhile.

        Twice, where the first time missed some: TimescaleDB decompresses what an update looks for, but the join of
        that statement does not see it yet (2.23).
        """
        missing = len(positions)
        for _ in range(2):
            if missing:
                missing -= self.session.execute(statement("update_readings"), self._bounds(positions)).rowcount
        if missing:
            raise Retry("a reading was written by somebody else meanwhile")

    def _bounds(self, positions: Integers) -> dict[str, Any]:
        time_us = self.incoming.time_us[positions]
        first, last = moment(int(time_us.min())), moment(int(time_us.max()))
        return {"positions": positions.tolist(), "first": first, "last": last}

    def _copy(self, positions: Integers) -> None:
        """The readings into the temporary table, as Arrow gives them to a binary COPY."""
        table = self.incoming.table.select(_COPIED).take(positions)
        table = table.set_column(3, "status", _plain_text(table["status"]))
        encoder = ArrowToPostgresBinaryEncoder(table.schema)
        self.session.execute(statement("create_incoming"))
        with self.session.cursor().copy(_COPY_INCOMING) as copy:
            copy.write(encoder.write_header())
            for batch in table.combine_chunks().to_batches():
                copy.write(encoder.write_batch(batch))
            copy.write(encoder.finish())

    def _mark_dirty(self, positions: Integers) -> None:
        """Enter the hours of the readings at `positions` that are rolled up already."""
        ((marking_until_us, _),) = self.session.execute(statement("marks")).fetchall()
        if marking_until_us is None or len(positions) == 0:
            return
        passed = positions[self.incoming.time_us[positions] < marking_until_us]
        if len(passed):
            hours = np.floor_divide(self.incoming.time_us[passed], HOUR_US)
            touched = np.unique(np.stack([self.incoming.series[passed], hours]), axis=1)
            parameters = {"series": touched[0].tolist(), "time_us": (touched[1] * HOUR_US).tolist()}
            self.session.execute(statement("mark_dirty"), parameters)


def _identities(incoming: Incoming, positions: Integers) -> Any:
    """One comparable value for each identity."""
    pairs = np.empty(len(positions), [("series", np.int64), ("time", np.int64)])
    pairs["series"], pairs["time"] = incoming.series[positions], incoming.time_us[positions]
    return pairs


def _same(table: pa.Table, positions: Integers, stored: pa.Table) -> Any:
    """Whether the readings at `positions` say what is stored of them, pair by pair."""
    taken = table.select(list(CONTENT_COLUMNS)).take(positions)
    taken = taken.set_column(taken.column_names.index("status"), "status", _plain_text(taken["status"]))
    both = pa.concat_tables([taken, stored.cast(taken.schema)]).combine_chunks()
    half = len(positions)
    return same_content(both, np.arange(half), np.arange(half, 2 * half))


def _plain_text(column: Any) -> Any:
    """A dictionary column as its texts. PostgreSQL's text holds every character but NUL, for which U+FFFD stands."""
    texts = column.combine_chunks().cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    contains = pc.match_substring(texts, "\0")
    return pc.replace_substring(texts, "\0", "\N{REPLACEMENT CHARACTER}") if _any(contains) else texts


def _any(flags: Any) -> bool:
    return bool(pc.any(flags).as_py())
