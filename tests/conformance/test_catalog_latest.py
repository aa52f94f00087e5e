"""What the LatestReadings of the catalog promise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_databases import EVERY, fresh_database
from sqlalchemy import event

from sensorkeep.catalog.base import LatestReadings
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.latest import CatalogLatestReadings
from sensorkeep.errors import Unavailable
from sensorkeep.model import LatestReading, LatestRecord


@pytest.fixture(params=EVERY)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as database:
        yield database


@pytest.fixture
def latest(database: Database) -> CatalogLatestReadings:
    return CatalogLatestReadings(database)


def reading(time_us: int, value: float, sensor: str = "s") -> LatestReading:
    return LatestReading(
        sensor_uuid=sensor, time_us=time_us, value=value, status="ok", battery=91.5, rssi=-70, lqi=200,
        battery_voltage=3.1,
    )  # fmt: skip


def record(time_us: int, number: int = 7) -> LatestRecord:
    return LatestRecord(
        equipment_uuid="e", sensor_id="sensor_001", time_us=time_us, id=number, client_ip="192.0.2.1",
        values={"temperature": 25.5, "co2": 415.0},
    )  # fmt: skip


def test_the_newest_by_reading_time_stands_whatever_the_order(latest: LatestReadings) -> None:
    latest.offer([reading(5, 1.0), reading(9, 2.0), reading(7, 3.0)], [record(9), record(3)])
    assert latest.reading("s") == reading(9, 2.0)
    assert latest.record("e") == record(9)
    assert latest.reading("other") is None
    assert latest.record("other") is None


def test_many_are_found_at_once_and_the_unknown_are_left_out(latest: LatestReadings) -> None:
    latest.offer([reading(5, 1.0, "s"), reading(6, 2.0, "t")], [record(7)])
    assert latest.find(["t", "other", "s"], ["e", "other"]) == (
        {"s": reading(5, 1.0, "s"), "t": reading(6, 2.0, "t")},
        {"e": record(7)},
    )
    assert latest.find([], []) == ({}, {})


def test_the_same_time_replaces_as_a_correction(latest: LatestReadings) -> None:
    latest.offer([reading(5, 1.0)], [record(5, 7)])
    latest.offer([reading(5, 2.0)], [record(5, 8)])
    assert latest.reading("s") == reading(5, 2.0)
    assert latest.record("e") == record(5, 8)


def test_a_worker_that_is_behind_undoes_no_correction_for_a_moment(latest: LatestReadings) -> None:
    for number in range(3):
        latest.offer([reading(5, float(number))], [record(5, number)], batch_ids=(f"b{number}",))
    latest.offer([reading(5, 0.0)], [record(5, 0)], batch_ids={"b0"}, again=True)
    assert latest.reading("s") == reading(5, 2.0)
    assert latest.record("e") == record(5, 2)
    latest.offer([reading(5, 2.0)], [record(5, 2)], batch_ids={"b1", "b2"}, again=True)
    assert latest.reading("s") == reading(5, 2.0)


@pytest.mark.parametrize("at_once", [True, False])
def test_of_equal_times_that_overtook_each_other_the_one_the_worker_comes_to_last_stands(
    latest: LatestReadings, at_once: bool
) -> None:
    latest.offer([reading(5, 1.0)], [record(5, 1)], batch_ids=("accepted second",))
    latest.offer([reading(5, 2.0)], [record(5, 2)], batch_ids=("accepted first",))
    if at_once:
        both = {"accepted first", "accepted second"}
        latest.offer([reading(5, 1.0)], [record(5, 1)], batch_ids=both, again=True)
    else:
        latest.offer([reading(5, 2.0)], [record(5, 2)], batch_ids={"accepted first"}, again=True)
        latest.offer([reading(5, 1.0)], [record(5, 1)], batch_ids={"accepted second"}, again=True)
    assert latest.reading("s") == reading(5, 1.0)
    assert latest.record("e") == record(5, 1)


def test_what_was_saved_is_there_after_a_restart(latest: LatestReadings, database: Database) -> None:
    empty = LatestReading(sensor_uuid="t", time_us=1, status="on")
    latest.offer([reading(5, 1.0), empty], [record(5)])
    latest.save()
    again = CatalogLatestReadings(database)
    assert again.reading("s") == reading(5, 1.0)
    assert again.reading("t") == empty
    assert again.record("e") == record(5)


def test_a_process_that_is_behind_never_overwrites_a_newer_reading(database: Database) -> None:
    behind, ahead = CatalogLatestReadings(database), CatalogLatestReadings(database)
    behind.offer([reading(5, 1.0)], [record(5)])
    ahead.offer([reading(9, 2.0)], [record(9)])
    ahead.save()
    behind.save()
    again = CatalogLatestReadings(database)
    assert again.reading("s") == reading(9, 2.0)
    assert again.record("e") == record(9)


def test_offers_and_look_ups_run_no_statement_and_a_save_writes_only_what_changed(database: Database) -> None:
    latest = CatalogLatestReadings(database)
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    latest.offer([reading(5, 1.0)])
    latest.reading("s")
    latest.record("e")
    assert statements == []
    latest.save()
    assert len([text for text in statements if text.startswith("INSERT")]) == 1
    statements.clear()
    latest.offer([reading(5, 1.0), reading(4, 9.0)])
    latest.save()
    assert statements == []


def test_a_save_that_failed_is_made_good_by_the_next(database: Database) -> None:
    latest = CatalogLatestReadings(database)
    latest.offer([reading(5, 1.0)])
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE latest_readings RENAME TO away")
    with pytest.raises(Unavailable):
        latest.save()
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO latest_readings")
    latest.save()
    assert CatalogLatestReadings(database).reading("s") == reading(5, 1.0)
