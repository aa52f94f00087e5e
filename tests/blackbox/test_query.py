"""The query calls of SPEC section 3 over readings written through HTTP, against aggregates computed here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, running, stamp, wait_until
from query_site import Bucket, Site, aggregate, day_of, hour_of, percentile

ENVELOPE = ["period", "start_date", "end_date", "complete_until", "data", "next_cursor"]
SENSOR = ["sensor_uuid", "sensor_name", "sensor_type", "sensor_unit"]
NUMBERS = [
    "avg_value", "max_value", "min_value", "sample_count", "active_minutes", "stddev_value", "median_value",
    "p95_value", "p99_value",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(server: Server) -> Site:
    return Site(server)


def numbers(row: dict[str, Any]) -> Bucket:
    return {name: row[name] for name in NUMBERS}


def parsed(row: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(row["time"])


@pytest.mark.parametrize(("period", "floor"), [("hour", hour_of), ("day", day_of)])
def test_rollups_of_an_equipment_equal_a_recomputation_the_open_bucket_included(
    site: Site, period: str, floor: Any
) -> None:
    answer = site.history(period=period)
    assert list(answer) == ["equipment_uuid", *ENVELOPE]
    assert (answer["equipment_uuid"], answer["period"], answer["next_cursor"]) == (site.equipment, period, None)
    expected = site.buckets(floor)
    assert [(parsed(row), row["sensor_uuid"]) for row in answer["data"]] == list(expected)
    for row in answer["data"]:
        assert list(row)[:14] == ["time", *SENSOR, *NUMBERS]
        assert tuple(row[name] for name in SENSOR[1:]) == site.names[row["sensor_uuid"]]
        assert numbers(row) == pytest.approx(expected[parsed(row), row["sensor_uuid"]])


@pytest.mark.parametrize("period", ["hour", "day"])
def test_the_history_of_a_sensor_has_the_same_rows_without_its_columns(site: Site, period: str) -> None:
    answer = site.history(site.humidity, period=period)
    assert list(answer) == ["sensor_uuid", *ENVELOPE]
    of_equipment = [row for row in site.history(period=period)["data"] if row["sensor_uuid"] == site.humidity]
    assert answer["data"] == [
        {name: value for name, value in row.items() if name not in SENSOR} for row in of_equipment
    ]
    assert of_equipment


def test_raw_rows_carry_value_status_and_metadata(site: Site) -> None:
    rows = site.history(period="raw")["data"]
    assert [list(row) for row in rows[:1]] == [["time", *SENSOR, "value", "status", "metadata"]]
    found = {(row["sensor_uuid"], parsed(row)): row["value"] for row in rows}
    assert found == {(s, moment): v for s, readings in site.readings.items() for moment, v in readings.items()}
    (row, *_) = site.history(site.temperature, period="raw")["data"]
    assert list(row) == ["time", "value", "status", "metadata"]


def test_a_range_includes_its_start_and_excludes_its_end(site: Site) -> None:
    start, end = (hour_of(hours_ago(hours)) for hours in (10, 4))
    answer = site.history(site.temperature, start_date=stamp(start), end_date=stamp(end))
    assert (answer["start_date"], answer["end_date"]) == (stamp(start), stamp(end))
    assert [parsed(row) for row in answer["data"]] == [start + timedelta(hours=i) for i in range(6)]
    moments = [m for m in site.readings[site.temperature] if start <= m < end]
    raw = site.history(site.temperature, period="raw", start_date=stamp(moments[0]), end_date=stamp(moments[-1]))
    assert [parsed(row) for row in raw["data"]] == moments[:-1]


def test_the_default_range_is_the_last_seven_days(site: Site) -> None:
    answer = site.history()
    start, end = (datetime.fromisoformat(answer[name]) for name in ("start_date", "end_date"))
    assert end - start == timedelta(days=7)
    assert abs(datetime.now(UTC) - end) < timedelta(minutes=1)


def test_sensor_type_keeps_the_sensors_of_that_type(site: Site) -> None:
    rows = site.history(sensor_type="umidade")["data"]
    assert {row["sensor_uuid"] for row in rows} == {site.humidity}
    assert site.history(sensor_type="no such type")["data"] == []


@pytest.mark.parametrize(("period", "limit"), [("hour", 7), ("raw", 100), ("day", 1)])
def test_pages_hold_every_row_once_and_no_more_than_the_limit(site: Site, period: str, limit: int) -> None:
    whole = site.history(period=period)
    bounds = {"start_date": whole["start_date"], "end_date": whole["end_date"]}
    rows: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = site.history(period=period, limit=limit, **bounds, **cursor)
        assert len(page["data"]) <= limit
        rows += page["data"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert rows == whole["data"]
    assert len(rows) > limit


@pytest.mark.parametrize(("period", "fraction"), [("24h", 1.0), ("7d", 7.0)])
def test_statistics_are_weighted_by_samples(site: Site, period: str, fraction: float) -> None:
    answer = site.server.get(f"/analytics/equipment/{site.equipment}/stats", period=period)
    assert list(answer) == ["equipment_uuid", "period", "start_date", "end_date", "sensors"]
    start, end = (datetime.fromisoformat(answer[name]) for name in ("start_date", "end_date"))
    assert timedelta(days=fraction) <= end - start < timedelta(days=fraction, hours=1)
    for row in answer["sensors"]:
        assert list(row)[:11] == [
            *SENSOR, "overall_avg", "overall_max", "overall_min", "total_samples", "active_periods", "median", "p95",
        ]  # fmt: skip
        inside = {m: v for m, v in site.readings[row["sensor_uuid"]].items() if start <= m < end}
        expected = aggregate(inside)
        assert (row["total_samples"], row["active_periods"]) == (len(inside), len({hour_of(m) for m in inside}))
        assert [row["overall_avg"], row["overall_max"], row["overall_min"]] == pytest.approx(
            [expected["avg_value"], expected["max_value"], expected["min_value"]]
        )
        if "approximate" not in row:
            values = list(inside.values())
            assert [row["median"], row["p95"]] == pytest.approx([percentile(values, 0.5), percentile(values, 0.95)])
        else:
            assert row["overall_min"] <= row["median"] <= row["p95"] <= row["overall_max"]
    assert [row["sensor_uuid"] for row in answer["sensors"]] == [site.temperature, site.humidity]


@pytest.mark.parametrize("period", ["30d", "1y"])
def test_statistics_of_long_periods_count_every_sample(site: Site, period: str) -> None:
    path = f"/analytics/equipment/{site.equipment}/stats"
    (row,) = site.server.get(path, period=period, sensor_type="temperatura")["sensors"]
    readings = site.readings[site.temperature]
    assert (row["total_samples"], row["active_periods"]) == (len(readings), len({day_of(m) for m in readings}))
    assert row["overall_avg"] == pytest.approx(aggregate(readings)["avg_value"])


def test_the_home_assistant_call_answers_the_last_hours(site: Site) -> None:
    path = f"/analytics/home-assistant/{site.equipment}"
    now = None
    while now != (now := hour_of(datetime.now(UTC))):  # until the hour did not end meanwhile
        answer = site.server.get(path, hours=5, sensor_type="temperatura")
    assert list(answer) == ["equipment_uuid", "period_hours", "data"]
    assert answer["period_hours"] == 5
    first = now - timedelta(hours=4)
    expected = {hour: b for (hour, s), b in site.buckets(hour_of).items() if s == site.temperature and hour >= first}
    assert [parsed(row) for row in answer["data"]] == list(expected)
    for row in answer["data"]:
        assert list(row) == [
            "time", "sensor_uuid", "sensor_name", "sensor_type", "unit", "value", "max", "min", "samples",
        ]  # fmt: skip
        bucket = expected[parsed(row)]
        assert [row["value"], row["max"], row["min"], row["samples"]] == pytest.approx(
            [bucket["avg_value"], bucket["max_value"], bucket["min_value"], bucket["sample_count"]]
        )
        assert row["unit"] == "°C"
    assert len(site.server.get(path)["data"]) > len(answer["data"])


def test_a_late_reading_and_a_correction_change_the_hour_at_once(server: Server) -> None:
    equipment, sensor = new_uuid(), new_uuid()
    hour = hour_of(hours_ago(20))
    readings = {hour + timedelta(minutes=i): float(i) for i in range(10)}

    def send(moments: dict[datetime, float]) -> None:
        server.stored([esm_equipment(equipment, [esm_reading(sensor, v, m) for m, v in moments.items()])])

    def check() -> None:
        for period in ("hour", "day"):
            (row,) = server.get(f"/analytics/equipment/{equipment}/history", period=period)["data"]
            assert numbers(row) == pytest.approx(aggregate(readings))

    send(readings)
    check()
    late = {hour + timedelta(minutes=50, seconds=3): 100.0}
    readings |= late
    send(late)
    check()
    corrected = {hour + timedelta(minutes=3): -7.5}
    readings |= corrected
    send(corrected)
    check()
    send(readings)
    check()


def test_what_is_not_stored_yet_is_pending_and_complete_until_says_so(data_dir: Path) -> None:
    """The worker of this server gathers for a minute, unless somebody waits."""
    with running(data_dir, SENSORKEEP_GATHER_SECONDS=60) as server:
        name, first = f"pending-{new_uuid()}", hours_ago(3)

        def post(moment: datetime, prefer: str = "") -> None:
            body = {"sensor_id": name, "values": {"level": 1.0}, "timestamp": stamp(moment)}
            assert server.client.post("/readings", json=body, headers={"Prefer": prefer}).status_code == 201

        post(first, "wait=30")
        path = f"/analytics/sensor/{name}%2Flevel/history"
        answer = server.get(path, period="raw")
        until, end = (datetime.fromisoformat(answer[name]) for name in ("complete_until", "end_date"))
        assert until >= end, "nothing is pending"

        post(first + timedelta(hours=1))
        post(first + timedelta(hours=2))
        assert server.accounting()["pending"] == 2
        assert server.get(f"/sensor/{name}/level/latest")["timestamp"] == stamp(first + timedelta(hours=2))
        answer = server.get(path, period="raw")
        assert answer["complete_until"] == stamp(first + timedelta(hours=1))
        assert len(answer["data"]) == 1

        post(first + timedelta(hours=2, minutes=30), "wait=30")
        wait_until(lambda: server.accounting()["pending"] == 0)
        answer = server.get(path, period="raw")
        assert len(answer["data"]) == 4
        assert datetime.fromisoformat(answer["complete_until"]) > first + timedelta(hours=2, minutes=30)


@pytest.mark.parametrize(
    "path",
    [
        "/analytics/equipment/{}/history",
        "/analytics/sensor/{}/history",
        "/analytics/equipment/{}/stats",
        "/analytics/home-assistant/{}",
        "/sensor/{}/latest",
        "/equipment/{}",
        "/sensors/{}",
    ],
)
@pytest.mark.parametrize("unknown", ["7b84ac17-e971-4c58-bc0b-000000000405", "no-such-name", "no/such%20name"])
def test_what_is_unknown_is_a_404(server: Server, path: str, unknown: str) -> None:
    problem(server.client.get(path.format(unknown)), 404, "not_found")


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        ("history", {"period": "minute"}),
        ("history", {"start_date": "yesterday"}),
        ("history", {"end_date": "2024-13-01"}),
        ("history", {"start_date": "2026-02-02T00:00:00Z", "end_date": "2026-02-01T00:00:00Z"}),
        ("history", {"limit": "0"}),
        ("history", {"limit": "-1"}),
        ("history", {"limit": "100001"}),
        ("history", {"limit": "ten"}),
        ("history", {"cursor": "nonsense"}),
        ("history", {"period": "raw", "start_date": "2020-01-01", "end_date": "2020-01-02"}),
        ("stats", {"period": "2d"}),
        ("home-assistant", {"hours": "0"}),
        ("home-assistant", {"hours": "169"}),
        ("home-assistant", {"hours": "1.5"}),
    ],
)
def test_what_cannot_be_served_is_a_400_that_names_the_parameter(
    site: Site, call: str, parameters: dict[str, str]
) -> None:
    path = f"equipment/{site.equipment}/{call}" if call != "home-assistant" else f"{call}/{site.equipment}"
    document = problem(site.server.client.get(f"/analytics/{path}", params=parameters), 400, "bad_parameter")
    assert document["parameter"] in parameters


def test_a_cursor_of_another_query_is_a_400(site: Site) -> None:
    cursor = site.history(limit=1)["next_cursor"]
    answer = site.server.client.get(
        f"/analytics/equipment/{site.equipment}/history", params={"cursor": cursor, "period": "raw"}
    )
    problem(answer, 400, "bad_parameter")
