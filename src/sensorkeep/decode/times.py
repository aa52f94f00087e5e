"""Text timestamps to microseconds since the epoch.

Accepted (RFC 3339, and ISO 8601 as clients write it): `YYYY-MM-DD`, `T` or a space, `hh:mm[:ss[.fraction]]` with up to
nine digits (cut to microseconds), then nothing, `Z`, or an offset `+hh[[:]mm]`. Letters in either case. Without an
offset the time is local to a zone: of a time that occurs twice the first is meant, and a time that the clock skips
lies as far after the change as it is past it (PEP 495, fold=0).
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sensorkeep.clock import MICROSECONDS, MINUTE_US
from sensorkeep.decode.arrow import ArrowArray, Column, text_bytes, text_offsets

_TEXT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{0,9}))?)?(?:([Zz])|([+-])(\d\d)(?::?(\d\d))?)?",
    re.ASCII,
).fullmatch
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_YEAR_1_US = -62_135_596_800 * MICROSECONDS
_WHOLE_MINUTES_FROM_US = 94_694_400 * MICROSECONDS
"""1973-01-01: every zone's offset changes at a whole minute from here on."""
_CHARS_MIN = 16  # YYYY-MM-DDThh:mm
_CHARS_MAX = 40

Times = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def parse_time(text: str, naive_timezone: str = "UTC") -> int | None:
    """One timestamp in microseconds since the epoch; None where it is not one."""
    parsed = _parse(text)
    if parsed is None:
        return None
    time_us, has_zone = parsed
    if has_zone or naive_timezone == "UTC":
        return time_us
    return int(_to_utc(np.array([time_us]), naive_timezone)[0])


def parse_times(texts: Column, naive_timezone: str) -> tuple[Times, Flags, Flags]:
    """A column of timestamps: (microseconds since the epoch, missing, bad), one element each.

    None is missing; whatever is not text of the form above is bad. The time of both is 0.
    """
    column: ArrowArray = texts
    if isinstance(texts, list):
        column = pa.array([x if x is None or type(x) is str else "" for x in texts], pa.string())
    missing = np.zeros(len(column), bool)
    if column.null_count:
        missing = column.is_null().to_numpy(zero_copy_only=False)
    times = np.zeros(len(column), np.int64)
    bad = np.zeros(len(column), bool)
    naive = np.zeros(len(column), bool)
    lengths = np.diff(text_offsets(column))
    for length in np.unique(lengths[~missing]).tolist():
        where = np.flatnonzero((lengths == length) & ~missing)
        group = column if len(where) == len(column) else column.take(pa.array(where))
        times[where], bad[where], naive[where] = _parse_group(group, length)
    localize(times, naive, naive_timezone)
    return times, missing, bad


def localize(times: Times, naive: Flags, naive_timezone: str) -> None:
    """Make those `times` UTC, in place, that are local to the zone."""
    if naive_timezone != "UTC" and naive.any():
        times[naive] = _to_utc(times[naive], naive_timezone)


def _parse_group(group: ArrowArray, length: int) -> tuple[Times, Flags, Flags]:
    """(times, bad, naive) of texts that all have `length` bytes; naive times are not converted yet."""
    nothing = np.zeros(len(group), bool)
    if not _CHARS_MIN <= length <= _CHARS_MAX:
        return np.zeros(len(group), np.int64), ~nothing, nothing
    if _hours_and_minutes(group, length):
        # One attempt, guided by the first text: a failed cast costs thirty times a good one.
        first = _parse(group[0].as_py())
        has_zone = first is not None and first[1]
        try:
            times: Times | None = (
                group.cast(pa.timestamp("us", "UTC" if has_zone else None)).cast(pa.int64()).to_numpy()
            )
        except pa.ArrowInvalid:  # mixed, or of a form that Arrow does not know
            times = None
        if times is not None and times.min() >= _YEAR_1_US:
            return times, nothing, nothing if has_zone else ~nothing
    parsed = [_parse(text) for text in group.to_pylist()]
    times = np.array([0 if item is None else item[0] for item in parsed], np.int64)
    bad = np.array([item is None for item in parsed], bool)
    naive = np.array([item is not None and not item[1] for item in parsed], bool)
    return times, bad, naive


def _hours_and_minutes(group: ArrowArray, length: int) -> bool:
    """Whether each text has a colon after its hour: Arrow also takes dates and bare hours, which are not accepted."""
    offsets = text_offsets(group)
    characters = text_bytes(group)[offsets[0] : offsets[-1]].reshape(len(group), length)
    return bool((characters[:, 13] == ord(":")).all())


def _parse(text: str) -> tuple[int, bool] | None:
    """(microseconds since the epoch as if in UTC where no offset is given, whether one is given)."""
    match = _TEXT(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, zulu, sign, offset_hours, offset_minutes = match.groups()
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    seconds = int(second or 0)
    offset = (int(offset_hours or 0), int(offset_minutes or 0))
    if int(hour) > 23 or int(minute) > 59 or seconds > 59 or offset[0] > 23 or offset[1] > 59:
        return None
    total = ((days * 24 + int(hour)) * 60 + int(minute)) * 60 + seconds
    if sign:
        total -= (offset[0] * 60 + offset[1]) * (60 if sign == "+" else -60)
    return total * MICROSECONDS + int((fraction or "").ljust(6, "0")[:6]), bool(zulu or sign)


def _to_utc(local_us: Times, naive_timezone: str) -> Times:
    """UTC of local times, by one look-up for each distinct minute."""
    resolution = MINUTE_US if local_us.min() >= _WHOLE_MINUTES_FROM_US else MICROSECONDS
    slots, inverse = np.unique(local_us // resolution, return_inverse=True)
    zone = _zone(naive_timezone)
    offsets = np.array([_offset_us(int(slot) * resolution, zone) for slot in slots.tolist()], np.int64)
    return local_us - offsets[inverse]


def _offset_us(local_us: int, zone: ZoneInfo) -> int:
    local = datetime(1970, 1, 1, tzinfo=UTC).replace(tzinfo=None) + timedelta(microseconds=local_us)
    offset = zone.utcoffset(local.replace(tzinfo=zone))
    return 0 if offset is None else offset // timedelta(microseconds=1)


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
