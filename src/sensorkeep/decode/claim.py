"""The readings that a claim stands for, decoded again from its payload."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from itertools import chain

from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.gathered import decode_gathered
from sensorkeep.decode.inflate import make_inflater
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.readings import decode_readings
from sensorkeep.errors import InvalidInput, Poisoned
from sensorkeep.model import Claim, DecodedBatch, WireFormat

_GZIP_MAGIC = b"\x1f\x8b"


def decode_claim(claim: Claim, chunks: Iterable[bytes], only: Set[tuple[int, int]] | None = None) -> DecodedBatch:
    """Decode `chunks`, the payload of `claim`, as it was decoded when it was accepted.

    Stored payloads are gzip, inline ones are as their format says; no format begins like gzip, so the bytes tell.
    `only` keeps just the readings, usable or not, at these (equipment, sensor) positions.
    Raises Poisoned where the payload cannot be used; errors of the iteration pass through.
    """
    options = DecodeOptions.from_claim(claim)
    try:
        content = _inflated(chunks, options)
        if claim.wire_format is WireFormat.ESM_BULK:
            decoder = EsmBulkDecoder(options, only)
            for piece in content:
                decoder.feed(piece)
            return decoder.finish()
        body = b"".join(content)
        if claim.wire_format is WireFormat.READINGS:
            return decode_readings(body, options, only)
        return decode_gathered(body, options, only)
    except InvalidInput as error:
        raise Poisoned(f"the payload of batch {claim.batch_id} cannot be used: {error.detail}") from error


def _inflated(chunks: Iterable[bytes], options: DecodeOptions) -> Iterator[bytes]:
    pieces = iter(chunks)
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= len(_GZIP_MAGIC):
            break
    inflater = make_inflater("gzip" if start.startswith(_GZIP_MAGIC) else "identity", options)
    for piece in chain((start,), pieces):
        yield from inflater.feed(piece)
    yield from inflater.finish()
