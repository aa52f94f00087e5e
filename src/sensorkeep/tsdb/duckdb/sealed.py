"""New readings of a day whose raw is gone: merged into its stored buckets, as module tsdb.sealed says."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from sensorkeep import rollup
from sensorkeep.clock import DAY_US
from sensorkeep.tsdb.duckdb.engine import registered
from sensorkeep.tsdb.duckdb.statements import fetch_table, run, statement
from sensorkeep.tsdb.sealed import DAY_GRID_INDEXES, merged

DAY_GRID = {"grid": list(rollup.DAY_PROBABILITIES), **DAY_GRID_INDEXES}
"""The parameters of day_aggregate."""


def merge(connection: duckdb.DuckDBPyConnection, day: int, readings: pa.Table) -> None:
    """Merge `readings` (columns series, time, value; identities once each) into the buckets of the sealed `day`."""
    if readings.num_rows == 0:
        return
    source = "SELECT series, time, value FROM accepted"
    day_us = {"day_us": day * DAY_US}
    with registered(connection, {"accepted": readings}):
        new_hours = fetch_table(connection, statement("hour_aggregate", source=source), day_us)
        new_days = fetch_table(connection, statement("day_aggregate", source=source), day_us | DAY_GRID)
    old_hours = _stored(connection, "hourly", day, new_hours)
    old_days = _stored(connection, "daily", day, new_days)
    hours, days = merged(old_hours, new_hours, old_days, new_days)
    replace_buckets(connection, "hourly", day, hours)
    replace_buckets(connection, "daily", day, days)


def replace_buckets(connection: duckdb.DuckDBPyConnection, table: str, day: int, rebuilt: pa.Table) -> None:
    """Put the `rebuilt` buckets of `day` in the place of those stored in `table` (hourly or daily)."""
    bounds = {"start_us": day * DAY_US, "end_us": (day + 1) * DAY_US}
    with registered(connection, {"rebuilt": rebuilt}):
        run(connection, statement("forget_buckets", rollup=table), bounds)
        run(connection, statement("forget_buckets", rollup=f"{table}_settled"), bounds)
        run(connection, statement("save_buckets", rollup=table))


def _stored(connection: duckdb.DuckDBPyConnection, table: str, day: int, wanted: pa.Table) -> pa.Table:
    bounds = {"start_us": day * DAY_US, "end_us": (day + 1) * DAY_US}
    with registered(connection, {"wanted": wanted.select(["series", "time"])}):
        stored: pa.Table = fetch_table(connection, statement("stored_buckets", rollup=table), bounds)
    return stored
