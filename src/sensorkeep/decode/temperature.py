"""SensorFlow's single reading: `{"temperature","humidity"?,"pressure"?,"sensor_id","timestamp"?}`, and any number of
further numeric fields, each one more quantity. Further fields of other types are ignored, as SensorFlow does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sensorkeep.clock import rfc3339
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.quantities import count_problem, number_problem, quantity_problem, sensor_id_problem
from sensorkeep.decode.times import parse_time
from sensorkeep.errors import InvalidInput
from sensorkeep.limits import EXTERNAL_ID_CHARS_MAX, FUTURE_TOLERANCE_SECONDS, QUANTITIES_PER_READING_MAX
from sensorkeep.model import Reason

_decode_json = msgspec.json.Decoder().decode
_NAMED = frozenset(("temperature", "humidity", "pressure"))
_NOT_QUANTITIES = ("sensor_id", "timestamp")


class TemperatureReading(msgspec.Struct, gc=False):
    """A checked reading; `values` by name of quantity, all finite."""

    sensor_id: str
    values: dict[str, float]
    timestamp: str | None = None
    """As sent; `check_time` reads it."""


def parse_temperature(body: bytes) -> TemperatureReading:
    """The reading that `body` holds. Raises InvalidInput (`not_json`, `empty_body`, or `invalid_fields` with `errors`).

    This runs for every single POST: what is usual is checked in few steps, and what is wrong explained elsewhere.
    """
    fields = decode_object(body)
    values: dict[str, float] = {}
    for name, value in fields.items():
        kind = type(value)
        if kind is float:
            values[name] = value
        elif kind is int:
            values[name] = _to_float(value, name)
        elif name in _NAMED and (value is not None or name == "temperature"):
            raise _explain(fields)
    sensor_id = fields.get("sensor_id")
    timestamp = fields.get("timestamp")
    if (
        type(sensor_id) is not str
        or not 0 < len(sensor_id) <= EXTERNAL_ID_CHARS_MAX
        or "temperature" not in values
        or (timestamp is not None and type(timestamp) is not str)
        or (len(values) > 1 and not values.keys() <= _NAMED and _further_problem(values))
    ):
        raise _explain(fields)
    return TemperatureReading(sensor_id, values, timestamp)


def check_time(timestamp: str | None, options: DecodeOptions) -> int:
    """The time of a single reading in microseconds since the epoch; the time of receipt where it says none.

    Raises InvalidInput (`invalid_fields`, with `reason`) where it is no timestamp, too old, or in the future.
    """
    if timestamp is None:
        return options.received_us
    time_us = parse_time(timestamp, options.naive_timezone)
    if time_us is None:
        raise _time_error(Reason.BAD_TIMESTAMP, "is not an RFC 3339 date and time")
    if time_us < options.earliest_us:
        raise _time_error(Reason.TOO_OLD, f"is before {rfc3339(options.earliest_us)}, the oldest that is kept")
    if time_us > options.latest_us:
        raise _time_error(
            Reason.IN_FUTURE, f"is more than {FUTURE_TOLERANCE_SECONDS // 60} minutes ahead of the server's clock"
        )
    return time_us


def decode_object(body: bytes | memoryview) -> dict[str, Any]:
    """A JSON object of a small body. Raises InvalidInput (`not_json`, `empty_body`, `invalid_fields`)."""
    try:
        fields = _decode_json(body)
    except msgspec.ValidationError as error:  # a number that no float holds
        raise invalid_fields([("", str(error))]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not bytes(body).strip():
            raise InvalidInput("the body is empty", code="empty_body") from None
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidInput(f"the body is not valid JSON: {what}", code="not_json") from None
    if type(fields) is not dict:
        raise invalid_fields([("", "must be a JSON object")])
    return fields


def invalid_fields(problems: list[tuple[str, str]], **extra: object) -> InvalidInput:
    """The error for fields that are not valid: (path, message) of each."""
    text = "; ".join(f"{path} {message}".strip() for path, message in problems[:3])
    errors = [{"path": path, "message": message} for path, message in problems]
    return InvalidInput(text, code="invalid_fields", extra={"errors": errors, **extra})


def _time_error(reason: Reason, message: str) -> InvalidInput:
    return invalid_fields([("timestamp", message)], reason=reason.value)


def _to_float(value: int, name: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise invalid_fields([(name, "must be a finite number")]) from None


def _further_problem(values: dict[str, float]) -> bool:
    return len(values) > QUANTITIES_PER_READING_MAX or any(
        quantity_problem(name) or name in _NOT_QUANTITIES for name in values
    )


def _explain(fields: dict[str, Any]) -> InvalidInput:
    """All that is wrong with the fields."""
    problems: list[tuple[str, str]] = []
    for name in sorted(_NAMED):
        value = fields.get(name)
        if name == "temperature" and name not in fields:
            problems.append((name, "is required"))
        elif (problem := number_problem(value)) and (value is not None or name == "temperature"):
            problems.append((name, problem))
    if "sensor_id" not in fields:
        problems.append(("sensor_id", "is required"))
    elif problem := sensor_id_problem(fields["sensor_id"]):
        problems.append(("sensor_id", problem))
    if not isinstance(fields.get("timestamp"), str | None):
        problems.append(("timestamp", "must be a text, an RFC 3339 date and time"))
    further = [name for name, value in fields.items() if type(value) in (int, float) and name not in _NOT_QUANTITIES]
    problems += [(name, problem) for name in further if (problem := quantity_problem(name))]
    if problem := count_problem(len(further)):
        problems.append(("", problem))
    return invalid_fields(problems)
