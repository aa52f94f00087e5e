"""`export`: all pages, whole files or none, and what it writes can be imported again."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from cli_server import Ingest, Reply, Request, serving
from typer.testing import CliRunner

from sensorkeep.cli.client import ApiClient
from sensorkeep.cli.export_files import RAW_SCHEMA, ROLLUP_SCHEMA, export_format_of, writing
from sensorkeep.cli.exporting import ExportOptions, ExportResult, export_command, export_file
from sensorkeep.cli.importing import Importer, ImportOptions
from sensorkeep.cli.output import ExitCode, Output
from sensorkeep.clock import SystemClock
from sensorkeep.errors import Conflict, InvalidInput, NotFound
from sensorkeep.model import external_uuid

START_US, END_US = 1_704_067_200_000_000, 1_704_672_000_000_000  # 2024-01-01 to 2024-01-08
STATION, SENSOR = external_uuid("station"), external_uuid("station/temperature")
FREEZER = "550e8400-e29b-41d4-a716-446655440000"
DOOR, PROBE = "660e8400-e29b-41d4-a716-446655440001", "660e8400-e29b-41d4-a716-446655440002"
app = typer.Typer()
app.command("export")(export_command)


def sensor(uuid: str, equipment: str, external_id: str | None, name: str | None, kind: str) -> dict[str, Any]:
    return {
        "sensor_uuid": uuid,
        "equipment_uuid": equipment,
        "external_id": external_id,
        "sensor_name": name,
        "sensor_type": kind,
        "sensor_unit": None,
    }


EQUIPMENT: list[dict[str, Any]] = [
    {
        "equipment_uuid": STATION,
        "external_id": "station",
        "name": None,
        "sensors": [sensor(SENSOR, STATION, "station/temperature", None, "temperature")],
    },
    {
        "equipment_uuid": FREEZER,
        "external_id": None,
        "name": 'Freezer "1", Loja',
        "sensors": [
            sensor(DOOR, FREEZER, None, "Porta", "porta"),
            sensor(PROBE, FREEZER, None, "Sonda", "temperatura"),
        ],
    },
]


def reading(second: int, of: dict[str, Any], value: float | None, status: str | None = None, **metadata: float) -> Any:
    columns = {name: of[name] for name in ("sensor_uuid", "sensor_name", "sensor_type", "sensor_unit")}
    time = f"2024-01-02T00:00:{second:02d}.250000Z"
    return {"time": time, **columns, "value": value, "status": status, "metadata": metadata or None}


READINGS: dict[str, list[Any]] = {
    STATION: [reading(i, EQUIPMENT[0]["sensors"][0], 0.1 + i) for i in range(7)],
    FREEZER: [
        reading(1, EQUIPMENT[1]["sensors"][0], None, 'multi\nline, "quoted"'),
        reading(2, EQUIPMENT[1]["sensors"][1], -18.4, "ok", battery=91.5, rssi=-57, lqi=170, battery_voltage=2.9),
        reading(3, EQUIPMENT[1]["sensors"][0], None, "null"),
    ],
}


class History:
    """A script that serves EQUIPMENT and READINGS in pages of the asked length, two equipments at most a page."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.calls = 0

    def __call__(self, request: Request) -> Reply:
        self.calls += 1
        if self.calls == self.fail_at:
            return Reply(500, {"code": "internal", "detail": "oh"})
        parts = request.path.removeprefix("/api/v1/").split("/")
        if parts == ["equipment"]:
            at = int(request.query.get("cursor", 0))
            following = str(at + 1) if at + 1 < len(EQUIPMENT) else None
            return Reply(200, {"equipment": EQUIPMENT[at : at + 1], "next_cursor": following})
        if parts[0] in ("equipment", "sensors"):
            return self._catalog(*parts)
        rows = READINGS.get(parts[2], [])
        if parts[1] == "sensor":
            rows = [row for rows in READINGS.values() for row in rows if row["sensor_uuid"] == parts[2]]
            rows = [{name: row[name] for name in ("time", "value", "status", "metadata")} for row in rows]
        at, limit = int(request.query.get("cursor", 0)), int(request.query["limit"])
        following = str(at + limit) if at + limit < len(rows) else None
        page = {"data": rows[at : at + limit], "next_cursor": following, "complete_until": "2024-01-03T00:00:00Z"}
        return Reply(200, page)

    def _catalog(self, kind: str, identifier: str) -> Reply:
        sensors = [part for one in EQUIPMENT for part in one["sensors"]]
        known = EQUIPMENT if kind == "equipment" else sensors
        for one in known:
            if identifier == one["equipment_uuid" if kind == "equipment" else "sensor_uuid"]:
                return Reply(200, one)
        return Reply(404, {"code": "not_found", "detail": f"no {kind} {identifier}"})


def exporting(url: str, path: Path, force: bool = False, **options: Any) -> ExportResult:
    chosen = ExportOptions(START_US, END_US, **options)
    output = Output(io.StringIO(), io.StringIO())
    return export_file(path, export_format_of(path), chosen, ApiClient(url), output, force=force)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("page_rows", [1, 2, 1000])
