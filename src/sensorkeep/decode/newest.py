"""The newest reading of each sensor of a batch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sensorkeep.model import DecodedBatch, LatestReading


def newest_readings(batch: DecodedBatch) -> list[LatestReading]:
    """One for each sensor that has a usable reading, in the order of `batch.sensors`: that of the greatest time,
    and of several at that time the last one.
    """
    table = batch.readings
    if not table.num_rows:
        return []
    series = table["series"].to_numpy()
    times = table["time"].cast(pa.int64()).to_numpy()
    newest = np.full(len(batch.sensors), np.iinfo(np.int64).min)
    np.maximum.at(newest, series, times)
    candidates = np.flatnonzero(times == newest[series])
    rows = np.full(len(batch.sensors), -1)
    rows[series[candidates]] = candidates  # of repeated indexes the last assignment stands
    picked = table.take(pa.array(rows[rows >= 0]))
    columns = [
        picked["series"].to_pylist(),
        picked["time"].cast(pa.int64()).to_pylist(),
        *(picked[name].to_pylist() for name in ("value", "status", "battery", "rssi", "lqi", "battery_voltage")),
    ]
    return [
        LatestReading(
            sensor_uuid=batch.sensors[index].uuid,
            time_us=time_us,
            value=value,
            status=status,
            battery=battery,
            rssi=rssi,
            lqi=lqi,
            battery_voltage=battery_voltage,
        )
        for index, time_us, value, status, battery, rssi, lqi, battery_voltage in zip(*columns, strict=True)
    ]
