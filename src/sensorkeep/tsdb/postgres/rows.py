"""Readings of some batches on their way into the tables, within a transaction.

Of each identity only the last reading is sent. What the database has of them already is judged here, on whole columns;
the rest is inserted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from psycopg import errors

from sensorkeep.clock import DAY_US, HOUR_US
from sensorkeep.tsdb.postgres import columns, sealed
from sensorkeep.tsdb.postgres.columns import Columns, copy_in, fetch, nullable
from sensorkeep.tsdb.postgres.engine import Retry, Session
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.postgres.times import moment
from sensorkeep.tsdb.readings import CONTENT_COLUMNS, DUPLICATE, STORED, UPDATED, Flags, Integers, same_content

_KNOWN = {
    "position": "int32", "value": "float64", "status": "text", "battery": "float32", "rssi": "int16", "lqi": "int16",
    "battery_voltage": "float32", "accepted_us": "int64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batches:
    """The readings of some batches in the order accepted.

    `table` has the columns of READINGS_SCHEMA with the store's series numbers and `status` as plain text; the arrays
    are one element a reading, `batch` being an index into `ids`.
    """

    ids: list[str]
    table: pa.Table
    series: Integers
    time_us: Integers
    batch: Integers
    accepted_us: Integers
    days: Integers


@dataclass(frozen=True, slots=True)
class Target:
    """Where readings go: days with raw, sealed days; and `marking_us`, before which changed hours are marked."""

    session: Session
    marking_us: int | None
    open_days: list[int]
    sealed_days: list[int]
    now_us: int

    def put(self, batches: Batches, rows: Integers) -> Integers:
        """Put the readings at positions `rows` (ascending) in; the outcome of each."""
        outcome = np.empty(len(rows), np.int64)
        is_sealed = np.isin(batches.days[rows], np.asarray(self.sealed_days, np.int64))
        if not is_sealed.all():
            outcome[~is_sealed] = self._store(_Identities(batches, rows[~is_sealed]))
        if is_sealed.any():
            outcome[is_sealed] = self._merge(_Identities(batches, rows[is_sealed]))
        return outcome

    def _store(self, identities: _Identities) -> Integers:
        self.session.execute(statement("create_incoming"))
        copy_in(self.session, "incoming", identities.last_readings())
        known = self._known(identities)
        there = known["position"].astype(np.int64)
        changed: Integers = np.empty(0, np.int64)
        if len(there) < identities.count:
            self._insert(there)
        if len(there):
            judged = _judge(identities, there, known)
            changed = judged.changed
            self._write_over("change_readings", changed)
            self._write_over("confirm_readings", judged.confirmed)
        self._mark(identities, np.union1d(np.setdiff1d(np.arange(identities.count), there), changed))
        return identities.outcome_of_rows()

    def _known(self, identities: _Identities) -> Columns:
        """What is stored of the identities already, in their order; `position` is the identity."""
        parts = []
        for day in np.unique(np.floor_divide(identities.time_us, DAY_US)).tolist():
            bounds = {"start": moment(day * DAY_US), "end": moment((day + 1) * DAY_US)}
            parts.append(fetch(self.session, statement("known_readings"), bounds, _KNOWN))
        whole = columns.joined(parts)
        return columns.ordered(whole, np.argsort(whole["position"]))

    def _insert(self, known: Integers) -> None:
        """Insert the last reading of each identity but the `known` ones."""
        try:
            self.session.execute(statement("insert_new"), {"known": known.tolist()})
        except errors.UniqueViolation as error:
            raise Retry("a reading was written by somebody else meanwhile") from error

    def _write_over(self, name: str, identities: Integers) -> None:
        """Write the last reading of the identities over what is stored of them."""
        if len(identities):
            done = self.session.execute(statement(name), {"positions": identities.tolist()})
            if done.rowcount != len(identities):
                raise Retry("a reading was written by somebody else meanwhile")

    def _mark(self, identities: _Identities, written: Integers) -> None:
        """Enter the hours of the identities `written` that are, or are about to be, rolled up; and that days that may
        soon be sealed were written to."""
        days = np.unique(np.floor_divide(identities.time_us[written], DAY_US))
        old_days = days[days < self.now_us // DAY_US - 1].tolist()
        if old_days:
            self.session.execute(statement("touch_days"), {"days": old_days, "now": moment(self.now_us)})
        if self.marking_us is None:
            return
        passed = written[identities.time_us[written] < self.marking_us]
        if len(passed):
            hours = np.floor_divide(identities.time_us[passed], HOUR_US)
            touched = np.unique(np.stack([identities.series[passed], hours]), axis=1)
            marks = {"series": touched[0].tolist(), "hours": touched[1].tolist()}
            self.session.execute(statement("mark_dirty"), marks)

    def _merge(self, identities: _Identities) -> Integers:
        """Merge readings of days whose raw is gone. Nothing can be recognized there but what is repeated here."""
        self.session.execute(statement("lock_sealed"))
        days = np.floor_divide(identities.time_us, DAY_US)
        for day in np.unique(days).tolist():
            of_day = identities.last[days == day]
            sealed.merge(self.session, day, identities.batches.table.take(of_day))
        return identities.outcome_of_rows()


class _Identities:
    """Some rows of the batches (positions, ascending) by identity: (series, time).

    `ordered` are the rows by identity, each one's readings in the order accepted; `number` tells whose each is.
    `outcome` is that of each: at first as if nothing were stored.
    """

    def __init__(self, batches: Batches, rows: Integers) -> None:
        self.batches = batches
        self._order = np.lexsort((batches.time_us[rows], batches.series[rows]))
        self.ordered: Integers = rows[self._order]
        series, time_us = batches.series[self.ordered], batches.time_us[self.ordered]
        begins = np.ones(len(rows), np.bool_)
        begins[1:] = (series[1:] != series[:-1]) | (time_us[1:] != time_us[:-1])
        self.number: Integers = np.cumsum(begins) - 1
        self.ends: Integers = np.flatnonzero(np.append(begins[1:], True))
        """Where in `ordered` each identity's last reading is."""
        self.count = len(self.ends)
        self.last: Integers = self.ordered[self.ends]
        self.series, self.time_us = series[begins], time_us[begins]
        self.outcome: Integers = np.full(len(rows), STORED, np.int64)
        again = np.flatnonzero(~begins)
        if len(again):
            same = same_content(batches.table, self.ordered[again - 1], self.ordered[again])
            self.outcome[again] = np.where(same, DUPLICATE, UPDATED)

    def last_readings(self) -> pa.Table:
        """The last reading of each identity, as the table `incoming` takes it."""
        table = self.batches.table.take(self.last)
        table = table.append_column("accepted_us", pa.array(self.batches.accepted_us[self.last]))
        return table.append_column("position", pa.array(np.arange(self.count, dtype=np.int32))).combine_chunks()

    def outcome_of_rows(self) -> Integers:
        """The outcomes in the order of the rows."""
        outcome = np.empty(len(self.outcome), np.int64)
        outcome[self._order] = self.outcome
        return outcome


