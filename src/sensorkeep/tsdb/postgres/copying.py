"""Results as columns of numpy, by a binary COPY: rows of a fixed width need no object for each value.

The format: https://www.postgresql.org/docs/current/sql-copy.html, section Binary Format. Every column must be of a type
in TYPES and without nulls (a missing number is asked for as NaN).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

import numpy as np
from numpy.typing import NDArray

from sensorkeep.tsdb.postgres.engine import Session

TYPES = {"int32": ">i4", "int64": ">i8", "float64": ">f8", "bool": ">u1", "time": ">i8"}
"""How each kind of column stands in a row; `time`: microseconds since the epoch of PostgreSQL."""

_HEADER_BYTES = 19
_TRAILER_BYTES = 2
_EPOCH_2000_US = 946_684_800_000_000

Columns = dict[str, NDArray[Any]]


def fetch(session: Session, query: LiteralString, parameters: Mapping[str, Any], kinds: Mapping[str, str]) -> Columns:
    """The rows of `query`, whose columns are named and of the kinds of `kinds`, as arrays of native byte order."""
    with session.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)", parameters) as copy:
        data = b"".join(copy)
    fields: list[tuple[str, str]] = [("fields", ">i2")]
    for name, kind in kinds.items():
        fields += [(f"{name} length", ">i4"), (name, TYPES[kind])]
    rows = np.frombuffer(data, np.dtype(fields), offset=_HEADER_BYTES, count=_rows(data, np.dtype(fields)))
    columns: Columns = {}
    for name, kind in kinds.items():
        column = rows[name].astype(TYPES[kind][1:])
        columns[name] = column + _EPOCH_2000_US if kind == "time" else column
    return columns


def _rows(data: bytes, row: np.dtype[Any]) -> int:
    count, rest = divmod(len(data) - _HEADER_BYTES - _TRAILER_BYTES, row.itemsize)
    assert rest == 0, "a column was null, or of another type than was asked for"
    return count
