"""The newest reading of each sensor of some batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sensorkeep.model import DecodedBatch, LatestReading

Integers = npt.NDArray[np.int64]

_uuid = attrgetter("uuid")


def with_newest(batch: DecodedBatch) -> DecodedBatch:
    """The batch, and its newest readings picked: who needs them later has them."""
    return replace(batch, newest=newest_readings(batch))


def newest_readings(batch: DecodedBatch) -> Sequence[LatestReading]:
    """One for each sensor that has a usable reading, in the order of `batch.sensors`: that of the greatest time,
    and of several at that time the last one.
    """
    if batch.newest is not None:
        return batch.newest
    if not batch.readings.num_rows:
        return []
    rows = _newest_rows(batch.readings["series"].to_numpy(), _times(batch), len(batch.sensors))
    names = list(map(_uuid, batch.sensors))
    if rows.min() < 0:  # one has no usable reading
        names = [name for name, row in zip(names, rows.tolist(), strict=True) if row >= 0]
        rows = rows[rows >= 0]
    return list(map(LatestReading, names, *_columns(batch.readings, rows)))


def newest_of(batches: Sequence[DecodedBatch]) -> list[LatestReading]:
    """The same of several batches, in the order accepted: of one time, the last reading of the last batch stands."""
    others = _newest_together([batch for batch in batches if batch.newest is None])
    newest: dict[str, LatestReading] = {}
    for batch in batches:
        for reading in next(others) if batch.newest is None else batch.newest:
            known = newest.get(reading.sensor_uuid)
            if known is None or reading.time_us >= known.time_us:
                newest[reading.sensor_uuid] = reading
    return list(newest.values())


def _newest_together(batches: Sequence[DecodedBatch]) -> Iterator[list[LatestReading]]:
    """Of each batch, the readings that are the newest of all: at once for all, since there may be thousands."""
    if not batches:
        return
    shared = {id(batch.sensors): batch.sensors for batch in batches}.values()
    uuids = {id(sensors): list(map(_uuid, sensors)) for sensors in shared}
    names = list(dict.fromkeys(chain.from_iterable(uuids.values())))
    number_of = dict(zip(names, range(len(names)), strict=True)).__getitem__
    numbers = {key: np.fromiter(map(number_of, own), np.int64, len(own)) for key, own in uuids.items()}
    sensor = np.concatenate([numbers[id(batch.sensors)][batch.readings["series"].to_numpy()] for batch in batches])
    time_us = np.concatenate([_times(batch) for batch in batches])
    rows = _newest_rows(sensor, time_us, len(names))
    by_row = np.argsort(rows)
    starts = np.cumsum([0, *(batch.readings.num_rows for batch in batches)])
    places = np.searchsorted(rows[by_row], starts).tolist()
    for batch, start, first, last in zip(batches, starts.tolist(), places, places[1:], strict=False):
        mine = by_row[first:last]
        found = [names[number] for number in mine.tolist()]
        yield list(map(LatestReading, found, *_columns(batch.readings, rows[mine] - start))) if found else []


def _times(batch: DecodedBatch) -> Integers:
    times: Integers = batch.readings["time"].cast(pa.int64()).to_numpy()
    return times


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
