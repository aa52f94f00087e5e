"""The embedded time series store, on DuckDB. `store` tells how its modules work together."""

from sensorkeep.tsdb.duckdb.store import DuckDBStore

__all__ = ["DuckDBStore"]
