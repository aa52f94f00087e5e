"""Numbers and texts of a column whose elements may have any scalar type."""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sensorkeep.decode.arrow import ArrowArray, Column, text_bytes, text_offsets

_NUMBER = re.compile(r"\s*[+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII).fullmatch

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def number_of_text(text: str) -> float:
    """The number that `text` writes, with a decimal point or comma; NaN where it writes none or no finite one."""
    if _NUMBER(text) is None:
        return math.nan
    number = float(text.replace(",", "."))
    return number if math.isfinite(number) else math.nan


def numbers(column: Column) -> Numbers:
    """The elements that are finite numbers; NaN for all others."""
    if isinstance(column, list):
        return np.array([x if type(x) is float else math.nan for x in column], np.float64)
    if column.null_count == len(column) or not pa.types.is_floating(column.type):
        return np.full(len(column), math.nan)
    values: Numbers = column.to_numpy(zero_copy_only=False)
    return values


def numbers_or_texts(column: Column) -> Numbers:
    """The elements that are finite numbers, or text that writes one; NaN for all others."""
    if not isinstance(column, list):
        return numbers_of_texts(column) if pa.types.is_string(column.type) else numbers(column)
    try:
        return numbers_of_texts(pa.array(column, pa.string()))
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return np.array(
            [number_of_text(x) if type(x) is str else x if type(x) is float else math.nan for x in column], np.float64
        )


def numbers_of_texts(column: ArrowArray) -> Numbers:
    """`number_of_text` of each element; NaN for nulls.

    Text that starts with a letter is no number. The rest is cast at once, and only where that fails one by one.
    """
    if column.null_count == len(column):
        return np.full(len(column), math.nan)
    offsets, data = text_offsets(column), text_bytes(column)
    first = data[np.minimum(offsets[:-1], len(data) - 1)] | 0x20  # letters in lower case
    empty = offsets[1:] == offsets[:-1]
    words = ((first >= ord("a")) & (first <= ord("z"))) | empty
    candidates = pc.if_else(pa.array(words), pa.scalar(None, pa.string()), column) if words.any() else column
    if np.any(data[offsets[0] : offsets[-1]] == ord(",")):
        candidates = pc.replace_substring(candidates, ",", ".", max_replacements=1)
    try:
        result: Numbers = candidates.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if not np.isinf(result).any():
            return result
    except pa.ArrowInvalid:  # white space, a second comma, a word after a digit: settled below
        pass
    known: dict[str | None, float] = {None: math.nan}
    texts: list[str | None] = column.to_pylist()
    for text in set(texts):
        if text is not None:
            known[text] = number_of_text(text)
    return np.array([known[text] for text in texts], np.float64)


def texts(column: Column) -> tuple[ArrowArray, Flags | None]:
    """(the elements that are text, null for all others and for empty text; where an element is neither text nor None).

    The flags are None where there is no such element.
    """
    other: Flags | None = None
    if isinstance(column, list):
        other = np.array([x is not None and type(x) is not str for x in column], bool)
        array: ArrowArray = pa.array([x if type(x) is str else None for x in column], pa.string())
    else:
        array = column
    if array.null_count == len(array):
        return array, other
    offsets = text_offsets(array)
    empty = offsets[1:] == offsets[:-1]
    if int(empty.sum()) > array.null_count:
        array = pc.if_else(pa.array(empty), pa.scalar(None, pa.string()), array)
    return array, other


def limited(values: Numbers, low: float, high: float) -> Numbers:
    """`values` with NaN for those outside [low, high]."""
    with np.errstate(invalid="ignore"):
        outside = (values < low) | (values > high)
    if outside.any():
        values = values.copy()
        values[outside] = math.nan
    return values
