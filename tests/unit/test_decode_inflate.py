"""Decompression: what is accepted, what is refused, and that a bomb costs no memory."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard

from sensorkeep.decode.inflate import inflate_whole, make_inflater
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.errors import InvalidInput, LimitExceeded
from sensorkeep.limits import INFLATE_OUTPUT_BYTES, MIB

OPTIONS = DecodeOptions(received_us=0)
TEXT = b"".join(b'{"n":%d}' % i for i in range(100_000))
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "zstd": zstandard.compress,
    "identity": bytes,
    "": bytes,
}


@pytest.mark.parametrize("encoding", COMPRESS)
def test_the_content_comes_out_in_bounded_pieces(encoding: str) -> None:
    inflater = make_inflater(encoding, OPTIONS)
    pieces = [*inflater.feed(COMPRESS[encoding](TEXT * 3)), *inflater.finish()]
    assert b"".join(pieces) == TEXT * 3
    assert max(map(len, pieces)) <= INFLATE_OUTPUT_BYTES


def test_gzip_of_several_members_and_zero_padding_is_accepted() -> None:
    assert inflate_whole(gzip.compress(b"a") + gzip.compress(b"b") + b"\0" * 100, "gzip", 100) == b"ab"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "trailing", "flipped", "foreign"])
def test_a_damaged_body_is_refused(encoding: str, damage: str) -> None:
    good = gzip.compress(TEXT) if encoding == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    middle = len(good) // 2
    wire = {
        "truncated": good[:-3],
        "empty": b"",
        "trailing": good + b"trailing bytes, more of them than a header has",
        "flipped": good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :],
        "foreign": zlib.compress(TEXT),
    }[damage]
    with pytest.raises(InvalidInput) as caught:
        inflate_whole(wire, encoding, 10 * MIB)
    assert caught.value.code == "bad_encoding"


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        make_inflater("br", OPTIONS)
    assert caught.value.code == "unsupported_media_type"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_refused_by_its_ratio_before_it_fills_memory(encoding: str) -> None:
    bomb = COMPRESS[encoding](bytes(200 * MIB))
    tracemalloc.start()
    try:
        inflater = make_inflater(encoding, OPTIONS)
        with pytest.raises(LimitExceeded, match="SENSORKEEP_MAX_INFLATE_RATIO"):
            for _ in inflater.feed(bomb):
                pass
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity"])
def test_the_size_limit_names_its_setting(encoding: str) -> None:
    options = DecodeOptions(received_us=0, max_inflated_bytes=1000)
    with pytest.raises(LimitExceeded, match="SENSORKEEP_MAX_INFLATED_BYTES"):
        list(make_inflater(encoding, options).feed(COMPRESS[encoding](TEXT)))


def test_a_small_repetitive_body_may_have_any_ratio() -> None:
    assert len(inflate_whole(gzip.compress(bytes(MIB)), "gzip", 2 * MIB)) == MIB


def test_a_flood_of_tiny_members_ends_soon() -> None:
    start = time.process_time()
    with pytest.raises(LimitExceeded, match="members"):
        inflate_whole(gzip.compress(b"", mtime=0) * 100_000, "gzip", MIB)
    assert time.process_time() - start < 5
