"""The rows of the quarantine: readings set aside, one row each, and one row for a dead letter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import sqlalchemy as sa

from sensorkeep.catalog.base import QuarantinedReading, Settlement
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.schema import quarantine
from sensorkeep.limits import LEDGER_PORTION_ROWS
from sensorkeep.model import Reason

_COLUMNS = ("batch_id", "equipment", "sensor", "reason", "excerpt", "quarantined_us", "replaying")
_Row = tuple[str, int, int, str, str | None, int, bool]


class QuarantineRows:
    """Statements on the quarantine, for use within the ledger's transactions."""

    def __init__(self, database: Database) -> None:
        self._insert = database.prepare_insert(quarantine, _COLUMNS)

    def add(self, connection: sa.Connection, batch_id: str, settlement: Settlement, now_us: int) -> None:
        """Enter the rejections of a settlement, and its dead letter, under `batch_id`."""
        rows = _rows(batch_id, settlement, now_us)
        # A million rejections are never a list: they are made and written a portion at a time.
        while portion := list(islice(rows, LEDGER_PORTION_ROWS)):
            self._insert.run(connection, portion)

    def begin_replay(self, connection: sa.Connection, batch_id: str) -> None:
        """Take the batch's readings out of the listing while a replay tries them."""
        mine = sa.update(quarantine).where(quarantine.c.batch_id == batch_id)
        connection.execute(mine.values(replaying=True))

    def end_replay(self, connection: sa.Connection, batch_id: str) -> None:
        """Forget the readings that a replay has settled."""
        connection.execute(sa.delete(quarantine).where(_replaying(batch_id)))

    def give_back(self, connection: sa.Connection, batch_id: str) -> bool:
        """Put the readings of a replay that failed back; whether the batch was a dead letter."""
        dead = sa.select(sa.exists().where(_replaying(batch_id), quarantine.c.reason == Reason.DEAD_LETTER.value))
        was_dead_letter = bool(connection.execute(dead).scalar_one())
        connection.execute(sa.update(quarantine).where(_replaying(batch_id)).values(replaying=False))
        return was_dead_letter

    def positions(self, connection: sa.Connection, batch_id: str) -> list[tuple[int, int]]:
        """(equipment, sensor) of the readings being replayed; empty for a dead letter: all of the batch."""
        columns = (quarantine.c.equipment, quarantine.c.sensor, quarantine.c.reason)
        found = connection.execute(sa.select(*columns).where(_replaying(batch_id)).order_by(quarantine.c.id))
        positions = []
        for equipment, sensor, reason in found:
            if reason == Reason.DEAD_LETTER:
                return []
            positions.append((equipment, sensor))
        return positions

    def forget(self, connection: sa.Connection, batch_ids: Sequence[str]) -> None:
        """Delete every row of the batches."""
        connection.execute(sa.delete(quarantine).where(quarantine.c.batch_id.in_(batch_ids)))


def list_quarantined(
    connection: sa.Connection,
    batch_id: str | None,
    reason: str | None,
    limit: int,
    before_id: int | None,
    *,
    oldest_first: bool,
) -> list[QuarantinedReading]:
    """Readings set aside, newest first unless `oldest_first`; those of one batch or reason where it is given."""
    statement = sa.select(quarantine).where(quarantine.c.replaying.is_(False))
    if batch_id is not None:
        statement = statement.where(quarantine.c.batch_id == batch_id)
    if reason is not None:
        # One batch's rows are few beside one reason's: with both given, hide the reason from its index.
        wanted = quarantine.c.reason if batch_id is None else quarantine.c.reason.concat("")
        statement = statement.where(wanted == reason)
    if before_id is not None:
        statement = statement.where(quarantine.c.id < before_id)
    order = quarantine.c.id.asc() if oldest_first else quarantine.c.id.desc()
    return [
        QuarantinedReading(
            id=row.id,
            batch_id=row.batch_id,
            equipment=row.equipment,
            sensor=row.sensor,
            reason=row.reason,
            excerpt=row.excerpt,
            quarantined_us=row.quarantined_us,
        )
        for row in connection.execute(statement.order_by(order).limit(limit))
    ]


def _replaying(batch_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(quarantine.c.batch_id == batch_id, quarantine.c.replaying.is_(True))


def _rows(batch_id: str, settlement: Settlement, now_us: int) -> Iterator[_Row]:
    for equipment, sensor, reason, excerpt in settlement.rejections:
        yield batch_id, equipment, sensor, reason.value, excerpt, now_us, False
    if settlement.dead_letter is not None:
        yield batch_id, 0, 0, Reason.DEAD_LETTER.value, settlement.dead_letter, now_us, False
