"""Writing batches and settling their late readings: the two transactions that take readings in.

A reading is late where its hour began LATE_AFTER_HOURS or more before the watermark, as it was before the write. Late
readings would stretch the check for known ones over days, so they are staged and merged by day later. The watermark
only grows: once an identity is late, all its later readings are late too, and so the order of its readings is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa

from sensorkeep.clock import HOUR_US
from sensorkeep.limits import LATE_AFTER_HOURS, SETTLE_READINGS_MAX
from sensorkeep.model import Counts
from sensorkeep.rollup import day_start, hour_start
from sensorkeep.tsdb.base import Settled, Write
from sensorkeep.tsdb.duckdb import merging
from sensorkeep.tsdb.duckdb.engine import registered
from sensorkeep.tsdb.duckdb.merging import Transaction
from sensorkeep.tsdb.duckdb.state import Marks, Unsettled
from sensorkeep.tsdb.duckdb.statements import fetch_table, run, statement
from sensorkeep.tsdb.readings import Incoming, Integers, count, gather, incoming, integers


def first_counts(connection: duckdb.DuckDBPyConnection, batch_ids: Sequence[str]) -> dict[str, Counts]:
    """The counts of those batches that are settled, by id."""
    if not batch_ids:
        return {}
    # A list costs a third of what registering a table does.
    asked = {"asked": list(batch_ids), "first": min(batch_ids), "last": max(batch_ids)}
    rows = run(connection, statement("known_batches"), asked).fetchall()
    return {batch_id: Counts(*counts) for batch_id, *counts in rows}


def write(transaction: Transaction, writes: Sequence[Write]) -> dict[str, Counts]:
    """Write batches that are not known yet, each id once; the counts of those that are settled by it."""
    draft = transaction.draft
    readings = gather(writes, draft.number_of)
    is_late = np.zeros(len(readings.time_us), np.bool_)
    if len(readings.time_us):
        late_before_us = _advance(transaction, int(readings.time_us.max()))
        is_late = readings.time_us < late_before_us
    fresh, late = np.flatnonzero(~is_late), np.flatnonzero(is_late)
    outcome = merging.apply(transaction, readings, fresh)
    counts = count(outcome, readings.batch[fresh], len(writes))
    staged = np.bincount(readings.batch[late], minlength=len(writes)).tolist()
    numbers = np.arange(draft.next_batch, draft.next_batch + len(writes), dtype=np.int64)
    _stage(transaction, readings, late, numbers)
    settled = {}
    for item, number, counted, waiting in zip(writes, numbers.tolist(), counts, staged, strict=True):
        if waiting:
            draft.unsettled[item.batch_id] = Unsettled(number, item.batch_id, counted, waiting)
        else:
            settled[item.batch_id] = counted
    draft.next_batch += len(writes)
    _save_settled(transaction, settled)
    return settled


def settle(transaction: Transaction) -> dict[str, Counts]:
    """Merge up to SETTLE_READINGS_MAX staged readings; the counts of the batches that are settled by it."""
    draft = transaction.draft
    connection = transaction.connection
    staged = fetch_table(connection, statement("staged_portion"), {"limit": SETTLE_READINGS_MAX})
    batches = {batch.number: batch for batch in draft.unsettled.values()}
    numbers, batch = np.unique(integers(staged["batch"]), return_inverse=True)
    readings = incoming(staged, integers(staged["series"]), batch)
    outcome = merging.apply(transaction, readings, np.arange(staged.num_rows))
    everything = staged.num_rows == draft.staged_readings
    with registered(connection, {"incoming": readings.table}):
        run(connection, statement("unstage_all" if everything else "unstage_portion"))
    settled = {}
    for number, counted in zip(numbers.tolist(), count(outcome, batch, len(numbers)), strict=True):
        before = batches[number]
        counts, waiting = before.counts + counted, before.staged - counted.total
        if waiting:
            draft.unsettled[before.batch_id] = replace(before, counts=counts, staged=waiting)
        else:
            del draft.unsettled[before.batch_id]
            settled[before.batch_id] = counts
    _save_settled(transaction, settled)
    return settled


def in_order(writes: Sequence[Write], settled: dict[str, Counts]) -> list[Settled]:
    """The settled batches in the order asked, each once."""
    ids = dict.fromkeys(write.batch_id for write in writes)
    return [Settled(batch_id, settled[batch_id]) for batch_id in ids if batch_id in settled]


def _advance(transaction: Transaction, newest_us: int) -> int:
    """Move the watermark up to `newest_us`; readings before the returned time are late."""
    marks = transaction.draft.marks
    watermark_us = newest_us if marks.watermark_us is None else marks.watermark_us
    late_before_us = hour_start(watermark_us - LATE_AFTER_HOURS * HOUR_US)
    if marks.hourly_until_us is None:
        # Nothing is rolled up yet; buckets of late readings will be marked dirty.
        marks = Marks(hourly_until_us=late_before_us, daily_until_us=day_start(late_before_us))
    transaction.draft.marks = replace(
        marks, watermark_us=max(watermark_us, newest_us), last_write_us=transaction.now_us
    )
    return late_before_us


def _stage(transaction: Transaction, readings: Incoming, late: Integers, numbers: Integers) -> None:
    if len(late) == 0:
        return
    first = transaction.draft.next_sequence
    transaction.draft.next_sequence += len(late)
    table = readings.table.take(late)
    table = table.append_column("sequence", pa.array(np.arange(first, first + len(late), dtype=np.int64)))
    table = table.append_column("batch", pa.array(numbers[readings.batch[late]]))
    with registered(transaction.connection, {"late": table}):
        run(transaction.connection, statement("stage_late"))


def _save_settled(transaction: Transaction, settled: dict[str, Counts]) -> None:
    if not settled:
        return
    counts = settled.values()
    parameters = {
        "batch_ids": list(settled),
        "stored": [counted.stored for counted in counts],
        "updated": [counted.updated for counted in counts],
        "duplicate": [counted.duplicate for counted in counts],
        "written_us": transaction.now_us,
    }
    run(transaction.connection, statement("save_batches"), parameters)
