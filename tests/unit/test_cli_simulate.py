"""`simulate`: the fleet is the same for the same seed, and the client loses nothing whatever breaks."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import typer
from cli_server import Ingest, Reply, Request, serving
from typer.testing import CliRunner

from sensorkeep.cli.client import Credential
from sensorkeep.cli.fleet import Fleet, FleetBatch, FleetOptions, fleet_batches
from sensorkeep.cli.fleet_forms import FleetForm
from sensorkeep.cli.home_assistant import Faults, HomeAssistantClient
from sensorkeep.cli.output import ExitCode, Output
from sensorkeep.cli.simulate import Pace, plan_pace, simulate, simulate_command
from sensorkeep.clock import HOUR_US, MINUTE_US, ManualClock
from sensorkeep.errors import InvalidInput, Unauthenticated

START_US = 1_704_067_200_000_000  # 2024-01-01
SMALL: dict[str, Any] = {"start_us": START_US, "equipment": 5, "sensors": 20, "rounds_per_batch": 10}
FORMS: tuple[FleetForm, ...] = ("verbose", "slim", "readings", "temperature")
HABITS: dict[str, Any] = {"late": 0.05, "resent": 0.1, "corrections": 0.1, "unavailable": 0.05, "binary": 0.2}
app = typer.Typer()
app.command("simulate")(simulate_command)


def made(batches: int, **options: Any) -> list[FleetBatch]:
    return list(fleet_batches(FleetOptions(**{**SMALL, **options}), batches))


def identities(batches: Sequence[FleetBatch]) -> list[tuple[int, int]]:
    return [pair for one in batches for pair in zip(one.rows.sensor.tolist(), one.rows.time_us.tolist(), strict=True)]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(form: FleetForm) -> None:
    first, again, other = (made(3, form=form, seed=seed, **HABITS) for seed in (7, 7, 8))
    assert [one.body() for one in first] == [one.body() for one in again]
    assert all(one.body() != another.body() for one, another in zip(first, other, strict=True))


def test_how_many_batches_are_asked_for_changes_none_of_them() -> None:
    assert [one.body() for one in made(5, **HABITS)][:2] == [one.body() for one in made(2, **HABITS)]


def test_each_sensor_measures_once_a_round_and_never_twice_at_the_same_time() -> None:
    batches = made(5, late=0, resent=0)
    known = identities(batches)
    assert len(known) == len(set(known)) == 5 * 10 * 20
    assert all(one.through_us - 10 * MINUTE_US <= time < one.through_us for one in batches for time in one.rows.time_us)


def test_copies_are_exact_and_late_readings_come_once_hours_to_days_late() -> None:
    batches = made(60, late=0.05, resent=0.1, sensors=50)
    contents: dict[tuple[int, int], set[str]] = {}
    for one in batches:
        for entry in entries_of(one):
            key = (entry["sensor_uuid"], entry["sensor_datahora_coleta"])
            contents.setdefault(key, set()).add(json.dumps(entry))
    readings = sum(one.readings for one in batches)
    resent = sum(one.resent for one in batches)
    assert all(len(texts) == 1 for texts in contents.values())
    assert len(contents) == readings - resent
    assert 0.08 < resent / readings < 0.1
    late = [
        (one, one.through_us - time) for one in batches for time in one.rows.time_us if time < one.through_us - HOUR_US
    ]
    old = [delay for _, delay in late if delay > 11 * HOUR_US]
    assert old
    assert max(old) <= 72 * HOUR_US + 10 * MINUTE_US
    assert 0.03 < sum(one.late for one in batches) / readings < 0.06


def entries_of(batch: FleetBatch) -> list[dict[str, Any]]:
    return [entry for equipment in json.loads(batch.body()) for entry in equipment["sensor"]]


def test_the_rows_tell_what_the_body_holds() -> None:
    fleet = Fleet(FleetOptions(**SMALL, **HABITS))
    for one in made(4, **HABITS):
        rows, entries = one.rows, entries_of(one)
        assert one.readings == len(entries) == one.fresh + one.late + one.corrected + one.resent
        for sensor, value, status, entry in zip(rows.sensor, rows.value, rows.status, entries, strict=True):
            assert entry["sensor_uuid"] == fleet.sensor_uuids[sensor]
            assert entry["sensor_telemetria"] == (str(value) if status is None else status)


def test_corrections_replace_what_was_sent_and_later_copies_are_of_the_correction() -> None:
    last: dict[tuple[int, int], str] = {}
    changes = 0
    batches = made(40, corrections=0.2, resent=0.3, late=0)
    for one in batches:
        for pair, entry in zip(identities([one]), entries_of(one), strict=True):
            changes += pair in last and last[pair] != entry["sensor_telemetria"]
            last[pair] = entry["sensor_telemetria"]
    assert changes == sum(one.corrected for one in batches) > 0


def test_the_verbose_form_is_that_of_the_recorded_client() -> None:
    recorded = {
        "sensor_uuid", "sensor_nome", "sensor_status", "sensor_tipo", "sensor_unidade", "sensor_telemetria",
        "sensor_datahora_coleta", "sensor_bateria_pct", "sensor_sinal_lqi", "sensor_sinal_rssi",
        "sensor_voltagem_bateria", "sensor_voltagem", "sensor_corrente", "sensor_potencia", "sensor_fabricante",
        "sensor_modelo", "sensor_firmware", "sensor_id_hardware", "sensor_via_hub",
    }  # fmt: skip
    entries = [entry for one in made(3, **HABITS) for entry in entries_of(one)]
    assert all(entry.keys() == recorded for entry in entries)
    telemetry = {entry["sensor_telemetria"] for entry in entries}
    assert {"on", "off", "unavailable"} < telemetry
    assert all(isinstance(text, str) for text in telemetry)


def test_the_verbose_form_has_local_times_without_a_zone() -> None:
    winter_us = 1_704_067_200_000_000
    entry = entries_of(made(1, timezone="America/Sao_Paulo", late=0, start_us=winter_us)[0])[0]
    assert entry["sensor_datahora_coleta"].startswith("2023-12-31T21:00:")
    assert len(entry["sensor_datahora_coleta"]) == len("2023-12-31T21:00:00.123456")


def test_the_benchmark_fleet_has_its_sizes() -> None:
    one = next(fleet_batches(FleetOptions(start_us=START_US, rounds_per_batch=20)))
    assert len(one.objects) == 250
    assert 19_900 < one.readings < 20_300
    assert 500 < len(one.body()) / one.readings < 620


def test_an_impossible_fleet_is_a_usage_error() -> None:
    for options in (
        {"late": 1.5},
        {"equipment": 30},
        {"sensors": 0},
        {"interval_seconds": 0.0},
        {"timezone": "Mars/X"},
    ):
        with pytest.raises(InvalidInput):
            made(1, **options)
    with pytest.raises(InvalidInput, match="held back"):
        made(1, sensors=100_000, interval_seconds=0.01)


USER = Credential(username="ha", password="correct horse")
OBJECTS = [json.dumps({"equip_uuid": str(i), "sensor": [{"valor": i}]}).encode() for i in range(3)]


class Accounts:
    """Gives tokens and takes readings; a token is good for `uses` requests."""

    def __init__(self, uses: int = 1000, statuses: Sequence[int] = ()) -> None:
        self.ingest = Ingest()
        self.statuses = list(statuses)
        self._uses = uses
        self._left: dict[str, int] = {}
        self._refresh: set[str] = set()

    def __call__(self, request: Request) -> Reply:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if "/auth/" in request.path:
            if request.path.endswith("/refresh"):
                if token not in self._refresh:
                    return Reply(401)
                self._refresh.remove(token)
            number = len(self._left)
            self._left[f"a{number}"] = self._uses
            self._refresh.add(f"r{number}")
            return Reply(200, {"access_token": f"a{number}", "refresh_token": f"r{number}"})
        if self._left.get(token, 0) <= 0:
            return Reply(401)
        self._left[token] -= 1
        if self.statuses and (status := self.statuses.pop(0)) != 201:
            return Reply(status, {"detail": f"scripted {status}"})
        return self.ingest(request)


def test_the_queue_grows_on_failure_and_only_200_and_201_empty_it() -> None:
    accounts = Accounts(statuses=[503, 202, 500, 201])
    with serving(accounts) as server:
        client = HomeAssistantClient(server.url, USER)
        for one in OBJECTS:
            client.enqueue([one])
            outcome = client.send()
            assert not outcome.success
        assert client.queued == 3
        assert client.send().success
        assert client.queued == 0
        assert client.send().objects == 0
        client.close()
    assert accounts.ingest.equipment == [json.loads(one) for one in OBJECTS]


def test_it_logs_in_as_a_device_and_refreshes_on_401() -> None:
    accounts = Accounts(uses=1)
    with serving(accounts) as server:
        client = HomeAssistantClient(server.url, USER)
        for one in OBJECTS:
            client.enqueue([one])
            assert client.send().success
        client.close()
    assert server.paths()[0] == "/api/v1/auth/device/login"
    assert (client.logins, client.refreshes) == (1, 2)
    bulk = [request for request in server.requests if request.path == "/api/v1/telemetry/bulk"]
    assert {request.headers["content-encoding"] for request in bulk} == {"gzip"}


def test_an_absent_server_leaves_the_queue_and_a_refused_login_is_told() -> None:
    client = HomeAssistantClient("http://127.0.0.1:1", Credential(api_key="k" * 20))
    client.enqueue(OBJECTS)
    outcome = client.send()
    assert (outcome.status, client.queued) == (None, 3)
    with serving(lambda _: Reply(401, {"code": "unauthenticated"})) as server, pytest.raises(Unauthenticated):
        HomeAssistantClient(server.url, USER).login()


def run(url: str, faults: float = 0.0, batches: int = 20, **options: Any) -> Any:
    fleet = FleetOptions(**{**SMALL, "rounds_per_batch": 1, **options})
    breaking = Faults(faults, random.Random(3))
    client = HomeAssistantClient(url, USER, faults=breaking)
    clock = ManualClock(START_US)
    output = Output(io.StringIO(), io.StringIO(), clock=clock)
    try:
        return simulate(fleet, Pace(batches, 0.0, START_US), client, output, clock=clock, sleep=clock.advance)
    finally:
        client.close()


def test_whatever_breaks_on_the_way_everything_arrives() -> None:
    accounts = Accounts(uses=7, statuses=[201, 429, 503, 500, 201, 202])
    with serving(accounts) as server:
        summary = run(server.url, faults=0.4, batches=30, **HABITS)
    assert summary.unsent == 0
    assert set(summary.faults) == {"cut", "truncated", "unheard"}
    expected = set(identities(made(30, rounds_per_batch=1, **HABITS)))
    arrived = {
        (entry["sensor_uuid"], entry["sensor_datahora_coleta"])
        for equipment in accounts.ingest.equipment
        for entry in equipment["sensor"]
    }
    assert len(arrived) == len(expected)
    assert summary.answers["400"] == summary.faults["truncated"]


def test_a_simulation_gives_up_on_a_server_that_stays_away_and_says_what_is_unsent() -> None:
    with serving(Accounts(statuses=[503] * 1000)) as server:
        summary = run(server.url, batches=3)
    assert summary.unsent == 15
    assert summary.accepted == 0


def test_a_pace_ends_about_now() -> None:
    now_us = START_US + 1000 * HOUR_US
    common: dict[str, Any] = {"now_us": now_us, "sensors": 10, "interval_seconds": 60}
    assert plan_pace(**common) == Pace(None, 60.0, now_us - MINUTE_US)
    fast = plan_pace(**common, batches=100, speed=0)
    assert (fast.step_seconds, fast.start_us) == (0.0, now_us - 100 * MINUTE_US)
    rated = plan_pace(**common, rate=100, duration_seconds=10)
    assert (rated.batches, rated.step_seconds) == (100, 0.1)
    assert rated.start_us + 100 * MINUTE_US == now_us + 9_900_000
    assert plan_pace(**common, speed=60, duration_seconds=30, batches=7).batches == 7
    endless_ones: list[dict[str, Any]] = [{"speed": 2.0}, {"speed": 0.0}, {"speed": 0.0, "duration_seconds": 5.0}]
    for endless in [*endless_ones, {"rate": 1000.0}]:
        with pytest.raises(InvalidInput):
            plan_pace(**common, **endless)


@pytest.mark.parametrize("form", ["esm", "readings", "temperature"])
def test_the_command_sends_every_form_and_prints_a_summary(form: str) -> None:
    bodies: list[Any] = []

    def script(request: Request) -> Reply:
        bodies.append(request.json())
        return Reply(201, {"id": 1} if form == "temperature" else {"readings": 8, "quarantined": 0})

    with serving(script) as server:
        arguments = ["--url", server.url, "--api-key", "k" * 20, "--form", form, "--equipment", "2", "--sensors", "8"]
        result = CliRunner().invoke(app, [*arguments, "--batches", "3", "--speed", "0"])
    assert result.exit_code == ExitCode.OK, result.output
    assert "made: 24 readings in 3 batches" in result.output
    assert "server: 24 readings accepted, 0 quarantined" in result.output
    assert {request.path.removeprefix("/api/v1") for request in server.requests} == {
        {"esm": "/telemetry/bulk", "readings": "/readings", "temperature": "/temperature_reading"}[form]
    }
    assert len(bodies) == (24 if form == "temperature" else 3)


def test_the_command_says_when_the_server_is_not_there() -> None:
    arguments = ["--url", "http://127.0.0.1:1", "--username", "u", "--password", "p", "--batches", "1", "--speed", "0"]
    assert CliRunner().invoke(app, arguments).exit_code == ExitCode.UNREACHABLE
    assert CliRunner().invoke(app, ["--speed", "10", "--api-key", "k"]).exit_code == ExitCode.USAGE
