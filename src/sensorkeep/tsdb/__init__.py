"""The time series store: raw readings and exact rollups, idempotent by (sensor, time)."""
