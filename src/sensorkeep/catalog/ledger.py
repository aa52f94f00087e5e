"""Every accepted batch, what was set aside of it, and the totals, in the catalog's database."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib import resources
from operator import itemgetter

import sqlalchemy as sa

from sensorkeep.catalog.base import (
    Accounting,
    Batch,
    BatchState,
    QuarantinedReading,
    Receipt,
    Settlement,
)
from sensorkeep.catalog.bounded import Bounded
from sensorkeep.catalog.database import AnyRow, Database
from sensorkeep.catalog.ledger_rows import (
    ENDED,
    RECEIVED,
    SHOWN,
    ReceivedRow,
    batch_of,
    claim_to_keep,
    counts_of,
    ended_row,
    kept_claim,
    known_of,
    locked_row,
    oldest_us_of,
    received_change,
    received_row,
    rows_of,
    update_of,
)
from sensorkeep.catalog.prepared import Recordset
from sensorkeep.catalog.quarantine import QuarantineRows, list_quarantined
from sensorkeep.catalog.schema import PENDING, SET_ASIDE, batches, ledger, replays
from sensorkeep.catalog.settlement import Change, end_of_batch, end_of_replay
from sensorkeep.clock import Clock
from sensorkeep.errors import Conflict, NotFound
from sensorkeep.limits import LEDGER_PORTION_ROWS, PURGE_PORTION_ROWS, RECEIPTS_HELD_MAX, RECEIPTS_WAITING_MAX
from sensorkeep.model import Claim

_TOTALS = Change._fields

# Constant texts: these two are asked for by every query and every dashboard.
_SELECT_TOTALS = f"SELECT {', '.join(_TOTALS)} FROM ledger WHERE id = 1"  # noqa: S608 - built from constants
_SELECT_OLDEST = "SELECT min(oldest_us) FROM batches WHERE state = 'accepted'"

_ENTER_ALONE = resources.files("sensorkeep.catalog").joinpath("postgresql_receive.sql").read_text("ascii")


class _Known(Exception):
    """A receipt was entered before: enter this group one by one."""


class _Lost(Exception):
    """A batch that ends was not entered: its receipt was lost, or is on its way."""


class CatalogLedger:
    """The BatchLedger of the catalog.

    A batch is pending while its state is `accepted`: until its first settlement, and again while a replay of it runs
    (then `replay_id` names it). Its row and the row of totals change in the same transaction, always.

    Receipts wait in memory until anything is read or settled, or RECEIPTS_HELD_MAX have gathered: they need not
    survive a crash, and a transaction each would cost a single reading more than all the rest. With `held` False each
    is entered at once, for other processes to see; where PostgreSQL does not answer soon, `receive` raises Unavailable
    and the receipt is entered behind it. What cannot be entered waits for the next try (the last RECEIPTS_WAITING_MAX).

    No two processes wait for each other: a transaction enters batches in the order of their ids, before it locks any,
    locks those that it ends in the same order, and changes the row of totals last: everybody's receipts wait for that.
    """

    def __init__(self, database: Database, clock: Clock, *, held: bool | None = None) -> None:
        self._database = database
        self._clock = clock
        self._receipts_held_max = RECEIPTS_HELD_MAX if (database.is_sqlite if held is None else held) else 0
        # Rows and not receipts: those hold payloads, which must not gather while the catalog is down.
        self._receipts: list[ReceivedRow] = []
        self._entering = threading.RLock()
        self._bounded = None if database.is_sqlite else Bounded("receipts")
        self._quarantine = QuarantineRows(database)
        self._enter = database.prepare_insert(
            batches,
            RECEIVED,
            lambda insert: insert.on_conflict_do_nothing(),
            {"state": sa.literal_column("'accepted'")}
            | {name: sa.literal_column("0") for name in ("stored", "updated", "duplicate")},
        )
        self._enter_alone = None if database.is_sqlite else Recordset(_ENTER_ALONE, RECEIVED)
        ended = sa.update(batches).values(
            {name: sa.bindparam(f"new_{name}") for name in ENDED}
            | {"pending": sa.literal_column("0"), "replay_id": sa.null()}
        )
        self._end = database.prepare_update(
            ended.where(batches.c.batch_id == sa.bindparam("key")), [*(f"new_{name}" for name in ENDED), "key"]
        )
        self._add = database.prepare_update(
            sa.update(ledger)
            .values({name: ledger.c[name] + sa.bindparam(f"more_{name}") for name in _TOTALS})
            .where(ledger.c.id == sa.literal_column("1")),
            [f"more_{name}" for name in _TOTALS],
        )
        self._since_lock = threading.Lock()
        self._reopened_before_start = 0
        self._at_start = self._open_totals()

    def receive(self, receipts: Sequence[Receipt]) -> None:
        # A replay's readings were received with the batch that it replays.
        self._receipts += [received_row(receipt) for receipt in receipts if receipt.claim.replay_of is None]
        if len(self._receipts) <= self._receipts_held_max:
            return
        if self._bounded is None:
            self._enter_held()
        else:
            self._bounded.run(self._enter_held)

    def _enter_held(self) -> None:
        """Enter the receipts that wait; every other method begins with it, so that nobody sees them missing."""
        if not self._receipts:
            return
        with self._entering:
            count = len(self._receipts)
            try:
                self._enter_first(count)
            except BaseException:
                # While they cannot be entered the oldest go: `settle` enters a batch whose receipt was lost.
                del self._receipts[:-RECEIPTS_WAITING_MAX]
                raise
            del self._receipts[:count]

    def _enter_first(self, count: int) -> None:
        if not count:
            return
        rows = sorted(self._receipts[:count], key=itemgetter(0))
        if self._enter_alone is not None:
            with self._database.alone() as connection:
                self._enter_alone.run(connection, rows)
            return

        def enter(connection: sa.Connection) -> None:
            if self._enter.run(connection, rows) != len(rows):
                raise _Known
            self._change(connection, received_change(rows))

        try:
            self._database.transact(enter, relaxed=True)
        except _Known:
            self._database.transact(
                lambda connection: self._change(connection, self._enter_unknown(connection, rows)), relaxed=True
            )

    def settle(self, settlements: Sequence[Settlement]) -> None:
        self._enter_held()
        first_ends: dict[str, Settlement] = {}
        replays_of: list[tuple[str, Settlement]] = []
        for settlement in settlements:
            if settlement.claim.replay_of is None:
                first_ends.setdefault(settlement.claim.batch_id, settlement)
            else:
                replays_of.append((settlement.claim.replay_of, settlement))
        replays_of.sort(key=lambda replay: (replay[0], replay[1].claim.batch_id))
        ids = sorted(first_ends.keys() | {batch_id for batch_id, _ in replays_of})

        def end(connection: sa.Connection, entered: Change | None = None) -> None:
            rows = dict(rows_of(connection, ids))
            if entered is None and first_ends.keys() - rows.keys():
                raise _Lost
            change = (entered or Change()).plus(self._settle_batches(connection, first_ends, rows))
            for batch_id, settlement in replays_of:
                change = change.plus(self._settle_replay(connection, settlement, batch_id))
            self._change(connection, change)

        def enter_and_end(connection: sa.Connection) -> None:
            receipts = [received_row(Receipt(first_ends[batch_id].claim, 0)) for batch_id in sorted(first_ends)]
            end(connection, self._enter_unknown(connection, receipts))

        try:
            self._database.transact(end)
        except _Lost:
            self._database.transact(enter_and_end)

    def reopen(self, batch_id: str, replay_id: str) -> tuple[Claim, list[tuple[int, int]]]:
        self._enter_held()

        def reopen(connection: sa.Connection) -> tuple[Claim, list[tuple[int, int]]]:
            row = locked_row(connection, batch_id)
            if row is None:
                raise NotFound(f"there is no batch {batch_id!r}")
            if row.replay_id is None:
                self._change(connection, self._begin_replay(connection, row, replay_id))
            elif row.replay_id != replay_id:
                raise Conflict(f"another replay of batch {batch_id!r} is running")
            return kept_claim(row), self._quarantine.positions(connection, batch_id)

        return self._database.transact(reopen)

    def ended(self, batch_ids: Sequence[str]) -> set[str]:
        has_ended = sa.or_(batches.c.state != "accepted", batches.c.replay_id.is_not(None))
        found: set[str] = set()
        with self._database.read() as connection:
            for start in range(0, len(batch_ids), LEDGER_PORTION_ROWS):
                mine = batches.c.batch_id.in_(batch_ids[start : start + LEDGER_PORTION_ROWS])
                found.update(connection.execute(sa.select(batches.c.batch_id).where(mine, has_ended)).scalars())
        return found

    def batch(self, batch_id: str) -> Batch:
        self._enter_held()
        with self._database.read() as connection:
            row = connection.execute(sa.select(*SHOWN).where(batches.c.batch_id == batch_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no batch {batch_id!r}")
        return batch_of(row)

    def batches(self, state: BatchState | None, limit: int, before: tuple[int, str] | None = None) -> list[Batch]:
        self._enter_held()
        received: sa.ColumnElement[int] = batches.c.received_us
        statement = sa.select(*SHOWN)
        if state == "accepted":
            # The few that wait are found by their own index and sorted: in the order of receipt they may be far apart.
            received = received + sa.literal_column("0")
            statement = statement.where(PENDING)
        elif state is not None:
            statement = statement.where(batches.c.state == state)
            if state != "stored":
                statement = statement.where(SET_ASIDE)  # the same again in the words of the partial index
        if before is not None:
            statement = statement.where(sa.tuple_(received, batches.c.batch_id) < sa.tuple_(*before))
        statement = statement.order_by(received.desc(), batches.c.batch_id.desc()).limit(limit)
        with self._database.read() as connection:
            return [batch_of(row) for row in connection.execute(statement)]

    def quarantine(
        self,
        batch_id: str | None,
        reason: str | None,
        limit: int,
        before_id: int | None = None,
        *,
        oldest_first: bool = False,
    ) -> list[QuarantinedReading]:
        self._enter_held()
        with self._database.read() as connection:
            return list_quarantined(connection, batch_id, reason, limit, before_id, oldest_first=oldest_first)

    def accounting(self) -> tuple[Accounting, Accounting]:
        self._enter_held()
        with self._database.read() as connection:
            now = _totals(connection)
        start = self._at_start
        # What was quarantined before the start and reopened since counts as received since, like what was pending.
        with self._since_lock:
            self._reopened_before_start = max(self._reopened_before_start, start.quarantined - now.quarantined)
            reopened = self._reopened_before_start
        since_start = Accounting(
            received=now.received - start.received + start.pending + reopened,
            stored=now.stored - start.stored,
            updated=now.updated - start.updated,
            duplicate=now.duplicate - start.duplicate,
            quarantined=now.quarantined - start.quarantined + reopened,
            pending=now.pending,
        )
        return since_start, Accounting(*now)

    def oldest_pending_us(self) -> int | None:
        self._enter_held()
        with self._database.read() as connection:
            oldest: int | None = connection.exec_driver_sql(_SELECT_OLDEST).scalar()
        return oldest

    def purge(self, before_us: int) -> None:
        self._enter_held()
        settled = sa.and_(batches.c.received_us < before_us, batches.c.state != "accepted")
        portion = sa.select(batches.c.batch_id).where(settled).order_by(batches.c.received_us).limit(PURGE_PORTION_ROWS)
        # A transaction a portion, so that receipts get their turn in between.
        while self._database.transact(lambda connection: self._forget(connection, portion), relaxed=True):
            pass

    def _forget(self, connection: sa.Connection, portion: sa.Select[str]) -> bool:
        """Forget a portion of settled batches; whether there may be more."""
        batch_ids = connection.execute(portion).scalars().all()
        self._quarantine.forget(connection, batch_ids)
        connection.execute(sa.delete(replays).where(replays.c.replay_of.in_(batch_ids)))
        connection.execute(sa.delete(batches).where(batches.c.batch_id.in_(batch_ids)))
        return len(batch_ids) == PURGE_PORTION_ROWS

    def _settle_batches(
        self, connection: sa.Connection, ends: dict[str, Settlement], rows: dict[str, AnyRow]
    ) -> Change:
        change = Change()
        now_us = self._clock.now_us()
        updates = []
        for batch_id, settlement in ends.items():
            row = rows.get(batch_id)
            if row is None or row.state != "accepted" or row.replay_id is not None:
                continue  # settled before; one without a row was purged since it was found to be known
            end = end_of_batch(settlement, row.readings, row.quarantined, row.pending)
            updates.append(ended_row(batch_id, end, now_us, claim_to_keep(settlement.claim, end)))
            change = change.plus(end.change)
            if end.quarantined:
                self._quarantine.add(connection, batch_id, settlement, now_us)
        if updates:
            self._end.run(connection, updates)
        return change

    def _settle_replay(self, connection: sa.Connection, settlement: Settlement, batch_id: str) -> Change:
        now_us = self._clock.now_us()
        mark = self._database.insert(replays).values(
            batch_id=settlement.claim.batch_id, replay_of=batch_id, settled_us=now_us
        )
        if connection.execute(mark.on_conflict_do_nothing().returning(replays.c.batch_id)).first() is None:
            return Change()  # settled before
        row = locked_row(connection, batch_id)
        if row is None or row.replay_id != settlement.claim.batch_id:
            return Change()  # it was never begun, so it holds no reading
        if settlement.dead_letter is not None:
            return self._give_back(connection, row, settlement.dead_letter)
        end = end_of_replay(settlement, row.readings, row.pending)
        self._quarantine.end_replay(connection, batch_id)
        if end.quarantined:
            self._quarantine.add(connection, batch_id, settlement, now_us)
        together = end._replace(counts=end.counts + counts_of(row), quarantined=row.quarantined + end.quarantined)
        self._end.run(connection, [ended_row(batch_id, together, now_us, row.claim if end.quarantined else None)])
        return end.change

    def _begin_replay(self, connection: sa.Connection, row: AnyRow, replay_id: str) -> Change:
        if row.state == "accepted":
            raise Conflict(f"batch {row.batch_id!r} is not settled yet")
        if connection.execute(sa.select(replays.c.batch_id).where(replays.c.batch_id == replay_id)).first() is not None:
            raise Conflict(f"replay {replay_id!r} has settled")
        if row.quarantined == 0:
            raise Conflict(f"batch {row.batch_id!r} has nothing in quarantine")
        claim = kept_claim(row)
        reopened = update_of(row.batch_id).values(
            state="accepted",
            pending=row.quarantined,
            quarantined=0,
            oldest_us=oldest_us_of(claim),
            replay_id=replay_id,
        )
        connection.execute(reopened)
        self._quarantine.begin_replay(connection, row.batch_id)
        return Change(quarantined=-row.quarantined, pending=row.quarantined)

    def _give_back(self, connection: sa.Connection, row: AnyRow, dead_letter: str) -> Change:
        """End a replay with nothing changed: what it took goes back to the quarantine."""
        was_dead_letter = self._quarantine.give_back(connection, row.batch_id)
        ended = update_of(row.batch_id).values(
            state="dead_letter" if was_dead_letter else "partial",
            quarantined=row.pending,
            pending=0,
            replay_id=None,
            detail=f"the replay failed: {dead_letter}",
        )
        connection.execute(ended)
        return Change(quarantined=row.pending, pending=-row.pending)

    def _enter_unknown(self, connection: sa.Connection, rows: Sequence[ReceivedRow]) -> Change:
        """Enter those receipts that were not entered before."""
        known = known_of(connection, [row[0] for row in rows])
        return received_change([row for row in rows if row[0] not in known and self._enter.run(connection, [row]) == 1])

    def _change(self, connection: sa.Connection, change: Change) -> None:
        assert change.balanced, f"a change must keep the accounting true: {change}"
        if any(change):
            self._add.run(connection, [change])

    def _open_totals(self) -> Change:
        empty = self._database.insert(ledger).values(id=1, **dict.fromkeys(_TOTALS, 0))
        with self._database.write() as connection:
            connection.execute(empty.on_conflict_do_nothing())
            return _totals(connection)


def _totals(connection: sa.Connection) -> Change:
    return Change(*connection.exec_driver_sql(_SELECT_TOTALS).one())
