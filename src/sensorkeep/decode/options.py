"""How a body is decoded: its time of receipt, the time rules and the limits; and the time range of a result."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from sensorkeep import limits
from sensorkeep.clock import MICROSECONDS
from sensorkeep.limits import TIME_OLDEST_US
from sensorkeep.model import Claim, DecodedBatch

_UNLIMITED = sys.maxsize


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """All that decides a decode beside the bytes. Times are microseconds since the epoch, sizes are bytes."""

    received_us: int
    """Time of receipt: the time of a reading that carries none."""
    naive_timezone: str = "UTC"
    """IANA name of the zone of timestamps that carry none."""
    oldest_allowed_us: int | None = None
    """Readings before this are too_old; None allows all."""
    newest_allowed_us: int | None = None
    """Readings after this are in_future; None: received_us + FUTURE_TOLERANCE_SECONDS."""
    max_wire_bytes: int = limits.BODY_WIRE_BYTES_MAX
    max_inflated_bytes: int = limits.BODY_INFLATED_BYTES_MAX
    max_inflate_ratio: int = limits.INFLATE_RATIO_MAX
    max_objects: int = limits.EQUIPMENT_OBJECTS_MAX
    max_readings: int = limits.READINGS_PER_REQUEST_MAX

    @property
    def earliest_us(self) -> int:
        """The first moment that is not too_old."""
        return TIME_OLDEST_US if self.oldest_allowed_us is None else max(self.oldest_allowed_us, TIME_OLDEST_US)

    @property
    def latest_us(self) -> int:
        """The last moment that is not in_future."""
        if self.newest_allowed_us is not None:
            return self.newest_allowed_us
        return self.received_us + limits.FUTURE_TOLERANCE_SECONDS * MICROSECONDS

    @classmethod
    def from_claim(cls, claim: Claim) -> DecodeOptions:
        """The options a claim was accepted with.

        No size limit: it was held at the door, under the settings of that day, and on the bytes as sent; the stored
        ones are compressed anew and may have any ratio.
        """
        return cls(
            received_us=claim.received_us,
            naive_timezone=claim.naive_timezone,
            oldest_allowed_us=claim.oldest_allowed_us,
            newest_allowed_us=claim.newest_allowed_us,
            max_wire_bytes=_UNLIMITED,
            max_inflated_bytes=_UNLIMITED,
            max_inflate_ratio=_UNLIMITED,
            max_objects=_UNLIMITED,
            max_readings=_UNLIMITED,
        )


def time_range(batch: DecodedBatch) -> tuple[int, int] | None:
    """Earliest and latest time of the usable readings (microseconds since the epoch); None where there is none."""
    if not batch.readings.num_rows:
        return None
    ends = pc.min_max(batch.readings["time"])
    return ends["min"].cast(pa.int64()).as_py(), ends["max"].cast(pa.int64()).as_py()
