"""The compiled reader of the bulk form (`native/`): many usual equipment objects at once, into columns.

It is optional: where it is not built, or the body is out of the ordinary, the decoder in `esm.py` reads the objects one
by one and gives the same. `scripts/build_native.sh` builds it.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sensorkeep.limits import OBJECT_BUFFER_BYTES, SCAN_OBJECTS_MAX, SCAN_READINGS_MAX

_LIBRARY = Path(__file__).with_name("libsensorkeep_scan.so")
_VERSION = 3

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.uint32]

TIME_MISSING, TIME_NAIVE, TIME_ZONED = range(3)


class _Buffers(ctypes.Structure):
    """`Buffers` of native/src/lib.rs."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("readings_max", "objects_max")),
        *((name, ctypes.c_void_p) for name in ("spans", "sensors", "times_us", "time_kinds", "values", "statuses")),
        *((name, ctypes.c_void_p) for name in ("battery", "rssi", "lqi", "battery_voltage")),
        *((name, ctypes.c_void_p) for name in ("objects", "sensor_names", "status_names")),
        *((name, ctypes.c_uint64) for name in ("readings", "object_count", "sensor_count", "status_count")),
        *((name, ctypes.c_uint8) for name in ("describes", "metadata", "unusual", "incomplete")),
    ]


@dataclass(frozen=True, slots=True)
class Scanned:
    """Equipment objects one after the other, and the columns of their readings."""

    objects: list[list[int]]
    """[start, end, index after the bracket of its list, number of readings] of each."""
    spans: Places
    """[start, end) of each reading."""
    sensor_ids: list[str]
    """The texts that name sensors, each once."""
    sensors: npt.NDArray[np.int32]
    """Index into `sensor_ids` of each reading, -1 where it names none."""
    statuses: list[str]
    status: npt.NDArray[np.int32]
    """Index into `statuses`, or -1."""
    times_us: npt.NDArray[np.int64]
    time_kinds: npt.NDArray[np.uint8]
    """TIME_MISSING, TIME_NAIVE or TIME_ZONED."""
    values: Floats
    """NaN where there is none, here and in the metadata."""
    metadata: Floats | None
    """One row each for battery, RSSI, LQI and battery voltage; None where no reading says any of it."""
    describes: bool
    """Whether the readings say anything of their sensors."""
    unusual: bool
    """Whether the next object needs a closer look."""
    incomplete: bool
    """Whether the text ends in the midst of the next object."""


class Scanner(threading.local):
    """Room for what is found, of each thread its own."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._scan = library.sensorkeep_scan
        self._spans = np.empty((SCAN_READINGS_MAX, 2), np.uint32)
        self._sensors = np.empty(SCAN_READINGS_MAX, np.int32)
        self._status = np.empty(SCAN_READINGS_MAX, np.int32)
        self._times_us = np.empty(SCAN_READINGS_MAX, np.int64)
        self._time_kinds = np.empty(SCAN_READINGS_MAX, np.uint8)
        self._values = np.empty(SCAN_READINGS_MAX, np.float64)
        self._metadata = np.empty((4, SCAN_READINGS_MAX), np.float64)
        self._objects = np.empty((SCAN_OBJECTS_MAX, 4), np.uint32)
        self._names = np.empty((2, SCAN_READINGS_MAX, 2), np.uint32)
        battery, rssi, lqi, battery_voltage = (row.ctypes.data for row in self._metadata)
        self._buffers = _Buffers(
            readings_max=SCAN_READINGS_MAX,
            objects_max=SCAN_OBJECTS_MAX,
            spans=self._spans.ctypes.data,
            sensors=self._sensors.ctypes.data,
            times_us=self._times_us.ctypes.data,
            time_kinds=self._time_kinds.ctypes.data,
            values=self._values.ctypes.data,
            statuses=self._status.ctypes.data,
            battery=battery,
            rssi=rssi,
            lqi=lqi,
            battery_voltage=battery_voltage,
            objects=self._objects.ctypes.data,
            sensor_names=self._names[0].ctypes.data,
            status_names=self._names[1].ctypes.data,
        )

    def scan(self, data: bytes, start: int) -> Scanned:
        """The usual equipment objects of `data` (UTF-8) from `start` on, as far as they are whole."""
        buffers = self._buffers
        self._scan(data, len(data), start, OBJECT_BUFFER_BYTES, ctypes.byref(buffers))
        rows = slice(buffers.readings)
        return Scanned(
            objects=self._objects[: buffers.object_count].tolist(),
            spans=self._spans[rows].copy(),
            sensor_ids=_texts(data, self._names[0, : buffers.sensor_count]),
            sensors=self._sensors[rows].copy(),
            statuses=_texts(data, self._names[1, : buffers.status_count]),
            status=self._status[rows].copy(),
            times_us=self._times_us[rows].copy(),
            time_kinds=self._time_kinds[rows].copy(),
            values=self._values[rows].copy(),
            metadata=self._metadata[:, rows].copy() if buffers.metadata else None,
            describes=bool(buffers.describes),
            unusual=bool(buffers.unusual),
            incomplete=bool(buffers.incomplete),
        )


def _texts(data: bytes, places: Places) -> list[str]:
    return [data[start:end].decode() for start, end in places.tolist()]


def _load() -> ctypes.CDLL | None:
    """The library, or None where it was not built for this version and machine."""
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        version: Any = library.sensorkeep_scan_version
        version.restype = ctypes.c_uint32
        if version() != _VERSION:
            return None
        library.sensorkeep_scan.restype = None
        library.sensorkeep_scan.argtypes = [
            *(ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64),
            ctypes.POINTER(_Buffers),
        ]
    except (OSError, AttributeError):
        return None
    return library


_library = _load()
SCANNER = None if _library is None else Scanner(_library)
"""None where bodies are decoded without it."""
