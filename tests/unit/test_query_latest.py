"""Latest values, statistics, Home Assistant and the catalog over HTTP, against the real store and catalog."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from query_world import DOOR, FREEZER, NOW_US, TEMPERATURE, Client, Reading, World, at, make_app

from sensorkeep.auth.http import Requires
from sensorkeep.auth.setup import AuthSettings, open_auth
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import DAY_US, HOUR_US, MICROSECONDS, MINUTE_US, IdSource, rfc3339
from sensorkeep.model import Equipment, LatestRecord, Sensor, external_uuid, quantity_id
from sensorkeep.query import answers

STATS = f"/analytics/equipment/{FREEZER.uuid}/stats"
READ_KEY, LIVE_KEY = "a key for reading 4711", "a key for streams 0815"
HOME_ASSISTANT = f"/analytics/home-assistant/{FREEZER.uuid}"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    client = Client(make_app(world))
    yield client
    client.close()


def get(client: Client, path: str, **parameters: str) -> dict[str, Any]:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def record(sensor_id: str, values: dict[str, float], time_us: int = NOW_US) -> LatestRecord:
    return LatestRecord(
        equipment_uuid=external_uuid(sensor_id),
        sensor_id=sensor_id,
        time_us=time_us,
        id=123,
        client_ip="192.168.1.100",
        values=values,
    )


@pytest.fixture(scope="module")
def fed() -> Iterator[Client]:
    """A client of a world with readings and a record, which no test changes."""
    with closing(World()) as world, closing(Client(make_app(world))) as client:
        world.feed([Reading(TEMPERATURE, at("12:34"), -18.4), Reading(DOOR, at("11:00"), None, "open", battery=91.5)])
        world.record(record("s1", {"temperature": 25.5}))
        yield client


# --- latest -----------------------------------------------------------------------------------------------------------


def test_the_latest_record_has_the_shape_of_its_post_answer_and_a_timestamp(world: World, client: Client) -> None:
    world.record(record("sensor_001", {"temperature": 25.5, "humidity": 60.2, "pressure": 1012.5}))
    assert get(client, "/sensor/sensor_001/latest") == {
        "id": 123,
        "temperature": 25.5,
        "humidity": 60.2,
        "pressure": 1012.5,
        "date_recorded": "2024-01-15",
        "time_recorded": "12:34:56",
        "sensor_id": "sensor_001",
        "client_ip": "192.168.1.100",
        "timestamp": "2024-01-15T12:34:56.789012Z",
    }


def test_absent_quantities_are_null_further_ones_are_told_and_none_replaces_a_member(
    world: World, client: Client
) -> None:
    world.record(record("s1", {"temperature": 1.5, "co2": 415.0, "id": 7.0, "timestamp": 8.0}))
    answer = get(client, "/sensor/s1/latest")
    assert (answer["humidity"], answer["pressure"], answer["co2"]) == (None, None, 415.0)
    assert (answer["id"], answer["timestamp"]) == (123, rfc3339(NOW_US))


def test_date_and_time_are_those_of_the_display_time_zone() -> None:
    with closing(World(ZoneInfo("Asia/Tokyo"))) as world, closing(Client(make_app(world))) as client:
        world.record(record("s1", {"temperature": 1.5}, at("15:00")))
        answer = get(client, "/sensor/s1/latest")
    assert (answer["date_recorded"], answer["time_recorded"]) == ("2024-01-16", "00:00:00")
    assert answer["timestamp"] == "2024-01-15T15:00:00Z"


@pytest.mark.parametrize(
    ("sensor_id", "encoded"),
    [
        ("a/b", "a%2Fb"),
        ("a/b", "a/b"),
        ("x/latest", "x%2Flatest"),
        ("50% off? #1", "50%25%20off%3F%20%231"),
        ("sensör", "sens%C3%B6r"),
        (FREEZER.uuid.upper(), FREEZER.uuid.upper()),  # an external id that looks like a UUID
    ],
)
def test_every_sensor_id_can_be_asked_for(world: World, client: Client, sensor_id: str, encoded: str) -> None:
    world.record(record(sensor_id, {"temperature": 1.5}))
    assert get(client, f"/sensor/{encoded}/latest")["sensor_id"] == sensor_id


def test_a_sensor_is_answered_with_its_newest_reading(world: World, client: Client) -> None:
    world.feed([Reading(TEMPERATURE, at("10:00"), 1.0), Reading(TEMPERATURE, at("11:00"), -18.4, None, 91.0, -60)])
    assert get(client, f"/sensor/{TEMPERATURE.uuid.upper()}/latest") == {
        "sensor_id": TEMPERATURE.uuid,
        "sensor_uuid": TEMPERATURE.uuid,
        "value": -18.4,
        "status": None,
        "metadata": {"battery": 91.0, "rssi": -60},
        "date_recorded": "2024-01-15",
        "time_recorded": "11:00:00",
        "timestamp": "2024-01-15T11:00:00Z",
    }


def test_a_quantity_is_found_by_its_external_id(world: World, client: Client) -> None:
    room = Equipment(uuid=external_uuid("room"), external_id="room")
    quantity = quantity_id("room", "co2")
    sensor = Sensor(uuid=external_uuid(quantity), equipment_uuid=room.uuid, external_id=quantity, type="co2")
    world.feed([Reading(sensor, at("11:00"), 415.0)], [room])
    answer = get(client, "/sensor/room%2Fco2/latest")
    assert (answer["sensor_id"], answer["sensor_uuid"], answer["value"]) == ("room/co2", sensor.uuid, 415.0)
    assert get(client, "/sensors/room%2Fco2")["sensor_uuid"] == sensor.uuid
    assert get(client, "/equipment/room")["equipment_uuid"] == room.uuid
    assert get(client, "/analytics/sensor/room%2Fco2/history")["sensor_uuid"] == sensor.uuid
    assert get(client, "/analytics/equipment/room/history")["data"][0]["avg_value"] == 415.0


def test_an_equipment_of_many_sensors_is_answered_with_all_of_them(world: World, client: Client) -> None:
    world.feed([Reading(TEMPERATURE, at("11:00"), -18.4), Reading(DOOR, at("12:00"), None, "open")])
    answer = get(client, f"/sensor/{FREEZER.uuid}/latest")
    assert (answer["sensor_id"], answer["equipment_uuid"]) == (FREEZER.uuid, FREEZER.uuid)
    assert answer["timestamp"] == "2024-01-15T12:00:00Z"
    assert [(row["sensor_name"], row["value"], row["status"]) for row in answer["sensors"]] == [
        (TEMPERATURE.name, -18.4, None),
        (DOOR.name, None, "open"),
    ]


def test_latest_of_nothing_is_not_found(world: World, client: Client) -> None:
    world.inventory.describe([FREEZER], [TEMPERATURE])
    for identifier in (FREEZER.uuid, TEMPERATURE.uuid, "nobody", "a%00b", "x" * 3000):
        answer = client.get(f"/sensor/{identifier}/latest")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_months() -> list[Reading]:
    """Uneven: many readings in some hours and few in others, so that an average of averages would be wrong."""
    readings = []
    for hours_ago in range(1, 24 * 60, 5):
        start_us = NOW_US - hours_ago * HOUR_US
        readings += [
            Reading(TEMPERATURE, start_us + i * MINUTE_US, hours_ago / 7 + i) for i in range(1 + hours_ago % 9)
        ]
    return readings


@pytest.fixture(scope="module")
def fed_two_months(two_months: list[Reading]) -> Iterator[Client]:
    with closing(World()) as world, closing(Client(make_app(world))) as client:
        world.feed(two_months)
        yield client


@pytest.mark.parametrize(
    ("period", "start_us", "bucket_us"),
    [
        ("24h", NOW_US - DAY_US, HOUR_US),
        ("7d", at("2024-01-08T12:00"), HOUR_US),
        ("30d", at("2023-12-16T00:00"), DAY_US),
        ("1y", at("2023-01-15T00:00"), DAY_US),
    ],
)
def test_statistics_equal_a_recomputation_over_the_range_they_tell(
    fed_two_months: Client, two_months: list[Reading], period: str, start_us: int, bucket_us: int
) -> None:
    answer = get(fed_two_months, STATS, period=period)
    assert (answer["equipment_uuid"], answer["period"]) == (FREEZER.uuid, period)
    assert (answer["start_date"], answer["end_date"]) == (rfc3339(start_us), rfc3339(NOW_US))
    inside = [reading for reading in two_months if start_us <= reading.time_us < NOW_US]
    values = [reading.value for reading in inside if reading.value is not None]
    (row,) = answer["sensors"]
    assert (row["overall_max"], row["overall_min"]) == (max(values), min(values))
    assert row["overall_avg"] == pytest.approx(statistics.fmean(values))
    assert row["total_samples"] == len(values)
    assert row["active_periods"] == len({reading.time_us // bucket_us for reading in inside})
    assert row.get("approximate", False) == (period != "24h")
    exact = statistics.quantiles(values, n=100, method="inclusive")
    tolerance = 1e-9 if period == "24h" else 0.02 * (max(values) - min(values))
    assert row["median"] == pytest.approx(exact[49], abs=tolerance)
    assert row["p95"] == pytest.approx(exact[94], abs=tolerance)


def test_statistics_are_of_the_sensors_with_readings_in_the_range(world: World, client: Client) -> None:
    world.feed([Reading(TEMPERATURE, at("11:00"), 1.0), Reading(DOOR, at("2024-01-12T11:00"), None, "open")])
    assert [row["sensor_uuid"] for row in get(client, STATS)["sensors"]] == [TEMPERATURE.uuid]
    week = get(client, STATS, period="7d")["sensors"]
    assert [row["sensor_uuid"] for row in week] == [TEMPERATURE.uuid, DOOR.uuid]
    assert (week[1]["overall_avg"], week[1]["total_samples"], week[1]["active_periods"]) == (None, 0, 1)
    assert get(client, STATS, period="7d", sensor_type="porta")["sensors"] == [week[1]]
    assert get(client, STATS, sensor_type="co2")["sensors"] == []


# --- Home Assistant ---------------------------------------------------------------------------------------------------


def test_home_assistant_gets_the_last_hours_with_the_open_one(world: World, client: Client) -> None:
    times = [(hour, minute) for hour in range(13) for minute in (10, 30)]
    world.feed([Reading(TEMPERATURE, at(f"{hour:02d}:{minute}"), hour + minute / 100) for hour, minute in times])
    answer = get(client, HOME_ASSISTANT, hours="2")
    named = {
        "sensor_uuid": TEMPERATURE.uuid,
        "sensor_name": TEMPERATURE.name,
        "sensor_type": "temperatura",
        "unit": "°C",
    }
    assert answer == {
        "equipment_uuid": FREEZER.uuid,
        "period_hours": 2,
        "data": [
            {"time": "2024-01-15T11:00:00Z"} | named | {"value": 11.2, "max": 11.3, "min": 11.1, "samples": 2},
            {"time": "2024-01-15T12:00:00Z"} | named | {"value": 12.2, "max": 12.3, "min": 12.1, "samples": 2},
        ],
    }
    assert len(get(client, HOME_ASSISTANT)["data"]) == 13
    assert get(client, HOME_ASSISTANT, sensor_type="porta")["data"] == []


def test_more_home_assistant_rows_than_a_page_holds_are_refused_not_cut(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.feed([Reading(TEMPERATURE, at(f"{hour:02d}:10"), 1.0) for hour in range(9, 13)])
    monkeypatch.setattr("sensorkeep.query.service.PAGE_ROWS_MAX", 3)
    answer = client.get(HOME_ASSISTANT)
    assert (answer.status_code, answer.json()["parameter"]) == (400, "hours")
    assert len(get(client, HOME_ASSISTANT, hours="3")["data"]) == 3


@pytest.mark.parametrize(
    ("path", "parameters", "named"),
    [
        (HOME_ASSISTANT, {"hours": "0"}, "hours"),
        (HOME_ASSISTANT, {"hours": "169"}, "hours"),
        (HOME_ASSISTANT, {"sensor_type": "a\x00b"}, "sensor_type"),
        (STATS, {"period": "90d"}, "period"),
        ("/equipment", {"limit": "1001"}, "limit"),
        ("/equipment", {"cursor": "x"}, "cursor"),
    ],
)
def test_what_cannot_be_served_is_a_bad_parameter(
    fed: Client, path: str, parameters: dict[str, str], named: str
) -> None:
    answer = fed.get(path, params=parameters)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_parameter")
    assert answer.json()["parameter"] == named


def test_unknown_equipment_is_not_found(fed: Client) -> None:
    for path in (
        "/equipment/x",
        "/equipment/",
        "/sensors/x",
        "/analytics/equipment/x/stats",
        "/analytics/home-assistant/x",
    ):
        answer = fed.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# --- the catalog ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval_seconds", "within_seconds"), [(60, 150.0), (1, 2.5), (None, 750.0), (0, 750.0)])
def test_online_means_seen_within_two_and_a_half_expected_intervals(
    world: World, client: Client, interval_seconds: int | None, within_seconds: float
) -> None:
    room = Equipment(uuid=external_uuid("room"), external_id="room", interval_seconds=interval_seconds)
    sensor = Sensor(uuid=external_uuid("room/co2"), equipment_uuid=room.uuid, type="co2", manufacturer="Sonoff")
    world.inventory.describe([room], [sensor])
    for path in ("/equipment/room", f"/sensors/{sensor.uuid}"):
        answer = get(client, path)
        assert (answer["state"], answer["online"], answer["last_seen"]) == ("never_seen", False, None)
        assert (answer["last_value"], answer["online_within_seconds"]) == (None, within_seconds)
    edge_us = NOW_US - int(within_seconds * MICROSECONDS)
    world.feed([Reading(sensor, edge_us, 415.0)], [room])
    for state in ("online", "offline"):
        for path in ("/equipment/room", f"/sensors/{sensor.uuid}"):
            answer = get(client, path)
            assert (answer["state"], answer["online"]) == (state, state == "online")
            assert (answer["last_seen"], answer["last_value"]) == (rfc3339(edge_us), 415.0)
        world.clock.advance(0.001)


def test_an_equipment_is_told_with_its_sensors_and_what_was_seen_last(world: World, client: Client) -> None:
    world.feed([Reading(TEMPERATURE, at("12:34"), -18.4), Reading(DOOR, at("11:00"), None, "open")])
    answer = get(client, f"/equipment/{FREEZER.uuid}")
    assert (answer["name"], answer["location"], answer["status"]) == ("Freezer 1", "Loja", "ATIVO")
    assert (answer["interval_seconds"], answer["siren_active"], answer["state"]) == (60, None, "online")
    assert (answer["last_seen"], answer["last_value"]) == ("2024-01-15T12:34:00Z", -18.4)
    states = {row["sensor_uuid"]: (row["state"], row["last_value"], row["last_status"]) for row in answer["sensors"]}
    assert states == {TEMPERATURE.uuid: ("online", -18.4, None), DOOR.uuid: ("offline", None, "open")}
    assert get(client, f"/sensors/{DOOR.uuid}") in answer["sensors"]


def test_the_equipment_list_is_walked_once_in_pages(world: World, client: Client) -> None:
    world.inventory.describe(
        [Equipment(uuid=external_uuid(f"room {i}"), external_id=f"room {i}") for i in range(11)], []
    )
    whole = get(client, "/equipment")
    assert (len(whole["equipment"]), whole["next_cursor"]) == (11, None)
    for limit in (1, 4, 10, 11):
        found: list[Any] = []
        cursor = ""
        while cursor is not None:
            page = get(client, "/equipment", limit=str(limit), cursor=cursor)
            assert 0 < len(page["equipment"]) <= limit
            found += page["equipment"]
            cursor = page["next_cursor"]
        assert found == whole["equipment"]


# --- the document and the door ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (STATS, answers.EquipmentStats),
        (HOME_ASSISTANT, answers.HomeAssistant),
        ("/sensor/s1/latest", answers.LatestSingle),
        (f"/sensor/{TEMPERATURE.uuid}/latest", answers.LatestOfSensor),
        (f"/sensor/{FREEZER.uuid}/latest", answers.LatestOfEquipment),
        ("/equipment", answers.EquipmentList),
        (f"/equipment/{FREEZER.uuid}", answers.CatalogEquipment),
        (f"/sensors/{DOOR.uuid}", answers.CatalogSensor),
    ],
)
def test_the_bytes_are_those_of_the_documented_answer(fed: Client, path: str, kind: Any) -> None:
    answer = fed.get(path)
    assert answer.headers["content-type"] == "application/json"
    assert msgspec.json.encode(msgspec.json.decode(answer.content, type=kind)) == answer.content


def test_every_route_is_documented_with_its_parameters_and_an_example(world: World, client: Client) -> None:
    document = client.get("http://testserver/openapi.json").json()
    parameters = {path: {p["name"] for p in item["get"]["parameters"]} for path, item in document["paths"].items()}
    history = {"period", "start_date", "end_date", "limit", "cursor"}
    assert parameters == {
        "/api/v1/analytics/equipment/{uuid}/history": {"uuid", "sensor_type", *history},
        "/api/v1/analytics/sensor/{uuid}/history": {"uuid", *history},
        "/api/v1/analytics/equipment/{uuid}/stats": {"uuid", "period", "sensor_type"},
        "/api/v1/analytics/home-assistant/{uuid}": {"uuid", "hours", "sensor_type"},
        "/api/v1/sensor/{sensor_id}/latest": {"sensor_id"},
        "/api/v1/equipment": {"limit", "cursor"},
        "/api/v1/equipment/{uuid}": {"uuid"},
        "/api/v1/sensors/{uuid}": {"uuid"},
    }
    for item in document["paths"].values():
        content = item["get"]["responses"]["200"]["content"]["application/json"]
        assert content["examples"]
        for schema in content["schema"].get("oneOf", [content["schema"]]):
            assert schema["type"] == "object"
            assert set(schema["required"]) <= set(schema["properties"])
    history_formats = document["paths"]["/api/v1/analytics/sensor/{uuid}/history"]["get"]["responses"]["200"]["content"]
    assert len(history_formats) == 4


def test_the_real_door_asks_for_the_scope_read_and_tells_the_rate(world: World) -> None:
    accounts, registry = CatalogAccounts(world.database, world.clock), CatalogRegistry(world.database)
    settings = AuthSettings(api_key=READ_KEY, api_key_ws=LIVE_KEY, requests_per_minute=100)
    auth = open_auth(accounts, registry, world.clock, IdSource(world.clock), settings)
    world.feed([Reading(TEMPERATURE, at("12:34"), -18.4)])
    with closing(Client(make_app(world, Requires(auth.gate)))) as client:
        for path in (f"/sensor/{TEMPERATURE.uuid}/latest", "/equipment", STATS):
            assert client.get(path).json()["code"] == "unauthenticated"
            assert client.get(path, headers={"x-api-key": LIVE_KEY}).json()["code"] == "forbidden"
            answer = client.get(path, headers={"x-api-key": READ_KEY})
            assert answer.status_code == 200
            assert "r=" in answer.headers["ratelimit"]
