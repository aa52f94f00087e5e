"""What the clients of a simulation send: readings that are new, late, too late, copies, corrections, and useless."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from expectation import Content, Said

from sensorkeep.clock import DAY_US, HOUR_US, MINUTE_US, ManualClock, rfc3339
from sensorkeep.decode.gathered import TEMPERATURE, Entry
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.decode.temperature import check_time, parse_temperature
from sensorkeep.ingest.accept import Sender
from sensorkeep.model import external_uuid

CLIENTS = ("client-a", "client-b")
BULK_SENSORS_OF_EACH = 3


@dataclass(frozen=True)
class Letter:
    """One request, which may be sent several times."""

    kind: Literal["bulk", "general", "single"]
    said: Sequence[Said]
    body: bytes
    """As sent; of single readings the JSON lines of the requests."""
    content: bytes
    """Inflated."""
    sender: Sender


class LetterWriter:
    """Makes letters. With `shared` the clients write of the same sensors, else each of its own."""

    def __init__(self, chance: random.Random, clock: ManualClock, *, shared: bool, backfills: bool) -> None:
        self._random = chance
        self._clock = clock
        self._shared = shared
        self._backfills = backfills
        self._last: dict[str, dict[int, Content]] = {}
        """What was said last, by sensor and time."""

    def sensors(self) -> list[str]:
        """All that may have readings."""
        return sorted({s for client in CLIENTS for s in self._bulk_sensors(client)} | set(self._small_sensors()))

    def bulk(self) -> Letter:
        """The bulk form, of one to three equipment objects."""
        client = self._random.choice(CLIENTS)
        backfill = self._backfills and self._random.random() < 0.2
        said: list[Said] = []
        objects: list[dict[str, Any]] = []
        for number in range(self._random.randint(1, 3)):
            count = self._random.randint(1, 10)
            mine = [
                Said((number, i), *self._reading(self._random.choice(self._bulk_sensors(client)), backfill, poor=True))
                for i in range(count)
            ]
            said += mine
            objects.append({"equip_uuid": f"sim-{number}", "sensor": [_bulk_item(reading) for reading in mine]})
        content = json.dumps(objects).encode()
        return Letter("bulk", said, gzip.compress(content, 1, mtime=0), content, Sender(client, backfill=backfill))

    def general(self) -> Letter:
        """The general form; now and then too long to travel inside its claim."""
        client = self._random.choice(CLIENTS)
        name = "sim-general" if self._shared else f"sim-general-{client}"
        said: list[Said] = []
        items: list[dict[str, Any]] = []
        for i in range(self._random.randint(1, 6)):
            sensor, time_us, content = self._reading(external_uuid(f"{name}/power"), False, poor=True)
            content = content._replace(value=content.value or 0.0)  # a status alone would be a sensor of its own
            said.append(Said((i, 0), sensor, time_us, content))
            item: dict[str, Any] = {"sensor_id": name, "timestamp": _time(time_us), "status": content.status}
            item["values"] = {"power": content.value}
            if content.battery is not None:
                item["metadata"] = {"battery": content.battery}
            items.append(item)
        if self._random.random() < 0.2:
            items[0]["padding"] = "x" * 70_000
        body = json.dumps(items).encode()
        return Letter("general", said, body, body, Sender(client))

    def singles(self) -> Letter:
        """Single readings of SensorFlow's form that arrive together."""
        said: list[Said] = []
        lines: list[bytes] = []
        for i in range(self._random.randint(1, 4)):
            sensor, time_us, content = self._reading(external_uuid("sim-single/temperature"), False, poor=False)
            value: dict[str, Any] = {
                "temperature": content.value,
                "sensor_id": "sim-single",
                "timestamp": _time(time_us),
            }
            said.append(Said((i, 0), sensor, time_us, content))
            if self._random.random() < 0.5:
                value["humidity"] = float(self._random.randint(0, 100))
                said.append(Said((i, 1), external_uuid("sim-single/humidity"), time_us, Content(value["humidity"])))
            lines.append(json.dumps(value).encode())
        body = b"\n".join(lines)
        return Letter("single", said, body, body, Sender(""))

    def entries(self, letter: Letter, options: DecodeOptions) -> tuple[Entry, ...]:
        """The requests of single readings as the gateway parsed them. Raises InvalidInput as it does."""
        entries = []
        for body in letter.body.split(b"\n"):
            parsed = parse_temperature(body)
            time_us = check_time(parsed.timestamp, options)
            entries.append(Entry(TEMPERATURE, options.received_us, 1, "10.0.0.1", body, parsed, time_us))
        return tuple(entries)

    def _bulk_sensors(self, client: str) -> list[str]:
        of_whom = "all" if self._shared else client
        return [external_uuid(f"sim/{of_whom}-{i}") for i in range(BULK_SENSORS_OF_EACH)]

    def _small_sensors(self) -> list[str]:
        names = ["sim-general/power", *(f"sim-general-{client}/power" for client in CLIENTS)]
        return [external_uuid(name) for name in (*names, "sim-single/temperature", "sim-single/humidity")]

    def _reading(self, sensor: str, backfill: bool, *, poor: bool) -> tuple[str, int | None, Content]:
        """`poor`: it may be useless, or a mere status."""
        now_us = self._clock.now_us()
        content = self._content(poor=poor)
        if backfill:  # what raw is gone of cannot be told from new: so never a time twice
            return sensor, now_us - self._random.randrange(5 * DAY_US, 7 * DAY_US), content
        last = self._last.setdefault(sensor, {})
        chance = self._random.random()
        if poor and chance < 0.04:
            return sensor, None, content
        if poor and chance < 0.07:
            time_us = now_us + self._random.randrange(11 * MINUTE_US, 3 * HOUR_US)
        elif poor and chance < 0.09:
            time_us = now_us - self._random.randrange(3 * DAY_US, 9 * DAY_US)
        elif last and chance < 0.35:
            time_us = self._random.choice(list(last)[-60:])
            content = last[time_us] if chance < 0.22 else content
        elif chance < 0.5:
            time_us = now_us - self._random.randrange(3 * HOUR_US, 3 * DAY_US)
        else:
            time_us = now_us - self._random.randrange(2 * HOUR_US)
        last[time_us] = content
        return sensor, time_us, content

    def _content(self, *, poor: bool) -> Content:
        value = round(self._random.gauss(20, 5), 3)
        if not poor:
            return Content(value)
        battery = float(self._random.randint(0, 100)) if self._random.random() < 0.2 else None
        if self._random.random() < 0.1:
            return Content(None, self._random.choice(["unavailable", "on"]), battery)
        return Content(value, None, battery)


def _bulk_item(reading: Said) -> dict[str, Any]:
    value, status, battery = reading.content
    said: dict[str, Any] = {"valor": value} if value is not None else {"sensor_telemetria": status}
    if battery is not None:
        said["sensor_bateria_pct"] = battery
    return {"sensor_uuid": reading.sensor, "timestamp": _time(reading.time_us)} | said


def _time(time_us: int | None) -> str:
    return "no time" if time_us is None else rfc3339(time_us)
