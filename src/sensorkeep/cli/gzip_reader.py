"""Inflates gzip files and keeps what can be read of damaged ones."""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO

from sensorkeep.limits import SOURCE_READ_BYTES

_GZIP_WINDOW_BITS = 31
"""zlib's way to say: with a gzip header and trailer."""


class GzipReader(io.RawIOBase):
    """Inflates a gzip file of any number of members.

    A file that is cut off or damaged ends where it can be read no further, and `problem` says so: unlike gzip.GzipFile,
    which raises and takes with it what it had inflated just before.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.problem: str | None = None
        self._raw = raw
        self._start()

    def _start(self) -> None:
        self._raw.seek(0)
        self._inflater = zlib.decompressobj(_GZIP_WINDOW_BITS)
        self._within_member = False
        self._pending = b""
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read up to `offset` from the start, the only place it can be told from."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        if offset < self._position:
            self._start()
        while self._position < offset and self.read(min(offset - self._position, SOURCE_READ_BYTES)):
            pass
        return self._position

    def readinto(self, target: Any) -> int:
        while self.problem is None:
            if not self._pending:
                self._pending = self._raw.read(SOURCE_READ_BYTES)
            if not self._pending and not self._within_member:
                return 0
            data = self._inflate(len(target))
            if data:
                target[: len(data)] = data
                self._position += len(data)
                return len(data)
        return 0

    def _inflate(self, length: int) -> bytes:
        ended = not self._pending
        try:
            data = self._inflater.decompress(self._pending, length)
        except zlib.error as error:
            self.problem = f"the compressed file is corrupt here: {error}"
            return b""
        if self._inflater.eof:
            # Zeros may follow a member, as padding of a tape or a disk block.
            self._pending = self._inflater.unused_data.lstrip(b"\0")
            self._inflater = zlib.decompressobj(_GZIP_WINDOW_BITS)
            self._within_member = False
        else:
            self._pending = self._inflater.unconsumed_tail
            self._within_member = True
            if ended and not data:
                self.problem = "the compressed file is cut off here"
        return data


def problem_of(stream: BinaryIO) -> str | None:
    """Why the stream ended before its end, where it did."""
    raw = getattr(stream, "raw", None)
    return raw.problem if isinstance(raw, GzipReader) else None
