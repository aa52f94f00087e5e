"""Rows as readings: columns, times and numbers as people write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sensorkeep.cli.source_rows import ColumnOptions, TimeReader, choose_converter, parse_columns, read_number
from sensorkeep.errors import InvalidInput
from sensorkeep.model import external_uuid


def sent(row: dict[str, Any], **options: Any) -> Any:
    """What one row is sent as."""
    converter = choose_converter(row, ColumnOptions(**options))
    converted = converter.convert(row)
    assert converted is not None
    return json.loads(converter.encode([converted]))[0]


@pytest.mark.parametrize(
    ("text", "timezone", "expected"),
    [
        ("2024-01-15T10:00:00Z", None, "2024-01-15T10:00:00Z"),
        ("2024-01-15T10:00:00.123456-03:00", None, "2024-01-15T13:00:00.123456Z"),
        ("2010/01/01 00:00", "America/Los_Angeles", "2010-01-01T08:00:00Z"),
        ("2010/01/01 00:00:00", None, "2010-01-01T00:00:00"),
        ("2012/01/01", "UTC", "2012-01-01T00:00:00Z"),
        ("1705312800", None, "2024-01-15T10:00:00Z"),
        (1705312800.25, "Asia/Tokyo", "2024-01-15T10:00:00.250000Z"),
        ("1705312800123", None, "2024-01-15T10:00:00.123000Z"),
        (1705312800123456, None, "2024-01-15T10:00:00.123456Z"),
        # Skipped by the clock change: the offset before it. Repeated: the first of the two.
        ("2010/03/14 02:00", "America/Los_Angeles", "2010-03-14T10:00:00Z"),
        ("2010-11-07 01:00", "America/Los_Angeles", "2010-11-07T08:00:00Z"),
    ],
)
def test_times_are_read_as_people_write_them(text: object, timezone: str | None, expected: str) -> None:
    assert TimeReader(timezone, None).read(text) == expected


@pytest.mark.parametrize(
    ("text", "time_format", "expected"),
    [
        ("15.01.2024 10:00", "%d.%m.%Y %H:%M", "2024-01-15T10:00:00Z"),
        ("0", "epoch", "1970-01-01T00:00:00Z"),
        ("-1.5", "epoch", "1969-12-31T23:59:58.500000Z"),
        ("1500", "epoch_ms", "1970-01-01T00:00:01.500000Z"),
        ("7", "epoch_us", "1970-01-01T00:00:00.000007Z"),
    ],
)
def test_a_time_format_is_followed(text: str, time_format: str, expected: str) -> None:
    assert TimeReader("UTC", time_format).read(text) == expected


@pytest.mark.parametrize(
    "text", ["", None, "yesterday", "15/01/2024", "2024-13-01", "123", "99999999999999999999", True]
)
def test_a_time_that_is_not_understood_is_refused(text: object) -> None:
    with pytest.raises(InvalidInput):
        TimeReader(None, None).read(text)


def test_a_time_at_the_edge_of_the_calendar_is_refused() -> None:
    with pytest.raises(InvalidInput):
        TimeReader("America/Sao_Paulo", None).read("9999-12-31T23:59:59")
    with pytest.raises(InvalidInput):
        TimeReader(None, "epoch").read("9" * 30)


def test_an_unknown_zone_is_a_usage_error() -> None:
    for zone in ("Mars/Olympus", "../etc/passwd"):
        with pytest.raises(InvalidInput) as told:
            TimeReader(zone, None)
        assert told.value.code == "bad_parameter"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("25,5", 25.5),
        (" 25.5 ", 25.5),
        ("-1e3", -1000.0),
        (7, 7.0),
        ("", None),
        (None, None),
        ("N/A", None),
        ("NaN", None),
    ],
)
def test_numbers_have_a_point_or_a_comma_and_may_be_missing(value: object, number: float | None) -> None:
    assert read_number(value) == number


@pytest.mark.parametrize(
    "value", ["unavailable", "1_000", "inf", "1,000,000", "1.000,5", True, [1], float("inf"), 10**400]
)
def test_what_is_not_a_finite_number_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        read_number(value)


def test_a_mapping_names_time_quantities_and_metadata() -> None:
    row = {"date": "2024-01-15T10:00:00Z", "temp": "21,5", "rh": "", "bat": "91", "state": "ok", "who": "s1"}
    columns = parse_columns(
        ["time=date", "temperature=temp", "humidity = rh", "battery=bat", "status=state", "sensor_id=who"]
    )
    assert sent(row, columns=columns) == {
        "sensor_id": "s1",
        "timestamp": "2024-01-15T10:00:00Z",
        "values": {"temperature": 21.5},
        "status": "ok",
        "metadata": {"battery": 91.0},
    }


def test_without_a_mapping_known_names_and_numeric_columns_are_taken() -> None:
    row = {"Timestamp": "2024-01-15T10:00:00Z", "Sensor_ID": "s1", "co2": "415", "note": "calm", "battery": "80"}
    assert sent(row) == {
        "sensor_id": "s1",
        "timestamp": "2024-01-15T10:00:00Z",
        "values": {"co2": 415.0},
        "metadata": {"battery": 80.0},
    }
    assert choose_converter(row, ColumnOptions()).form.endswith("not taken: note")


def test_the_long_form_names_its_quantity_by_option_or_column() -> None:
    row = {"time": "2024-01-15T10:00:00Z", "sensor_id": "s1", "value": "1"}
    assert sent(row, quantity="co2")["values"] == {"co2": 1.0}
    assert sent({**row, "quantity": "pm10"})["values"] == {"pm10": 1.0}
    assert sent({**row, "what": "pm25"}, columns={"quantity": "what"})["values"] == {"pm25": 1.0}


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"when": "2024-01-15", "temp": "1"}, {"sensor_id": "s"}, "which column is the time"),
        ({"time": "2024-01-15", "temp": "1"}, {}, "which sensor"),
        ({"time": "2024-01-15", "temp": "x"}, {"sensor_id": "s"}, "no column with numbers"),
        ({"time": "2024-01-15", "value": "1"}, {"sensor_id": "s"}, "--quantity"),
        ({"time": "2024-01-15", "temp": "1"}, {"sensor_id": "s", "columns": {"co2": "CO2"}}, "no such column"),
    ],
)
def test_what_is_missing_is_said(row: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as told:
        choose_converter(row, ColumnOptions(**options))
    assert told.value.code == "bad_parameter"


def test_malformed_map_options_are_usage_errors() -> None:
    for assignments in (["time"], ["=x"], ["time="], ["a=b", "a=c"]):
        with pytest.raises(InvalidInput):
            parse_columns(assignments)


def test_a_row_without_a_value_is_empty_and_a_bad_cell_names_its_column() -> None:
    row = {"time": "2024-01-15T10:00:00Z", "sensor_id": "s1", "temp": "1"}
    converter = choose_converter(row, ColumnOptions())
    assert converter.convert({**row, "temp": "null"}) is None
    with pytest.raises(InvalidInput, match="temp: 'warm' is not a number"):
        converter.convert({**row, "temp": "warm"})
    with pytest.raises(InvalidInput, match="no time"):
        converter.convert({**row, "time": ""})
    with pytest.raises(InvalidInput, match="names no sensor"):
        converter.convert({**row, "sensor_id": " "})


def test_general_objects_are_passed_on_with_their_time_made_plain() -> None:
    row = {"sensor_id": "s1", "timestamp": 1705312800, "values": {"t": 1.5}, "status": "ok", "metadata": {"battery": 9}}
    assert sent(row) == {**row, "timestamp": "2024-01-15T10:00:00Z"}
    assert choose_converter(row, ColumnOptions()).path == "/readings"


def test_recorded_bulk_objects_are_passed_on_as_they_are() -> None:
    row = {"equip_uuid": "e", "sensor": [{"sensor_uuid": "s", "valor": 1}, {"sensor_uuid": "t", "valor": 2}], "x": 1}
    converter = choose_converter(row, ColumnOptions())
    converted = converter.convert(row)
    assert converted is not None
    assert converted.readings == 2
    assert json.loads(converter.encode([converted])) == [row]
    assert converter.path == "/telemetry/bulk"
    assert converter.convert({"equip_uuid": "e", "sensor": []}) is None


EXPORTED = {
    "time": "2024-01-15T10:00:00.5Z",
    "equipment_uuid": "550e8400-e29b-41d4-a716-446655440000",
    "equipment_external_id": "",
    "equipment_name": "Freezer 1",
    "sensor_uuid": "660e8400-e29b-41d4-a716-446655440001",
    "sensor_external_id": "",
    "sensor_name": "Temp",
    "sensor_type": "temperatura",
    "sensor_unit": "°C",
    "value": "-18.4",
    "status": "",
    "battery": "91.5",
    "rssi": "-57",
    "lqi": "",
    "battery_voltage": "2.9",
}


def test_rows_of_our_export_become_bulk_objects_with_their_uuids() -> None:
    assert sent(EXPORTED) == {
        "equip_uuid": "550e8400-e29b-41d4-a716-446655440000",
        "equip_nome": "Freezer 1",
        "sensor": [
            {
                "sensor_uuid": "660e8400-e29b-41d4-a716-446655440001",
                "sensor_nome": "Temp",
                "sensor_tipo": "temperatura",
                "sensor_unidade": "°C",
                "valor": -18.4,
                "timestamp": "2024-01-15T10:00:00.500000Z",
                "sensor_bateria_pct": 91.5,
                "sensor_sinal_rssi": -57,
                "sensor_voltagem_bateria": 2.9,
            }
        ],
    }


def test_an_exported_status_without_a_value_is_a_reading() -> None:
    reading = sent({**EXPORTED, "value": "", "status": "unavailable"})["sensor"][0]
    assert "valor" not in reading
    assert reading["status"] == "unavailable"


def test_an_exported_external_id_is_sent_only_where_it_stands_for_the_uuid() -> None:
    row = {**EXPORTED, "equipment_external_id": "s1", "equipment_uuid": external_uuid("s1")}
    assert sent(row)["equip_uuid"] == "s1"
    assert sent({**row, "equipment_uuid": EXPORTED["equipment_uuid"]})["equip_uuid"] == EXPORTED["equipment_uuid"]


def test_exported_rows_are_gathered_by_equipment_in_order() -> None:
    converter = choose_converter(EXPORTED, ColumnOptions())
    rows = [{**EXPORTED, "equipment_uuid": equipment, "value": str(i)} for i, equipment in enumerate("abab")]
    converted = [row for row in map(converter.convert, rows) if row is not None]
    objects = json.loads(converter.encode(converted))
    gathered = [(one["equip_uuid"], [reading["valor"] for reading in one["sensor"]]) for one in objects]
    assert gathered == [("a", [0.0, 2.0]), ("b", [1.0, 3.0])]
