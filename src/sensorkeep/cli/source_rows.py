"""Turns the rows of an imported file into what the API takes: which columns are what, times, numbers.

Four kinds of file, told by the first row: our own export (sent in bulk form, so that its uuids are kept), recorded
bulk payloads, objects of POST /readings, and columns of any other name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from sensorkeep.clock import rfc3339, to_us
from sensorkeep.errors import InvalidInput
from sensorkeep.limits import EXTERNAL_ID_CHARS_MAX
from sensorkeep.model import canonical_uuid

METADATA = ("battery", "rssi", "lqi", "battery_voltage")
BLANKS = frozenset({"", "-", "null", "none", "nan", "na", "n/a"})
"""Cells that say there is no value, whatever their case."""
EXPORT_COLUMNS = frozenset({"time", "equipment_uuid", "sensor_uuid", "value", "status"})
"""A file with all of these is our own export of raw readings."""
_TIME_NAMES = ("time", "timestamp", "date", "datetime", "date_time", "ts")
_SENSOR_NAMES = ("sensor_id", "sensor", "device_id", "device", "station")
_EPOCH_UNITS = {"epoch": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
_EPOCH_BY_DIGITS = {10: 1_000_000, 13: 1_000, 16: 1}
"""Microseconds per unit of a bare number, by its whole digits: seconds, ms and us of the years 2001 to 2286."""
_NUMBER = re.compile(r"-?\d+(\.\d*)?")


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """How the person who imports describes the columns.

    `columns`: target -> source column. Targets: time, sensor_id, quantity, value, status, battery, rssi, lqi,
    battery_voltage; any other target is a quantity of that name.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    sensor_id: str | None = None
    """The sensor_id of every row, where no column tells it."""
    quantity: str | None = None
    """What the column `value` measures, where no column tells it."""
    timezone: str | None = None
    """IANA zone of times without one; None: the server's naive time zone."""
    time_format: str | None = None
    """A strptime pattern, or epoch, epoch_ms, epoch_us; None: ISO 8601 or a number of seconds, ms or us."""


class Converted(NamedTuple):
    """What one row became: an object to send and how many readings it holds."""

    content: dict[str, Any]
    readings: int


class RowConverter(Protocol):
    """Turns rows into a request. Pure."""

    path: str
    """Where it is sent."""
    form: str
    """What it is, in words."""

    def convert(self, fields: Mapping[str, Any]) -> Converted | None:
        """One row; None where it holds no value. Raises InvalidInput saying what is wrong with it."""
        ...

    def encode(self, rows: Sequence[Converted]) -> bytes:
        """The JSON body that sends the rows, in order."""
        ...


def parse_columns(assignments: Sequence[str]) -> dict[str, str]:
    """`--map TARGET=COLUMN` options as a mapping. Raises InvalidInput (`bad_parameter`)."""
    columns: dict[str, str] = {}
    for text in assignments:
        target, separator, source = (part.strip() for part in text.partition("="))
        if not (separator and target and source):
            raise _usage(f"--map {text!r}: write TARGET=COLUMN, for instance --map temperature=temp")
        if target in columns:
            raise _usage(f"--map names {target!r} twice")
        columns[target] = source
    return columns


def choose_converter(first: Mapping[str, Any], options: ColumnOptions) -> RowConverter:
    """The converter for a file whose first good row is `first`. Raises InvalidInput (`bad_parameter`)."""
    times = TimeReader(options.timezone, options.time_format)
    if not options.columns and first.keys() >= EXPORT_COLUMNS:
        return _ExportRows(times)
    if not options.columns and "equip_uuid" in first:
        return _BulkObjects()
    if not options.columns and isinstance(first.get("values"), dict):
        return _ReadingObjects(times, options.sensor_id)
    return _column_rows(first, options, times)


def _usage(detail: str) -> InvalidInput:
    return InvalidInput(detail, code="bad_parameter")


