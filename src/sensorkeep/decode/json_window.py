"""A bounded window over a JSON text that arrives in pieces, and the ends of the values in it."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pyarrow as pa

from sensorkeep.errors import InvalidInput, LimitExceeded
from sensorkeep.limits import OBJECT_BUFFER_BYTES, OBJECT_PART_BYTES

_skip_value = msgspec.json.Decoder(msgspec.Raw).decode
_space_end = re.compile(rb"[ \t\n\r]*").match
_byte_offset = re.compile(r"\(byte (\d+)\)$").search
_SMALL_BYTES = 4096  # smaller pieces are put together: each by itself would take more memory than its bytes
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def malformed(what: str, position: int) -> InvalidInput:
    """The error for text that is not JSON; `position` is the byte offset in the inflated body."""
    return InvalidInput(
        f"the body is not valid JSON: {what} (byte {position})", code="not_json", extra={"position": position}
    )


class JsonWindow:
    """The part of the text that is not consumed yet: `data` from `pos` on. `base` is the offset of data[0].

    `data` is replaced, never changed, so that what was consumed can be kept by reference.
    """

    __slots__ = ("_checked", "_waiting", "_waiting_bytes", "_wanted", "base", "data", "final", "pos")

    def __init__(self) -> None:
        self.data = b""
        self.pos = 0
        self.base = 0
        self.final = False
        self._checked = 0  # data before this is known to be UTF-8
        self._waiting: list[bytes | bytearray] = []  # what follows `data`, while that is too little to look at
        self._waiting_bytes = 0
        self._wanted = OBJECT_PART_BYTES

    def append(self, piece: bytes) -> bool:
        """Add a piece; returns whether there is enough to look at. Raises InvalidInput where it is not UTF-8."""
        if len(piece) >= _SMALL_BYTES:
            self._waiting.append(piece)
        elif self._waiting and isinstance(self._waiting[-1], bytearray):
            self._waiting[-1] += piece
        else:
            self._waiting.append(bytearray(piece))
        self._waiting_bytes += len(piece)
        if self.available + self._waiting_bytes < self._wanted:
            return False
        self._join()
        return True

    def close(self) -> None:
        """No more pieces come. Raises InvalidInput where the text is not UTF-8."""
        self.final = True
        self._join()

    def _join(self) -> None:
        """Move what waits into `data`."""
        with memoryview(self.data) as whole, whole[self.pos :] as rest:
            self.data = b"".join((rest, *self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0
        self.base += self.pos
        self._checked -= self.pos
        self.pos = 0
        self._check_utf8()

    @property
    def available(self) -> int:
        """Bytes not consumed."""
        return len(self.data) - self.pos

    def want_more(self) -> bool:
        """Wait for more data, for at least as much again, so that looking again costs linear time in all.

        Returns False, "no progress". Raises InvalidInput at the end of the text, LimitExceeded where a single value
        fills the window.
        """
        if self.final:
            raise malformed("it ends too early", self.base + len(self.data))
        if self.available > OBJECT_BUFFER_BYTES:
            raise self.too_long()
        self._wanted = min(2 * self.available, OBJECT_BUFFER_BYTES) + OBJECT_PART_BYTES
        return False

    def relax(self) -> None:
        """Progress was made: look again at the next piece."""
        self._wanted = OBJECT_PART_BYTES

    def too_long(self) -> LimitExceeded:
        """The error for a single value that is over the bound."""
        return LimitExceeded(
            f"a single field or reading is longer than {OBJECT_BUFFER_BYTES} bytes (byte {self.base + self.pos})"
        )

    def skip_mark(self) -> None:
        """Step over a byte order mark at the very start."""
        if self.data.startswith(_BYTE_ORDER_MARK):
            self.pos = len(_BYTE_ORDER_MARK)

    def peek(self) -> int:
        """Step over white space and return the next byte; -1 where there is none."""
        match = _space_end(self.data, self.pos)
        self.pos = match.end() if match else self.pos
        return self.data[self.pos] if self.pos < len(self.data) else -1

    def space_end(self, start: int) -> int:
        """Index of the first byte at or after `start` that is not white space."""
        match = _space_end(self.data, start)
        return match.end() if match else start

    def value_end(self, start: int | None = None) -> int | None:
        """Index of what follows the JSON value that begins at `start` (default: the position) and white space.

        None: the window ends before something follows it. Raises InvalidInput where the value is malformed.
        The decoder reads one value, and its complaint about what follows tells where the value ends.
        """
        begin = self.pos if start is None else start
        with memoryview(self.data) as whole, whole[begin:] as rest:
            size = len(rest)
            try:
                _skip_value(rest)
            except msgspec.DecodeError as error:
                message = str(error)
            except RecursionError:
                raise malformed("it is nested too deeply", self.base + begin) from None
            else:
                return None
        found = _byte_offset(message)
        offset = int(found.group(1)) if found else size
        if "trailing characters" in message:
            return begin + offset - 1
        if offset >= size:
            return None
        raise malformed(_complaint(message), self.base + begin + offset)

    def _check_utf8(self) -> None:
        """Check what is new. A sequence that the end cuts is looked at again with the next piece."""
        data = self.data
        end = len(data) if self.final else len(data) - _unfinished(data[-4:])
        if end <= self._checked:
            return
        with memoryview(data) as whole, whole[self._checked : end] as fresh:
            offsets = np.array([0, len(fresh)], np.int32).tobytes()
            column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(fresh)])
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                position = _first_invalid(bytes(fresh))
            else:
                position = -1
            del column
        if position >= 0:
            raise malformed("it is not UTF-8", self.base + self._checked + position)
        self._checked = end


def _complaint(message: str) -> str:
    return message.removeprefix("JSON is malformed: ").rsplit(" (byte", 1)[0]


def _unfinished(tail: bytes | bytearray) -> int:
    """Length of the UTF-8 sequence that the end of `tail` cuts; 0 where it cuts none."""
    for back in range(1, len(tail) + 1):
        byte = tail[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < needed else 0
        if byte < 0x80:
            return 0
    return 0


def _first_invalid(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return -1
