"""Finds where JSON values end, so that a file of them can be read one value at a time."""

from __future__ import annotations

import re

_FLAT_OBJECT = re.compile(rb'\{[^{}\[\]"]*(?:"[^"\\]*"[^{}\[\]"]*)*\}')
"""A whole object without nesting or escapes: the common row, found in one call."""
_STRUCTURE = re.compile(rb'["{}\[\]]')
_STRING_STOP = re.compile(rb'["\\]')
_SCALAR_STOP = re.compile(rb"[,\]\s]")


class ValueEnd:
    """Finds the end of the JSON value at a place of a growing buffer, without reading any byte twice."""

    def __init__(self) -> None:
        self._read = 0
        self._depth = 0
        self._in_string = False

    def find(self, buffer: bytes, start: int) -> int | None:
        """The length of the value that begins at `start`; None where more bytes are needed."""
        if self._read == 0 and (flat := _FLAT_OBJECT.match(buffer, start)):
            return flat.end() - start
        if buffer[start : start + 1] not in (b"{", b"[", b'"'):
            scalar = _SCALAR_STOP.search(buffer, start + 1)
            return scalar.start() - start if scalar else None
        while True:
            found = (_STRING_STOP if self._in_string else _STRUCTURE).search(buffer, start + self._read)
            if found is None:
                self._read = len(buffer) - start
                return None
            token = found.group()
            self._read = found.end() - start
            if token == b"\\":
                if found.end() == len(buffer):
                    self._read -= 1
                    return None
                self._read += 1
            elif token == b'"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if token in b"{[" else -1
            if self._depth <= 0 and not self._in_string:
                return self._read