class TimeReader:
    """Reads times as written in files. Raises InvalidInput (`bad_parameter`) for an unknown zone."""

    def __init__(self, timezone: str | None, time_format: str | None) -> None:
        try:
            self._zone = ZoneInfo(timezone) if timezone else None
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise _usage(f"--timezone {timezone!r} is not an IANA time zone, such as America/Sao_Paulo") from error
        self._format = time_format

    def read(self, value: object) -> str:
        """`value` as RFC 3339 text; without a zone where neither the text nor the options tell one.

        A local time that a clock change repeats is its first occurrence; one that it skips is read with the offset
        before the change. Raises InvalidInput.
        """
        if value is None or value == "":
            raise InvalidInput("there is no time")
        moment = self._moment(value)
        if isinstance(moment, int):
            return rfc3339(moment)
        if moment.tzinfo is None and self._zone is not None:
            moment = moment.replace(tzinfo=self._zone)
        try:
            return moment.isoformat() if moment.tzinfo is None else rfc3339(to_us(moment))
        except (OverflowError, ValueError) as error:
            raise InvalidInput(f"the time {value!r} is out of range") from error

    def _moment(self, value: object) -> datetime | int:
        text = str(value).strip()
        if self._format is None or self._format in _EPOCH_UNITS:
            number = _NUMBER.fullmatch(text)
            unit = _EPOCH_UNITS.get(self._format or "") or _EPOCH_BY_DIGITS.get(len(text.lstrip("-").partition(".")[0]))
            if number and unit:
                return _epoch_us(text, unit)
            if self._format is not None:
                raise InvalidInput(f"the time {text!r} is not a number")
        try:
            if self._format is not None:
                return datetime.strptime(text, self._format)  # noqa: DTZ007  (the zone is added by read)
            return datetime.fromisoformat(text.replace("/", "-") if text[4:5] == "/" else text)
        except ValueError as error:
            hint = "say --time-format" if self._format is None else f"it does not match {self._format!r}"
            raise InvalidInput(f"the time {text!r} is not understood; {hint}") from error


