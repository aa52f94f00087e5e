"""`import`: every row is sent, refused or empty; it goes on where it was; the ends say what happened."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_server import Ingest, Reply, serving
from typer.testing import CliRunner
from vega_datasets import local_data

from sensorkeep.cli.client import ApiClient
from sensorkeep.cli.importing import Importer, ImportOptions, ImportResult, import_command, import_files
from sensorkeep.cli.output import ExitCode, Output
from sensorkeep.cli.source_rows import ColumnOptions
from sensorkeep.clock import SystemClock
from sensorkeep.errors import Forbidden, InvalidInput, Unavailable

HERE = Path(__file__).parent
app = typer.Typer()
app.command("import")(import_command)


def rows_file(path: Path, count: int) -> Path:
    lines = [f"2024-01-01T00:{i // 60:02d}:{i % 60:02d}Z,{i}" for i in range(count)]
    path.write_text("time,temp\n" + "\n".join(lines) + "\n")
    return path


def importing(url: str, path: Path, **options: Any) -> ImportResult:
    chosen = ImportOptions(columns=ColumnOptions(sensor_id="s1"), **options)
    client = ApiClient(url, attempts_max=2, sleep=lambda _: None)
    return Importer(path, chosen, client, Output(io.StringIO(), io.StringIO()), SystemClock()).run()


def temperatures(ingest: Ingest) -> list[float]:
    return [one["values"]["temp"] for one in ingest.readings]


def left_beside(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir() if one != path)


def test_all_rows_arrive_in_order_and_are_counted(tmp_path: Path) -> None:
    ingest, path = Ingest(), rows_file(tmp_path / "a.csv", 25)
    with serving(ingest) as server:
        result = importing(server.url, path, batch=10)
    assert temperatures(ingest) == list(range(25))
    assert (result.batches, result.stored, result.pending) == (3, 25, 0)
    assert (result.progress.rows, result.progress.sent, result.progress.refused) == (25, 25, 0)
    assert ingest.prefer == [None, None, "wait=30"]
    assert left_beside(path) == []


def test_backfill_is_asked_for_with_every_batch(tmp_path: Path) -> None:
    ingest, path = Ingest(), rows_file(tmp_path / "a.csv", 4)
    with serving(ingest) as server:
        importing(server.url, path, batch=2, backfill=True)
    assert ingest.prefer == ["backfill", "backfill, wait=30"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_an_interrupted_import_goes_on_after_the_last_acknowledged_row(tmp_path: Path, name: str) -> None:
    rows = [{"time": f"2024-01-01T00:00:{i:02d}Z", "temp": i if i != 7 else "x"} for i in range(30)]
    text = {
        "csv": "time,temp\n" + "\n".join(f"{row['time']},{row['temp']}" for row in rows),
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows, indent=1),
    }[name.split(".")[1]]
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    ingest = Ingest()
    with serving(ingest) as server:
        good = importing(server.url, path, batch=5)
        assert good.progress.refused == 1
        # The same again, and this time the server goes away after two batches.
        ingest.readings.clear()
        ingest.prefer.clear()
        server.script = lambda request: ingest(request) if len(ingest.prefer) < 2 else Reply(503)
        with pytest.raises(Unavailable):
            importing(server.url, path, batch=5)
        assert len(ingest.readings) == 9
        assert left_beside(path) == [f"{name}.import-state.json", f"{name}.refused.jsonl"]
        server.script = ingest
        result = importing(server.url, path, batch=5)
    assert temperatures(ingest) == [i for i in range(30) if i != 7]
    assert result.resumed_after_line > 0
    assert (result.progress.rows, result.progress.sent, result.progress.refused) == (30, 29, 1)
    refused = [json.loads(line) for line in (tmp_path / f"{name}.refused.jsonl").read_text().splitlines()]
    assert [one["row"]["temp"] for one in refused] == ["x"]
    assert left_beside(path) == [f"{name}.refused.jsonl"]


@pytest.mark.parametrize("change", ["content", "mapping", "server", "nothing"])
def test_another_file_mapping_or_server_starts_again(tmp_path: Path, change: str) -> None:
    ingest, path = Ingest(), rows_file(tmp_path / "a.csv", 10)
    with serving(ingest) as server:
        server.script = lambda request: Reply(503) if ingest.prefer else ingest(request)
        with pytest.raises(Unavailable):
            importing(server.url, path, batch=5)
        server.script = ingest
        if change == "content":
            rows_file(path, 11)
        url = server.url + "/" if change == "server" else server.url
        result = importing(url, path, batch=5, backfill=change == "mapping")
    again = {"content": 11, "nothing": 5}.get(change, 10)
    assert len(ingest.readings) == 5 + again
    assert (result.resumed_after_line > 0) == (change == "nothing")


def test_bad_rows_are_written_with_line_and_reason(tmp_path: Path) -> None:
    ingest, path = Ingest(), tmp_path / "a.csv"
    path.write_text("time,temp\n2024-01-01,1\nyesterday,2\n2024-01-02,warm\n2024-01-03,\n2024-01-04\n2024-01-05,5\n")
    with serving(ingest) as server:
        result = importing(server.url, path)
    assert temperatures(ingest) == [1, 5]
    progress = result.progress
    assert (progress.rows, progress.sent, progress.refused, progress.empty) == (6, 2, 3, 1)
    refused = [json.loads(line) for line in (tmp_path / "a.csv.refused.jsonl").read_text().splitlines()]
    assert [one["line"] for one in refused] == [3, 4, 6]
    assert refused[1] == {
        "line": 4,
        "reason": "temp: 'warm' is not a number",
        "row": {"time": "2024-01-02", "temp": "warm"},
    }
    assert not result.complete


def test_refused_rows_can_be_corrected_and_a_clean_run_removes_the_old_list(tmp_path: Path) -> None:
    ingest, path = Ingest(), tmp_path / "a.csv"
    path.write_text("time,temp\n2024-01-01,1\n2024-01-02,warm\n")
    with serving(ingest) as server:
        importing(server.url, path)
        assert left_beside(path) == ["a.csv.refused.jsonl"]
        path.write_text("time,temp\n2024-01-01,1\n2024-01-02,20\n")
        assert importing(server.url, path).complete
    assert left_beside(path) == []


def test_a_batch_the_server_refuses_whole_is_refused_row_by_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    ingest, path = Ingest(), rows_file(tmp_path / "a.csv", 10)
    ingest.next = [Reply(422, {"code": "no_usable_reading", "detail": "all old", "errors": [{"reason": "too_old"}]})]
    with serving(ingest) as server:
        result = importing(server.url, path, batch=5)
    assert temperatures(ingest) == [5, 6, 7, 8, 9]
    assert (result.progress.sent, result.progress.refused) == (5, 5)
    assert "too_old" in (tmp_path / "a.csv.refused.jsonl").read_text()


@pytest.mark.parametrize("status", [413, 422])
def test_one_row_the_server_cannot_take_does_not_cost_the_others(tmp_path: Path, status: int) -> None:
    ingest, path = Ingest(), rows_file(tmp_path / "a.csv", 16)

    def script(request: Any) -> Reply:
        if request.method == "POST" and any(one["values"]["temp"] == 11 for one in request.json()):
            return Reply(status, {"code": "invalid_fields" if status == 422 else "too_large", "detail": "not that one"})
        return ingest(request)

    with serving(script) as server:
        result = importing(server.url, path)
    assert temperatures(ingest) == [i for i in range(16) if i != 11]
    assert (result.progress.sent, result.progress.refused, result.stored) == (15, 1, 15)


def test_a_refusal_of_the_caller_stops_at_once(tmp_path: Path) -> None:
    ingest, path = Ingest(), rows_file(tmp_path / "a.csv", 10)
    ingest.next = [Reply(403, {"code": "forbidden", "detail": "backfill needs the scope admin"})]
    with serving(ingest) as server:
        with pytest.raises(Forbidden):
            importing(server.url, path, batch=5)
        assert len(server.requests) == 1


def test_the_counts_of_batches_that_are_not_stored_in_time_are_said_to_be_pending(tmp_path: Path) -> None:
    ingest, path = Ingest(), rows_file(tmp_path / "a.csv", 10)

    def script(request: Any) -> Reply:
        return Reply(200, {"state": "accepted"}) if request.method == "GET" else ingest(request)

    with serving(script) as server:
        result = importing(server.url, path, batch=5, settle_seconds=0.01)
    assert (result.stored, result.pending) == (5, 5)


def test_quarantined_readings_end_in_a_nonzero_exit(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.csv", 3)
    answer = {"readings": 3, "quarantined": 1, "batch_id": "b", "stored": 2, "errors": [{"reason": "in_future"}]}
    output = Output(io.StringIO(), stderr := io.StringIO())
    with serving(lambda _: Reply(201, answer)) as server:
        options = ImportOptions(columns=ColumnOptions(sensor_id="s1"))
        code = import_files([path], options, ApiClient(server.url), output)
    assert code == ExitCode.SOME_REFUSED
    assert "in_future" in stderr.getvalue()


def test_a_batch_size_out_of_bounds_is_a_usage_error(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.csv", 3)
    for batch in (0, 10_001):
        with pytest.raises(InvalidInput):
            importing("http://127.0.0.1:1", path, batch=batch)


def seattle() -> Path:
    return Path(local_data.seattle_temps.filepath)


def test_the_seattle_temperatures_are_imported_with_one_line(tmp_path: Path) -> None:
    ingest = Ingest()
    with serving(ingest) as server:
        arguments = ["--url", server.url, "--sensor-id", "seattle", "--map", "time=date", "--map", "temperature=temp"]
        arguments += ["--timezone", "America/Los_Angeles", "--backfill", "--state", str(tmp_path), str(seattle())]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "8759 rows read: 8759 readings received, 0 quarantined" in result.output
    assert "8759 stored, 0 updated, 0 duplicate" in result.output
    assert ingest.readings[0] == {
        "sensor_id": "seattle",
        "timestamp": "2010-01-01T08:00:00Z",
        "values": {"temperature": 39.4},
    }
    # One local hour is skipped in March: its row must not fall on another one's time.
    assert len({one["timestamp"] for one in ingest.readings}) == 8759


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("date,temp,sky\n2024-01-01,1,blue\nnever,2,grey\n2024-01-02,,grey\n")
    result = CliRunner().invoke(app, [str(path), "--sensor-id", "s1", "--dry-run", "--url", "http://127.0.0.1:1"])
    assert result.exit_code == ExitCode.SOME_REFUSED
    assert "1 readings in 1 requests would be sent, 1 rows have no value, 1 would be refused" in result.output
    assert f"{path}:3: the time 'never' is not understood" in result.output
    assert "not taken: sky" in result.output
    assert left_beside(path) == []


def test_exit_codes_tell_wrong_usage_and_an_unreachable_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rows_file(tmp_path / "a.csv", 3)
    monkeypatch.setattr("sensorkeep.limits.CLIENT_BACKOFF_SECONDS_FIRST", 0.001)
    monkeypatch.setattr("sensorkeep.limits.CLIENT_BACKOFF_SECONDS_MAX", 0.001)
    gone = CliRunner().invoke(app, [str(path), "--sensor-id", "s1", "--url", "http://127.0.0.1:1"])
    assert gone.exit_code == ExitCode.UNREACHABLE
    assert "(unreachable)" in gone.output
    assert "the same command goes on" in gone.output
    twice, delimiter = [str(path), str(path), "--sensor-id", "s1"], [str(path), "--delimiter", "ab"]
    for arguments in ([str(path)], [str(tmp_path / "absent.csv")], twice, delimiter):
        result = CliRunner().invoke(app, [*arguments, "--url", "http://127.0.0.1:1"])
        assert result.exit_code == ExitCode.USAGE, result.output


def test_the_recorded_home_assistant_batch_is_sent_as_it_was(tmp_path: Path) -> None:
    recorded = HERE.parent / "data" / "home_assistant_batch.json"
    path = tmp_path / "batch.json.gz"
    path.write_bytes(gzip.compress(recorded.read_bytes()))
    ingest = Ingest()
    with serving(ingest) as server:
        result = importing(server.url, path)
    assert ingest.equipment == json.loads(recorded.read_text())
    assert result.progress.sent == 7
