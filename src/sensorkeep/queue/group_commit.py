"""Group commit: changes that arrive together share one transaction, and so one sync of the disk."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence

from sensorkeep.errors import SensorkeepError, Unavailable


class Change:
    """A change that waits for its commit. `apply` runs inside the transaction, perhaps twice."""

    __slots__ = ("apply", "durable", "error", "finished", "leads", "turn")

    def __init__(self, apply: Callable[[sqlite3.Connection], None], *, durable: bool) -> None:
        self.apply = apply
        self.durable = durable
        """Whether it must survive a power loss, or only the process."""
        self.error: SensorkeepError | None = None
        self.finished = False
        self.leads = False
        self.turn = threading.Lock()
        """Released when the change is finished, or when its caller must lead the next group."""
        self.turn.acquire()


class GroupCommit:
    """Runs changes in groups on the threads of their callers.

    The first caller leads: it commits at once. Those who come while it does so wait; then the first of them leads,
    and takes all of them along. `transact` applies a group in one transaction, all or nothing, and raises
    SensorkeepError; it is never called by two threads at once.
    """

    def __init__(self, transact: Callable[[Sequence[Change]], None]) -> None:
        self._transact = transact
        self._gate = threading.Condition()
        self._waiting: list[Change] = []
        self._leading = False
        self._closed = False

    def commit(self, change: Change) -> None:
        """Have the change committed, alone or with others. Raises what stopped it, or Unavailable once closed."""
        with self._gate:
            if self._closed:
                raise Unavailable("the queue is closed")
            self._waiting.append(change)
            change.leads = not self._leading
            self._leading = True
        if not change.leads:
            try:
                change.turn.acquire()
            except BaseException:  # an interrupt of the main thread must not leave the others without a leader
                self._withdraw(change)
                raise
        if not change.finished:
            self._lead()
        if change.error is not None:
            raise change.error

    def close(self) -> None:
        """Take no further change; returns when those that were taken are finished. Idempotent."""
        with self._gate:
            self._closed = True
            self._gate.wait_for(lambda: not self._leading)

    def _withdraw(self, change: Change) -> None:
        with self._gate:
            if change in self._waiting and not change.leads:
                self._waiting.remove(change)
        if change.leads and not change.finished:
            self._lead()

    def _lead(self) -> None:
        """Commit all that waits as one group, then pass the lead to the first that came meanwhile."""
        with self._gate:
            group, self._waiting = self._waiting, []
        try:
            self._commit_group(group)
        finally:
            with self._gate:
                follower = self._waiting[0] if self._waiting else None
                if follower is None:
                    self._leading = False
                    self._gate.notify_all()
                else:
                    follower.leads = True
            for change in group:
                change.finished = True
                change.turn.release()
            if follower is not None:
                follower.turn.release()

    def _commit_group(self, group: Sequence[Change]) -> None:
        """One transaction; where it fails each change gets its own, so that a bad one fails alone."""
        try:
            self._transact(group)
        except SensorkeepError as error:
            if len(group) == 1:
                group[0].error = error
                return
            for change in group:
                self._commit_group([change])
        except BaseException:
            for change in group:
                change.error = Unavailable("the commit was interrupted")
            raise
