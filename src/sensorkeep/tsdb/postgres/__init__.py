"""The time series store on PostgreSQL, and on TimescaleDB where the extension is."""

from sensorkeep.tsdb.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
