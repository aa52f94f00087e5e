"""What the OpenAPI document says of the query routes: parameters, schemas made from the answers, true examples."""

from __future__ import annotations

from typing import Any

import msgspec

from sensorkeep.errors import PROBLEMS
from sensorkeep.limits import (
    EQUIPMENT_PAGE_DEFAULT,
    EQUIPMENT_PAGE_MAX,
    HISTORY_DAYS_DEFAULT,
    HOME_ASSISTANT_HOURS_DEFAULT,
    HOME_ASSISTANT_HOURS_MAX,
    PAGE_ROWS_DEFAULT,
    PAGE_ROWS_MAX,
)
from sensorkeep.query import answers
from sensorkeep.query.formats import ARROW_STREAM, CSV, JSON, PARQUET

_EQUIPMENT = "550e8400-e29b-41d4-a716-446655440000"
_SENSOR = "660e8400-e29b-41d4-a716-446655440001"
_HOUR = "2024-01-15T10:00:00Z"
_LATER = "2024-01-15T11:00:00Z"
_NAMED = (_SENSOR, "Temp", "temperatura", "°C")
_NUMBERS: tuple[Any, ...] = (-18.4, -17.9, -18.8, 60, 60, 0.21, -18.4, -18.0, -17.9)
_CATALOG_SENSOR = answers.CatalogSensor(
    sensor_uuid=_SENSOR,
    equipment_uuid=_EQUIPMENT,
    external_id=None,
    sensor_name="Temp",
    sensor_type="temperatura",
    sensor_unit="°C",
    manufacturer="Sonoff",
    model="SNZB-02",
    firmware="1.0.4",
    hardware_id=None,
    via_hub=None,
    last_seen=_HOUR,
    last_value=-18.4,
    last_status=None,
    state="online",
    online=True,
    online_within_seconds=150.0,
)
_CATALOG_EQUIPMENT = answers.CatalogEquipment(
    equipment_uuid=_EQUIPMENT,
    external_id=None,
    name="Freezer 1",
    location="Loja",
    status="ATIVO",
    interval_seconds=60,
    siren_active=False,
    siren_seconds=120,
    last_seen=_HOUR,
    last_value=-18.4,
    state="online",
    online=True,
    online_within_seconds=150.0,
    sensors=[_CATALOG_SENSOR],
)

IDENTIFIER = "A UUID or an external id; a `/` in it may be sent as it is or as %2F."


def path_parameter(name: str) -> dict[str, Any]:
    """The identifier in the path."""
    return {"name": name, "in": "path", "required": True, "description": IDENTIFIER, "schema": {"type": "string"}}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _whole(name: str, default: int, most: int, description: str) -> dict[str, Any]:
    return _query(name, {"type": "integer", "minimum": 1, "maximum": most, "default": default}, description)


def _choice(name: str, *choices: str) -> dict[str, Any]:
    return _query(name, {"type": "string", "enum": list(choices), "default": choices[0]}, "What is asked for.")


_MOMENT = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}
_CURSOR = _query("cursor", {"type": "string"}, "`next_cursor` of the page before, with the same query.")
SENSOR_TYPE = _query("sensor_type", {"type": "string"}, "Only sensors of this type.")
HISTORY = [
    _choice("period", "hour", "day", "raw"),
    _query(
        "start_date",
        _MOMENT,
        f"Start of the range, included; default {HISTORY_DAYS_DEFAULT} days before the end. "
        "UTC where no zone is given. A bucket belongs to the range if its start does; the range is never aligned.",
    ),
    _query("end_date", _MOMENT, "End of the range, excluded; default now."),
    _whole("limit", PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX, "Most rows of a page. A larger one is refused."),
    _CURSOR,
]
STATS = [_choice("period", "24h", "7d", "30d", "1y"), SENSOR_TYPE]
HOURS = [
    _whole("hours", HOME_ASSISTANT_HOURS_DEFAULT, HOME_ASSISTANT_HOURS_MAX, "Hours, the open one included."),
    SENSOR_TYPE,
]
EQUIPMENT_LIST = [_whole("limit", EQUIPMENT_PAGE_DEFAULT, EQUIPMENT_PAGE_MAX, "Most equipment of a page."), _CURSOR]


def _history_examples(row: Any, reading: Any, envelope: Any, uuid: str) -> list[Any]:
    def page(period: str, data: list[Any]) -> Any:
        return envelope(uuid, period, _HOUR, _LATER, _LATER, data, None)

    return [page("hour", [row]), page("raw", [reading])]


