"""Claims as messages and back."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from sensorkeep.model import Claim
from sensorkeep.queue.kafka.assignment import Held

_MANY_SENDERS = b"gathered"
"""The key of claims that hold requests of several credentials."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Claim).decode


class Record(NamedTuple):
    """A message to publish. Those of one key stay in order."""

    key: bytes
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


def record_of(claim: Claim) -> Record:
    """The message of a claim: msgpack of it, keyed by its source."""
    return Record(claim.credential.encode() or _MANY_SENDERS, _encode(claim), [])


def read_message(message: Message) -> Held:
    """A message as it came, decoded where it can be."""
    content = message.value() or b""
    kind, time_ms = message.timestamp()
    claim: Claim | None
    try:
        claim = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        claim = None
    return Held(
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        claim=claim,
        content=content,
        time_us=0 if kind == TIMESTAMP_NOT_AVAILABLE else time_ms * 1000,
    )
