"""Starting: what is wrong with the settings stops it in one line, and the first start tells how to begin."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from harness import (
    DEADLINE_SECONDS,
    PROGRAM,
    Server,
    esm_equipment,
    esm_reading,
    hours_ago,
    new_uuid,
    running,
    wait_until,
)

from sensorkeep.limits import START_CATCH_UP_SECONDS_MAX

BAD = {
    "SENSORKEEP_PORT": "http",
    "SENSORKEEP_NAIVE_TIMEZONE": "Mars/Olympus",
    "SENSORKEEP_PROT": "8000",
    "SENSORKEEP_QUEUE_URL": "carrier-pigeon://loft",
    "API_KEY": "short-key",
    "SECRET_KEY": "short-key",
    "SENSORKEEP_ADMIN_PASSWORD": "admin123",
}


def attempt(data_dir: Path, **settings: str) -> subprocess.Popen[str]:
    """A start that must fail."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENSORKEEP_")}
    environment |= {"SENSORKEEP_PORT": "0", "SENSORKEEP_DATA_DIR": str(data_dir)} | settings
    return subprocess.Popen(
        [PROGRAM, "serve"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def refusal(process: subprocess.Popen[str]) -> str:
    """The one line that it says."""
    try:
        said, failed = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
    assert process.returncode != 0
    assert said == "", "it must not say that it runs"
    lines = failed.splitlines()
    assert len(lines) == 1, failed
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Starts with one bad setting each, all at once: most of a start is the loading of the program."""
    folder = tmp_path_factory.mktemp("refused")
    started = {name: attempt(folder / name, **{name: value}) for name, value in BAD.items()}
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_stops_the_start_with_one_line_that_names_it(
    attempts: dict[str, subprocess.Popen[str]], name: str
) -> None:
    said = refusal(attempts[name])
    assert name in said
    if "KEY" in name or "PASSWORD" in name:
        assert BAD[name] not in said


def test_a_taken_port_stops_the_start_with_one_line_that_names_it(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(attempt(data_dir, SENSORKEEP_PORT=str(port)))
    assert f"127.0.0.1:{port}" in said
    assert "SENSORKEEP_PORT" in said


def test_the_first_start_prints_a_password_once_and_a_call_that_works(data_dir: Path) -> None:
    with running(data_dir, SENSORKEEP_ADMIN_PASSWORD=None, API_KEY=None, API_KEY_WS=None) as server:
        wait_until(lambda: "latest" in "".join(server.greeting))
        greeting = "".join(server.greeting)
        found = re.search(r"admin, password (\S+)", greeting)
        assert found is not None, greeting
        login = {"username": "admin", "password": found[1]}
        assert server.anonymous.post("/auth/login", json=login).status_code == 200
        send = re.search(r"curl -X POST (\S+) -H 'X-API-Key: (\S+)' .* -d '(.*)'", greeting)
        assert send is not None, greeting
        answer = httpx.post(
            send[1], content=send[3], headers={"X-API-Key": send[2], "Content-Type": "application/json"}
        )
        assert answer.status_code == 201, answer.text
        read = re.search(r"curl (\S+/latest) -H", greeting)
        assert read is not None, greeting
        assert httpx.get(read[1], headers={"X-API-Key": send[2]}).json()["temperature"] == 21.5
        server.stop()
        assert found[1] not in server.log
        again = Server(data_dir, SENSORKEEP_ADMIN_PASSWORD=None).start()
        try:
            wait_until(lambda: "health" in "".join(again.greeting))
            assert "password" not in "".join(again.greeting)
            assert again.anonymous.post("/auth/login", json=login).status_code == 200
        finally:
            again.stop()


def test_a_server_that_is_stopped_logs_its_end_and_nothing_but_log_lines(data_dir: Path) -> None:
    server = Server(data_dir).start()
    assert server.client.post("/temperature_reading", json={"sensor_id": "kitchen", "temperature": 21.5}).is_success
    before = len(server.log)
    assert server.stop() == 0
    lines = server.log[before:].splitlines()
    assert {json.loads(line)["event"] for line in lines} >= {"Shutting down", "Application shutdown complete."}


def test_a_start_that_waits_for_what_an_earlier_end_left_can_be_stopped(data_dir: Path) -> None:
    server = Server(data_dir, SENSORKEEP_GATHER_SECONDS=60).start()
    body = [esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, hours_ago(1))])]
    assert server.bulk(body).status_code == 201
    server.kill()  # the worker still gathers
    (payload,) = (data_dir / "payloads").rglob("*.json.gz")
    kept = payload.rename(data_dir / "payload")
    payload.symlink_to(payload)  # a disk that fails
    with ThreadPoolExecutor() as threads:
        starting = threads.submit(server.start)
        try:
            wait_until(lambda: '"worker_waits"' in server.log)
            server.process.terminate()
            assert server.process.wait(START_CATCH_UP_SECONDS_MAX / 4) == 0
        finally:
            server.kill()
        with pytest.raises(AssertionError, match="did not start"):
            starting.result()
    kept.replace(payload)
    server.settings["SENSORKEEP_GATHER_SECONDS"] = "0.05"
    server.start()
    assert server.settled()["stored"] == 1
    assert server.stop() == 0
