"""Damaged copies of good bodies on their whole way through decompression and decoding: our errors or a right answer,
in bounded memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import zstandard
from hypothesis import HealthCheck
from hypothesis import strategies as st

from sensorkeep.clock import MICROSECONDS
from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.gathered import TEMPERATURE, Entry, decode_gathered, encode_gathered
from sensorkeep.decode.inflate import inflate_whole, make_inflater
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.readings import decode_readings, parse_reading
from sensorkeep.decode.temperature import parse_temperature
from sensorkeep.errors import SensorkeepError
from sensorkeep.limits import INFLATE_OUTPUT_BYTES, MIB
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch

OPTIONS = DecodeOptions(received_us=1_767_225_600 * MICROSECONDS, max_inflated_bytes=4 * MIB)
EXAMPLES = 60

Damage = tuple[str, float, int, bytes]

DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "repeat", "cut", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def damaged(body: bytes, damages: list[Damage]) -> bytes:
    """The body after what may happen to one on its way, or in a bad client."""
    for kind, where, length, content in damages:
        at = int(where * len(body))
        start, part, rest = body[:at], body[at : at + length], body[at + length :]
        body = {
            "set": start + content + body[at + len(content) :],
            "insert": start + content + body[at:],
            "delete": start + rest,
            "repeat": start + part * 3 + rest,
            "cut": start if at else body,
            "swap": rest + part + start,
        }[kind]
    return body


def bulk() -> bytes:
    """A body as the Home Assistant client sends it, of a few hundred readings."""
    readings: list[dict[str, Any]] = [
        {
            "sensor_uuid": f"660e8400-e29b-41d4-a716-4466554400{i % 10:02}",
            "sensor_nome": "Temperatura do freezer nº 1 \u2603",
            "sensor_tipo": "temperatura",
            "sensor_unidade": "°C",
            "sensor_telemetria": f"{i / 7:.3f}" if i % 5 else "unavailable",
            "sensor_datahora_coleta": f"2025-12-31T{i % 24:02}:{i % 60:02}:00.{i:06}",
            "sensor_bateria_pct": i % 100,
            "sensor_sinal_rssi": None,
            "unknown": {"deep": [[[i]]]},
        }
        for i in range(240)
    ]
    return json.dumps([{"equip_uuid": f"e{n}", "equip_nome": "x", "sensor": readings[n::4]} for n in range(4)]).encode()


def gzip_of_members(content: bytes) -> bytes:
    """gzip in three members."""
    third = len(content) // 3
    return b"".join(gzip.compress(content[i : i + third], 1, mtime=0) for i in range(0, len(content), third))


def zstd_of_frames(content: bytes) -> bytes:
    """zstd in two frames with checksums, and a skippable one in between."""
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    half = len(content) // 2
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"
    return compressor.compress(content[:half]) + skippable + compressor.compress(content[half:])


BULK = bulk()
COMPRESSED: dict[str, tuple[str, bytes]] = {
    "identity": ("identity", BULK),
    "gzip": ("gzip", gzip.compress(BULK, mtime=0)),
    "gzip-members": ("gzip", gzip_of_members(BULK)),
    "zstd": ("zstd", zstandard.compress(BULK)),
    "zstd-frames": ("zstd", zstd_of_frames(BULK)),
}


def pieces(encoding: str, wire: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Inflate `wire`, which arrives in parts of these sizes; every piece, and their sum, within its bound."""
    inflater = make_inflater(encoding, OPTIONS)
    total = 0
    sizes = iter(cuts)
    while wire:
        size = next(sizes, len(wire))
        part, wire = wire[:size], wire[size:]
        for piece in inflater.feed(part):
            total += len(piece)
            assert len(piece) <= max(INFLATE_OUTPUT_BYTES, len(part))
            assert total <= OPTIONS.max_inflated_bytes + INFLATE_OUTPUT_BYTES
            yield piece
    yield from inflater.finish()


