"""The forms a fleet's readings are sent in."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import numpy as np
import numpy.typing as npt

from sensorkeep.clock import HOUR_US, MICROSECONDS
from sensorkeep.errors import InvalidInput

if TYPE_CHECKING:
    from sensorkeep.cli.fleet import Fleet, FleetRows

FleetForm = Literal["verbose", "slim", "readings", "temperature"]
"""verbose: all that the Home Assistant client sends. slim: the bulk form with uuid, value and time only.
readings: objects of POST /readings. temperature: bodies of POST /temperature_reading."""

Integers = npt.NDArray[np.int64]
_OFFSET_STEP_US = HOUR_US // 4
"""Zone offsets change on quarters of an hour."""


def zone_of(name: str) -> ZoneInfo:
    """The IANA time zone of this name. Raises InvalidInput (`bad_parameter`)."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise InvalidInput(
            f"{name!r} is not an IANA time zone, such as America/Sao_Paulo", code="bad_parameter"
        ) from error


class Encoder:
    """Turns rows into the JSON objects of a form."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def objects(self, rows: FleetRows) -> list[bytes]:
        """The objects, in the order of the rows."""
        raise NotImplementedError


class BulkEncoder(Encoder):
    """Equipment objects; the entries are made by the two forms."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._heads = [
            _json(
                {
                    "equip_uuid": fleet.equipment_uuids[i],
                    "equip_nome": f"Freezer {i + 1}",
                    "equip_local": f"Loja {i % 20 + 1}",
                    "equip_status": "ATIVO",
                    "equip_intervalo_coleta": round(fleet.options.interval_seconds),
                    "equip_sirene_ativa": "NÃO",
                    "equip_sirete_tempo": 120,
                }
            )[:-1]
            + ',"sensor":['
            for i in range(fleet.options.equipment)
        ]

    def objects(self, rows: FleetRows) -> list[bytes]:
        entries = self.entries(rows)
        equipment = self.fleet.equipment_of[rows.sensor]
        starts = np.flatnonzero(np.diff(equipment, prepend=-1))
        ends = [*starts[1:].tolist(), len(entries)]
        return [
            f"{self._heads[equipment[start]]}{','.join(entries[start:end])}]}}".encode()
            for start, end in zip(starts.tolist(), ends, strict=True)
        ]

    def entries(self, rows: FleetRows) -> list[str]:
        """One JSON text for each row."""
        raise NotImplementedError


class _VerboseEncoder(BulkEncoder):
    """All that the Home Assistant client sends of a sensor (SPEC section 3): values as text, local times."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._sensors = [self._texts(i) for i in range(fleet.options.sensors)]
        self._zone = zone_of(fleet.options.timezone)

    def entries(self, rows: FleetRows) -> list[str]:
        sensors = self._sensors
        columns = zip(rows.sensor.tolist(), rows.value.tolist(), rows.status, self._local(rows.time_us), strict=True)
        entries = []
        for (sensor, value, status, time), turn in zip(columns, rows.round.tolist(), strict=True):
            before, after, has_battery, has_radio = sensors[sensor]
            battery, voltage = (
                (100 - turn // 500 % 80, 3.0 - turn // 500 % 80 / 100) if has_battery else ("null", "null")
            )
            lqi, rssi = (255 - (turn + sensor) % 60, -40 - (turn + sensor) % 50) if has_radio else ("null", "null")
            entries.append(
                f'{before}{status or value}","sensor_datahora_coleta":"{time}","sensor_bateria_pct":{battery},'
                f'"sensor_sinal_lqi":{lqi},"sensor_sinal_rssi":{rssi},"sensor_voltagem_bateria":{voltage},{after}'
            )
        return entries

    def _texts(self, sensor: int) -> tuple[str, str, bool, bool]:
        kind, unit, _ = self.fleet.kind(sensor)
        before = {
            "sensor_uuid": self.fleet.sensor_uuids[sensor],
            "sensor_nome": f"{kind} {sensor + 1}",
            "sensor_status": "ATIVO",
            "sensor_tipo": kind,
            "sensor_unidade": unit,
            "sensor_telemetria": "",
        }
        after = {
            "sensor_voltagem": None,
            "sensor_corrente": None,
            "sensor_potencia": None,
            "sensor_fabricante": "SONOFF" if sensor % 2 else "Aqara",
            "sensor_modelo": "SNZB-02D" if sensor % 2 else "WSDCGQ11LM",
            "sensor_firmware": "2.1.0",
            "sensor_id_hardware": f"0x00124b00{sensor:08x}",
            "sensor_via_hub": "zigbee2mqtt",
        }
        # A tenth has a mains supply, a quarter no radio, as in fleets that were looked at.
        return _json(before)[:-2], _json(after)[1:], sensor % 10 != 0, sensor % 4 != 0

    def _local(self, time_us: Integers) -> list[str]:
        """The local times with microseconds and without a zone."""
        steps, index = np.unique(time_us // _OFFSET_STEP_US, return_inverse=True)
        moments = [datetime.fromtimestamp(int(step) * (_OFFSET_STEP_US // MICROSECONDS), self._zone) for step in steps]
        offsets = [round((moment.utcoffset() or moment - moment).total_seconds()) * MICROSECONDS for moment in moments]
        return _iso(time_us + np.array(offsets, np.int64)[index])


class _SlimEncoder(BulkEncoder):
    """The bulk form with nothing but uuid, value and time."""

    def entries(self, rows: FleetRows) -> list[str]:
        uuids = self.fleet.sensor_uuids
        return [
            f'{{"sensor_uuid":"{uuids[sensor]}",'
            + (f'"valor":{value}' if status is None else f'"sensor_telemetria":"{status}"')
            + f',"timestamp":"{time}Z"}}'
            for sensor, value, status, time in zip(
                rows.sensor.tolist(), rows.value.tolist(), rows.status, _iso(rows.time_us), strict=True
            )
        ]


class _ReadingsEncoder(Encoder):
    """Objects of POST /readings, one for each reading."""

    def objects(self, rows: FleetRows) -> list[bytes]:
        fleet = self.fleet
        equipment = fleet.equipment_of.tolist()
        names = [fleet.quantity(sensor) for sensor in range(fleet.options.sensors)]
        return [
            f'{{"sensor_id":"{fleet.equipment_ids[equipment[sensor]]}","timestamp":"{time}Z",'
            f'"values":{{"{names[sensor]}":{value}}}}}'.encode()
            for sensor, value, time in zip(rows.sensor.tolist(), rows.value.tolist(), _iso(rows.time_us), strict=True)
        ]


class _TemperatureEncoder(Encoder):
    """Bodies of POST /temperature_reading; each sensor is a sensor_id of its own."""

    def objects(self, rows: FleetRows) -> list[bytes]:
        return [
            f'{{"temperature":{value},"sensor_id":"sensor_{sensor:04d}","timestamp":"{time}Z"}}'.encode()
            for sensor, value, time in zip(rows.sensor.tolist(), rows.value.tolist(), _iso(rows.time_us), strict=True)
        ]


ENCODERS: dict[FleetForm, type[Encoder]] = {
    "verbose": _VerboseEncoder,
    "slim": _SlimEncoder,
    "readings": _ReadingsEncoder,
    "temperature": _TemperatureEncoder,
}


def _iso(time_us: Integers) -> list[str]:
    texts: list[str] = np.datetime_as_string(time_us.astype("datetime64[us]")).tolist()
    return texts


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
