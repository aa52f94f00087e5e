"""The newest readings and records across processes: in Valkey, backed by the catalog's tables.

Valkey holds what was offered by any process, so that a look-up on one gateway sees what another one has accepted. What
it lacks, because it is new there or was lost, comes from the tables, which workers save when they settle.

Without Valkey a process tells the newest of what it accepted itself (the last LATEST_REMEMBERED_MAX) and what the
tables know; what was offered meanwhile is offered again when Valkey is back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic

import structlog

from sensorkeep.catalog.bounded import Bounded
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.latest_table import LatestTable
from sensorkeep.catalog.valkey_latest import Latest, NewestHash
from sensorkeep.errors import SensorkeepError, Unavailable
from sensorkeep.limits import (
    LATEST_ABSENT_SECONDS,
    LATEST_REMEMBERED_MAX,
    LATEST_SHARED_AGAIN_SECONDS,
    LATEST_UNSHARED_MAX,
)
from sensorkeep.model import LatestReading, LatestRecord
from sensorkeep.valkey import Valkey

log = structlog.get_logger(__name__)


class SharedLatestReadings:
    """The LatestReadings of many processes. Blocking; one call of Valkey for each kind of value and look-up.

    An offer waits a bounded time for the tables; what they did not answer in time is offered again.
    """

    in_memory = False

    def __init__(self, database: Database, valkey: Valkey, *, saves: bool) -> None:
        """`saves`: this process calls `save` (a worker); another one keeps nothing for it."""
        table = LatestTable(database)
        self._table = table
        self._saves = saves
        self._saving = threading.Lock()
        readings = NewestHash(valkey, "readings", LatestReading, "sensor_uuid")
        records = NewestHash(valkey, "records", LatestRecord, "equipment_uuid")
        bounded = Bounded("latest")
        self._readings = _Shared(readings, lambda uuids: table.find(uuids, ())[0], bounded)
        self._records = _Shared(records, lambda uuids: table.find((), uuids)[1], bounded)
        valkey.on_return(self._share_again)

    def offer(
        self,
        readings: Iterable[LatestReading],
        records: Iterable[LatestRecord] = (),
        *,
        batch_ids: Collection[str] = (),
        again: bool = False,
    ) -> None:
        self._readings.offer(readings, keep_changes=self._saves, again=again)
        self._records.offer(records, keep_changes=self._saves, again=again)

    def reading(self, sensor_uuid: str) -> LatestReading | None:
        return self._readings.find([sensor_uuid]).get(sensor_uuid)

    def record(self, equipment_uuid: str) -> LatestRecord | None:
        return self._records.find([equipment_uuid]).get(equipment_uuid)

    def find(
        self, sensor_uuids: Sequence[str], equipment_uuids: Sequence[str] = ()
    ) -> tuple[dict[str, LatestReading], dict[str, LatestRecord]]:
        return self._readings.find(sensor_uuids), self._records.find(equipment_uuids)

    def save(self) -> None:
        with self._saving:
            readings, records = self._readings.take_changes(), self._records.take_changes()
            try:
                self._table.put(readings.values(), records.values())
            except BaseException:
                self._readings.give_back_changes(readings)
                self._records.give_back_changes(records)
                raise
            self._readings.share_saved(readings)
            self._records.share_saved(records)

    def _share_again(self) -> None:
        """Valkey is back: offer what it has missed."""
        try:
            shared = self._readings.share_again() + self._records.share_again()
        except SensorkeepError:
            return  # it is gone again, and will be back again
        if shared:
            log.info("latest_shared_again", values=shared)


class _Shared(Generic[Latest]):
    """Newest values of one kind: in Valkey, in this process's memory, in the table."""

    def __init__(
        self, newest: NewestHash[Latest], in_table: Callable[[Sequence[str]], list[Latest]], bounded: Bounded
    ) -> None:
        self._newest = newest
        self._in_table = in_table
        self._bounded = bounded
        self._lock = threading.Lock()
        # Two generations: a full young one becomes the old one, so that bounding it costs nothing per value.
        self._young: dict[str, Latest] = {}
        self._old: dict[str, Latest] = {}
        self._absent: dict[str, float] = {}
        """When to look into the table again for what it had not. A value that is new is in Valkey meanwhile."""
        self._changed: dict[str, Latest] = {}
        self._unshared: dict[str, Latest] = {}
        self._unshared_lost = False
        self._unshared_are_first = False
        """Whether some of them were offered for the first time, which decides between equal times."""
        self._share_again_at = 0.0

    def offer(self, values: Iterable[Latest], *, keep_changes: bool, again: bool) -> None:
        """Take values; of one uuid the newest, and of equal times the last, or with `again` what is known."""
        offered: dict[str, Latest] = {}
        for value in values:
            _put(offered, self._newest.uuid_of(value), value)
        if not offered:
            return
        with self._lock:
            for uuid, value in offered.items():
                self._remember(uuid, value, again)
                if keep_changes:
                    _put(self._changed, uuid, value)
        try:
            left_out = self._newest.offer(offered.values(), correct=not again)
            if left_out:
                self._bounded.run(lambda: self._fill_in(left_out, again))
            if self._unshared and time.monotonic() >= self._share_again_at:
                self._bounded.run(self.share_again)
        except SensorkeepError:
            self._keep_unshared(offered, are_first=not again)

    def find(self, uuids: Sequence[str]) -> dict[str, Latest]:
        """The newest values, by uuid."""
        if not uuids:
            return {}
        try:
            found = self._newest.find(uuids)
            up = True
        except Unavailable:
            found, up = {}, False
        now = time.monotonic()
        missing = [uuid for uuid in uuids if uuid not in found and not (up and now < self._absent.get(uuid, 0.0))]
        if missing:
            in_table = self._from_table(missing, fill=up)
            found |= in_table
            self._note_absent([uuid for uuid in missing if uuid not in in_table], now)
        mended = []
        for uuid in uuids:
            mine = self._young.get(uuid) or self._old.get(uuid)
            if mine is not None and ((known := found.get(uuid)) is None or mine.time_us > known.time_us):
                found[uuid] = mine
                mended.append(mine)
        if mended and up:
            self._fill(mended)
        return found

    def take_changes(self) -> dict[str, Latest]:
        """What was offered since the last call."""
        with self._lock:
            changed, self._changed = self._changed, {}
        return changed

    def give_back_changes(self, changed: dict[str, Latest]) -> None:
        """They were not saved: the next call takes them too."""
        with self._lock:
            for uuid, value in self._changed.items():
                _put(changed, uuid, value)
            self._changed = changed

    def share_saved(self, saved: dict[str, Latest]) -> None:
        """Offer what the table holds by now: where Valkey was emptied after these were offered, a look-up may have
        entered what the table had before them."""
        try:
            self._share(saved.values(), again=True)
        except SensorkeepError:
            self._keep_unshared(saved, are_first=False)

    def share_again(self) -> int:
        """Offer what Valkey has missed; how many values. Raises Unavailable, and keeps them then."""
        with self._lock:
            self._share_again_at = time.monotonic() + LATEST_SHARED_AGAIN_SECONDS
            unshared, self._unshared = self._unshared, {}
            lost, self._unshared_lost = self._unshared_lost, False
            are_first, self._unshared_are_first = self._unshared_are_first, False
        try:
            if lost:  # it may hold values that are older than what nobody remembers here
                self._newest.clear()
            self._share(unshared.values(), again=not are_first)
        except SensorkeepError:
            self._unshared_lost = self._unshared_lost or lost
            self._keep_unshared(unshared, are_first=are_first)
            raise
        return len(unshared)

    def _share(self, values: Iterable[Latest], again: bool) -> None:
        """Offer values to Valkey, and fill in where it knows none."""
        left_out = self._newest.offer(values, correct=not again)
        if left_out:
            self._fill_in(left_out, again)

    def _fill_in(self, left_out: list[Latest], again: bool) -> None:
        """Share values of which Valkey knows none: the table decides whether they are the newest."""
        known = self._in_table([self._newest.uuid_of(value) for value in left_out])
        newest: dict[str, Latest] = {}
        # The table's first: of equal times the one offered stands.
        for value in [*reversed(known), *reversed(left_out)]:
            _put(newest, self._newest.uuid_of(value), value)
        self._newest.offer(newest.values(), fill=True, correct=not again)

    def _from_table(self, uuids: Sequence[str], *, fill: bool) -> dict[str, Latest]:
        try:
            found = {self._newest.uuid_of(value): value for value in self._in_table(uuids)}
        except Unavailable:
            # What this process accepted is better than no answer; of what else there is nothing is known.
            if all(uuid in self._young or uuid in self._old for uuid in uuids):
                return {}
            raise
        if fill and found:
            self._fill(list(found.values()))
        return found

    def _fill(self, values: list[Latest]) -> None:
        with contextlib.suppress(Unavailable):  # the next look-up fills it
            self._newest.offer(values, fill=True, correct=False)

    def _note_absent(self, uuids: list[str], now: float) -> None:
        with self._lock:
            if len(self._absent) + len(uuids) > LATEST_REMEMBERED_MAX:
                self._absent = {}
            self._absent |= dict.fromkeys(uuids[:LATEST_REMEMBERED_MAX], now + LATEST_ABSENT_SECONDS)

    def _keep_unshared(self, values: dict[str, Latest], *, are_first: bool) -> None:
        with self._lock:
            self._unshared_are_first = self._unshared_are_first or are_first
            for uuid, value in values.items():
                _put(self._unshared, uuid, value)
            while len(self._unshared) > LATEST_UNSHARED_MAX:
                del self._unshared[next(iter(self._unshared))]
                self._unshared_lost = True

    def _remember(self, uuid: str, value: Latest, again: bool) -> None:
        """With the lock held."""
        known = self._young.get(uuid) or self._old.get(uuid)
        if known is not None and (known.time_us > value.time_us or (again and known.time_us == value.time_us)):
            return
        if len(self._young) >= LATEST_REMEMBERED_MAX // 2 and uuid not in self._young:
            self._old, self._young = self._young, {}
        self._young[uuid] = value


def _put(values: dict[str, Latest], uuid: str, value: Latest) -> None:
    known = values.get(uuid)
    if known is None or value.time_us >= known.time_us:
        values[uuid] = value
