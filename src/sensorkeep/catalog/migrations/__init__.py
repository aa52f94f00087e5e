"""The revisions of the catalog's tables (Alembic). `sensorkeep.catalog.migration` runs them."""
