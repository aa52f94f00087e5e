"""Pure: unmasked WebSocket text frames (RFC 6455 section 5.2), encoded once and shared by every client."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_FINAL_TEXT = 0x81
"""FIN and opcode 1: a whole message in one frame. No reserved bit: never compressed."""
_LENGTH_IN_BYTE_MAX = 125
_LENGTH_16_BITS = 126
_LENGTH_64_BITS = 127


def text_frame(payload: bytes) -> bytes:
    """One unfragmented text message as a server sends it. `payload` is UTF-8."""
    length = len(payload)
    if length <= _LENGTH_IN_BYTE_MAX:
        return bytes((_FINAL_TEXT, length)) + payload
    if length < 1 << 16:
        return struct.pack("!BBH", _FINAL_TEXT, _LENGTH_16_BITS, length) + payload
    return struct.pack("!BBQ", _FINAL_TEXT, _LENGTH_64_BITS, length) + payload


def payloads(frames: bytes) -> Iterator[bytes]:
    """The payloads of concatenated frames made by `text_frame`."""
    position = 0
    while position < len(frames):
        length = frames[position + 1]
        position += 2
        if length == _LENGTH_16_BITS:
            (length,) = struct.unpack_from("!H", frames, position)
            position += 2
        elif length == _LENGTH_64_BITS:
            (length,) = struct.unpack_from("!Q", frames, position)
            position += 8
        yield frames[position : position + length]
        position += length
