"""What every kind of process has: the settings, the backends, the catalog on them, and who may do what."""

from __future__ import annotations

from sensorkeep.app.accounts import auth_settings
from sensorkeep.app.backends import Role, open_backends
from sensorkeep.auth.setup import open_auth
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.attempts import CatalogAttempts
from sensorkeep.catalog.base import LatestReadings
from sensorkeep.catalog.idempotency import CatalogIdempotencyKeys
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.catalog.ledger import CatalogLedger
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.catalog.shared_latest import SharedLatestReadings
from sensorkeep.clock import Clock, IdSource, SystemClock
from sensorkeep.config import Config
from sensorkeep.metrics import Metrics


class System:
    """The open parts that gateways and workers share. Raises what `open_backends` and `open_auth` do."""

    def __init__(self, config: Config, role: Role, clock: Clock | None = None) -> None:
        self.config = config
        self.role = role
        self.clock = clock or SystemClock()
        self.ids = IdSource(self.clock)
        self.metrics = Metrics()
        self.backends = open_backends(config, role, self.clock, self.metrics)
        database = self.backends.database
        self.accounts = CatalogAccounts(database, self.clock)
        self.registry = CatalogRegistry(database)
        self.inventory = CatalogInventory(database)
        self.latest = self._open_latest()
        self.ledger = CatalogLedger(database, self.clock)
        self.attempts = CatalogAttempts(database, self.clock)
        self.idempotency = CatalogIdempotencyKeys(database)
        self.auth = open_auth(
            self.accounts,
            self.registry,
            self.clock,
            self.ids,
            auth_settings(config),
            pubsub=self.backends.pubsub,
            valkey=self.backends.valkey,
        )

    def close(self) -> None:
        """Close everything. Idempotent."""
        self.auth.close()
        self.backends.close()

    def _open_latest(self) -> LatestReadings:
        database, valkey = self.backends.database, self.backends.valkey
        if valkey is None:
            return CatalogLatestReadings(database)
        return SharedLatestReadings(database, valkey, saves=self.role != "gateway")
