"""A small site for the query tests: its readings, and what their aggregates must be, computed without the product."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid

Bucket = dict[str, Any]


class Site:
    """One equipment with a temperature and a humidity sensor; one reading every 7 minutes since yesterday."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.equipment = new_uuid()
        self.temperature, self.humidity = sorted((new_uuid(), new_uuid()))
        start = hours_ago(26)
        moments = [start + timedelta(minutes=7 * i) for i in range(26 * 60 // 7)]
        self.readings: dict[str, dict[datetime, float]] = {
            self.temperature: {moment: 20 + (i * 37 % 101) / 8 for i, moment in enumerate(moments)},
            self.humidity: {moment: 60 - (i * 53 % 89) / 4 for i, moment in enumerate(moments)},
        }
        self.names = {
            self.temperature: ("Temp", "temperatura", "°C"),
            self.humidity: ("Humidity", "umidade", "%"),
        }
        described = []
        for sensor, readings in self.readings.items():
            name, kind, unit = self.names[sensor]
            described += [
                esm_reading(sensor, value, moment, sensor_nome=name, sensor_tipo=kind, sensor_unidade=unit)
                for moment, value in readings.items()
            ]
        body = [esm_equipment(self.equipment, described, equip_nome="Site", equip_intervalo_coleta=420)]
        answer = server.stored(body)
        assert answer["stored"] == len(described)

    def history(self, what: str = "equipment", **parameters: object) -> dict[str, Any]:
        """The answer to a history call."""
        uuid = self.equipment if what == "equipment" else what
        kind = "equipment" if what == "equipment" else "sensor"
        answer: dict[str, Any] = self.server.get(f"/analytics/{kind}/{uuid}/history", **parameters)
        return answer

    def buckets(self, floor: Callable[[datetime], datetime]) -> dict[tuple[datetime, str], Bucket]:
        """What each bucket of each sensor must say."""
        grouped: dict[tuple[datetime, str], dict[datetime, float]] = {}
        for sensor, readings in self.readings.items():
            for moment, value in readings.items():
                grouped.setdefault((floor(moment), sensor), {})[moment] = value
        return {key: aggregate(readings) for key, readings in sorted(grouped.items())}


def hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def day_of(moment: datetime) -> datetime:
    return hour_of(moment).replace(hour=0)


def percentile(values: list[float], fraction: float) -> float:
    """Linear interpolation, as PERCENTILE_CONT."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def aggregate(readings: dict[datetime, float]) -> Bucket:
    """The aggregates of one bucket (SPEC section 4)."""
    values = list(readings.values())
    return {
        "avg_value": statistics.fmean(values),
        "max_value": max(values),
        "min_value": min(values),
        "sample_count": len(values),
        "active_minutes": len({moment.replace(second=0, microsecond=0) for moment in readings}),
        "stddev_value": statistics.stdev(values) if len(values) > 1 else None,
        "median_value": percentile(values, 0.5),
        "p95_value": percentile(values, 0.95),
        "p99_value": percentile(values, 0.99),
    }
