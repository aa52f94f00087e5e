"""What the catalog says of equipment and sensors, and the newest values, over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, stamp

SENSOR = {
    "sensor_uuid", "equipment_uuid", "sensor_name", "sensor_type", "sensor_unit", "last_seen", "last_value", "online",
}  # fmt: skip
EQUIPMENT = {"equipment_uuid", "name", "location", "last_seen", "last_value", "online", "sensors"}


@pytest.fixture(scope="module")
def freezer(server: Server) -> dict[str, str]:
    """An equipment that was heard of just now, and one that was last heard of three hours ago."""
    ids = {name: new_uuid() for name in ("equipment", "sensor", "silent", "silent_sensor")}
    now = hours_ago(0)
    described = {"equip_nome": "Freezer", "equip_local": "Loja", "equip_intervalo_coleta": 60}
    readings = [
        esm_reading(ids["sensor"], value, now - timedelta(minutes=age), sensor_nome="Temp", sensor_unidade="°C")
        for age, value in ((0, -18.5), (1, -18.0))
    ]
    silent = [esm_reading(ids["silent_sensor"], 4.0, now - timedelta(hours=3))]
    server.stored([esm_equipment(ids["equipment"], readings, **described), esm_equipment(ids["silent"], silent)])
    return ids


def test_an_equipment_tells_its_sensors_and_whether_it_is_online(server: Server, freezer: dict[str, str]) -> None:
    found = server.get(f"/equipment/{freezer['equipment'].upper()}")
    assert found.keys() >= EQUIPMENT
    assert (found["name"], found["location"], found["interval_seconds"]) == ("Freezer", "Loja", 60)
    assert (found["last_value"], found["online"], found["state"]) == (-18.5, True, "online")
    (sensor,) = found["sensors"]
    assert sensor.keys() >= SENSOR
    assert sensor == server.get(f"/sensors/{freezer['sensor']}")
    assert (sensor["sensor_name"], sensor["sensor_unit"], sensor["last_value"]) == ("Temp", "°C", -18.5)


def test_an_equipment_that_is_silent_for_too_long_is_offline(server: Server, freezer: dict[str, str]) -> None:
    found = server.get(f"/equipment/{freezer['silent']}")
    assert (found["online"], found["state"], found["last_seen"]) == (False, "offline", found["sensors"][0]["last_seen"])


def test_a_description_that_changes_is_the_new_one_and_what_is_left_out_stays(server: Server) -> None:
    equipment, sensor = new_uuid(), new_uuid()

    def send(**fields: object) -> dict[str, Any]:
        server.stored([esm_equipment(equipment, [esm_reading(sensor, 1.0, None)], **fields)])
        found: dict[str, Any] = server.get(f"/equipment/{equipment}")
        return found

    assert send(equip_nome="Old", equip_local="Here")["name"] == "Old"
    found = send(equip_nome="New")
    assert (found["name"], found["location"]) == ("New", "Here")


@pytest.mark.usefixtures("freezer")
def test_a_walk_over_the_equipment_sees_each_once(server: Server, freezer: dict[str, str]) -> None:
    found: list[str] = []
    parameters: dict[str, object] = {"limit": 1000}
    while True:
        page = server.get("/equipment", **parameters)
        found += [item["equipment_uuid"] for item in page["equipment"]]
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert found == sorted(set(found))
    assert {freezer["equipment"], freezer["silent"]} <= set(found)
    first = server.get("/equipment", limit=1)
    second = server.get("/equipment", limit=1, cursor=first["next_cursor"])
    assert [page["equipment"][0]["equipment_uuid"] for page in (first, second)] == found[:2]


@pytest.mark.parametrize("parameters", [{"limit": 0}, {"limit": 1001}, {"cursor": "nonsense"}])
def test_a_page_that_cannot_be_served_is_a_400(server: Server, parameters: dict[str, str]) -> None:
    problem(server.client.get("/equipment", params=parameters), 400, "bad_parameter")


def test_every_look_up_takes_the_external_id_and_its_uuid(server: Server) -> None:
    name = f"room/{new_uuid()}"
    body = {"sensor_id": name, "values": {"co2": 415}}
    assert server.client.post("/readings", json=body, headers={"Prefer": "wait=30"}).status_code == 201
    by_name = server.get(f"/equipment/{name}")
    assert by_name["external_id"] == name
    assert server.get(f"/equipment/{by_name['equipment_uuid']}") == by_name
    (sensor,) = by_name["sensors"]
    assert sensor["external_id"] == f"{name}/co2"
    quoted = name.replace("/", "%2F")
    for path in (f"{name}/co2", f"{quoted}%2Fco2", sensor["sensor_uuid"]):
        assert server.get(f"/sensors/{path}") == sensor
        assert server.get(f"/analytics/sensor/{path}/history")["sensor_uuid"] == sensor["sensor_uuid"]
    for path in (name, quoted, by_name["equipment_uuid"]):
        for call in (f"equipment/{path}/history", f"equipment/{path}/stats", f"home-assistant/{path}"):
            assert server.get(f"/analytics/{call}")["equipment_uuid"] == by_name["equipment_uuid"]


def test_latest_of_a_sensor_and_of_an_equipment_of_the_bulk_form(server: Server, freezer: dict[str, str]) -> None:
    of_sensor = server.get(f"/sensor/{freezer['sensor']}/latest")
    assert (of_sensor["value"], of_sensor["sensor_uuid"]) == (-18.5, freezer["sensor"])
    of_equipment = server.get(f"/sensor/{freezer['equipment']}/latest")
    assert of_equipment["timestamp"] == of_sensor["timestamp"]
    assert [item["value"] for item in of_equipment["sensors"]] == [-18.5]


def test_latest_of_what_is_not_known_says_so(server: Server) -> None:
    answer = server.client.get("/sensor/nothing/latest")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "there is no sensor or equipment 'nothing' with readings"


def test_latest_keeps_the_newest_by_reading_time_and_takes_its_correction(server: Server) -> None:
    equipment, sensor, moment = new_uuid(), new_uuid(), hours_ago(1)

    def send(value: float, when: Any) -> dict[str, Any]:
        assert server.bulk([esm_equipment(equipment, [esm_reading(sensor, value, when)])]).status_code == 201
        if server.client.get(f"/sensor/{sensor}/latest").status_code == 404:
            raise AssertionError("latest must see a reading the moment it was answered")
        found: dict[str, Any] = server.get(f"/sensor/{sensor}/latest")
        return found

    assert send(1.0, moment)["value"] == 1.0
    assert send(2.0, moment - timedelta(minutes=5))["value"] == 1.0
    corrected = send(3.0, moment)
    assert (corrected["value"], corrected["timestamp"]) == (3.0, stamp(moment))
