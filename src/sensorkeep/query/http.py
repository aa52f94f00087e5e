"""The query routes, relative to /api/v1.

Answers are ready bytes: nothing is validated or serialized a second time on the way out. What blocks runs in one hop
to a thread; where the latest values are in memory, one is read on the event loop. Unknown query parameters are ignored;
of one that is given twice the last counts.

History is answered in the format that Accept prefers (module formats). Every format carries `X-Complete-Until` and,
where there is a next page, `X-Next-Cursor` and `Link: <?...>; rel="next"`, which is relative to the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor

from sensorkeep.auth.scopes import Scope
from sensorkeep.clock import rfc3339
from sensorkeep.limits import QUERIES_AT_ONCE_MAX
from sensorkeep.query import answers, openapi
from sensorkeep.query.formats import JSON, HistoryPage, encode_history, negotiate
from sensorkeep.query.service import QueryService


class _Identifier(Convertor[str]):
    """Any text in a path. Starlette's own leaves out line ends, and a last one it overlooks."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("identifier", _Identifier())


def query_router(service: QueryService, requires: Callable[[Scope], Callable[..., Any]]) -> APIRouter:
    """The routes over `service`; `requires(scope)` makes the dependency that asks for a scope."""
    router = APIRouter(dependencies=[Depends(requires(Scope.READ))], tags=["query"], default_response_class=Response)
    scans, lookups = (asyncio.Semaphore(QUERIES_AT_ONCE_MAX) for _ in range(2))
    _add_history(router, service, scans)
    _add_statistics(router, service, scans)
    _add_latest(router, service, lookups)
    _add_catalog(router, service, lookups)
    return router


def _add_history(router: APIRouter, service: QueryService, scans: asyncio.Semaphore) -> None:
    @router.get(
        "/analytics/equipment/{uuid:identifier}/history",
        summary="History of the sensors of an equipment",
        responses=openapi.answered_history("equipment"),
        openapi_extra={"parameters": [openapi.path_parameter("uuid"), *openapi.HISTORY, openapi.SENSOR_TYPE]},
    )
    async def equipment_history(request: Request) -> Response:
        """Hours, days or raw readings of all sensors of an equipment, by time, then sensor uuid.

        The open hour and day are included and right. A bucket belongs to the range if its start does. A range or limit
        that cannot be served is refused with the reason. As CSV, Arrow or Parquet what JSON says beside the rows
        travels in headers, and `metadata` is the columns battery, rssi, lqi and battery_voltage.
        """
        return await _history(request, scans, service.equipment_history)

    @router.get(
        "/analytics/sensor/{uuid:identifier}/history",
        summary="History of a sensor",
        responses=openapi.answered_history("sensor"),
        openapi_extra={"parameters": [openapi.path_parameter("uuid"), *openapi.HISTORY]},
    )
    async def sensor_history(request: Request) -> Response:
        """As the history of an equipment, for one sensor and without the sensor columns."""
        return await _history(request, scans, service.sensor_history)


def _add_statistics(router: APIRouter, service: QueryService, scans: asyncio.Semaphore) -> None:
    @router.get(
        "/analytics/equipment/{uuid:identifier}/stats",
        summary="Statistics of the sensors of an equipment",
        responses=openapi.answered([answers.EquipmentStats], [openapi.STATS_EXAMPLE], "bad_parameter", "not_found"),
        openapi_extra={"parameters": [openapi.path_parameter("uuid"), *openapi.STATS]},
    )
    async def equipment_stats(request: Request) -> Response:
        """One row for each sensor with readings in the range. The average is weighted by samples."""
        return await _answer(
            request, scans, service.equipment_stats, request.path_params["uuid"], dict(request.query_params)
        )

    @router.get(
        "/analytics/home-assistant/{uuid:identifier}",
        summary="The last hours of an equipment, for Home Assistant",
        responses=openapi.answered(
            [answers.HomeAssistant], [openapi.HOME_ASSISTANT_EXAMPLE], "bad_parameter", "not_found"
        ),
        openapi_extra={"parameters": [openapi.path_parameter("uuid"), *openapi.HOURS]},
    )
    async def home_assistant(request: Request) -> Response:
        """Hourly rows of the last hours, by time, then sensor uuid; `value` is the average."""
        return await _answer(
            request, scans, service.home_assistant, request.path_params["uuid"], dict(request.query_params)
        )


