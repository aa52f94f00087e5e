"""The sensors and the statuses of a batch by number, and the columns of READINGS_SCHEMA."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sensorkeep.decode.arrow import ArrowArray
from sensorkeep.limits import DESCRIPTIONS_REMEMBERED, EXTERNAL_ID_CHARS_MAX, TEXT_CHARS_MAX
from sensorkeep.model import READINGS_SCHEMA, Sensor, canonical_uuid

_canonical = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch

_STATUS_FIELD = READINGS_SCHEMA.get_field_index("status")
_WORKING_SCHEMA = READINGS_SCHEMA.set(_STATUS_FIELD, pa.field("status", pa.int32()))
_TIME_TYPE = READINGS_SCHEMA.field("time").type
_METADATA_TYPES = [READINGS_SCHEMA.field(name).type for name in ("battery", "rssi", "lqi", "battery_voltage")]

Numbers = npt.NDArray[np.float64]


MISSING = -1
"""The number of no sensor: no text, or an empty one."""
UNUSABLE = -2
"""The number of what cannot name a sensor: no text at all, or one that is too long."""


@lru_cache(DESCRIPTIONS_REMEMBERED)
def _identity_of(text: str) -> tuple[str, str]:
    """(uuid, text)."""
    return text if _canonical(text) else canonical_uuid(text), text


class SeriesIndex:
    """Numbers sensors in the order seen. The body may call one sensor by several texts."""

    def __init__(self) -> None:
        self._identities: list[tuple[str, str]] = []
        self._by_text = _Texts(self._identities)

    def __len__(self) -> int:
        return len(self._identities)

    def numbers(self, texts: Iterable[object]) -> list[int]:
        """The number of the sensor that each names; MISSING or UNUSABLE where it names none."""
        return list(map(self._by_text.__getitem__, texts))

    def identity(self, index: int) -> tuple[str, str]:
        """(uuid, the first text that named it)."""
        return self._identities[index]

    def compact(
        self, sensors: Mapping[int, Sensor], chunks: list[pa.RecordBatch]
    ) -> tuple[list[Sensor], list[pa.RecordBatch]]:
        """The described sensors in order, and the chunks with `series` renumbered accordingly."""
        order = sorted(sensors)
        result = [sensors[index] for index in order]
        if len(order) == len(self):
            return result, chunks
        numbers = np.zeros(len(self), np.int32)
        numbers[order] = np.arange(len(order))
        return result, [
            chunk.set_column(0, READINGS_SCHEMA.field(0), pa.array(numbers[chunk.column(0).to_numpy()]))
            for chunk in chunks
        ]


class _Texts(dict[object, int]):
    """Numbers by text; a text that is not known yet is entered. Whatever names no sensor is not kept."""

    def __init__(self, identities: list[tuple[str, str]]) -> None:
        super().__init__()
        self._identities = identities
        self._by_uuid: dict[str, int] = {}

    def __missing__(self, text: object) -> int:
        if text is None or text == "":
            return MISSING
        if type(text) is not str or len(text) > EXTERNAL_ID_CHARS_MAX:
            return UNUSABLE
        identity = _identity_of(text)
        number = self[text] = self._by_uuid.setdefault(identity[0], len(self._identities))
        if number == len(self._identities):
            self._identities.append(identity)
        return number


class StatusIndex:
    """Numbers statuses, so that all chunks share one dictionary."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._dictionary: ArrowArray | None = None

    def codes(self, statuses: ArrowArray) -> ArrowArray:
        """The number of each status (int32, null for null), cut to TEXT_CHARS_MAX."""
        if statuses.null_count == len(statuses):
            return pa.nulls(len(statuses), pa.int32())
        encoded = statuses.dictionary_encode()
        return pa.array(self.numbers(encoded.dictionary.to_pylist()), pa.int32()).take(encoded.indices)

    def numbers(self, texts: Iterable[str]) -> list[int]:
        """The number of each text, cut to TEXT_CHARS_MAX."""
        known = self._numbers
        return [known.setdefault(text[:TEXT_CHARS_MAX], len(known)) for text in texts]

    def complete(self, chunk: pa.RecordBatch) -> pa.RecordBatch:
        """A chunk of `readings_batch` with READINGS_SCHEMA. Call it when all codes have been given out."""
        if self._dictionary is None:
            self._dictionary = pa.array(list(self._numbers), pa.string())
        status = pa.DictionaryArray.from_arrays(chunk.column(_STATUS_FIELD), self._dictionary)
        return chunk.set_column(_STATUS_FIELD, READINGS_SCHEMA.field(_STATUS_FIELD), status)


def readings_batch(
    series: npt.NDArray[np.int32],
    times_us: npt.NDArray[np.int64],
    values: Numbers,
    status: ArrowArray,
    metadata: Sequence[Numbers] | None,
) -> pa.RecordBatch:
    """Columns as READINGS_SCHEMA, but with `status` as numbers of a StatusIndex. NaN means null.

    `metadata` has one each for battery, RSSI, LQI and battery voltage; None where no reading says any of it.
    """
    columns: list[ArrowArray] = [
        pa.array(series, pa.int32()),
        pa.array(times_us, pa.int64()).cast(_TIME_TYPE),
        pa.array(values, pa.float64(), from_pandas=True),
        status,
    ]
    if metadata is None:
        columns += [pa.nulls(len(series), to) for to in _METADATA_TYPES]
    else:
        columns += [_nullable(values, to) for values, to in zip(metadata, _METADATA_TYPES, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=_WORKING_SCHEMA)


def _nullable(values: Numbers, to: Any) -> ArrowArray:
    """NaN as null; fractions of whole-number columns are rounded."""
    absent = np.isnan(values)
    if absent.all():
        return pa.nulls(len(values), to)
    array: ArrowArray = pa.array(np.where(absent, 0.0, values), mask=absent)
    return (pc.round(array) if pa.types.is_integer(to) else array).cast(to)
