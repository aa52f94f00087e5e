"""The ingest routes in the OpenAPI document; being raw ASGI, they cannot describe themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from sensorkeep import limits

_JSON = "application/json"
_PROBLEM = "application/problem+json"

_BULK_EXAMPLE = [
    {
        "equip_uuid": "550e8400-e29b-41d4-a716-446655440000",
        "equip_nome": "Freezer 1",
        "equip_local": "Loja",
        "sensor": [
            {
                "sensor_uuid": "660e8400-e29b-41d4-a716-446655440001",
                "sensor_nome": "Temp",
                "sensor_tipo": "temperatura",
                "sensor_unidade": "°C",
                "valor": -18.4,
            }
        ],
    }
]
_TEMPERATURE_EXAMPLE = {"temperature": 25.5, "humidity": 60.2, "pressure": 1012.5, "sensor_id": "sensor_001"}
_READING_EXAMPLE = {"sensor_id": "greenhouse", "values": {"temperature": 21.3, "co2": 415}, "metadata": {"battery": 91}}

_ACCEPTED = {
    "type": "object",
    "required": ["status", "received", "readings", "quarantined", "batch_id", "claim_check", "message", "errors"],
    "properties": {
        "status": {"type": "string", "enum": ["accepted", "stored", "partial", "dead_letter"]},
        "received": {"type": "integer", "description": "Objects in the request."},
        "readings": {"type": "integer"},
        "quarantined": {"type": "integer"},
        "batch_id": {"type": "string", "format": "uuid"},
        "claim_check": {"type": "string", "description": "Key of the stored payload, or `inline/<batch id>`."},
        "message": {"type": "string"},
        "errors": {
            "type": "array",
            "description": f"The first {limits.ERRORS_REPORTED_MAX} readings set aside, by position.",
            "items": {
                "type": "object",
                "properties": {
                    "equipment": {"type": "integer"},
                    "sensor": {"type": "integer"},
                    "reason": {"type": "string"},
                },
            },
        },
        "stored": {"type": "integer", "description": "With `Prefer: wait`, once it is stored."},
        "updated": {"type": "integer"},
        "duplicate": {"type": "integer"},
    },
}
_BULK_BODY = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["equip_uuid", "sensor"],
        "properties": {
            "equip_uuid": {"type": "string"},
            "equip_nome": {"type": "string"},
            "equip_local": {"type": "string"},
            "equip_status": {"type": "string"},
            "equip_intervalo_coleta": {"type": "integer", "description": "Seconds between readings."},
            "sensor": {
                "description": "The readings; a single object is taken too.",
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["sensor_uuid"],
                    "properties": {
                        "sensor_uuid": {"type": "string"},
                        "sensor_nome": {"type": "string"},
                        "sensor_tipo": {"type": "string"},
                        "sensor_unidade": {"type": "string"},
                        "valor": {"type": "number"},
                        "sensor_telemetria": {"type": ["string", "number"]},
                        "sensor_datahora_coleta": {"type": "string", "format": "date-time"},
                        "timestamp": {"type": "string", "format": "date-time"},
                        "sensor_status": {"type": "string"},
                        "sensor_bateria_pct": {"type": ["number", "null"]},
                        "sensor_sinal_rssi": {"type": ["number", "null"]},
                        "sensor_sinal_lqi": {"type": ["number", "null"]},
                        "sensor_voltagem_bateria": {"type": ["number", "null"]},
                    },
                },
            },
        },
    },
}
_TEMPERATURE_BODY = {
    "type": "object",
    "required": ["temperature", "sensor_id"],
    "properties": {
        "temperature": {"type": "number"},
        "humidity": {"type": ["number", "null"]},
        "pressure": {"type": ["number", "null"]},
        "sensor_id": {"type": "string", "minLength": 1, "maxLength": limits.EXTERNAL_ID_CHARS_MAX},
        "timestamp": {"type": "string", "format": "date-time"},
    },
    "additionalProperties": {"description": "A further number is one more quantity."},
}
_TEMPERATURE_ANSWER = {
    "type": "object",
    "required": [
        "id",
        "temperature",
        "humidity",
        "pressure",
        "date_recorded",
        "time_recorded",
        "sensor_id",
        "client_ip",
    ],
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "temperature": {"type": "number"},
        "humidity": {"type": ["number", "null"]},
        "pressure": {"type": ["number", "null"]},
        "date_recorded": {"type": "string", "format": "date"},
        "time_recorded": {"type": "string"},
        "sensor_id": {"type": "string"},
        "client_ip": {"type": "string"},
    },
}
_READING_BODY = {
    "type": "object",
    "required": ["sensor_id"],
    "properties": {
        "sensor_id": {"type": "string", "minLength": 1, "maxLength": limits.EXTERNAL_ID_CHARS_MAX},
        "timestamp": {"type": "string", "format": "date-time"},
        "values": {"type": "object", "additionalProperties": {"type": "number"}},
        "status": {"type": "string"},
        "metadata": {"type": "object"},
    },
}
_READINGS_BODY = {
    "oneOf": [
        _READING_BODY,
        {
            "type": "array",
            "items": _READING_BODY,
            "minItems": 1,
            "maxItems": limits.READINGS_PER_GENERAL_REQUEST_MAX,
        },
    ]
}
_ERRORS = {
    "400": "Not JSON, not an array, empty, or a truncated or corrupt compressed body.",
    "401": "No valid credential.",
    "403": "The credential lacks the scope `ingest`.",
    "408": "The body did not arrive in time.",
    "409": "The first request with this Idempotency-Key is still running.",
    "413": "Over a size limit; the detail names it.",
    "415": "Unknown content type or encoding.",
    "422": "No usable reading, a bad field, or an Idempotency-Key used with another body.",
    "429": "Too many requests; Retry-After says when to try again.",
    "503": "It cannot be made durable now; Retry-After says when to try again. Nothing was kept.",
}


def _header(name: str, description: str, example: str) -> dict[str, Any]:
    schema = {"type": "string"}
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": schema,
        "example": example,
    }


_PARAMETERS = [
    _header("Content-Encoding", "identity, gzip or zstd.", "gzip"),
    _header(
        "Prefer", "`wait=N` (at most 30) holds the answer until it is stored; `backfill` (scope admin).", "wait=10"
    ),
    _header("Idempotency-Key", "The same key and content give the first answer again, for 24 hours.", "batch-4711"),
]


def _operation(summary: str, body: dict[str, Any], example: object, answer: dict[str, Any]) -> dict[str, Any]:
    problems = {
        status: {"description": text, "content": {_PROBLEM: {"schema": {"type": "object"}}}}
        for status, text in _ERRORS.items()
    }
    return {
        "tags": ["ingest"],
        "summary": summary,
        "parameters": _PARAMETERS,
        "requestBody": {"required": True, "content": {_JSON: {"schema": body, "example": example}}},
        "responses": {
            "201": {"description": "Durable.", "content": {_JSON: {"schema": answer}}},
            **problems,
        },
    }


_OPERATIONS = {
    "/api/v1/telemetry/bulk": _operation("Send a batch", _BULK_BODY, _BULK_EXAMPLE, _ACCEPTED),
    "/api/v1/telemetria/bulk": _operation("Send a batch (alias)", _BULK_BODY, _BULK_EXAMPLE, _ACCEPTED),
    "/api/telemetria/bulk": _operation("Send a batch (alias)", _BULK_BODY, _BULK_EXAMPLE, _ACCEPTED),
    "/api/v1/temperature_reading": _operation(
        "Send one record of a sensor", _TEMPERATURE_BODY, _TEMPERATURE_EXAMPLE, _TEMPERATURE_ANSWER
    ),
    "/api/v1/readings": _operation("Send readings of any kind", _READINGS_BODY, _READING_EXAMPLE, _ACCEPTED),
}


def document_ingest(api: FastAPI) -> None:
    """Add the ingest routes to the OpenAPI document of `api`."""
    describe = api.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        security = document.get("components", {}).get("securitySchemes", {})
        for path, operation in _OPERATIONS.items():
            asked: list[dict[str, list[str]]] = [{name: []} for name in security]
            document["paths"].setdefault(path, {})["post"] = operation | {"security": asked}
        return document

    api.openapi = openapi  # type: ignore[method-assign]
