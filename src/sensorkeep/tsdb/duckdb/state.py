"""What the store keeps in memory beside the database, loaded at the start and saved by difference.

A transaction works on a draft. The draft's changes are written in the transaction, and the draft takes the place of
the state only after the commit: a transaction that fails leaves both as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import duckdb
import pyarrow as pa

from sensorkeep.errors import Corrupt
from sensorkeep.model import Counts
from sensorkeep.tsdb.duckdb.engine import registered
from sensorkeep.tsdb.duckdb.statements import run, statement

FORMAT_VERSION = 1

DayState = Literal["open", "closed", "sealed"]


@dataclass(frozen=True, slots=True)
class Day:
    """One UTC day of raw readings; `day` is its number since 1970-01-01."""

    day: int
    state: DayState
    row_count: int
    sorted_rows: int
    """Rows that stand in long runs in (sensor, time) order."""
    last_write_us: int
    newest_us: int
    """Greatest reading time in it: only readings up to it can be known already."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A batch with staged readings, and the counts of its readings that are in."""

    number: int
    batch_id: str
    counts: Counts
    staged: int


@dataclass(frozen=True, slots=True)
class Marks:
    """How far things are; all None until the first write."""

    watermark_us: int | None = None
    """The greatest reading time seen. It only grows."""
    last_write_us: int | None = None
    """Wall time of the last write that brought readings."""
    hourly_until_us: int | None = None
    """Hours that start before this are rolled up (or dirty); later ones are computed from raw when read."""
    daily_until_us: int | None = None
    """The same for days."""
    hourly_settled_until_us: int | None = None
    """Every hour in hourly_settled starts before this; None: there is none."""
    daily_settled_until_us: int | None = None
    """The same for days."""


@dataclass(slots=True)
class State:
    """Everything known without asking the database. Published states are never changed."""

    version: int = 0
    """Number of the transaction that wrote it."""
    marks: Marks = field(default_factory=Marks)
    days: dict[int, Day] = field(default_factory=dict)
    unsettled: dict[str, Unsettled] = field(default_factory=dict)
    """By batch id."""
    hourly_dirty: dict[int, int] = field(default_factory=dict)
    """Day to its number of entries in hourly_dirty."""
    daily_dirty: dict[int, int] = field(default_factory=dict)
    series: dict[str, int] = field(default_factory=dict)
    """Sensor uuid to number; shared between states, because it only grows."""
    new_series: dict[str, int] = field(default_factory=dict)
    """Those of this draft, moved into `series` when it is published."""
    next_sequence: int = 0
    """Order of the next staged reading."""
    next_batch: int = 0
    """Number of the next unsettled batch."""

    def draft(self) -> State:
        """A copy to change."""
        return replace(
            self,
            version=self.version + 1,
            days=dict(self.days),
            unsettled=dict(self.unsettled),
            hourly_dirty=dict(self.hourly_dirty),
            daily_dirty=dict(self.daily_dirty),
            new_series={},
        )

    def number_of(self, sensor_uuid: str) -> int:
        """The sensor's number, a new one where it has none."""
        number = self.series.get(sensor_uuid)
        if number is None:
            number = self.new_series.setdefault(sensor_uuid, len(self.series) + len(self.new_series))
        return number

    @property
    def staged_readings(self) -> int:
        """Late readings written and not merged yet."""
        return sum(batch.staged for batch in self.unsettled.values())


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables that are missing."""
    connection.execute(statement("create_tables"), {"format_version": FORMAT_VERSION})


def load(connection: duckdb.DuckDBPyConnection) -> State:
    """The state as the database has it. Raises Corrupt where another version of the program wrote it."""
    format_version, version, *marks = _rows(connection, "load_marks")[0]
    if format_version != FORMAT_VERSION:
        raise Corrupt(f"the time series store has format {format_version}; this program reads {FORMAT_VERSION}")
    unsettled = {
        row[1]: Unsettled(row[0], row[1], Counts(*row[2:5]), row[5]) for row in _rows(connection, "load_unsettled")
    }
    last_sequence = _rows(connection, "load_last_sequence")[0][0]
    return State(
        version=version,
        marks=Marks(*marks),
        days={row[0]: Day(*row) for row in _rows(connection, "load_days")},
        unsettled=unsettled,
        hourly_dirty=dict(_rows(connection, "load_hourly_dirty")),
        daily_dirty=dict(_rows(connection, "load_daily_dirty")),
        series=dict(_rows(connection, "load_series")),
        next_sequence=0 if last_sequence is None else last_sequence + 1,
        next_batch=1 + max((batch.number for batch in unsettled.values()), default=-1),
    )


def save(connection: duckdb.DuckDBPyConnection, before: State, draft: State) -> None:
    """Write what the draft changed; the dirty entries are written where they arise."""
    run(connection, statement("save_marks"), asdict(draft.marks) | {"version": draft.version})
    if draft.new_series:
        new_series = pa.table({"id": list(draft.new_series.values()), "uuid": list(draft.new_series)})
        with registered(connection, {"new_series": new_series}):
            run(connection, statement("save_series"))
    _save_days(connection, [day for day in draft.days.values() if before.days.get(day.day) is not day])
    _save_unsettled(connection, before.unsettled, draft.unsettled)


def publish(draft: State) -> State:
    """The committed draft as the new state."""
    draft.series.update(draft.new_series)
    return replace(draft, new_series={})


def _save_days(connection: duckdb.DuckDBPyConnection, days: list[Day]) -> None:
    if days:
        run(connection, statement("forget_days"), {"days": [day.day for day in days]})
        for day in days:
            run(connection, statement("save_day"), asdict(day))


def _save_unsettled(
    connection: duckdb.DuckDBPyConnection, before: Mapping[str, Unsettled], after: Mapping[str, Unsettled]
) -> None:
    old = [batch.number for key, batch in before.items() if after.get(key) is not batch]
    if old:
        run(connection, statement("forget_unsettled"), {"numbers": old})
    new = [batch for key, batch in after.items() if before.get(key) is not batch]
    if new:
        with registered(connection, {"new_unsettled": _unsettled_table(new)}):
            run(connection, statement("save_unsettled"))


def _unsettled_table(batches: Iterable[Unsettled]) -> pa.Table:
    rows = [
        {
            "number": batch.number,
            "batch_id": batch.batch_id,
            "stored": batch.counts.stored,
            "updated": batch.counts.updated,
            "duplicate": batch.counts.duplicate,
            "staged": batch.staged,
        }
        for batch in batches
    ]
    return pa.Table.from_pylist(rows)


def _rows(connection: duckdb.DuckDBPyConnection, name: str) -> list[tuple[Any, ...]]:
    return run(connection, statement(name)).fetchall()
