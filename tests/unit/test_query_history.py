"""The history calls over HTTP, against the real store and catalog."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urljoin

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from query_world import DOOR, FREEZER, NOW_US, TEMPERATURE, Client, Reading, World, at, make_app

from sensorkeep.clock import DAY_US, MINUTE_US, rfc3339
from sensorkeep.limits import PAGE_ROWS_MAX, QUERIES_AT_ONCE_MAX
from sensorkeep.model import Sensor
from sensorkeep.query import answers
from sensorkeep.query.formats import ARROW_STREAM, CSV, JSON, PARQUET

HISTORY = f"/analytics/equipment/{FREEZER.uuid}/history"
OF_SENSOR = f"/analytics/sensor/{TEMPERATURE.uuid}/history"


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


@pytest.fixture(scope="module")
def fed() -> Iterator[Client]:
    """A client of a world that holds `morning` and that no test changes."""
    with closing(World()) as world, closing(Client(make_app(world))) as client:
        world.feed(morning())
        yield client


@pytest.fixture(scope="module")
def fed_oddly() -> Iterator[Client]:
    """As `fed`, with texts that CSV must quote and numbers that want an exponent."""
    odd = Reading(TEMPERATURE, at("09:00") + 1, -0.1, 'a "quoted", text\r\nin two lines', battery_voltage=3.3)
    with closing(World()) as world, closing(Client(make_app(world))) as client:
        world.feed([*morning(), odd, Reading(TEMPERATURE, at("09:00") + 2, 1e-7, "")])
        yield client


def morning() -> list[Reading]:
    """09:00 to 12:34 by the minute, a value that is no round number; the door by the hour, without numbers."""
    minutes = range(at("09:00"), NOW_US, MINUTE_US)
    readings = [Reading(TEMPERATURE, time_us, -18 + (i * 7 % 13) / 10) for i, time_us in enumerate(minutes)]
    doors = [Reading(DOOR, at(f"{hour:02d}:30"), None, "open", 91.5, -60, 120, 3.7) for hour in (9, 10, 11, 12)]
    return readings + doors


def get(client: Client, path: str, **parameters: str) -> dict[str, Any]:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_hours_equal_a_recomputation_from_the_readings_and_the_open_hour_is_in(world: World, client: Client) -> None:
    world.feed(morning())
    answer = get(client, HISTORY, sensor_type="temperatura")
    assert [row["time"] for row in answer["data"]] == [f"2024-01-15T{hour:02d}:00:00Z" for hour in (9, 10, 11, 12)]
    for row in answer["data"]:
        start_us = at(row["time"][:-1])
        values = [r.value for r in morning() if r.sensor is TEMPERATURE and 0 <= r.time_us - start_us < 60 * MINUTE_US]
        numbers = [value for value in values if value is not None]
        cuts = statistics.quantiles(numbers, n=100, method="inclusive")
        expected = {
            "avg_value": statistics.fmean(numbers),
            "max_value": max(numbers),
            "min_value": min(numbers),
            "stddev_value": statistics.stdev(numbers),
            "median_value": statistics.median(numbers),
            "p95_value": cuts[94],
            "p99_value": cuts[98],
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected)
        assert row["sample_count"] == row["active_minutes"] == len(numbers)
        assert (row["sensor_uuid"], row["sensor_name"]) == (TEMPERATURE.uuid, TEMPERATURE.name)
        assert (row["sensor_type"], row["sensor_unit"]) == ("temperatura", "°C")
    assert answer["data"][-1]["sample_count"] == 35


def test_the_envelope_tells_the_range_as_it_was_served(fed: Client) -> None:
    answer = get(fed, HISTORY)
    assert answer["equipment_uuid"] == FREEZER.uuid
    assert (answer["period"], answer["next_cursor"]) == ("hour", None)
    assert answer["start_date"] == rfc3339(NOW_US - 7 * DAY_US)
    assert answer["end_date"] == answer["complete_until"] == "2024-01-15T12:34:56.789012Z"


def test_a_bucket_of_readings_without_numbers_has_null_numbers(fed: Client) -> None:
    row = get(fed, HISTORY, sensor_type="porta")["data"][0]
    assert {row[name] for name in row if name.endswith("_value")} == {None}
    assert (row["sample_count"], row["active_minutes"], row["sensor_unit"]) == (0, 1, None)


def test_the_open_day_is_in_and_right(fed: Client) -> None:
    (row,) = get(fed, OF_SENSOR, period="day")["data"]
    values = [r.value for r in morning() if r.sensor is TEMPERATURE]
    assert row["time"] == "2024-01-15T00:00:00Z"
    assert (row["sample_count"], row["active_minutes"]) == (len(values), len(values))
    assert row["avg_value"] == pytest.approx(statistics.fmean(v for v in values if v is not None))


def test_raw_rows_carry_value_status_and_metadata(fed: Client) -> None:
    answer = get(fed, HISTORY, period="raw", start_date="2024-01-15T09:30:00Z", end_date="2024-01-15T09:30:01Z")
    temperature, door = answer["data"]
    assert list(temperature) == list(answers.EquipmentReading.__struct_fields__)
    assert (temperature["status"], temperature["metadata"]) == (None, None)
    assert (door["value"], door["status"]) == (None, "open")
    assert door["metadata"] == {"battery": 91.5, "rssi": -60, "lqi": 120, "battery_voltage": 3.7}


def test_a_sensor_history_has_no_sensor_columns(fed: Client) -> None:
    hours = get(fed, OF_SENSOR)
    assert hours["sensor_uuid"] == TEMPERATURE.uuid
    assert list(hours["data"][0]) == [name for name in answers.SensorBucket.__struct_fields__ if name != "approximate"]
    readings = get(fed, OF_SENSOR, period="raw", limit="1")
    assert list(readings["data"][0]) == list(answers.SensorReading.__struct_fields__)


def test_ranges_are_half_open_and_a_bucket_belongs_where_it_starts(fed: Client) -> None:

    def times(period: str, start: str, end: str) -> list[str]:
        rows = get(fed, OF_SENSOR, period=period, start_date=start, end_date=end)["data"]
        return [row["time"][11:19] for row in rows]

    assert times("raw", "2024-01-15T10:00:00", "2024-01-15T10:02:00") == ["10:00:00", "10:01:00"]
    assert times("hour", "2024-01-15T09:00:00.000001Z", "2024-01-15T11:00:00.000001Z") == ["10:00:00", "11:00:00"]
    assert times("hour", "2024-01-15T09:00:00Z", "2024-01-15T11:00:00Z") == ["09:00:00", "10:00:00"]


@pytest.mark.parametrize("start", ["2024-01-15T10:00:00", "2024-01-15T12:00:00+02:00", "2024-01-15T10:00:00.000000Z"])
def test_naive_and_offset_dates_name_the_same_moment(fed: Client, start: str) -> None:
    answer = get(fed, OF_SENSOR, period="raw", start_date=start, limit="1")
    assert answer["start_date"] == answer["data"][0]["time"] == "2024-01-15T10:00:00Z"
    unescaped = fed.get(f"{OF_SENSOR}?period=raw&start_date={start}&limit=1")
    assert unescaped.json()["start_date"] == "2024-01-15T10:00:00Z"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"period": "minute"}, "period"),
        ({"start_date": "soon"}, "start_date"),
        ({"end_date": "2024-99-01"}, "end_date"),
        ({"start_date": "2024-01-16", "end_date": "2024-01-15"}, "start_date"),
        ({"period": "raw", "start_date": "2023-11-01"}, "start_date"),
        ({"limit": "0"}, "limit"),
        ({"limit": str(PAGE_ROWS_MAX + 1)}, "limit"),
        ({"cursor": "no cursor"}, "cursor"),
        ({"cursor": "é"}, "cursor"),
    ],
)
@pytest.mark.parametrize("path", [HISTORY, OF_SENSOR])
def test_what_cannot_be_served_is_a_bad_parameter(
    fed: Client, path: str, parameters: dict[str, str], named: str
) -> None:
    answer = fed.get(path, params=parameters)
    assert answer.status_code == 400
    problem = answer.json()
    assert (problem["code"], problem["parameter"]) == ("bad_parameter", named)
    assert problem["detail"].startswith(f"{named} cannot be served: ")


def test_unknown_things_are_not_found_and_unknown_parameters_are_ignored(fed: Client) -> None:
    for identifier in ("550e8400-e29b-41d4-a716-4466554400ff", "nobody", "x" * 2000, "a%00b", "a%2Fb"):
        for kind in ("equipment", "sensor"):
            answer = fed.get(f"/analytics/{kind}/{identifier}/history")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert get(fed, OF_SENSOR, colour="blue") == get(fed, OF_SENSOR)


def test_an_equipment_without_such_sensors_has_an_empty_history_in_every_format(fed: Client) -> None:
    for period in ("hour", "raw"):
        assert get(fed, HISTORY, sensor_type="co2", period=period)["data"] == []
        table = table_of(fed, HISTORY, ARROW_STREAM, sensor_type="co2", period=period)
        assert table.num_rows == 0
        assert table.schema == table_of(fed, HISTORY, ARROW_STREAM, period=period).schema


def test_pages_walk_every_row_once_even_while_rows_are_equal_in_time(world: World, client: Client) -> None:
    sensors = [
        Sensor(uuid=f"770e8400-e29b-41d4-a716-4466554400{i:02d}", equipment_uuid=FREEZER.uuid, name=f"s{9 - i}")
        for i in range(7)
    ]
    readings = [Reading(s, at("10:00") + k * MINUTE_US, k + i / 10) for k in range(5) for i, s in enumerate(sensors)]
    world.feed(readings)
    for period, rows in (("raw", 35), ("hour", 7)):
        whole = get(client, HISTORY, period=period)["data"]
        assert len(whole) == rows
        for limit in (1, 3, 7, 34, 35):
            assert walk(client, period, limit) == whole


def walk(client: Client, period: str, limit: int) -> list[Any]:
    rows: list[Any] = []
    parameters = {"period": period, "limit": str(limit)}
    while True:
        page = get(client, HISTORY, **parameters)
        assert 0 < len(page["data"]) <= limit
        rows += page["data"]
        if page["next_cursor"] is None:
            return rows
        assert len(page["data"]) == limit
        parameters["cursor"] = page["next_cursor"]


def test_pages_stay_whole_while_time_goes_on_and_sensors_come(world: World, client: Client) -> None:
    world.feed(morning())
    before = get(client, HISTORY, period="raw")["data"]
    page = get(client, HISTORY, period="raw", limit="31")
    first = page["data"]
    world.clock.advance(600)
    newcomer = Sensor(uuid="010e8400-e29b-41d4-a716-446655440001", equipment_uuid=FREEZER.uuid, name="A")
    world.feed([Reading(newcomer, at("09:00"), 1.0), Reading(TEMPERATURE, at("12:40"), 1.0)])
    rest = get(client, HISTORY, period="raw", limit="1000", cursor=page["next_cursor"])
    assert first + rest["data"] == before
    assert (rest["start_date"], rest["end_date"]) == (page["start_date"], page["end_date"])


def test_a_cursor_of_another_query_is_refused(fed: Client) -> None:
    cursor = get(fed, HISTORY, period="raw", limit="1")["next_cursor"]
    for path, others in (
        (HISTORY, {"period": "hour"}),
        (HISTORY, {"period": "raw", "sensor_type": "porta"}),
        (OF_SENSOR, {"period": "raw"}),
    ):
        answer = fed.get(path, params=others | {"cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_parameter")


def test_complete_until_tells_of_a_batch_that_is_on_its_way(world: World, client: Client) -> None:
    world.feed(morning())
    pending = world.accept([Reading(TEMPERATURE, at("11:11"), 5.0), Reading(TEMPERATURE, at("12:00"), 5.0)])
    answer = client.get(HISTORY, headers={"accept": CSV})
    assert answer.headers["x-complete-until"] == "2024-01-15T11:11:00Z"
    assert get(client, HISTORY)["complete_until"] == "2024-01-15T11:11:00Z"
    world.store_batch(*pending)
    assert get(client, HISTORY)["complete_until"] == rfc3339(NOW_US)
    world.accept([Reading(TEMPERATURE, NOW_US + MINUTE_US, 5.0)])
    assert get(client, HISTORY)["complete_until"] == rfc3339(NOW_US)


def table_of(client: Client, path: str, media_type: str, **parameters: str) -> pa.Table:
    answer = client.get(path, params=parameters, headers={"accept": media_type})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].split(";")[0] == media_type
    assert answer.headers["vary"] == "Accept"
    if media_type == ARROW_STREAM:
        return pa.ipc.open_stream(answer.content).read_all()
    if media_type == PARQUET:
        return pa.parquet.read_table(io.BytesIO(answer.content))
    assert answer.content.count(b"\r\n") == answer.content.count(b"\n")
    types = dict.fromkeys(("status", "sensor_name", "sensor_unit"), pa.string())
    options = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False)
    return pa.csv.read_csv(io.BytesIO(answer.content), convert_options=options)


def as_json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a tabular answer in the form that JSON has."""
    rows = []
    for row in table.to_pylist():
        time = row["time"]
        row["time"] = rfc3339(at(time.isoformat()[:26].removesuffix("+00:00"))) if not isinstance(time, str) else time
        if "battery" in row:
            known = {name: row.pop(name) for name in ("battery", "rssi", "lqi", "battery_voltage")}
            row["metadata"] = {name: value for name, value in known.items() if value is not None} or None
        elif not row["approximate"]:
            del row["approximate"]
        rows.append(row)
    return rows


