"""What an installation consists of, and whether it is at rest."""

from __future__ import annotations

from dataclasses import dataclass

from sensorkeep.catalog.base import Accounting
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.clock import Clock
from sensorkeep.errors import Conflict
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.queue.base import ClaimQueue
from sensorkeep.tsdb.base import TimeSeriesStore


@dataclass(frozen=True, slots=True)
class Installation:
    """The open stores of one installation, while no server runs on them."""

    database: Database
    store: TimeSeriesStore
    object_store: ObjectStore
    queue: ClaimQueue
    clock: Clock

    def accounting(self) -> Accounting:
        """The totals of all time."""
        return CatalogLedger(self.database, self.clock).accounting()[1]

    def require_at_rest(self) -> Accounting:
        """The totals. Raises Conflict where accepted readings are not stored yet: what is in the queue cannot move."""
        claims = self.queue.depth().claims
        staged = self.store.status().staged_readings
        accounting = self.accounting()
        if claims or staged or accounting.pending:
            raise Conflict(
                f"not everything accepted is stored yet ({claims:,} claims wait in the queue, {staged:,} late readings"
                f" are staged, {accounting.pending:,} readings are pending): start the server (or the workers) once"
                " until it has caught up, then stop it and try again"
            )
        return accounting
