"""History as JSON, CSV, Arrow and Parquet tells the same rows, by the Accept header."""

from __future__ import annotations

import csv
import io
from datetime import datetime
from typing import Any

import httpx
import pyarrow as pa
import pytest
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem
from pyarrow import parquet
from query_site import Site

CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def site(server: Server) -> Site:
    return Site(server)


def history(site: Site, accept: str, **parameters: str) -> httpx.Response:
    path = f"/analytics/equipment/{site.equipment}/history"
    answer = site.server.client.get(path, params=parameters, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].split(";")[0] == (accept if "/*" not in accept else "application/json")
    return answer


def table(answer: httpx.Response) -> pa.Table:
    source = pa.BufferReader(answer.content)
    if answer.headers["content-type"] == ARROW:
        return pa.ipc.open_stream(source).read_all()
    return parquet.read_table(source)


@pytest.mark.parametrize("media_type", [ARROW, PARQUET])
@pytest.mark.parametrize("period", ["hour", "day", "raw"])
def test_arrow_and_parquet_hold_the_rows_of_json(site: Site, media_type: str, period: str) -> None:
    expected: list[dict[str, Any]] = history(site, "application/json", period=period).json()["data"]
    rows = table(history(site, media_type, period=period)).to_pylist()
    assert len(rows) == len(expected) > 0
    for row, wanted in zip(rows, expected, strict=True):
        assert row["time"] == datetime.fromisoformat(wanted["time"])
        names = wanted.keys() - {"time", "metadata"}
        assert {name: row[name] for name in names} == {name: wanted[name] for name in names}


@pytest.mark.parametrize("period", ["hour", "raw"])
def test_csv_holds_the_rows_of_json(site: Site, period: str) -> None:
    expected = history(site, "application/json", period=period).json()["data"]
    answer = history(site, CSV, period=period)
    assert answer.content.endswith(b"\r\n")
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert len(rows) == len(expected) > 0
    for row, wanted in zip(rows, expected, strict=True):
        assert (row["time"], row["sensor_uuid"], row["sensor_name"]) == (
            wanted["time"], wanted["sensor_uuid"], wanted["sensor_name"],
        )  # fmt: skip
        for name in ("value",) if period == "raw" else ("avg_value", "stddev_value", "p99_value", "sample_count"):
            assert (float(row[name]) if row[name] else None) == wanted[name]


def test_metadata_is_columns_in_the_tabular_formats(server: Server) -> None:
    equipment = new_uuid()
    reading = esm_reading(new_uuid(), 1.5, hours_ago(1), sensor_bateria_pct=91, sensor_sinal_rssi=-60, status="ok")
    server.stored([esm_equipment(equipment, [reading])])
    path = f"/analytics/equipment/{equipment}/history"
    (wanted,) = server.get(path, period="raw")["data"]
    assert (wanted["status"], wanted["metadata"]) == ("ok", {"battery": 91, "rssi": -60})
    for media_type in (ARROW, PARQUET):
        answer = server.client.get(path, params={"period": "raw"}, headers={"Accept": media_type})
        (row,) = table(answer).to_pylist()
        assert [row[name] for name in ("value", "status", "battery", "rssi", "lqi")] == [1.5, "ok", 91.0, -60, None]


@pytest.mark.parametrize("media_type", ["application/json", CSV, ARROW, PARQUET])
def test_pages_continue_by_header_in_every_format(site: Site, media_type: str) -> None:
    answer = history(site, media_type, limit="5")
    assert answer.headers["x-complete-until"].endswith("Z")
    assert answer.headers["link"].endswith('; rel="next"')
    following = answer.headers["link"].split(">")[0].lstrip("<")
    path = f"/analytics/equipment/{site.equipment}/history{following}"
    after = site.server.client.get(path, headers={"Accept": media_type})
    assert after.status_code == 200, after.text
    assert after.content != answer.content
    again = history(site, media_type, limit="5", cursor=answer.headers["x-next-cursor"])
    assert again.content == after.content or media_type == "application/json"
    last = history(site, media_type)
    assert "link" not in last.headers
    assert "x-next-cursor" not in last.headers


def test_the_preferred_format_wins_and_one_that_cannot_be_made_is_a_406(site: Site) -> None:
    path = f"/analytics/equipment/{site.equipment}/history"
    answer = site.server.client.get(path, headers={"Accept": "application/json;q=0.5, text/csv"})
    assert answer.headers["content-type"].startswith(CSV)
    assert history(site, "*/*").json()["data"]
    problem(site.server.client.get(path, headers={"Accept": "image/png"}), 406, "not_acceptable")


def test_an_empty_history_is_an_empty_table(site: Site) -> None:
    for media_type in (ARROW, PARQUET):
        answer = history(site, media_type, sensor_type="none")
        assert table(answer).num_rows == 0
    assert history(site, CSV, sensor_type="none").text.count("\r\n") == 1
