"""Rows to and from the database as whole columns.

A driver that makes an object of each value costs more than the query. So results come as one row: the binary values of
each column joined to one byte string, which numpy reads in place; and rows go in by a binary COPY of Arrow's columns.
Per 100,000 raw readings that took 3 ms of this process, rows of the driver 126, a binary COPY TO (a message a row) 176.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pgpq import ArrowToPostgresBinaryEncoder

from sensorkeep import rollup
from sensorkeep.tsdb.postgres.engine import Session
from sensorkeep.tsdb.postgres.times import EPOCH_2000_US

Columns = dict[str, Any]
"""An array of numpy for each column, a list for texts. Doubles that are null are NaN, small integers NO_INTEGER."""

NO_INTEGER = -(2**31)
_POINTS = len(rollup.DAY_PROBABILITIES)

# How each kind of column is sent, and how it is read: its bytes are those of the types' binary send functions, see
# https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-FORMAT-CODES.
_SENT: dict[str, tuple[LiteralString, Any]] = {
    "int32": ("int4send({})", ">i4"),
    "int64": ("int8send({})", ">i8"),
    "int16": ("int4send(coalesce({}::INTEGER, -2147483648))", ">i4"),
    "float64": ("float8send(coalesce({}, 'NaN'))", ">f8"),
    "float32": ("float4send(coalesce({}, 'NaN'))", ">f4"),
    "bool": ("boolsend({})", "?"),
    "time": ("timestamptz_send({})", ">i8"),
    "grid": (
        "array_send(coalesce({}, array_fill('NaN'::REAL, ARRAY[" + str(_POINTS) + "])))",
        np.dtype([("header", "V20"), ("points", [("length", ">i4"), ("value", ">f4")], (_POINTS,))]),
    ),
}  # fmt: skip

_COPIED_ROWS = 50_000
"""Rows encoded at once for a COPY: some 5 MB."""


def fetch(session: Session, query: str, parameters: Mapping[str, Any], kinds: Mapping[str, str]) -> Columns:
    """The result of `query`, whose columns are of `kinds`, in that order; `kinds` gives them names.

    A kind is one of _SENT or `text`. Times are microseconds since 1970.
    """
    names = [f"c{number}" for number in range(len(kinds))]
    sent = ", ".join(_joined(name, kind) for name, kind in zip(names, kinds.values(), strict=True))
    listed = ", ".join(names)
    whole: LiteralString = f"SELECT count(*), {sent} FROM ({query}) AS rows ({listed})"  # noqa: S608 - ours
    ((count, *values),) = session.execute(whole, parameters, binary=True).fetchall()
    return {name: _read(kind, count, value) for (name, kind), value in zip(kinds.items(), values, strict=True)}


def _joined(name: str, kind: str) -> str:
    if kind == "text":
        return f"CASE WHEN count({name}) > 0 THEN array_agg({name}) END"
    return f"string_agg({_SENT[kind][0].format(name)}, '')"


def _read(kind: str, count: int, value: Any) -> Any:
    if kind == "text":
        return value or [None] * count
    stored = np.frombuffer(value or b"", _SENT[kind][1])
    if kind == "grid":
        return stored["points"]["value"].astype(np.float32).reshape(count, _POINTS)
    native: NDArray[Any] = stored.astype(stored.dtype.newbyteorder("="))
    return native + EPOCH_2000_US if kind == "time" else native


def nullable(column: NDArray[Any], kind: pa.DataType) -> Any:
    """A column as Arrow, null where it is NaN or NO_INTEGER."""
    missing = np.isnan(column) if column.dtype.kind == "f" else column == NO_INTEGER
    return pa.array(column, mask=missing).cast(kind)


def times(column: NDArray[np.int64]) -> Any:
    """Microseconds as Arrow's times."""
    return pa.array(column.astype(np.int64)).cast(pa.timestamp("us", tz="UTC"))


def as_table(found: Columns, schema: pa.Schema) -> pa.Table:
    """Fetched buckets as Arrow: null where there is no number, no grid where there is no value."""
    arrays = []
    for field in schema:
        column = found[field.name]
        if field.name == "grid":
            filled = (found["count"] > 0).tolist()
            grids = [grid if has else None for grid, has in zip(column, filled, strict=True)]
            arrays.append(pa.array(grids, field.type))
        elif field.name == "time":
            arrays.append(times(column))
        elif pa.types.is_floating(field.type):
            arrays.append(nullable(column, field.type))
        else:
            arrays.append(pa.array(column, field.type))
    return pa.table(arrays, schema=schema)


def copy_in(session: Session, table: LiteralString, rows: pa.Table) -> None:
    """Copy Arrow's rows into a table of the same columns."""
    encoder = ArrowToPostgresBinaryEncoder(rows.schema)
    with session.cursor().copy(
        f"COPY {table} ({', '.join(rows.column_names)}) FROM STDIN WITH (FORMAT BINARY)"
    ) as copy:
        copy.write(encoder.write_header())
        for batch in rows.to_batches(max_chunksize=_COPIED_ROWS):
            copy.write(encoder.write_batch(batch))
        copy.write(encoder.finish())


def ordered(columns: Columns, order: NDArray[np.int64]) -> Columns:
    """The rows in another order."""
    return {
        name: [column[i] for i in order.tolist()] if isinstance(column, list) else column[order]
        for name, column in columns.items()
    }


def joined(parts: list[Columns]) -> Columns:
    """The rows of all parts, of which there is at least one."""
    return {
        name: [text for part in parts for text in part[name]]
        if isinstance(column, list)
        else np.concatenate([part[name] for part in parts])
        for name, column in parts[0].items()
    }
