"""Pure: query parameters to a plan. Nothing is cut or shifted silently; what cannot be served is a `bad_parameter`.

Ranges are half-open, [start_date, end_date). A bucket belongs to a range if its start does, and is answered whole: an
hour that starts before `start_date` is left out even where it reaches into the range, and the last one may hold
readings at or after `end_date`. History never aligns a range; statistics do, and tell it in their `start_date`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

import msgspec

from sensorkeep.clock import DAY_US, HOUR_US, rfc3339, to_us
from sensorkeep.errors import InvalidInput
from sensorkeep.limits import (
    EQUIPMENT_PAGE_DEFAULT,
    EQUIPMENT_PAGE_MAX,
    HISTORY_DAYS_DEFAULT,
    HOME_ASSISTANT_HOURS_DEFAULT,
    HOME_ASSISTANT_HOURS_MAX,
    PAGE_ROWS_DEFAULT,
    PAGE_ROWS_MAX,
    SENSOR_TYPE_CHARS_MAX,
)

HistoryPeriod = Literal["hour", "day", "raw"]
StatsPeriod = Literal["24h", "7d", "30d", "1y"]

_HISTORY_PERIODS: dict[str, HistoryPeriod] = {"hour": "hour", "day": "day", "raw": "raw"}
# Length of the range, and the boundary its start is moved back to: the store summarizes up to two days from raw,
# up to fourteen from hours, and anything longer from days (tsdb.base, `summarize`).
_STATS_PERIODS: dict[str, tuple[StatsPeriod, int, int]] = {
    "24h": ("24h", DAY_US, 1),
    "7d": ("7d", 7 * DAY_US, HOUR_US),
    "30d": ("30d", 30 * DAY_US, DAY_US),
    "1y": ("1y", 365 * DAY_US, DAY_US),
}
_MOMENT = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?P<time>\d{2}:\d{2}:\d{2}(?:[.,]\d{1,9})?|\d{2}:\d{2})(?P<zone>[Zz]|[+\- ]\d{2}:?\d{2})?)?",
    re.ASCII,
)
# Python's calendar ends with the year 9999; before 1900 there was no telemetry, and room is left for a default range.
_EARLIEST_US = to_us(datetime(1900, 1, 1, tzinfo=UTC))
_LATEST_US = to_us(datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
_ServableTime = Annotated[int, msgspec.Meta(ge=_EARLIEST_US - HISTORY_DAYS_DEFAULT * DAY_US, le=_LATEST_US)]
_CURSOR_CHARS_MAX = 1_000
_DIGEST_BYTES = 8


class HistoryPosition(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a history page ended. It carries the range, so that a default range does not move between pages."""

    start_us: _ServableTime
    end_us: _ServableTime
    time_us: _ServableTime
    sensor_uuid: str