@pytest.mark.parametrize("path", [HISTORY, OF_SENSOR])
@pytest.mark.parametrize("period", ["hour", "day", "raw"])
@pytest.mark.parametrize("media_type", [CSV, ARROW_STREAM, PARQUET])
def test_every_format_tells_the_same(fed_oddly: Client, path: str, period: str, media_type: str) -> None:
    expected = get(fed_oddly, path, period=period)["data"]
    table = table_of(fed_oddly, path, media_type, period=period)
    if media_type == CSV:
        table = table.set_column(0, "time", table["time"].cast(pa.timestamp("us", tz="UTC")))
    assert as_json_rows(table) == expected


@pytest.mark.parametrize("rows_at_once", [1, 3, 4, 5])
def test_a_page_that_is_built_in_parts_is_the_same_bytes(
    fed: Client, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    parameters = {"sensor_type": "temperatura"}
    whole = fed.get(HISTORY, params=parameters).content
    monkeypatch.setattr("sensorkeep.query.formats.ENCODED_AT_ONCE_ROWS", rows_at_once)
    assert len(msgspec.json.decode(whole)["data"]) == 4
    assert fed.get(HISTORY, params=parameters).content == whole


def test_more_queries_than_run_at_once_are_all_answered(fed: Client) -> None:
    alone = fed.get(HISTORY).content
    together = fed.get_all([HISTORY] * (3 * QUERIES_AT_ONCE_MAX))
    assert [answer.content for answer in together] == [alone] * (3 * QUERIES_AT_ONCE_MAX)


def test_headers_lead_to_the_next_page_in_every_format(fed: Client) -> None:
    whole = get(fed, HISTORY, sensor_type="temperatura")
    for media_type in (JSON, CSV, ARROW_STREAM, PARQUET):
        parameters = {"sensor_type": "temperatura", "limit": "3"}
        first = fed.get(HISTORY, params=parameters, headers={"accept": media_type})
        link = first.headers["link"]
        assert link.startswith("<?")
        assert link.endswith('>; rel="next"')
        rest = fed.get(urljoin(str(first.url), link[1:].split(">")[0]))
        assert rest.json()["data"] == whole["data"][3:]
        assert "link" not in rest.headers
        assert "x-next-cursor" not in rest.headers
        parameters["cursor"] = first.headers["x-next-cursor"]
        assert get(fed, HISTORY, **parameters)["data"] == whole["data"][3:]


def test_no_acceptable_format_is_a_406(fed: Client) -> None:
    answer = fed.get(HISTORY, headers={"accept": "image/png"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize(
    ("path", "period", "kind"),
    [
        (HISTORY, "hour", answers.EquipmentHistory[answers.EquipmentBucket]),
        (HISTORY, "raw", answers.EquipmentHistory[answers.EquipmentReading]),
        (OF_SENSOR, "day", answers.SensorHistory[answers.SensorBucket]),
        (OF_SENSOR, "raw", answers.SensorHistory[answers.SensorReading]),
    ],
)
def test_the_bytes_are_those_of_the_documented_answer(fed: Client, path: str, period: str, kind: Any) -> None:
    content = fed.get(path, params={"period": period}).content
    assert b"NaN" not in content
    assert msgspec.json.encode(msgspec.json.decode(content, type=kind)) == content
