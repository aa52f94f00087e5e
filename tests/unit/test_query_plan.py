"""Query parameters become the plan they say, or a refusal with its reason; never another plan."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.clock import DAY_US, HOUR_US, to_us
from sensorkeep.errors import InvalidInput
from sensorkeep.limits import PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX
from sensorkeep.query.plan import (
    EquipmentPosition,
    HistoryPosition,
    decode_cursor,
    encode_cursor,
    parse_moment,
    plan_equipment,
    plan_history,
    plan_hours,
    plan_stats,
    raw_kept_from,
    wanted_sensor_type,
)

NOW_US = to_us(datetime(2024, 1, 15, 12, 34, 56, 789_012, tzinfo=UTC))
TEN_US = to_us(datetime(2024, 1, 15, 10, tzinfo=UTC))
SENSOR = "660e8400-e29b-41d4-a716-446655440001"


def reason(refused: pytest.ExceptionInfo[InvalidInput], parameter: str) -> str:
    assert refused.value.code == "bad_parameter"
    assert refused.value.status == 400
    assert refused.value.extra == {"parameter": parameter}
    return refused.value.detail


@pytest.mark.parametrize(
    ("text", "hour", "microsecond"),
    [
        ("2024-01-15T10:00:00Z", 10, 0),
        ("2024-01-15t10:00:00z", 10, 0),
        ("2024-01-15 10:00:00", 10, 0),
        ("2024-01-15T10:00", 10, 0),
        ("2024-01-15T10:00:00", 10, 0),
        ("2024-01-15T10:00:00.5", 10, 500_000),
        ("2024-01-15T10:00:00.123456789Z", 10, 123_456),
        ("2024-01-15T12:00:00+02:00", 10, 0),
        ("2024-01-15T12:00:00+0200", 10, 0),
        ("2024-01-15T12:00:00 02:00", 10, 0),  # a + that was not percent-encoded
        ("2024-01-15T07:00:00-03:00", 10, 0),
        ("2024-01-14T23:00:00-11:00", 10, 0),
        ("2024-01-15", 0, 0),
    ],
)
def test_a_moment_without_a_zone_is_utc_and_an_offset_is_applied(text: str, hour: int, microsecond: int) -> None:
    assert parse_moment(text) == to_us(datetime(2024, 1, 15, hour, 0, 0, microsecond, tzinfo=UTC))


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2024-1-5", "2024-13-01", "2024-02-30", "20240115", "2024-W03-1", "2024-01-15T", "1705312800",
     "2024-01-15T24:01:00Z", "2024-01-15T10:00:60Z", "2024-01-15T10", "2024-01-15T10:00:00+25:00",
     "2024-01-15T10:00:00Z ", "2024-01-15\n", "\u0662\u0660\u0662\u0664-01-15",
     "1899-12-31", "0001-01-01", "9999-12-31T23:59:59-01:00"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["start_date", "end_date"])
def test_a_date_that_cannot_be_read_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_history({name: text}, "s", NOW_US)
    reason(refused, name)


def test_the_default_is_the_last_seven_days_by_the_hour_and_is_not_aligned() -> None:
    plan = plan_history({}, "s", NOW_US)
    assert (plan.period, plan.start_us, plan.end_us) == ("hour", NOW_US - 7 * DAY_US, NOW_US)
    assert (plan.limit, plan.after) == (PAGE_ROWS_DEFAULT, None)


def test_a_given_start_is_kept_to_the_microsecond() -> None:
    plan = plan_history({"period": "day", "start_date": "2024-01-15T10:00:00.000001Z"}, "s", NOW_US)
    assert (plan.period, plan.start_us, plan.end_us) == ("day", TEN_US + 1, NOW_US)


def test_an_end_alone_is_preceded_by_seven_days() -> None:
    plan = plan_history({"end_date": "2024-01-15T10:00:00Z"}, "s", NOW_US)
    assert (plan.start_us, plan.end_us) == (TEN_US - 7 * DAY_US, TEN_US)


@pytest.mark.parametrize("end", ["2024-01-15T10:00:00Z", "2024-01-15T09:59:59Z"])
def test_an_empty_or_reversed_range_is_refused(end: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_history({"start_date": "2024-01-15T10:00:00Z", "end_date": end}, "s", NOW_US)
    assert "not before" in reason(refused, "start_date")


def test_a_start_in_the_future_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_history({"start_date": "2024-02-01"}, "s", NOW_US)
    reason(refused, "start_date")


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "", "ten", "1e3", " 5", "\u0665", "9" * 5000, str(PAGE_ROWS_MAX + 1)]
)
def test_a_limit_that_cannot_be_served_is_refused_and_never_cut(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_history({"limit": text}, "s", NOW_US)
    assert str(PAGE_ROWS_MAX) in reason(refused, "limit")


@pytest.mark.parametrize("limit", [1, PAGE_ROWS_MAX])
def test_limits_up_to_the_greatest_are_served(limit: int) -> None:
    assert plan_history({"limit": str(limit)}, "s", NOW_US).limit == limit


@pytest.mark.parametrize("text", ["", "week", "HOUR", "24h"])
def test_an_unknown_period_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_history({"period": text}, "s", NOW_US)
    reason(refused, "period")
    with pytest.raises(InvalidInput) as refused:
        plan_stats({"period": "hour"}, NOW_US)
    reason(refused, "period")


def test_raw_before_the_retention_is_refused_and_rollups_of_it_are_served() -> None:
    kept_us = raw_kept_from(NOW_US, 30)
    assert kept_us == to_us(datetime(2023, 12, 16, tzinfo=UTC))
    assert plan_history({"period": "raw", "start_date": "2023-12-16"}, "s", NOW_US, kept_us).start_us == kept_us
    too_old = {"period": "raw", "start_date": "2023-12-15T23:59:59Z"}
    with pytest.raises(InvalidInput) as refused:
        plan_history(too_old, "s", NOW_US, kept_us)
    assert "2023-12-16T00:00:00Z" in reason(refused, "start_date")
    assert plan_history(too_old | {"period": "hour"}, "s", NOW_US, kept_us).period == "hour"
    assert raw_kept_from(NOW_US, 0) is None
    assert plan_history(too_old, "s", NOW_US, None).period == "raw"


def test_a_cursor_carries_its_position_and_the_range_it_was_made_in() -> None:
    first = plan_history({"limit": "5"}, "s", NOW_US)
    cursor = first.cursor(TEN_US, SENSOR)
    later = plan_history({"limit": "9", "cursor": cursor}, "s", NOW_US + HOUR_US)
    assert later.after == HistoryPosition(first.start_us, first.end_us, TEN_US, SENSOR)
    assert (later.start_us, later.end_us, later.limit) == (first.start_us, first.end_us, 9)
    assert cursor.isascii()
    assert "=" not in cursor


def test_a_cursor_goes_with_the_range_that_is_given_again() -> None:
    given_range = {"start_date": "2024-01-15T10:00:00Z", "end_date": "2024-01-15T11:00:00Z"}
    cursor = plan_history(given_range, "s", NOW_US).cursor(TEN_US, SENSOR)
    same = {"start_date": "2024-01-15T12:00:00+02:00", "end_date": "2024-01-15T11:00:00"}
    assert plan_history(same | {"cursor": cursor}, "s", NOW_US).start_us == TEN_US
    for other in ({"start_date": "2024-01-15"}, {"end_date": "2024-01-16"}):
        with pytest.raises(InvalidInput) as refused:
            plan_history(given_range | other | {"cursor": cursor}, "s", NOW_US)
        assert "another" in reason(refused, "cursor")


def test_a_cursor_of_another_query_is_refused() -> None:
    cursor = plan_history({}, "equipment/a", NOW_US).cursor(TEN_US, SENSOR)
    for subject, period in (("equipment/b", "hour"), ("equipment/a", "day"), ("equipment/a", "raw")):
        with pytest.raises(InvalidInput) as refused:
            plan_history({"period": period, "cursor": cursor}, subject, NOW_US)
        assert "another query" in reason(refused, "cursor")
    with pytest.raises(InvalidInput) as refused:
        plan_equipment({"cursor": cursor})
    reason(refused, "cursor")


def test_an_empty_cursor_asks_for_the_first_page() -> None:
    assert plan_history({"cursor": ""}, "s", NOW_US).after is None
    assert plan_equipment({"cursor": ""}).after_uuid == ""


@pytest.mark.parametrize("change", [0, 4, 9, -1])
def test_a_damaged_cursor_is_refused(change: int) -> None:
    content = bytearray(base64.urlsafe_b64decode(encode_cursor("equipment", EquipmentPosition(SENSOR)) + "=="))
    content[change] ^= 1
    with pytest.raises(InvalidInput) as refused:
        plan_equipment({"cursor": base64.urlsafe_b64encode(bytes(content)).decode().rstrip("=")})
    reason(refused, "cursor")


@pytest.mark.parametrize("wrong_us", [2**62, -(2**62)])
def test_a_forged_cursor_outside_of_the_calendar_is_refused(wrong_us: int) -> None:
    forged = encode_cursor("s/hour", HistoryPosition(wrong_us, wrong_us + 1, wrong_us, SENSOR))
    with pytest.raises(InvalidInput) as refused:
        plan_history({"cursor": forged}, "s", NOW_US)
    reason(refused, "cursor")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["period", "start_date", "end_date", "limit", "cursor"]), st.text(max_size=40)))
def test_no_text_makes_planning_raise_anything_but_a_refusal(parameters: dict[str, str]) -> None:
    refused = None
    try:
        plan = plan_history(parameters, "s", NOW_US)
        assert plan.start_us < plan.end_us
    except InvalidInput as error:
        refused = error
    if refused:
        assert refused.code == "bad_parameter"
        assert refused.extra["parameter"] in parameters


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_no_cursor_raises_anything_but_a_refusal(content: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_cursor("s", base64.urlsafe_b64encode(content).decode().rstrip("=") or "A", HistoryPosition)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=50), st.text(max_size=50))
def test_every_cursor_comes_back(subject: str, uuid: str) -> None:
    position = EquipmentPosition(uuid)
    assert decode_cursor(subject, encode_cursor(subject, position), EquipmentPosition) == position
    assert msgspec.json.encode(encode_cursor(subject, position)).decode().isascii()


@pytest.mark.parametrize(
    ("period", "start"),
    [
        ("24h", datetime(2024, 1, 14, 12, 34, 56, 789_012, tzinfo=UTC)),
        ("7d", datetime(2024, 1, 8, 12, tzinfo=UTC)),
        ("30d", datetime(2023, 12, 16, tzinfo=UTC)),
        ("1y", datetime(2023, 1, 15, tzinfo=UTC)),
    ],
)
def test_statistics_start_where_the_store_can_be_exact_and_never_later_than_asked(period: str, start: datetime) -> None:
    plan = plan_stats({"period": period}, NOW_US)
    assert (plan.period, plan.start_us, plan.end_us) == (period, to_us(start), NOW_US)
    assert plan_stats({}, NOW_US).period == "24h"


def test_hours_are_whole_buckets_and_the_open_one_is_the_last() -> None:
    plan = plan_hours({"hours": "3"}, NOW_US)
    assert (plan.hours, plan.start_us, plan.end_us) == (3, TEN_US, TEN_US + 3 * HOUR_US)
    on_the_hour = plan_hours({"hours": "1"}, TEN_US)
    assert (on_the_hour.start_us, on_the_hour.end_us) == (TEN_US, TEN_US + HOUR_US)
    assert plan_hours({}, NOW_US).hours == 24


@pytest.mark.parametrize("text", ["0", "169", "-3", "x", ""])
def test_hours_outside_of_a_week_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_hours({"hours": text}, NOW_US)
    assert "168" in reason(refused, "hours")


def test_a_sensor_type_is_taken_as_it_is_and_an_empty_one_is_none() -> None:
    assert wanted_sensor_type({"sensor_type": "temperatura"}) == "temperatura"
    assert wanted_sensor_type({"sensor_type": ""}) is None
    assert wanted_sensor_type({}) is None
    for text in ("a\x00b", "x" * 501):
        with pytest.raises(InvalidInput) as refused:
            wanted_sensor_type({"sensor_type": text})
        reason(refused, "sensor_type")
