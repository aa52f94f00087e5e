"""What readings of the Easy Smart Monitor form measured, in columns: times, values, statuses and metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sensorkeep.decode.arrow import ArrowArray, Column
from sensorkeep.decode.esm_rows import EsmRows
from sensorkeep.decode.quantities import METADATA_RANGES
from sensorkeep.decode.scan import TIME_MISSING, TIME_NAIVE, Scanned
from sensorkeep.decode.series import MISSING, SeriesIndex, StatusIndex
from sensorkeep.decode.times import localize, parse_times
from sensorkeep.decode.values import limited, numbers, numbers_of_texts, numbers_or_texts, texts

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """One element a reading in each column."""

    series: npt.NDArray[np.int32]
    """The number of its sensor, or MISSING, or UNUSABLE."""
    times_us: npt.NDArray[np.int64]
    """0 where it is missing or bad."""
    time_missing: Flags
    time_bad: Flags
    values: Floats
    """NaN where there is none, here and in the metadata."""
    status: ArrowArray
    """Numbers of the StatusIndex, or null."""
    bad: Flags
    """Where a field has a type with which the reading is of no use."""
    no_value: Flags
    """Where there is neither a value nor a status."""
    metadata: list[Floats] | None
    """Battery, RSSI, LQI and battery voltage; None where no reading says any of it."""


def measured_one_by_one(rows: EsmRows, status: StatusIndex, naive_timezone: str) -> Measured:
    """The columns of readings that were decoded one by one."""
    times_us, missing, bad_times = parse_times(_times(rows), naive_timezone)
    values, said, bad = _values_and_status(rows)
    no_value = np.isnan(values)
    if no_value.any():
        no_value &= said.is_null().to_numpy(zero_copy_only=False)
    if no_value.any():  # what was given for the value is not one
        bad |= no_value & np.array([x is not None for x in _elements(rows.number.all())])
    return Measured(
        series=rows.series(),
        times_us=times_us,
        time_missing=missing,
        time_bad=bad_times,
        values=values,
        status=status.codes(said),
        bad=bad,
        no_value=no_value,
        metadata=_believed(
            numbers_or_texts(field.all()) for field in (rows.battery, rows.rssi, rows.lqi, rows.battery_voltage)
        ),
    )


def measured_at_once(scans: list[Scanned], series: SeriesIndex, status: StatusIndex, naive_timezone: str) -> Measured:
    """The columns of readings that were scanned."""
    kinds = np.concatenate([scan.time_kinds for scan in scans])
    times_us = np.concatenate([scan.times_us for scan in scans])
    localize(times_us, kinds == TIME_NAIVE, naive_timezone)
    values = np.concatenate([scan.values for scan in scans])
    # The index -1, of what is not said, takes the last element.
    codes = np.concatenate([np.array([*status.numbers(scan.statuses), -1], np.int32)[scan.status] for scan in scans])
    nothing = np.zeros(len(values), bool)
    return Measured(
        series=np.concatenate(
            [np.array([*series.numbers(scan.sensor_ids), MISSING], np.int32)[scan.sensors] for scan in scans]
        ),
        times_us=times_us,
        time_missing=kinds == TIME_MISSING,
        time_bad=nothing,
        values=values,
        status=pa.array(codes, mask=codes < 0),
        bad=nothing,
        no_value=np.isnan(values) & (codes < 0),
        metadata=_metadata(scans),
    )


def _metadata(scans: list[Scanned]) -> list[Floats] | None:
    if all(scan.metadata is None for scan in scans):
        return None
    parts = [
        np.full((len(METADATA_RANGES), len(scan.values)), np.nan) if scan.metadata is None else scan.metadata
        for scan in scans
    ]
    return _believed(np.concatenate(parts, axis=1))


def _believed(metadata: Iterable[Floats]) -> list[Floats]:
    """The columns without what is out of range."""
    return [limited(column, *bounds) for column, bounds in zip(metadata, METADATA_RANGES.values(), strict=True)]


def _times(rows: EsmRows) -> Column:
    """The time of collection, else the timestamp."""
    column, other = rows.collected.all(), rows.timestamp.all()
    if isinstance(column, list):
        return [b if a is None else a for a, b in zip(column, _elements(other), strict=True)]
    if column.null_count == len(column):
        return other
    if column.null_count:
        return [b if a is None else a for a, b in zip(_elements(column), _elements(other), strict=True)]
    return column


def _values_and_status(rows: EsmRows) -> tuple[Floats, ArrowArray, Flags]:
    """(values, statuses, where a status is no text).

    `number` is the value, else the telemetry where it is a number or writes one, else that is the status. A `status`
    wins over the telemetry's text, and that over `sensor_status`: the Home Assistant client says there that the sensor
    is in use, and in the telemetry whether its door is open.
    """
    values = numbers(rows.number.all())
    said, wrong = texts(rows.status.all())
    sensor_status, wrong_too = texts(rows.sensor_status.all())
    bad = np.zeros(len(values), bool)
    for flags in (wrong, wrong_too):
        if flags is not None:
            bad |= flags
    without = np.isnan(values)
    if without.any():
        telemetry = rows.telemetry.all()
        words, other = texts(telemetry)
        measured = numbers_of_texts(words) if other is None else numbers_or_texts(telemetry)
        values = np.where(without, measured, values)
        without = np.isnan(values)
        if without.any() and said.null_count:
            said = pc.coalesce(said, pc.if_else(pa.array(without), words, pa.scalar(None, pa.string())))
    if said.null_count:
        said = pc.coalesce(said, sensor_status)
    return values, said, bad


def _elements(column: Column) -> list[object]:
    return column if isinstance(column, list) else column.to_pylist()
