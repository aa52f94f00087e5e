"""Times as the driver and partitions take them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

_FIRST_US, _LAST_US = -62_000_000_000_000_000, 253_000_000_000_000_000  # years 5 and 9987


def moment(time_us: int) -> datetime:
    """Microseconds as a time of the driver, within what a date can say."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=min(max(time_us, _FIRST_US), _LAST_US))


def partition_of(day: int) -> str:
    """Name of the partition of a day (whole UTC days since 1970-01-01)."""
    return "readings_" + _date(day).replace("-", "")


def bound_of(day: int) -> str:
    """The start of the day, for a partition's bounds, which cannot be bound as a parameter."""
    return f"{_date(day)} 00:00:00+00"


def _date(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()