def _add_latest(router: APIRouter, service: QueryService, lookups: asyncio.Semaphore) -> None:
    @router.get(
        "/sensor/{sensor_id:identifier}/latest",
        summary="The newest record of a sensor_id, or the newest reading of a sensor or an equipment",
        responses=openapi.answered(
            [answers.LatestSingle, answers.LatestOfSensor, answers.LatestOfEquipment],
            openapi.LATEST_EXAMPLES,
            "not_found",
        ),
        openapi_extra={"parameters": [openapi.path_parameter("sensor_id")]},
    )
    async def latest(request: Request) -> Response:
        """The newest of what was accepted, settled or not.

        A sensor_id of single readings is answered with its last record, as its POST was; further quantities are further
        members. A sensor (by uuid or external id) is answered with its newest reading, any other equipment with the
        newest readings of its sensors.
        """
        sensor_id = request.path_params["sensor_id"]
        if service.latest_is_in_memory:
            known = service.latest_known(sensor_id)
            if known is not None:
                return _reply(request, msgspec.json.encode(known), JSON, {})
        return await _answer(request, lookups, service.latest, sensor_id)


def _add_catalog(router: APIRouter, service: QueryService, lookups: asyncio.Semaphore) -> None:
    @router.get(
        "/equipment",
        summary="The equipment, with sensors and newest values",
        responses=openapi.answered([answers.EquipmentList], [openapi.EQUIPMENT_LIST_EXAMPLE], "bad_parameter"),
        openapi_extra={"parameters": openapi.EQUIPMENT_LIST},
    )
    async def equipment_list(request: Request) -> Response:
        """Equipment by uuid, each with its sensors.

        `state` is `online` while the newest reading is at most `online_within_seconds` old, which is 2.5 times the
        expected interval of the equipment (300 s where it is unknown); then `offline`; `never_seen` before the first
        reading. `online` is true in the first state only.
        """
        return await _answer(request, lookups, service.equipment_list, dict(request.query_params))

    @router.get(
        "/equipment/{uuid:identifier}",
        summary="An equipment, with sensors and newest values",
        responses=openapi.answered([answers.CatalogEquipment], [openapi.EQUIPMENT_EXAMPLE], "not_found"),
        openapi_extra={"parameters": [openapi.path_parameter("uuid")]},
    )
    async def equipment(request: Request) -> Response:
        return await _answer(request, lookups, service.equipment, request.path_params["uuid"])

    @router.get(
        "/sensors/{uuid:identifier}",
        summary="A sensor and its newest value",
        responses=openapi.answered([answers.CatalogSensor], [openapi.SENSOR_EXAMPLE], "not_found"),
        openapi_extra={"parameters": [openapi.path_parameter("uuid")]},
    )
    async def sensor(request: Request) -> Response:
        return await _answer(request, lookups, service.sensor, request.path_params["uuid"])


async def _answer(
    request: Request, turns: asyncio.Semaphore, question: Callable[..., Any], *arguments: Any
) -> Response:
    def ask() -> bytes:
        return msgspec.json.encode(question(*arguments))

    async with turns:
        content = await run_in_threadpool(ask)
    return _reply(request, content, JSON, {})


async def _history(
    request: Request, turns: asyncio.Semaphore, question: Callable[[str, dict[str, str]], HistoryPage]
) -> Response:
    accepted = request.headers.getlist("accept")
    media_type = negotiate(",".join(accepted)) if accepted else JSON
    parameters = dict(request.query_params)

    def ask() -> tuple[HistoryPage, bytes]:
        page = question(request.path_params["uuid"], parameters)
        return page, encode_history(page, media_type)

    async with turns:
        page, content = await run_in_threadpool(ask)
    headers = {"X-Complete-Until": rfc3339(page.complete_until_us), "Vary": "Accept"}
    if page.next_cursor is not None:
        following = urlencode(parameters | {"cursor": page.next_cursor})
        headers |= {"X-Next-Cursor": page.next_cursor, "Link": f'<?{following}>; rel="next"'}
    return _reply(request, content, media_type, headers)


def _reply(request: Request, content: bytes, media_type: str, headers: dict[str, str]) -> Response:
    # FastAPI hands on what a dependency puts into the headers only where it serializes the answer itself.
    rate = getattr(request.state, "rate", None)
    return Response(content, media_type=media_type, headers=headers | rate.headers if rate else headers)
