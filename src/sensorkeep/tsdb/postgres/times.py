"""Times as PostgreSQL has them: microseconds since 2000, from the year 4713 BC on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

from sensorkeep.clock import DAY_US

EPOCH_2000_US = 946_684_800_000_000
_FIRST_US, _LAST_US = -62_135_596_800_000_000, 9_000_000_000_000_000_000
"""Years 1 and 287169: no reading is beyond, and PostgreSQL's times reach further."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A time as a parameter, in microseconds since 1970: any that a timestamp of PostgreSQL can hold."""

    time_us: int


def moment(time_us: int) -> Moment:
    """The time as a parameter; one that no reading can have becomes the nearest that PostgreSQL knows."""
    return Moment(min(max(time_us, _FIRST_US), _LAST_US))


def day_number(time_us: int) -> int:
    """Number of the UTC day since 1970-01-01, as the type INTEGER holds it."""
    return min(max(time_us // DAY_US, -(2**31)), 2**31 - 1)


class _MomentDumper(Dumper):
    """https://www.postgresql.org/docs/current/datatype-datetime.html: eight bytes, microseconds since 2000."""

    format = Format.BINARY
    oid = 1184  # timestamptz

    def dump(self, obj: Moment) -> bytes:
        return (obj.time_us - EPOCH_2000_US).to_bytes(8, "big", signed=True)


def register(connection: Connection[Any]) -> None:
    """Let the connection take Moments."""
    connection.adapters.register_dumper(Moment, _MomentDumper)
