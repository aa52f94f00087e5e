"""Attempts to write batches that were begun and never ended, in the catalog's database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from sensorkeep.catalog.database import Database
from sensorkeep.catalog.schema import attempts
from sensorkeep.clock import Clock
from sensorkeep.limits import LEDGER_PORTION_ROWS


class CatalogAttempts:
    """The Attempts of the catalog."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def begin(self, batch_ids: Sequence[str]) -> None:
        now_us = self._clock.now_us()

        def note(connection: sa.Connection) -> None:
            for portion in _portions(batch_ids):
                insert = self._database.insert(attempts).values(
                    [{"batch_id": batch_id, "unfinished": 1, "begun_us": now_us} for batch_id in portion]
                )
                again = insert.on_conflict_do_update(
                    index_elements=["batch_id"],
                    set_={"unfinished": attempts.c.unfinished + 1, "begun_us": insert.excluded.begun_us},
                )
                connection.execute(again)

        self._database.transact(note, relaxed=True)

    def end(self, batch_ids: Sequence[str]) -> None:
        def forget(connection: sa.Connection) -> None:
            for portion in _portions(batch_ids):
                connection.execute(sa.delete(attempts).where(attempts.c.batch_id.in_(portion)))

        self._database.transact(forget, relaxed=True)

    def unfinished(self, batch_ids: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._database.read() as connection:
            for portion in _portions(batch_ids):
                mine = sa.select(attempts.c.batch_id, attempts.c.unfinished).where(attempts.c.batch_id.in_(portion))
                found.update((row.batch_id, row.unfinished) for row in connection.execute(mine))
        return found


def _portions(batch_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """In order of the ids, so that two workers lock rows in the same order; few enough for one statement."""
    ordered = sorted(set(batch_ids))
    for start in range(0, len(ordered), LEDGER_PORTION_ROWS):
        yield ordered[start : start + LEDGER_PORTION_ROWS]