class EquipmentPosition(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page of the equipment list ended."""

    equipment_uuid: str


Position = HistoryPosition | EquipmentPosition
P = TypeVar("P", HistoryPosition, EquipmentPosition)


@dataclass(frozen=True, slots=True)
class HistoryPlan:
    """What a history call reads: [start, end), at most `limit` rows, after the position of the page before."""

    subject: str
    """Which query this is; a cursor of another subject is refused."""
    period: HistoryPeriod
    start_us: int
    end_us: int
    limit: int
    after: HistoryPosition | None

    def cursor(self, time_us: int, sensor_uuid: str) -> str:
        """The cursor that continues after the row of this time and sensor."""
        return encode_cursor(self.subject, HistoryPosition(self.start_us, self.end_us, time_us, sensor_uuid))


@dataclass(frozen=True, slots=True)
class StatsPlan:
    """What a statistics call summarizes: [start, end), the start aligned."""

    period: StatsPeriod
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class HoursPlan:
    """The last `hours` hour buckets, the open one included."""

    hours: int
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class EquipmentPlan:
    """One page of the equipment list."""

    limit: int
    after_uuid: str


def plan_history(
    parameters: Mapping[str, str], subject: str, now_us: int, raw_kept_from_us: int | None = None
) -> HistoryPlan:
    """Plan a history call.

    `parameters`: period, start_date, end_date, limit, cursor, as text. `subject` names what is asked of.
    `raw_kept_from_us`: raw readings before this are gone (None: all are kept).
    Raises InvalidInput (`bad_parameter`).
    """
    period = _HISTORY_PERIODS.get(parameters.get("period", "hour"))
    if period is None:
        raise _bad("period", "it is none of hour, day, raw")
    limit = _whole(parameters, "limit", PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX)
    subject = f"{subject}/{period}"
    start_us, end_us = _moment(parameters, "start_date"), _moment(parameters, "end_date")
    after = None
    if text := parameters.get("cursor"):
        after = decode_cursor(subject, text, HistoryPosition)
        if start_us not in (None, after.start_us) or end_us not in (None, after.end_us):
            raise _bad("cursor", "it was made for another start_date or end_date")
        start_us, end_us = after.start_us, after.end_us
    end_us = now_us if end_us is None else end_us
    start_us = end_us - HISTORY_DAYS_DEFAULT * DAY_US if start_us is None else start_us
    if start_us >= end_us:
        raise _bad("start_date", f"{rfc3339(start_us)} is not before the end_date {rfc3339(end_us)}")
    first_us = after.time_us if after else start_us
    if period == "raw" and raw_kept_from_us is not None and first_us < raw_kept_from_us:
        raise _bad(
            "start_date", f"raw readings are kept since {rfc3339(raw_kept_from_us)}; ask for period hour or day before"
        )
    return HistoryPlan(subject, period, start_us, end_us, limit, after)


def plan_stats(parameters: Mapping[str, str], now_us: int) -> StatsPlan:
    """Plan a statistics call; `period` defaults to 24h.

    The start of 7d is moved back to an hour boundary, those of 30d and 1y (365 days) to a day boundary (UTC): the
    range is never shorter than asked for. Raises InvalidInput (`bad_parameter`).
    """
    known = _STATS_PERIODS.get(parameters.get("period", "24h"))
    if known is None:
        raise _bad("period", "it is none of 24h, 7d, 30d, 1y")
    period, length_us, boundary_us = known
    start_us = now_us - length_us
    return StatsPlan(period, start_us - start_us % boundary_us, now_us)


def plan_hours(parameters: Mapping[str, str], now_us: int) -> HoursPlan:
    """Plan a Home Assistant call: `hours` from 1 to 168. Raises InvalidInput (`bad_parameter`)."""
    hours = _whole(parameters, "hours", HOME_ASSISTANT_HOURS_DEFAULT, HOME_ASSISTANT_HOURS_MAX)
    end_us = now_us - now_us % HOUR_US + HOUR_US
    return HoursPlan(hours, end_us - hours * HOUR_US, end_us)


def plan_equipment(parameters: Mapping[str, str]) -> EquipmentPlan:
    """Plan a page of the equipment list. Raises InvalidInput (`bad_parameter`)."""
    limit = _whole(parameters, "limit", EQUIPMENT_PAGE_DEFAULT, EQUIPMENT_PAGE_MAX)
    after_uuid = ""
    if text := parameters.get("cursor"):
        after_uuid = decode_cursor("equipment", text, EquipmentPosition).equipment_uuid
    return EquipmentPlan(limit, after_uuid)


def wanted_sensor_type(parameters: Mapping[str, str]) -> str | None:
    """The `sensor_type` filter; None where there is none. Raises InvalidInput (`bad_parameter`)."""
    wanted = parameters.get("sensor_type") or None
    if wanted is not None and (len(wanted) > SENSOR_TYPE_CHARS_MAX or "\x00" in wanted):
        raise _bad("sensor_type", f"it is longer than {SENSOR_TYPE_CHARS_MAX} characters or holds a NUL")
    return wanted


def raw_kept_from(now_us: int, retention_days: int) -> int | None:
    """Start of the first day whose raw readings are all kept; None where they are kept for ever (0 days).

    A day is dropped whole, once all of it is older than the retention; so "the last 30 days" can be asked for.
    """
    if retention_days == 0:
        return None
    edge_us = now_us - retention_days * DAY_US
    return edge_us - edge_us % DAY_US


def parse_moment(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time or a plain date; without a zone it is UTC.

    Seconds may be left out, digits past the microsecond are dropped, and a `+` that a query string turned into a
    space is taken back. Raises ValueError.
    """
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise ValueError("it is not an RFC 3339 time or a date")
    zone = (match["zone"] or "Z").upper().replace(" ", "+")
    moment = datetime.fromisoformat(f"{match['date']}T{match['time'] or '00:00'}{zone}")
    try:
        moment_us = to_us(moment)
    except OverflowError:
        moment_us = _LATEST_US + 1
    if not _EARLIEST_US <= moment_us <= _LATEST_US:
        raise ValueError("it is outside of the years 1900 to 9999")
    return moment_us


def encode_cursor(subject: str, position: Position) -> str:
    """`position` as opaque base64url text that only `subject` takes back."""
    payload = msgspec.msgpack.encode(position)
    return base64.urlsafe_b64encode(_digest(subject, payload) + payload).rstrip(b"=").decode("ascii")


def decode_cursor(subject: str, text: str, kind: type[P]) -> P:
    """The position in a cursor of `encode_cursor`. Raises InvalidInput (`bad_parameter`)."""
    try:
        if len(text) > _CURSOR_CHARS_MAX:
            raise ValueError
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        position = msgspec.msgpack.decode(content[_DIGEST_BYTES:], type=kind)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise _bad("cursor", "it is not one that was handed out") from error
    if content[:_DIGEST_BYTES] != _digest(subject, content[_DIGEST_BYTES:]):
        raise _bad("cursor", "it belongs to another query; repeat the query it came from with the cursor added")
    return position


def _digest(subject: str, payload: bytes) -> bytes:
    # It guards against mistakes, not attacks: a forged cursor reads nothing that its own parameters could not.
    return hashlib.blake2b(
        subject.encode("utf-8", "surrogatepass") + b"\x00" + payload, digest_size=_DIGEST_BYTES
    ).digest()


def _moment(parameters: Mapping[str, str], name: str) -> int | None:
    text = parameters.get(name)
    if text is None:
        return None
    try:
        return parse_moment(text)
    except ValueError as error:
        raise _bad(name, f"{error}, e.g. 2024-01-15T10:00:00Z or 2024-01-15") from error


def _whole(parameters: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = parameters.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise _bad(name, f"it is not a whole number from 1 to {most}")
    return int(text)


def _bad(name: str, reason: str) -> InvalidInput:
    return InvalidInput(f"{name} cannot be served: {reason}", code="bad_parameter", extra={"parameter": name})
