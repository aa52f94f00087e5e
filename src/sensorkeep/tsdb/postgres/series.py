"""The numbers that stand for sensors."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from sensorkeep.tsdb.postgres.engine import Engine
from sensorkeep.tsdb.postgres.statements import statement


class Series:
    """Series numbers by sensor uuid, remembered: they never change. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._losses = engine.losses

    def known(self, uuids: Iterable[str]) -> dict[str, int]:
        """The numbers of those sensors that have one. Raises Unavailable."""
        asked = set(uuids)
        found, losses = self._remembered(asked), self._engine.losses
        missing = asked - found.keys()
        if missing:
            with self._engine.session() as session:
                rows = session.execute(statement("find_series"), {"uuids": list(missing)}).fetchall()
            new: dict[str, int] = dict(rows)
            self._remember(new, losses)
            found |= new
        return found

    def made(self, uuids: Iterable[str]) -> dict[str, int]:
        """The numbers of the sensors; those seen first get one. Raises Unavailable."""
        asked = set(uuids)
        found = self.known(asked)
        missing = sorted(asked - found.keys())
        if missing:
            # By itself: a write that fails may leave a number that nothing has, which costs nothing.
            self._engine.run(lambda session: session.execute(statement("add_series"), {"uuids": missing}))
            found |= self.known(missing)
        return found

    def _remembered(self, uuids: set[str]) -> dict[str, int]:
        with self._lock:
            if self._losses != self._engine.losses:
                self._numbers.clear()
                self._losses = self._engine.losses
            return {uuid: self._numbers[uuid] for uuid in uuids if uuid in self._numbers}

    def _remember(self, numbers: dict[str, int], losses: int) -> None:
        with self._lock:
            if losses == self._losses:
                self._numbers.update(numbers)
