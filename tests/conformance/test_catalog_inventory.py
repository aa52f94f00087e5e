"""What the Inventory of the catalog promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_databases import EVERY, fresh_database
from sqlalchemy import event

from sensorkeep.catalog.base import Inventory
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.errors import NotFound, Poisoned
from sensorkeep.model import Equipment, Sensor, external_uuid

ROOM = external_uuid("room")
FREEZER = Equipment(
    uuid="550e8400-e29b-41d4-a716-446655440000", name="Freezer 1", location="Loja", status="ATIVO",
    interval_seconds=60, siren_active=False, siren_seconds=120,
)  # fmt: skip
PROBE = Sensor(
    uuid="660e8400-e29b-41d4-a716-446655440001", equipment_uuid=FREEZER.uuid, name="Temp", type="temperatura",
    unit="°C", manufacturer="m", model="x", firmware="1", hardware_id="h", via_hub="hub",
)  # fmt: skip


@pytest.fixture(params=EVERY)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as database:
        yield database


@pytest.fixture
def inventory(database: Database) -> CatalogInventory:
    return CatalogInventory(database)


def quantity(of: str, **fields: str) -> Sensor:
    return Sensor(uuid=external_uuid(f"room/{of}"), equipment_uuid=ROOM, external_id=f"room/{of}", **fields)


def test_descriptions_read_back_as_given(inventory: Inventory) -> None:
    inventory.describe([FREEZER], [PROBE])
    assert inventory.equipment(FREEZER.uuid) == FREEZER
    assert inventory.equipment(FREEZER.uuid.upper()) == FREEZER
    assert inventory.sensor(PROBE.uuid) == PROBE


def test_a_field_that_is_not_said_keeps_what_was_known(inventory: Inventory) -> None:
    inventory.describe([FREEZER], [PROBE])
    inventory.describe(
        [Equipment(uuid=FREEZER.uuid, name="Freezer 2", siren_active=True)],
        [Sensor(uuid=PROBE.uuid, equipment_uuid=FREEZER.uuid, firmware="2")],
    )
    known = inventory.equipment(FREEZER.uuid)
    assert (known.name, known.location, known.siren_active, known.interval_seconds) == ("Freezer 2", "Loja", True, 60)
    assert (inventory.sensor(PROBE.uuid).firmware, inventory.sensor(PROBE.uuid).unit) == ("2", "°C")


def test_the_last_description_wins_when_two_alternate(inventory: Inventory) -> None:
    one, two = Equipment(uuid=ROOM, name="one"), Equipment(uuid=ROOM, name="two")
    for description in (one, two, one):
        inventory.describe([description], [])
    assert inventory.equipment(ROOM).name == "one"


def test_an_external_id_finds_what_its_uuid_finds(inventory: Inventory) -> None:
    inventory.describe([Equipment(uuid=ROOM, external_id="room")], [quantity("humidity", type="humidity")])
    assert inventory.equipment("room").uuid == ROOM
    assert inventory.sensor("room/humidity").type == "humidity"


def test_an_external_id_that_looks_like_a_uuid_is_found(inventory: Inventory) -> None:
    text = "770e8400-e29b-41d4-a716-446655440009"
    inventory.describe([Equipment(uuid=external_uuid(text), external_id=text)], [])
    assert inventory.equipment(text).uuid == external_uuid(text)


def test_the_unknown_raises_not_found(inventory: Inventory) -> None:
    with pytest.raises(NotFound):
        inventory.equipment("none")
    with pytest.raises(NotFound):
        inventory.sensor(PROBE.uuid)


def test_sensors_of_an_equipment_come_by_name_then_uuid(inventory: Inventory) -> None:
    nameless, b, a = quantity("x"), quantity("y", name="b", type="t"), quantity("z", name="a")
    inventory.describe([FREEZER, Equipment(uuid=ROOM)], [b, a, nameless, PROBE])
    assert inventory.sensors_of(ROOM) == [nameless, a, b]
    assert inventory.sensors_of(ROOM, "t") == [b]
    assert inventory.sensors_of("none") == []


def test_sensors_of_several_equipment_are_found_at_once(inventory: Inventory) -> None:
    b, a = quantity("y", name="b"), quantity("z", name="a")
    inventory.describe([FREEZER, Equipment(uuid=ROOM)], [b, a, PROBE])
    assert inventory.sensors_of_each([ROOM, FREEZER.uuid, "none"]) == {ROOM: [a, b], FREEZER.uuid: [PROBE]}
    assert inventory.sensors_of_each([]) == {}


def test_equipment_is_listed_by_uuid_page_by_page(inventory: Inventory) -> None:
    everything = sorted((Equipment(uuid=external_uuid(f"e{i}")) for i in range(5)), key=lambda item: item.uuid)
    inventory.describe(reversed(everything), [])
    first = inventory.list_equipment(3)
    assert first == everything[:3]
    assert inventory.list_equipment(3, first[-1].uuid) == everything[3:]


def test_a_sensor_may_come_before_its_equipment(inventory: Inventory) -> None:
    inventory.describe([], [PROBE])
    assert inventory.equipment(FREEZER.uuid) == Equipment(uuid=FREEZER.uuid)
    inventory.describe([FREEZER], [PROBE])
    assert inventory.equipment(FREEZER.uuid) == FREEZER


def test_what_is_unchanged_costs_no_statement(database: Database) -> None:
    inventory = CatalogInventory(database)
    inventory.describe([FREEZER], [PROBE])
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    inventory.describe([FREEZER], [PROBE])
    assert statements == []
    inventory.describe([Equipment(uuid=FREEZER.uuid, name="other")], [PROBE])
    assert [text for text in statements if "INTO sensors" in text] == []
    assert len([text for text in statements if "INTO equipment" in text]) == 1


def test_a_full_cache_forgets_and_stores_again(database: Database) -> None:
    inventory = CatalogInventory(database, descriptions_cached_max=4)
    sensors = [quantity(str(i), name="old") for i in range(20)]
    inventory.describe([], sensors)
    inventory.describe([], [quantity(str(i), name="new") for i in range(20)])
    inventory.describe([], sensors)
    assert {sensor.name for sensor in inventory.sensors_of(ROOM)} == {"old"}
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    inventory.describe([], sensors)
    assert len([text for text in statements if "INTO sensors" in text]) == 1


def test_a_description_that_could_not_be_stored_is_not_taken_for_stored(database: Database) -> None:
    inventory = CatalogInventory(database)
    broken = Equipment(uuid=ROOM, interval_seconds=2**70)
    for _ in range(2):
        with pytest.raises(Poisoned):
            inventory.describe([FREEZER, broken], [])
    inventory.describe([FREEZER], [])
    assert inventory.equipment(FREEZER.uuid) == FREEZER
