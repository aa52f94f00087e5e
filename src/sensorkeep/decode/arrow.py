"""The parts of Arrow arrays that decoding looks into."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

ArrowArray: TypeAlias = Any
"""pa.Array of the type that the name or the docstring tells; the library's generic types cannot follow the casts."""

Column: TypeAlias = Any
"""The values of a column: an ArrowArray of strings or of float64, or a list of any scalars."""


def text_offsets(column: ArrowArray) -> npt.NDArray[np.int32]:
    """The n + 1 offsets into `text_bytes` of a string array that is not a slice."""
    return np.frombuffer(column.buffers()[1], np.int32, len(column) + 1) if len(column) else np.zeros(1, np.int32)


def text_bytes(column: ArrowArray) -> npt.NDArray[np.uint8]:
    """All text of a string array, UTF-8; one byte where there is none."""
    data = column.buffers()[2]
    return np.frombuffer(data if data is not None and data.size else b"\0", np.uint8)
