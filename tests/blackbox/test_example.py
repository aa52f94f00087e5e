"""`make example` runs, and what the server answers of its data is what polars computes from the same files."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import vega_datasets
from harness import Server, running

from sensorkeep.model import external_uuid

EXAMPLE = Path(__file__).parents[2] / "scripts" / "example.py"
MEASUREMENTS = Path(vega_datasets.__file__).parent / "_data"
SEATTLE, SAN_FRANCISCO = "seattle", external_uuid("san-francisco")
CITIES = {
    SEATTLE: ("seattle-temps.csv", "%Y/%m/%d %H:%M"),
    SAN_FRANCISCO: ("sf-temps.csv", "%Y/%m/%d %H:%M:%S"),
}
RANK_ERROR_MAX = 0.01
"""Of approximate percentiles over a year, as a share of the readings: one point. A day of 24 readings is a coarse
picture; with a reading a minute DESIGN measured 0.04 points."""


class Example(NamedTuple):
    """What the example printed, and a server on the data that it left."""

    output: str
    server: Server


pytestmark = pytest.mark.timeout(180)  # whichever test comes first waits for the example


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    data_dir = tmp_path_factory.mktemp("example") / "data"
    ran = subprocess.run(
        [sys.executable, EXAMPLE, "--data-dir", data_dir], capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stderr
    with running(data_dir) as server:
        yield Example(ran.stdout, server)


def history(server: Server, equipment: str) -> list[dict[str, Any]]:
    """All daily rows."""
    start = (datetime.now(UTC) - timedelta(days=400)).date()
    answer = server.client.get(
        f"/analytics/equipment/{equipment}/history", params={"period": "day", "start_date": f"{start}T00:00:00Z"}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["next_cursor"] is None
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


def measurements(equipment: str, first_day: str) -> pl.DataFrame:
    """The readings of the file (time, value), its year moved to begin on `first_day`."""
    file, time_format = CITIES[equipment]
    moved = date.fromisoformat(first_day) - date(2010, 1, 1)
    return pl.read_csv(MEASUREMENTS / file).select(
        time=pl.col("date").str.to_datetime(time_format, time_unit="us") + moved,
        value=pl.col("temp").cast(pl.Float64),
    )


@pytest.mark.parametrize("equipment", CITIES)
def test_the_daily_history_is_what_polars_computes(example: Example, equipment: str) -> None:
    rows = history(example.server, equipment)
    value = pl.col("value")
    expected = (
        measurements(equipment, rows[0]["time"][:10])
        .group_by(pl.col("time").dt.date().alias("day"))
        .agg(
            sample_count=value.count(),
            avg_value=value.mean(),
            min_value=value.min(),
            max_value=value.max(),
            stddev_value=value.std(),
            median_value=value.quantile(0.5, "linear"),
            p95_value=value.quantile(0.95, "linear"),
            p99_value=value.quantile(0.99, "linear"),
            active_minutes=pl.col("time").dt.truncate("1m").n_unique(),
        )
        .sort("day")
        .to_dicts()
    )
    assert [row["time"] for row in rows] == [f"{day['day']}T00:00:00Z" for day in expected]
    assert len(rows) == 365
    for row, day in zip(rows, expected, strict=True):
        assert not row.get("approximate", False)
        for name, number in day.items():
            if name != "day":
                assert math.isclose(row[name], number, rel_tol=1e-9, abs_tol=1e-9), f"{row['time']} {name}"


@pytest.mark.parametrize("equipment", CITIES)
def test_the_statistics_of_the_year_are_what_polars_computes(example: Example, equipment: str) -> None:
    answer = example.server.client.get(f"/analytics/equipment/{equipment}/stats", params={"period": "1y"}).json()
    first_day = history(example.server, equipment)[0]["time"][:10]
    begin = datetime.fromisoformat(answer["start_date"]).replace(tzinfo=None)
    values = measurements(equipment, first_day).filter(pl.col("time") >= begin)["value"]
    (stats,) = answer["sensors"]
    assert stats["total_samples"] == len(values) > 8_700
    assert (stats["overall_min"], stats["overall_max"]) == (values.min(), values.max())
    assert math.isclose(stats["overall_avg"], float(values.mean()), rel_tol=1e-9)  # type: ignore[arg-type]
    assert stats["active_periods"] in (364, 365)
    assert stats["approximate"] is True, "percentiles of a year come from the mergeable form"
    for name, probability in (("median", 0.5), ("p95", 0.95)):
        # A value that many readings share covers many ranks.
        below = (values < stats[name]).sum() / len(values)
        up_to = (values <= stats[name]).sum() / len(values)
        assert below - RANK_ERROR_MAX <= probability <= up_to + RANK_ERROR_MAX, f"{name}: rank {below} to {up_to}"


def test_the_example_prints_the_history_and_the_statistics(example: Example) -> None:
    assert "8759 stored" in example.output
    for equipment, city in ((SEATTLE, "Seattle"), (SAN_FRANCISCO, "San Francisco")):
        days = history(example.server, equipment)
        for day in (days[0], days[-1]):
            assert f"{day['time'][:10]}\t{day['min_value']:.1f}\t{day['avg_value']:.1f}" in example.output
        assert f"{city}\t8759\t" in example.output