def fuzz(seed: int, rounds: int, **given: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Run the decorated function on examples of the seed."""

    def run(test: Callable[..., None]) -> None:
        configured = hypothesis.settings(
            max_examples=EXAMPLES * rounds, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        hypothesis.seed(seed)(configured(hypothesis.given(**given)(test)))()

    return run


@contextmanager
def refusing(*statuses: int, seen: set[str] | None = None) -> Iterator[None]:
    """The block succeeds, or refuses with an error of ours that is answered with one of these statuses."""
    try:
        yield
    except SensorkeepError as error:
        if error.status not in statuses:
            raise AssertionError(f"{error.code} is a {error.status}") from error
        if seen is not None:
            seen.add(error.code)


def check(batch: DecodedBatch) -> None:
    """What comes out is whole, whatever went in."""
    assert batch.readings.schema.names == READINGS_SCHEMA.names
    assert batch.readings.num_rows <= OPTIONS.max_readings
    batch.readings.validate(full=True)


@pytest.mark.parametrize("form", COMPRESSED)
def test_a_damaged_bulk_body_is_an_error_of_ours_or_readings(form: str, seed: int, rounds: int) -> None:
    encoding, wire = COMPRESSED[form]
    refusals: set[str] = set()

    @fuzz(seed, rounds, damages=DAMAGES, cuts=st.lists(st.integers(1, 5_000), max_size=20))
    def _(damages: list[Damage], cuts: list[int]) -> None:
        decoder = EsmBulkDecoder(OPTIONS)
        with refusing(400, 413, 422, seen=refusals):
            for piece in pieces(encoding, damaged(wire, damages), cuts):
                decoder.feed(piece)
            check(decoder.finish())

    assert refusals, "nothing was damaged enough to be refused"


GENERAL = json.dumps(
    [
        {"sensor_id": f"s{i}", "timestamp": "2025-12-31T10:00:00Z", "values": {"a": i, "b": i / 3}, "status": "ok",
         "metadata": {"battery": 50}}
        for i in range(20)
    ]
).encode()  # fmt: skip
SINGLE = b'{"temperature": 25.5, "humidity": 60.2, "sensor_id": "s1", "timestamp": "2025-12-31T10:00:00Z", "co2": 4e2}'
SMALL: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "general": (lambda body: check(decode_readings(body, OPTIONS)), GENERAL),
    "one": (parse_reading, GENERAL[1 : GENERAL.index(b"}}") + 2]),
    "temperature": (parse_temperature, SINGLE),
}


@pytest.mark.parametrize("form", SMALL)
@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
def test_a_damaged_small_body_is_an_error_of_ours_or_readings(form: str, encoding: str, seed: int, rounds: int) -> None:
    decode, body = SMALL[form]
    compress: dict[str, Callable[[bytes], bytes]] = {
        "identity": bytes,
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
    }
    wire = compress[encoding](body)

    @fuzz(seed, rounds, damages=DAMAGES)
    def _(damages: list[Damage]) -> None:
        with refusing(400, 413, 422):
            decode(inflate_whole(damaged(wire, damages), encoding, 1 * MIB))


def test_a_damaged_payload_of_gathered_readings_is_an_error_of_ours_or_readings(seed: int, rounds: int) -> None:
    parsed = parse_temperature(SINGLE)
    entry = Entry(TEMPERATURE, OPTIONS.received_us, 7, "10.0.0.1", SINGLE, parsed, OPTIONS.received_us)
    payload = encode_gathered((entry,) * 5)

    @fuzz(seed, rounds, damages=DAMAGES)
    def _(damages: list[Damage]) -> None:
        with refusing(400, 413, 422):
            check(decode_gathered(damaged(payload, damages), OPTIONS))


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_whatever_is_repeated_in_it_a_body_inflates_within_its_limit(encoding: str, seed: int, rounds: int) -> None:
    """Bombs, whole or damaged."""
    bomb = (gzip.compress if encoding == "gzip" else zstandard.compress)(b'{"sensor":[' + bytes(32 * MIB))
    options = replace(OPTIONS, max_inflate_ratio=10**9)

    @fuzz(seed, rounds, damages=DAMAGES, chunk=st.integers(1, 100_000))
    def _(damages: list[Damage], chunk: int) -> None:
        inflater = make_inflater(encoding, options)
        wire, total = damaged(bomb, damages), 0
        with refusing(400, 413):
            for start in range(0, len(wire), chunk):
                for piece in inflater.feed(wire[start : start + chunk]):
                    total += len(piece)
                    assert total <= options.max_inflated_bytes + INFLATE_OUTPUT_BYTES
