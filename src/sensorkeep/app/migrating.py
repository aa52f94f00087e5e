"""Bringing the schemas of the stores to this version, one process at a time."""

from __future__ import annotations

from typing import NamedTuple

from sensorkeep.app.accounts import make_first_admin
from sensorkeep.app.backends import open_catalog
from sensorkeep.app.urls import is_embedded, shown
from sensorkeep.catalog import database
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import SystemClock
from sensorkeep.config import Config


class SchemaState(NamedTuple):
    """Where a store's schema stands. `current` None: there is none yet."""

    store: str
    place: str
    current: str | None
    head: str

    @property
    def up_to_date(self) -> bool:
        """Whether this version can work with it."""
        return self.current == self.head


def schema_states(config: Config) -> list[SchemaState]:
    """Where each store stands that has a schema of its own to migrate. Changes nothing.

    Raises BadConfig, Unavailable. The embedded stores bring themselves to this version when they are opened.
    """
    states = []
    if not is_embedded(config, "catalog_url"):
        catalog = open_catalog(config, "ignore")
        try:
            states.append(SchemaState("catalog", shown(config, "catalog_url"), *database.schema_status(catalog)))
        finally:
            catalog.close()
    if not is_embedded(config, "tsdb_url"):
        from sensorkeep.tsdb.postgres import migration

        states.append(SchemaState("tsdb", shown(config, "tsdb_url"), *migration.status(config.tsdb_url)))
    return states


def upgrade_schemas(config: Config) -> None:
    """Bring every store to this version. Idempotent; two at a time wait for each other. Raises as schema_states."""
    if not is_embedded(config, "catalog_url"):
        open_catalog(config, "migrate").close()
    if not is_embedded(config, "tsdb_url"):
        from sensorkeep.tsdb.postgres import migration

        migration.upgrade(config.tsdb_url)


def first_start(config: Config) -> str | None:
    """Create the user `admin` in a shared catalog that has no user; the password where one was generated."""
    if is_embedded(config, "catalog_url"):
        return None
    catalog, clock = open_catalog(config), SystemClock()
    try:
        return make_first_admin(config, CatalogAccounts(catalog, clock), CatalogRegistry(catalog), clock)
    finally:
        catalog.close()