def _epoch_us(text: str, unit: int) -> int:
    whole, _, fraction = text.partition(".")
    digits = (fraction + "000000")[:6]
    # Whole numbers only: a float holds no microsecond of this century exactly.
    time_us = int(whole) * unit + (-1 if whole.startswith("-") else 1) * int(digits) * unit // 1_000_000
    try:
        datetime.fromtimestamp(time_us // 1_000_000, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise InvalidInput(f"the time {text!r} is out of range") from error
    return time_us


def read_number(value: object) -> float | None:
    """A finite number as JSON or text (decimal point or comma); None for a blank. Raises InvalidInput."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in BLANKS:
            return None
        value = text.replace(",", ".") if text.count(",") == 1 and "." not in text else text
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (isinstance(value, str) and "_" in value):
        raise InvalidInput(f"{str(value)[:60]!r} is not a number")
    return number


def _named(name: str, read: Callable[[object], float | None], value: object) -> float | None:
    try:
        return read(value)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error.detail}") from error


class _ColumnRows:
    """Columns of any name -> POST /readings."""

    path = "/readings"

    def __init__(
        self, columns: Mapping[str, str], names: Iterable[str], options: ColumnOptions, times: TimeReader
    ) -> None:
        special = {"time", "sensor_id", "quantity", "value", "status", *METADATA}
        self._time = columns["time"]
        self._sensor_id, self._sensor_column = options.sensor_id, columns.get("sensor_id")
        self._quantity, self._quantity_column = options.quantity, columns.get("quantity")
        self._value = columns.get("value")
        self._status = columns.get("status")
        self._metadata = [(name, columns[name]) for name in METADATA if name in columns]
        self._quantities = [(name, column) for name, column in columns.items() if name not in special]
        self._times = times
        taken = ", ".join(f"{target} from {column}" for target, column in columns.items())
        left = [name for name in names if name not in columns.values()]
        self.form = f"columns: {taken}" + (f"; not taken: {', '.join(left)}" if left else "")

    def convert(self, fields: Mapping[str, Any]) -> Converted | None:
        values: dict[str, float] = {}
        for name, column in self._quantities:
            number = _named(column, read_number, fields.get(column))
            if number is not None:
                values[name] = number
        if self._value is not None:
            number = _named(self._value, read_number, fields.get(self._value))
            if number is not None:
                values[self._quantity_of(fields)] = number
        if not values:
            return None
        content: dict[str, Any] = {
            "sensor_id": self._sensor_of(fields),
            "timestamp": self._times.read(fields.get(self._time)),
            "values": values,
        }
        if self._status is not None and fields.get(self._status) not in (None, ""):
            content["status"] = str(fields[self._status])
        metadata = {name: _named(column, read_number, fields.get(column)) for name, column in self._metadata}
        known = {name: number for name, number in metadata.items() if number is not None}
        if known:
            content["metadata"] = known
        return Converted(content, len(values))

    def encode(self, rows: Sequence[Converted]) -> bytes:
        return msgspec.json.encode([row.content for row in rows])

    def _sensor_of(self, fields: Mapping[str, Any]) -> str:
        if self._sensor_column is None:
            assert self._sensor_id is not None
            return self._sensor_id
        text = str(fields.get(self._sensor_column) or "").strip()
        if not text:
            raise InvalidInput(f"{self._sensor_column} is empty: the row names no sensor")
        return text

    def _quantity_of(self, fields: Mapping[str, Any]) -> str:
        if self._quantity_column is None:
            assert self._quantity is not None
            return self._quantity
        text = str(fields.get(self._quantity_column) or "").strip()
        if not text:
            raise InvalidInput(f"{self._quantity_column} is empty: the row names no quantity")
        return text


def _column_rows(first: Mapping[str, Any], options: ColumnOptions, times: TimeReader) -> _ColumnRows:
    """Fill in what the options leave open from the names and the values of the first row."""
    columns = dict(options.columns)
    for target, column in columns.items():
        if column not in first:
            raise _usage(f"--map {target}={column}: there is no such column; there are {', '.join(first)}")
    by_lower = {name.lower(): name for name in reversed(list(first))}
    found = {**dict.fromkeys(_TIME_NAMES, "time"), **dict.fromkeys(_SENSOR_NAMES, "sensor_id")}
    for name, target in found.items():
        if target not in columns and name in by_lower and by_lower[name] not in columns.values():
            if target == "sensor_id" and options.sensor_id:
                continue
            columns[target] = by_lower[name]
    if "time" not in columns:
        raise _usage(f"say which column is the time: --map time=COLUMN; there are {', '.join(first)}")
    if "sensor_id" not in columns and not options.sensor_id:
        raise _usage("say which sensor it is: --sensor-id NAME, or --sensor-id-column COLUMN")
    _find_values(first, columns, options)
    return _ColumnRows(columns, first, options, times)


def _find_values(first: Mapping[str, Any], columns: dict[str, str], options: ColumnOptions) -> None:
    special = {"time", "sensor_id", "quantity", "status", *METADATA}
    if not columns.keys() - special:
        free = [name for name in first if name not in columns.values()]
        for name in (*METADATA, "status"):
            if name in free:
                columns.setdefault(name, name)
        free = [name for name in free if name not in columns.values()]
        if "value" in free:
            columns["value"] = "value"
            if "quantity" in free and not options.quantity:
                columns.setdefault("quantity", "quantity")
        else:
            columns.update({name: name for name in free if _looks_numeric(first[name])})
    if "value" in columns and not (options.quantity or "quantity" in columns):
        raise _usage(f"say what the column {columns['value']!r} measures: --quantity NAME")
    if not columns.keys() - special:
        raise _usage("no column with numbers was found; say which with --map QUANTITY=COLUMN")


def _looks_numeric(value: object) -> bool:
    try:
        return read_number(value) is not None
    except InvalidInput:
        return False


class _ReadingObjects:
    """Objects of POST /readings, as they are."""

    path = "/readings"
    form = "objects as POST /readings takes them"

    def __init__(self, times: TimeReader, sensor_id: str | None) -> None:
        self._times = times
        self._sensor_id = sensor_id

    def convert(self, fields: Mapping[str, Any]) -> Converted | None:
        values = fields.get("values")
        if not isinstance(values, dict):
            raise InvalidInput("there is no object named values")
        content = dict(fields)
        if not content.get("sensor_id"):
            if self._sensor_id is None:
                raise InvalidInput("there is no sensor_id")
            content["sensor_id"] = self._sensor_id
        content["timestamp"] = self._times.read(content.get("timestamp"))
        return Converted(content, max(len(values), 1))

    def encode(self, rows: Sequence[Converted]) -> bytes:
        return msgspec.json.encode([row.content for row in rows])


class _BulkObjects:
    """Recorded equipment objects of the bulk form, as they are; their times stay as they were sent."""

    path = "/telemetry/bulk"
    form = "equipment objects as POST /telemetry/bulk takes them"

    def convert(self, fields: Mapping[str, Any]) -> Converted | None:
        if "equip_uuid" not in fields:
            raise InvalidInput("there is no equip_uuid")
        sensors = fields.get("sensor")
        count = len(sensors) if isinstance(sensors, list) else int(isinstance(sensors, dict))
        return Converted(dict(fields), count) if count else None

    def encode(self, rows: Sequence[Converted]) -> bytes:
        return msgspec.json.encode([row.content for row in rows])


class _ExportRows:
    """Rows of our own export of raw readings -> the bulk form, which carries the uuids."""

    path = "/telemetry/bulk"
    form = "a Sensorkeep export"

    def __init__(self, times: TimeReader) -> None:
        self._times = times

    def convert(self, fields: Mapping[str, Any]) -> Converted | None:
        if not fields.get("equipment_uuid") or not fields.get("sensor_uuid"):
            raise InvalidInput("equipment_uuid or sensor_uuid is empty")
        value = _named("value", read_number, fields.get("value"))
        status = fields.get("status") or None
        if value is None and status is None:
            return None
        reading: dict[str, Any] = {
            "sensor_uuid": _identity(fields, "sensor"),
            "sensor_nome": fields.get("sensor_name") or None,
            "sensor_tipo": fields.get("sensor_type") or None,
            "sensor_unidade": fields.get("sensor_unit") or None,
            "valor": value,
            "status": status,
            "timestamp": self._times.read(fields.get("time")),
            "sensor_bateria_pct": _named("battery", read_number, fields.get("battery")),
            "sensor_sinal_rssi": _whole(fields, "rssi"),
            "sensor_sinal_lqi": _whole(fields, "lqi"),
            "sensor_voltagem_bateria": _named("battery_voltage", read_number, fields.get("battery_voltage")),
        }
        known = {name: cell for name, cell in reading.items() if cell is not None}
        equipment = {"equip_uuid": _identity(fields, "equipment"), "equip_nome": fields.get("equipment_name") or None}
        return Converted({"equipment": equipment, "reading": known}, 1)

    def encode(self, rows: Sequence[Converted]) -> bytes:
        objects: dict[str, dict[str, Any]] = {}
        for row in rows:
            equipment = row.content["equipment"]
            entry = objects.get(equipment["equip_uuid"])
            if entry is None:
                entry = objects[equipment["equip_uuid"]] = {**equipment, "sensor": []}
            entry["sensor"].append(row.content["reading"])
        return msgspec.json.encode(list(objects.values()))


def _identity(fields: Mapping[str, Any], kind: str) -> str:
    """The external id where it stands for the uuid, so that a server new to it learns it; else the uuid."""
    uuid, external = str(fields[f"{kind}_uuid"]), str(fields.get(f"{kind}_external_id") or "")
    stands_for = 0 < len(external) <= EXTERNAL_ID_CHARS_MAX and canonical_uuid(external) == canonical_uuid(uuid)
    return external if stands_for else uuid


def _whole(fields: Mapping[str, Any], name: str) -> int | None:
    number = _named(name, read_number, fields.get(name))
    return None if number is None else round(number)
