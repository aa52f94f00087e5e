"""A year of real measurements in, histories and statistics out: run it with `make example`.

Hourly temperatures of Seattle and San Francisco (2010, from vega_datasets) go into a server of its own, one file
through `sensorkeep import`, the other through HTTP in the form of Home Assistant. The year is moved so that it ends
yesterday, because the statistics of `1y` are those of the last year.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import vega_datasets

from sensorkeep.cli.client import ApiClient, Credential
from sensorkeep.cli.output import Output
from sensorkeep.model import external_uuid

PROGRAM = str(Path(sys.executable).parent / "sensorkeep")
MEASUREMENTS = Path(vega_datasets.__file__).parent / "_data"
CITIES = {"Seattle": "seattle", "San Francisco": external_uuid("san-francisco")}
DAYS = 365


@contextmanager
def serving(data_dir: Path) -> Iterator[tuple[str, Credential]]:
    """A server on a free port: its URL and a credential of its admin."""
    password = secrets.token_urlsafe(16)
    settings = {"SENSORKEEP_PORT": "0", "SENSORKEEP_DATA_DIR": str(data_dir), "SENSORKEEP_ADMIN_PASSWORD": password}
    settings |= {"SENSORKEEP_LOG_LEVEL": "warning", "SENSORKEEP_ACCESS_LOG": "false"}
    with subprocess.Popen([PROGRAM, "serve"], env=os.environ | settings, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next(filter(None, (re.search(r"address:\s+(\S+)", line) for line in server.stdout)), None)
            if address is None:
                raise SystemExit("the server did not start")
            yield address[1], Credential(username="admin", password=password)
        finally:
            server.terminate()


def measurements(file: str, time_format: str, moved: timedelta) -> list[tuple[datetime, str]]:
    """The (time, temperature in degrees Fahrenheit) of a file, with its year moved."""
    with (MEASUREMENTS / file).open(newline="") as rows:
        return [
            (datetime.strptime(row["date"], time_format).replace(tzinfo=UTC) + moved, row["temp"])
            for row in csv.DictReader(rows)
        ]


def import_seattle(url: str, credential: Credential, moved: timedelta, folder: Path) -> None:
    """Through the command line, as a CSV file. `--backfill`: it is older than raw readings are kept."""
    path = folder / "seattle-temps.csv"
    rows = measurements(path.name, "%Y/%m/%d %H:%M", moved)
    path.write_text("date,temp\n" + "".join(f"{time:%Y/%m/%d %H:%M},{value}\n" for time, value in rows))
    columns = ["--map", "time=date", "--map", "temperature=temp", "--sensor-id", CITIES["Seattle"], "--timezone", "UTC"]
    login = {"SENSORKEEP_USERNAME": credential.username or "", "SENSORKEEP_PASSWORD": credential.password or ""}
    subprocess.run(
        [PROGRAM, "import", str(path), "--url", url, "--backfill", *columns], env=os.environ | login, check=True
    )


def send_san_francisco(client: ApiClient, moved: timedelta) -> dict[str, Any]:
    """Through HTTP, as Home Assistant sends: one gzip batch, values as text, times without a zone."""
    readings = [
        {
            "sensor_uuid": external_uuid("san-francisco/temperature"),
            "sensor_nome": "Temperature",
            "sensor_tipo": "temperature",
            "sensor_unidade": "°F",
            "sensor_telemetria": value,
            "sensor_datahora_coleta": time.replace(tzinfo=None).isoformat(),
        }
        for time, value in measurements("sf-temps.csv", "%Y/%m/%d %H:%M:%S", moved)
    ]
    body = [{"equip_uuid": CITIES["San Francisco"], "equip_nome": "San Francisco", "sensor": readings}]
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Prefer": "wait=30, backfill"}
    content = gzip.compress(json.dumps(body).encode())
    answer = client.request("POST", "/telemetry/bulk", body=content, headers=headers)
    told: dict[str, Any] = answer.json()
    return told


def print_history(output: Output, city: str, days: list[dict[str, Any]]) -> None:
    """The first and last days, and the extremes of each month."""
    shown = ("time", "min_value", "avg_value", "max_value", "median_value", "p95_value", "stddev_value")
    rows = [[day["time"][:10], *(f"{day[name]:.1f}" for name in shown[1:])] for day in days[:3] + days[-3:]]
    output.line(f"{city}, °F: the first and last days, and the extremes of each month")
    output.table([name.removesuffix("_value") for name in shown], rows)
    months: dict[str, list[dict[str, Any]]] = {}
    for day in days:
        months.setdefault(day["time"][:7], []).append(day)
    extremes = [
        [
            month,
            f"{min(day['min_value'] for day in members):.1f}",
            f"{max(day['max_value'] for day in members):.1f}",
            sum(day["sample_count"] for day in members),
        ]
        for month, members in months.items()
    ]
    output.table(["month", "coldest", "warmest", "readings"], extremes)


def print_stats(output: Output, client: ApiClient) -> None:
    """The statistics of the year; `approximate` speaks of the percentiles."""
    names = ("total_samples", "overall_min", "overall_avg", "overall_max", "median", "p95")
    rows = []
    for city, equipment in CITIES.items():
        for sensor in client.get(f"/analytics/equipment/{equipment}/stats", period="1y")["sensors"]:
            figures = [f"{sensor[name]:.2f}" for name in names[1:]]
            rows.append([city, sensor["total_samples"], *figures, "yes" if sensor.get("approximate") else "no"])
    output.line("the year, °F")
    output.table(["city", *names, "approximate"], rows)


def run(data_dir: Path, folder: Path) -> None:
    """Start, fill, ask, print, stop."""
    output = Output()
    today = datetime.now(UTC).date()
    moved = today - timedelta(days=DAYS) - date(2010, 1, 1)
    with serving(data_dir) as (url, credential), ApiClient(url, credential) as client:
        output.line(f"a server of its own: {url}, data in {data_dir}")
        output.line("the measurements are of 2010; their dates are moved so that the year ends yesterday")
        import_seattle(url, credential, moved, folder)
        told = send_san_francisco(client, moved)
        output.line(f"San Francisco: {told['readings']} readings received, {told['stored']} stored")
        start = f"{today - timedelta(days=DAYS)}T00:00:00Z"
        for city, equipment in CITIES.items():
            path = f"/analytics/equipment/{equipment}/history"
            print_history(output, city, client.get(path, period="day", start_date=start, limit=DAYS + 1)["data"])
        print_stats(output, client)


def main() -> None:
    """Use the data directory that is asked for, else a temporary one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="keep the data here (default: a temporary directory)")
    asked = parser.parse_args().data_dir
    with tempfile.TemporaryDirectory() as folder:
        run(asked.resolve() if asked else Path(folder) / "example-data", Path(folder))


if __name__ == "__main__":
    main()
