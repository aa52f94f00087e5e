"""Incremental decompression with bounded memory: identity, gzip (RFC 1952) and zstd (RFC 8878).

Whatever is fed, no piece that comes out is longer than INFLATE_OUTPUT_BYTES, and the limits are checked before the
next piece is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

import zstandard
from isal import igzip_lib, isal_zlib

from sensorkeep.decode.options import DecodeOptions
from sensorkeep.errors import InvalidInput, LimitExceeded
from sensorkeep.limits import (
    GZIP_MEMBER_SLICE_BYTES,
    GZIP_MEMBERS_MAX,
    INFLATE_OUTPUT_BYTES,
    INFLATE_RATIO_FREE_BYTES,
    INFLATE_SLICE_BYTES,
    ZSTD_SLICE_BYTES,
    ZSTD_WINDOW_BYTES_MAX,
)

_IsalError = cast("type[Exception]", igzip_lib.IsalError)  # its stub calls the class an instance
_SETTING = "SENSORKEEP_MAX_INFLATED_BYTES"
_GZIP_WBITS = 31  # zlib's name for "gzip header and trailer expected"


class Inflater(Protocol):
    """Turns a compressed stream into its content, piece by piece."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The content that `data` yields, in pieces of at most INFLATE_OUTPUT_BYTES; consume all before feeding on.

        Raises InvalidInput (`bad_encoding`) where the stream is corrupt, LimitExceeded where it inflates too much.
        """
        ...

    def finish(self) -> Iterator[bytes]:
        """The rest of the content. Raises InvalidInput (`bad_encoding`) where the stream is truncated."""
        ...


def make_inflater(encoding: str, options: DecodeOptions, advice: str = _SETTING) -> Inflater:
    """An inflater for a Content-Encoding ("", identity, gzip, x-gzip, zstd; case does not matter). `advice` says what
    to do about a body that is too large.

    Raises InvalidInput (`unsupported_media_type`) for any other.
    """
    name = encoding.strip().lower()
    meter = _Meter(options, advice)
    if name in ("", "identity"):
        return _Identity(meter)
    if name in ("gzip", "x-gzip"):
        return _Gzip(meter)
    if name == "zstd":
        return _Zstd(meter)
    raise InvalidInput(
        f"content encoding {encoding[:40]!r} is not supported: send none, gzip or zstd", code="unsupported_media_type"
    )


def inflate_whole(data: bytes, encoding: str, max_inflated_bytes: int, advice: str = _SETTING) -> bytes:
    """All of a small body at once: its size is bounded, and so its ratio is not. Raises as `make_inflater` and Inflater
    do."""
    options = DecodeOptions(received_us=0, max_inflated_bytes=max_inflated_bytes, max_inflate_ratio=max_inflated_bytes)
    inflater = make_inflater(encoding, options, advice)
    return b"".join([*inflater.feed(data), *inflater.finish()])


class _Meter:
    """Counts both sides and holds the limits."""

    def __init__(self, options: DecodeOptions, advice: str) -> None:
        self._options = options
        self._advice = advice
        self.wire_bytes = 0
        self._inflated_bytes = 0

    def inflated(self, size: int) -> None:
        """Count `size` bytes of content."""
        self._inflated_bytes += size
        options = self._options
        if self._inflated_bytes > options.max_inflated_bytes:
            raise LimitExceeded(f"the body inflates to more than {options.max_inflated_bytes} bytes ({self._advice})")
        if (
            self._inflated_bytes > INFLATE_RATIO_FREE_BYTES
            and self._inflated_bytes > self.wire_bytes * options.max_inflate_ratio
        ):
            raise LimitExceeded(
                f"the body inflates to more than {options.max_inflate_ratio} times its size "
                "(SENSORKEEP_MAX_INFLATE_RATIO)"
            )


class _Identity:
    def __init__(self, meter: _Meter) -> None:
        self._meter = meter

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._meter.wire_bytes += len(data)
        self._meter.inflated(len(data))
        if len(data) <= INFLATE_OUTPUT_BYTES:
            if data:
                yield data
            return
        for start in range(0, len(data), INFLATE_OUTPUT_BYTES):
            yield data[start : start + INFLATE_OUTPUT_BYTES]

    def finish(self) -> Iterator[bytes]:
        return iter(())


class _Gzip:
    """gzip, also of several members one after the other (RFC 1952 section 2.2); zero padding may follow."""

    def __init__(self, meter: _Meter) -> None:
        self._meter = meter
        self._member = isal_zlib.decompressobj(_GZIP_WBITS)
        self._started = False  # whether the present member has had a byte
        self._members = 0
        self._padding = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        view = memoryview(data)
        start = 0
        while start < len(view):
            # Many tiny members: what is left of a slice is copied at each member's end, so the slices shrink.
            size = INFLATE_SLICE_BYTES if self._members < 2 else GZIP_MEMBER_SLICE_BYTES
            piece = view[start : start + size]
            start += size
            self._meter.wire_bytes += len(piece)
            yield from self._slice(piece)

    def finish(self) -> Iterator[bytes]:
        if self._started or not self._members:
            raise InvalidInput("the gzip body is truncated", code="bad_encoding")
        return iter(())

    def _slice(self, data: bytes | memoryview) -> Iterator[bytes]:
        while True:
            if not self._started:
                data = self._between_members(data)
                if not len(data):
                    return
                self._started = True
            output = self._decompress(data)
            if output:
                self._meter.inflated(len(output))
                yield output
            if self._member.eof:
                data = self._member.unused_data
                self._next_member()
                continue
            data = self._member.unconsumed_tail
            if not data and len(output) < INFLATE_OUTPUT_BYTES:  # a full piece may mean that more is held back
                return

    def _next_member(self) -> None:
        self._members += 1
        if self._members > GZIP_MEMBERS_MAX:
            raise LimitExceeded(f"the gzip body has more than {GZIP_MEMBERS_MAX} members")
        self._member = isal_zlib.decompressobj(_GZIP_WBITS)
        self._started = False

    def _between_members(self, data: bytes | memoryview) -> bytes | memoryview:
        """What is left of `data` once the zero padding after a member is skipped."""
        if not self._members or not len(data) or (data[0] and not self._padding):
            return data
        if bytes(data).strip(b"\0"):
            raise InvalidInput("the gzip body has bytes after its end", code="bad_encoding")
        self._padding = True
        return b""

    def _decompress(self, data: bytes | memoryview) -> bytes:
        try:
            output: bytes = self._member.decompress(data, INFLATE_OUTPUT_BYTES)
        except _IsalError as error:
            what = "is corrupt, or has bytes after its end" if self._members else "is corrupt"
            raise InvalidInput(f"the gzip body {what}: {error}", code="bad_encoding") from error
        return output


class _Zstd:
    """zstd frames. The library's incremental form has no bound on its output, so the input slices are tiny."""

    def __init__(self, meter: _Meter) -> None:
        self._meter = meter
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        self._frame = self._decompressor.decompressobj()
        self._started = False
        self._frames = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), ZSTD_SLICE_BYTES):
            yield from self._slice(data[start : start + ZSTD_SLICE_BYTES])

    def finish(self) -> Iterator[bytes]:
        if self._started or not self._frames:
            raise InvalidInput("the zstd body is truncated", code="bad_encoding")
        return iter(())

    def _slice(self, data: bytes) -> Iterator[bytes]:
        self._meter.wire_bytes += len(data)
        while data:
            try:
                output = self._frame.decompress(data)
            except zstandard.ZstdError as error:
                raise InvalidInput(f"the zstd body is corrupt: {error}", code="bad_encoding") from error
            self._started = True
            self._meter.inflated(len(output))
            for start in range(0, len(output), INFLATE_OUTPUT_BYTES):
                yield output[start : start + INFLATE_OUTPUT_BYTES]
            if not self._frame.eof:
                return
            data = self._frame.unused_data
            self._frame = self._decompressor.decompressobj()
            self._started = False
            self._frames += 1
