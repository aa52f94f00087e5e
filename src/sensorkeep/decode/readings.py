"""The body of POST /readings: one object, or an array of them, each with any quantities of one sensor_id.

`{"sensor_id","timestamp"?,"values"?:{name: number},"status"?,"metadata"?:{battery, rssi, lqi, battery_voltage}}`.
Each quantity is one reading; a status without values is one reading of the quantity "status".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from typing import Any

import msgspec

from sensorkeep.decode.json_window import JsonWindow, malformed
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.quantities import (
    METADATA_RANGES,
    NO_METADATA,
    STATUS_QUANTITY,
    Metadata,
    QuantityColumns,
    count_problem,
    number_problem,
    quantity_problem,
    sensor_id_problem,
)
from sensorkeep.decode.temperature import check_time, decode_object, invalid_fields
from sensorkeep.errors import InvalidInput, LimitExceeded
from sensorkeep.limits import (
    ERRORS_REPORTED_MAX,
    OBJECT_BUFFER_BYTES,
    READINGS_PER_GENERAL_REQUEST_MAX,
    TEXT_CHARS_MAX,
)
from sensorkeep.model import DecodedBatch, Reason, Rejections

_OPEN_BRACE, _OPEN_BRACKET, _CLOSE_BRACKET, _COMMA = b"{[],"
_encode = msgspec.json.Encoder().encode

Problems = list[tuple[str, str]]


class GeneralReading(msgspec.Struct, gc=False):
    """A checked object of the body; `values` by name of quantity, all finite, empty where there is only a status."""

    sensor_id: str
    values: dict[str, float]
    timestamp: str | None = None
    """As sent; `check_time` reads it."""
    status: str | None = None
    metadata: Metadata = NO_METADATA

    def quantities(self) -> dict[str, float]:
        """Value by quantity, NaN for the quantity "status": one reading each."""
        return self.values or {STATUS_QUANTITY: math.nan}


def parse_reading(body: bytes) -> GeneralReading:
    """The one object that `body` holds. Raises InvalidInput (`not_json`, `empty_body`, `invalid_fields`)."""
    problems: Problems = []
    reading = _check(decode_object(body), "", problems)
    if reading is None:
        raise invalid_fields(problems)
    return reading


def decode_readings(body: bytes, options: DecodeOptions, only: Set[tuple[int, int]] | None = None) -> DecodedBatch:
    """Either form of the body. Rejections are at (index in the array, index of the quantity).

    `only` keeps just the readings, usable or not, at these positions. Bad fields refuse the whole body.
    Raises InvalidInput (`not_json`, `empty_body`, `invalid_fields` with the first `errors`) and LimitExceeded.
    """
    columns, rejections, problems = QuantityColumns(), Rejections(), Problems()
    objects = count = 0
    for path, content in _objects(body):
        if objects == READINGS_PER_GENERAL_REQUEST_MAX:
            raise LimitExceeded(f"the array holds more than {READINGS_PER_GENERAL_REQUEST_MAX} objects")
        reading = _check(_fields(content, path, problems), path, problems)
        objects += 1
        if len(problems) >= ERRORS_REPORTED_MAX:
            break
        if reading is None or problems:
            continue
        count += len(reading.quantities())
        if count > options.max_readings:
            raise LimitExceeded(f"the body holds more than {options.max_readings} readings (SENSORKEEP_MAX_READINGS)")
        _enter(objects - 1, reading, options, only, columns, rejections)
    if problems:
        raise invalid_fields(problems[:ERRORS_REPORTED_MAX])
    return columns.finish(objects=objects, rejections=rejections)


def _enter(
    index: int,
    reading: GeneralReading,
    options: DecodeOptions,
    only: Set[tuple[int, int]] | None,
    columns: QuantityColumns,
    rejections: Rejections,
) -> None:
    """Add the readings of one object to the columns, or to the rejections for their time."""
    try:
        time_us, reason = check_time(reading.timestamp, options), None
    except InvalidInput as error:
        time_us, reason = 0, Reason(error.extra["reason"])
    for position, (quantity, value) in enumerate(reading.quantities().items()):
        if only is not None and (index, position) not in only:
            continue
        if reason is None:
            columns.add(reading.sensor_id, quantity, time_us, value, reading.status, reading.metadata)
        else:
            said = {
                "sensor_id": reading.sensor_id,
                "timestamp": reading.timestamp,
                "values": {quantity: value},
                "status": reading.status,
            }
            rejections.add(index, position, reason, _encode(said).decode())


def _objects(body: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, JSON text) of each object, one at a time, so that no more than one is held decoded."""
    window = JsonWindow()
    window.append(body)
    window.close()
    window.skip_mark()
    byte = window.peek()
    if byte < 0:
        raise InvalidInput("the body is empty: send an object or an array of objects", code="empty_body")
    if byte != _OPEN_BRACKET:
        yield "", bytes(window.data[window.pos :])
        return
    window.pos += 1
    if window.peek() == _CLOSE_BRACKET:
        raise InvalidInput("the array is empty: send at least one object", code="empty_body")
    index = 0
    while True:
        window.peek()
        end = window.value_end()
        if end is None:
            raise malformed("it ends too early", len(window.data))
        yield f"[{index}]", bytes(window.data[window.pos : end])
        window.pos, index = end + 1, index + 1
        if window.data[end] == _CLOSE_BRACKET:
            break
        if window.data[end] != _COMMA:
            raise malformed("expected ',' or ']'", end)
    if window.peek() >= 0:
        raise malformed("something follows the array", window.pos)


