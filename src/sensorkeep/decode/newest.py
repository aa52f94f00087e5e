"""The newest reading of each sensor of some batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sensorkeep.model import DecodedBatch, LatestReading

Integers = npt.NDArray[np.int64]


def newest_readings(batch: DecodedBatch) -> list[LatestReading]:
    """One for each sensor that has a usable reading, in the order of `batch.sensors`: that of the greatest time,
    and of several at that time the last one.
    """
    return newest_of([batch])


def newest_of(batches: Sequence[DecodedBatch]) -> list[LatestReading]:
    """The same of several batches, in the order accepted: of one time, the last reading of the last batch stands."""
    batches = [batch for batch in batches if batch.readings.num_rows]
    if not batches:
        return []
    uuids: dict[str, int] = {}
    numbers: dict[int, Integers] = {}
    for batch in batches:
        if id(batch.sensors) not in numbers:
            own = [uuids.setdefault(sensor.uuid, len(uuids)) for sensor in batch.sensors]
            numbers[id(batch.sensors)] = np.array(own, np.int64)
    sensor = np.concatenate([numbers[id(b.sensors)][b.readings["series"].to_numpy()] for b in batches])
    time_us = np.concatenate([b.readings["time"].cast(pa.int64()).to_numpy() for b in batches])
    rows = _newest_rows(sensor, time_us, len(uuids))
    starts = np.cumsum([0, *(batch.readings.num_rows for batch in batches)])
    names = list(uuids)
    found: list[LatestReading | None] = [None] * len(uuids)
    for batch, start, end in zip(batches, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        mine = np.flatnonzero((rows >= start) & (rows < end))
        columns = _columns(batch.readings, rows[mine] - start)
        numbers_of_mine = mine.tolist()
        readings = map(LatestReading, [names[number] for number in numbers_of_mine], *columns)
        for number, reading in zip(numbers_of_mine, readings, strict=True):
            found[number] = reading
    return [reading for reading in found if reading is not None]


def _newest_rows(sensor: Integers, time_us: Integers, sensors: int) -> Integers:
    """The row of the newest reading of each sensor; -1 where it has none."""
    newest = np.full(sensors, np.iinfo(np.int64).min)
    np.maximum.at(newest, sensor, time_us)
    candidates = np.flatnonzero(time_us == newest[sensor])
    rows = np.full(sensors, -1)
    rows[sensor[candidates]] = candidates  # of repeated indexes the last assignment stands
    return rows


def _columns(table: pa.Table, rows: Integers) -> list[list[Any]]:
    """The fields of LatestReading from the time on, of some rows, as lists."""
    picked = table.take(rows)
    times: list[Any] = picked["time"].cast(pa.int64()).to_numpy().tolist()
    names = ("value", "status", "battery", "rssi", "lqi", "battery_voltage")
    return [times, *(_values(picked[name].combine_chunks()) for name in names)]


def _values(column: Any) -> list[Any]:
    """What `to_pylist` answers, which takes several times as long."""
    if column.null_count == len(column):
        return [None] * len(column)
    if pa.types.is_dictionary(column.type):
        texts: list[Any] = column.dictionary.take(column.indices).to_pylist()  # many batches may share the dictionary
        return texts
    listed: list[Any] = column.fill_null(0).to_numpy().tolist()
    if column.null_count:
        absent = column.is_null().to_numpy(zero_copy_only=False).tolist()
        listed = [None if is_absent else value for value, is_absent in zip(listed, absent, strict=True)]
    return listed
