"""Decoding, readings per CPU-second: the Home Assistant (verbose) and the slim form of the bulk body, and the small
forms, against json.loads of the same bytes in the same run.

Run: python bench/decode.py [readings]
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable

from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.gathered import TEMPERATURE, Entry, decode_gathered, encode_gathered, gather
from sensorkeep.decode.inflate import make_inflater
from sensorkeep.decode.newest import newest_readings
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.temperature import check_time, parse_temperature
from sensorkeep.model import DecodedBatch

EQUIPMENT = 250
SENSORS = 4  # of each equipment
OPTIONS = DecodeOptions(received_us=1_768_500_000_000_000)
ROUNDS = 15


def verbose_reading(source: random.Random, number: int, uuid_text: str, minute: int) -> dict[str, object]:
    """One reading as the Home Assistant client sends it."""
    return {
        "sensor_uuid": uuid_text,
        "sensor_nome": f"Temperatura camara {number}",
        "sensor_status": "ATIVO",
        "sensor_tipo": "temperatura",
        "sensor_unidade": "°C",
        "sensor_telemetria": f"{source.uniform(-30, 40):.2f}",
        "sensor_datahora_coleta": f"2026-01-15T10:{minute % 60:02d}:{number % 60:02d}.{source.randrange(10**6):06d}",
        "sensor_bateria_pct": source.randrange(101),
        "sensor_sinal_lqi": source.randrange(256),
        "sensor_sinal_rssi": -40 - source.randrange(60),
        "sensor_voltagem_bateria": round(source.uniform(2.4, 3.3), 2),
        "sensor_voltagem": None,
        "sensor_corrente": None,
        "sensor_potencia": None,
        "sensor_fabricante": "Sonoff",
        "sensor_modelo": "SNZB-02",
        "sensor_firmware": "1.0.3",
        "sensor_id_hardware": f"00:12:4b:00:{number:06x}",
        "sensor_via_hub": "hub-1",
    }


def slim_reading(source: random.Random, number: int, uuid_text: str, minute: int) -> dict[str, object]:
    """One reading with just what is needed."""
    return {
        "sensor_uuid": uuid_text,
        "valor": round(source.uniform(-30, 40), 2),
        "timestamp": f"2026-01-15T10:{minute % 60:02d}:{number % 60:02d}Z",
    }


def body(readings: int, make: Callable[[random.Random, int, str, int], dict[str, object]]) -> bytes:
    """A bulk body of EQUIPMENT objects with SENSORS sensors each."""
    source = random.Random(1)
    each = readings // EQUIPMENT
    objects = []
    for i in range(EQUIPMENT):
        uuids = [str(uuid.UUID(int=source.getrandbits(128), version=4)) for _ in range(SENSORS)]
        rows = [make(source, i * SENSORS + j % SENSORS, uuids[j % SENSORS], j // SENSORS) for j in range(each)]
        equip = {"equip_uuid": str(uuid.UUID(int=source.getrandbits(128), version=4)), "equip_nome": f"Freezer {i}"}
        objects.append({**equip, "equip_local": "Loja", "equip_sirene_ativa": "NÃO", "sensor": rows})
    return json.dumps(objects, ensure_ascii=False, separators=(",", ":")).encode()


def measure(name: str, call: Callable[[], object], readings: int) -> float:
    """Print and return the median CPU seconds of a call."""
    call()
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    median = statistics.median(seconds)
    print(
        f"{name:44s} {median * 1e3:8.2f} ms  best {min(seconds) * 1e3:8.2f} ms"
        f"  {median / readings * 1e9:7.0f} ns/reading  {readings / median / 1e6:6.2f} M readings/CPU-s"
    )
    return median


def inflate(wire: bytes) -> int:
    """Only inflate."""
    inflater = make_inflater("gzip", OPTIONS)
    return sum(map(len, inflater.feed(wire))) + sum(map(len, inflater.finish()))


def decode(wire: bytes) -> DecodedBatch:
    """The whole way of a bulk body."""
    inflater, decoder = make_inflater("gzip", OPTIONS), EsmBulkDecoder(OPTIONS)
    for piece in inflater.feed(wire):
        decoder.feed(piece)
    for piece in inflater.finish():
        decoder.feed(piece)
    return decoder.finish()


def bulk(name: str, content: bytes, readings: int) -> None:
    """Measure one bulk form."""
    wire = gzip.compress(content, 6)
    print(f"# {name}: {readings} readings, {len(content) / readings:.0f} B each, {len(wire) / readings:.0f} B as gzip")
    measure("inflate", lambda: inflate(wire), readings)
    ours = measure("inflate + decode to columns", lambda: decode(wire), readings)
    plain = measure("baseline: gzip + json.loads", lambda: json.loads(gzip.decompress(wire)), readings)
    print(f"{'':44s} {plain / ours:8.1f} x")
    batch = decode(wire)
    measure("newest of each sensor", lambda: newest_readings(batch), readings)


def small(count: int) -> None:
    """Measure the single-reading form."""
    source = random.Random(2)
    bodies = [
        b'{"temperature":%.1f,"humidity":%.1f,"pressure":1012.5,"sensor_id":"sensor_%03d"}'
        % (source.uniform(0, 30), source.uniform(0, 100), i % 300)
        for i in range(count)
    ]
    print(f"# single readings: {count} requests of 3 quantities")
    measure("parse_temperature, per request", lambda: [parse_temperature(b) for b in bodies], count)
    measure("baseline: json.loads, per request", lambda: [json.loads(b) for b in bodies], count)
    entries = [
        Entry(TEMPERATURE, OPTIONS.received_us, i, "127.0.0.1", b, p, check_time(p.timestamp, OPTIONS))
        for i, b in enumerate(bodies)
        if (p := parse_temperature(b))
    ]
    payload = encode_gathered(entries)
    measure("encode_gathered", lambda: encode_gathered(entries), 3 * count)
    measure("gather, parsed already", lambda: gather(entries, OPTIONS), 3 * count)
    measure("decode_gathered", lambda: decode_gathered(payload, OPTIONS), 3 * count)


def main() -> None:
    """All of it."""
    readings = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    bulk("verbose (Home Assistant)", body(readings, verbose_reading), readings)
    bulk("slim", body(readings, slim_reading), readings)
    small(500)


if __name__ == "__main__":
    main()