EQUIPMENT_HISTORY_EXAMPLES = _history_examples(
    answers.EquipmentBucket(_HOUR, *_NAMED, *_NUMBERS),
    answers.EquipmentReading(_HOUR, *_NAMED, -18.4, None, {"battery": 91.0, "rssi": -60}),
    answers.EquipmentHistory,
    _EQUIPMENT,
)
SENSOR_HISTORY_EXAMPLES = _history_examples(
    answers.SensorBucket(_HOUR, *_NUMBERS),
    answers.SensorReading(_HOUR, -18.4, None, {"battery": 91.0, "rssi": -60}),
    answers.SensorHistory,
    _SENSOR,
)
STATS_EXAMPLE = answers.EquipmentStats(
    _EQUIPMENT,
    "24h",
    "2024-01-14T11:00:00Z",
    _LATER,
    [answers.SensorStats(*_NAMED, -18.4, -17.2, -19.1, 1440, 24, -18.4, -17.9)],
)
HOME_ASSISTANT_EXAMPLE = answers.HomeAssistant(
    _EQUIPMENT, 24, [answers.HomeAssistantHour(_HOUR, *_NAMED, -18.4, -17.9, -18.8, 60)]
)
LATEST_EXAMPLES = [
    answers.LatestSingle(
        123, 25.5, 60.2, 1012.5, "2025-08-16", "14:30:45", "sensor_001", "192.168.1.100", "2025-08-16T14:30:45Z"
    ),
    answers.LatestOfSensor(_SENSOR, _SENSOR, -18.4, None, {"battery": 91.0}, "2024-01-15", "10:00:00", _HOUR),
    answers.LatestOfEquipment(
        _EQUIPMENT,
        _EQUIPMENT,
        "2024-01-15",
        "10:00:00",
        _HOUR,
        [answers.LatestValue(*_NAMED, -18.4, None, {"battery": 91.0}, _HOUR)],
    ),
]
EQUIPMENT_EXAMPLE = _CATALOG_EQUIPMENT
EQUIPMENT_LIST_EXAMPLE = answers.EquipmentList([_CATALOG_EQUIPMENT], None)
SENSOR_EXAMPLE = _CATALOG_SENSOR

HISTORY_KINDS = {
    "equipment": (
        [
            answers.EquipmentHistory[answers.EquipmentBucket],
            answers.EquipmentHistory[answers.EquipmentReading],
        ],
        EQUIPMENT_HISTORY_EXAMPLES,
    ),
    "sensor": (
        [answers.SensorHistory[answers.SensorBucket], answers.SensorHistory[answers.SensorReading]],
        SENSOR_HISTORY_EXAMPLES,
    ),
}
_HISTORY_HEADERS = {
    "Link": '`rel="next"`: the next page, relative to this one; left out on the last.',
    "X-Next-Cursor": "`next_cursor`; left out on the last page.",
    "X-Complete-Until": "`complete_until`.",
}


def answered(kinds: list[Any], examples: list[Any], *problems: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers one of `kinds` as JSON, or a problem document."""
    schemas = [answers.schema_of(kind) for kind in kinds]
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    named = {str(i): {"value": msgspec.to_builtins(example)} for i, example in enumerate(examples, 1)}
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": kinds[0].__doc__ or "", "content": {JSON: {"schema": schema, "examples": named}}}
    }
    for code in ("unauthenticated", "forbidden", *problems):
        status, title = PROBLEMS[code]
        responses[status] = {
            "description": title,
            "content": {"application/problem+json": {"schema": _PROBLEM, "example": _problem(code)}},
        }
    return responses


def answered_history(about: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of the history of an `equipment` or a `sensor`, in every format."""
    kinds, examples = HISTORY_KINDS[about]
    responses = answered(kinds, examples, "bad_parameter", "not_found", "not_acceptable")
    binary = {"schema": {"type": "string", "format": "binary"}}
    responses[200]["description"] = "A page of history, in the format that Accept prefers."
    responses[200]["content"] |= {CSV: {"schema": {"type": "string"}}, ARROW_STREAM: binary, PARQUET: binary}
    responses[200]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HISTORY_HEADERS.items()
    }
    return responses


def _problem(code: str) -> dict[str, Any]:
    status, title = PROBLEMS[code]
    return {"type": "about:blank", "title": title, "status": status, "detail": "What was wrong.", "code": code}


_PROBLEM = {
    "type": "object",
    "description": "RFC 9457.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
    },
    "required": ["title", "status", "detail", "code"],
}