def _fields(content: bytes, path: str, problems: Problems) -> dict[str, Any] | None:
    if len(content) > OBJECT_BUFFER_BYTES:
        raise LimitExceeded(f"a single object is longer than {OBJECT_BUFFER_BYTES} bytes")
    try:
        return decode_object(content)
    except InvalidInput as error:
        if error.code != "invalid_fields":
            raise
        problems += [(_join(path, item["path"]), item["message"]) for item in error.extra["errors"]]
        return None


def _check(fields: dict[str, Any] | None, path: str, problems: Problems) -> GeneralReading | None:
    """The reading that `fields` hold, or None with what is wrong appended to `problems`."""
    if fields is None:
        return None
    before = len(problems)
    sensor_id, timestamp, status = fields.get("sensor_id"), fields.get("timestamp"), fields.get("status")
    if "sensor_id" not in fields:
        problems.append((_join(path, "sensor_id"), "is required"))
    elif problem := sensor_id_problem(sensor_id):
        problems.append((_join(path, "sensor_id"), problem))
    if timestamp is not None and type(timestamp) is not str:
        problems.append((_join(path, "timestamp"), "must be a text, an RFC 3339 date and time"))
    if status is not None and type(status) is not str:
        problems.append((_join(path, "status"), "must be a text"))
    values = _check_values(fields.get("values"), _join(path, "values"), problems)
    if not values and not status and len(problems) == before:
        problems.append((_join(path, "values"), "is required where there is no status"))
    metadata = _check_metadata(fields.get("metadata"), _join(path, "metadata"), problems)
    if len(problems) > before:
        return None
    assert isinstance(sensor_id, str)
    return GeneralReading(sensor_id, values, timestamp, status[:TEXT_CHARS_MAX] if status else None, metadata)


def _check_values(values: Any, path: str, problems: Problems) -> dict[str, float]:
    if values is None:
        return {}
    if type(values) is not dict:
        problems.append((path, "must be an object of numbers by quantity"))
        return {}
    if problem := count_problem(len(values)):
        problems.append((path, problem))
        return {}
    result: dict[str, float] = {}
    for name, value in values.items():
        if problem := quantity_problem(name) or number_problem(value):
            problems.append((_join(path, name), problem))
        else:
            result[name] = float(value)
    return result


def _check_metadata(metadata: Any, path: str, problems: Problems) -> Metadata:
    if metadata is None:
        return NO_METADATA
    if type(metadata) is not dict:
        problems.append((path, "must be an object"))
        return NO_METADATA
    result: dict[str, float] = {}
    for name, (low, high) in METADATA_RANGES.items():
        value = metadata.get(name)
        if value is None:
            continue
        if number_problem(value) or not low <= value <= high:
            problems.append((_join(path, name), f"must be a number from {low} to {high}"))
        else:
            result[name] = float(value)
    return Metadata(**result)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