def test_exported_readings_are_imported_again_with_no_options(tmp_path: Path, name: str, page_rows: int) -> None:
    path, ingest = tmp_path / name, Ingest()
    with serving(History()) as server:
        result = exporting(server.url, path, page_rows=page_rows)
    assert (result.rows, result.equipment, result.complete_until) == (10, 2, "2024-01-03T00:00:00Z")
    with serving(ingest) as server:
        client, output = ApiClient(server.url), Output(io.StringIO(), io.StringIO())
        imported = Importer(path, ImportOptions(), client, output, SystemClock()).run()
    assert imported.complete
    assert imported.progress.sent == 10
    assert [one["equip_uuid"] for one in ingest.equipment] == ["station", FREEZER]
    station, freezer = ({key: one[key] for key in ("sensor",)} for one in ingest.equipment)
    assert [entry["valor"] for entry in station["sensor"]] == [0.1 + i for i in range(7)]
    assert {entry["sensor_uuid"] for entry in station["sensor"]} == {"station/temperature"}
    door, probe, blank = freezer["sensor"]
    assert (door["sensor_uuid"], door["status"]) == (DOOR, 'multi\nline, "quoted"')
    assert "valor" not in door
    assert blank["status"] == "null"
    assert probe == {
        "sensor_uuid": PROBE,
        "sensor_nome": "Sonda",
        "sensor_tipo": "temperatura",
        "valor": -18.4,
        "status": "ok",
        "timestamp": "2024-01-02T00:00:02.250000Z",
        "sensor_bateria_pct": 91.5,
        "sensor_sinal_rssi": -57,
        "sensor_sinal_lqi": 170,
        "sensor_voltagem_bateria": 2.9,
    }
    assert ingest.equipment[1]["equip_nome"] == 'Freezer "1", Loja'


def test_every_format_holds_the_same_rows(tmp_path: Path) -> None:
    names = ["a.jsonl", "a.parquet", "a.arrow"]
    with serving(History()) as server:
        for name in names:
            exporting(server.url, tmp_path / name, page_rows=3)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    parquet = pq.read_table(tmp_path / "a.parquet")
    with pa.ipc.open_file(str(tmp_path / "a.arrow")) as reader:
        arrow = reader.read_all()
    assert parquet.schema.names == RAW_SCHEMA.names == list(lines[0])
    assert parquet.equals(arrow)
    assert parquet.column("value").to_pylist() == [line["value"] for line in lines]
    assert parquet.column("time").cast(pa.int64()).to_pylist()[0] == 1_704_153_600_250_000


def test_one_sensor_is_exported_with_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with serving(History()) as server:
        result = exporting(server.url, path, sensor="station/temperature")
    row = json.loads(path.read_text().splitlines()[0])
    assert result.rows == 7
    assert (row["sensor_uuid"], row["equipment_uuid"], row["equipment_external_id"]) == (SENSOR, STATION, "station")


def test_hours_have_their_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    bucket = {"time": "2024-01-02T00:00:00Z", "sensor_uuid": PROBE, "avg_value": 1.5, "sample_count": 2}
    page = {"data": [bucket], "next_cursor": None, "complete_until": "2024-01-03T00:00:00Z"}

    def script(request: Request) -> Reply:
        return Reply(200, EQUIPMENT[1] if "analytics" not in request.path else page)

    with serving(script) as server:
        exporting(server.url, path, equipment=FREEZER, period="hour")
        assert server.requests[1].query["period"] == "hour"
        assert server.requests[1].query["start_date"] == "2024-01-01T00:00:00Z"
    header, row = path.read_text().splitlines()
    assert header.split(",") == ROLLUP_SCHEMA.names
    assert row.endswith("1.5,,,2,,,,,,False")


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("precious")
    with serving(History()) as server:
        with pytest.raises(Conflict):
            exporting(server.url, path)
        assert server.requests == []
        assert path.read_text() == "precious"
        exporting(server.url, path, force=True)
    assert path.read_text().startswith("time,")


@pytest.mark.parametrize("fail_at", [1, 3, 5])
def test_a_failed_export_leaves_nothing(tmp_path: Path, fail_at: int) -> None:
    with serving(History(fail_at)) as server, pytest.raises(Exception, match="oh"):
        exporting(server.url, tmp_path / "a.csv.gz", page_rows=2)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_equipment_is_said_to_be_unknown(tmp_path: Path) -> None:
    with serving(History()) as server, pytest.raises(NotFound, match="nobody/x: no equipment"):
        exporting(server.url, tmp_path / "a.csv", equipment="nobody/x")
    assert server.requests[0].path == f"/api/v1/equipment/{external_uuid('nobody/x')}"


def test_the_same_rows_give_the_same_gzip_bytes(tmp_path: Path) -> None:
    with serving(History()) as server:
        for name in ("a.csv.gz", "b.csv.gz"):
            exporting(server.url, tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).startswith(b"time,equipment_uuid")


def test_wrong_usage_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "a.csv")
    unusable = (
        [str(tmp_path / "a.xlsx")],
        [path, "--start", "yesterday"],
        [path, "--start", "2024-02-01", "--end", "2024-01-01"],
        [path, "--equipment", "a", "--sensor", "b"],
        [str(tmp_path / "a.parquet.gz")],
    )
    for arguments in unusable:
        result = CliRunner().invoke(app, [*arguments, "--url", "http://127.0.0.1:1"])
        assert result.exit_code == ExitCode.USAGE, result.output


def test_a_file_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput), writing(tmp_path / "no" / "a.csv", "csv", RAW_SCHEMA, force=False):
        pass


def test_the_command_writes_the_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with serving(History()) as server:
        arguments = [str(path), "--url", server.url, "--start", "2024-01-01", "--end", "2024-01-08"]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ExitCode.OK, result.output
    assert "10 rows of 2 equipment" in result.output
    assert "complete until 2024-01-03T00:00:00Z" in result.output