@dataclass(frozen=True, slots=True)
class _Judged:
    """Identities whose last reading is to be written: with a new content, or only as accepted later."""

    changed: Integers
    confirmed: Integers


def _judge(identities: _Identities, there: Integers, known: Columns) -> _Judged:
    """Set the outcomes of the identities `there` by what is `known` of them.

    What was accepted before the stored reading says nothing. The first that was not is compared with the stored one;
    those after it are compared with one another already.
    """
    ordered, batches = identities.ordered, identities.batches
    place = np.full(identities.count, -1, np.int64)
    place[there] = np.arange(len(there))
    stored = place[identities.number]
    rows = np.flatnonzero(stored >= 0)
    too_old = batches.accepted_us[ordered[rows]] < known["accepted_us"][stored[rows]]
    identities.outcome[rows[too_old]] = DUPLICATE
    counted = rows[~too_old]
    first = counted[np.append(True, identities.number[counted[1:]] != identities.number[counted[:-1]])[: len(counted)]]
    content = _content(known)
    same_first = _says_the_same(batches.table, ordered[first], content, stored[first])
    identities.outcome[first] = np.where(same_first, DUPLICATE, UPDATED)
    accepted_us = batches.accepted_us[identities.last[there]]
    same = _says_the_same(batches.table, identities.last[there], content, np.arange(len(there)))
    counts: Flags = accepted_us >= known["accepted_us"]
    newer: Flags = accepted_us > known["accepted_us"]
    return _Judged(there[counts & ~same], there[newer & same])


def _content(known: Columns) -> pa.Table:
    """What is stored, with the types of the batches' tables."""
    kinds: dict[str, pa.DataType] = {
        "value": pa.float64(), "battery": pa.float32(), "rssi": pa.int16(), "lqi": pa.int16(),
        "battery_voltage": pa.float32(),
    }  # fmt: skip
    arrays = {name: nullable(known[name], kind) for name, kind in kinds.items()}
    arrays["status"] = pa.array(known["status"], pa.string())
    return pa.table({name: arrays[name] for name in CONTENT_COLUMNS})


def _says_the_same(table: pa.Table, positions: Integers, stored: pa.Table, places: Integers) -> NDArray[np.bool_]:
    """Whether the readings at `positions` of `table` say what those at `places` of `stored` say, pair by pair."""
    taken = table.select(list(CONTENT_COLUMNS)).take(positions)
    both = pa.concat_tables([taken, stored.take(places).cast(taken.schema)]).combine_chunks()
    pairs = np.arange(len(positions))
    return same_content(both, pairs, pairs + len(positions))
