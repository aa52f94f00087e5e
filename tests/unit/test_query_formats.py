"""The media type an Accept header asks for, and texts and numbers that say what the columns hold."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.clock import rfc3339
from sensorkeep.errors import SensorkeepError
from sensorkeep.query.answers import CatalogEquipment, EquipmentHistory, EquipmentReading, schema_of
from sensorkeep.query.formats import (
    ARROW_STREAM,
    CSV,
    JSON,
    PARQUET,
    metadata_of,
    negotiate,
    numbers,
    rfc3339_texts,
    shortest,
)

LATEST_US = 253_402_300_799_999_999


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("Application/JSON", JSON),
        ("application/*", JSON),
        ("text/*", CSV),
        ("text/csv", CSV),
        ("text/csv; charset=utf-8", CSV),
        (ARROW_STREAM, ARROW_STREAM),
        (PARQUET, PARQUET),
        ("text/csv, application/json", JSON),
        ("text/csv;q=0.9, application/json;q=0.8", CSV),
        ("text/csv;q=0.9,*/*;q=0.1", CSV),
        ("application/json;q=0.2, application/*;q=0.9", ARROW_STREAM),
        ("application/json;q=0, */*", CSV),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
        ("image/png, application/vnd.apache.parquet;q=0.001", PARQUET),
        ("text/csv;q=oops, application/json;q=0.1", JSON),
        ("text/csv ; Q=1.000 , application/json;q=0.999", CSV),
    ],
)
def test_the_preferred_media_type_is_chosen(accept: str | None, media_type: str) -> None:
    assert negotiate(accept) == media_type


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0", "*/*;q=0", ";;,", "text/csv;q=2"])
def test_what_cannot_be_produced_is_not_acceptable(accept: str) -> None:
    with pytest.raises(SensorkeepError) as refused:
        negotiate(accept)
    assert (refused.value.code, refused.value.status) == ("not_acceptable", 406)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(-(10**15), LATEST_US), st.integers(0, 10**9).map(lambda s: s * 10**6))))
def test_times_in_columns_are_written_as_single_times_are(times_us: list[int]) -> None:
    column = pa.chunked_array([pa.array(times_us, pa.timestamp("us", tz="UTC"))])
    assert rfc3339_texts(column) == [rfc3339(time_us) for time_us in times_us]


def test_numbers_are_floats_and_nan_stands_for_null() -> None:
    values = numbers(pa.chunked_array([pa.array([1, None, 3]), pa.array([], pa.int64())]))
    assert values[0] == 1.0
    assert math.isnan(values[1])
    assert isinstance(values[2], float)


@settings(max_examples=100, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_short_float_is_printed_as_short_as_it_came_and_is_the_same_number(value: float) -> None:
    printed = shortest(value)
    assert np.float32(printed) == np.float32(value)
    assert len(repr(printed)) <= len(repr(value))


def test_metadata_holds_what_is_known_only() -> None:
    assert metadata_of(91.5, -60, None, None) == {"battery": 91.5, "rssi": -60}
    assert metadata_of(0.0, 0, 0, 0.0) == {"battery": 0.0, "rssi": 0, "lqi": 0, "battery_voltage": 0.0}
    assert metadata_of(None, None, None, None) is None


def test_schemas_stand_alone_and_name_every_field() -> None:
    schema = schema_of(EquipmentHistory[EquipmentReading])
    assert "$ref" not in str(schema)
    row = schema["properties"]["data"]["items"]
    assert row["required"] == list(EquipmentReading.__struct_fields__)
    assert set(schema_of(CatalogEquipment)["required"]) == set(CatalogEquipment.__struct_fields__)
