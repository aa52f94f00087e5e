"""Starts the real program and speaks its protocols: what the black-box tests stand on."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

PROGRAM = Path(sys.executable).parent / "sensorkeep"
PASSWORD = "correct horse battery 9"
DEADLINE_SECONDS = 60.0
API_KEY = "static-ingest-read-key-0001"
API_KEY_WS = "static-live-key-0000000001"


T = TypeVar("T")


class Server:
    """One `sensorkeep serve` on a free port. `client` has the static key for ingest and read; `anonymous` has none."""

    def __init__(self, data_dir: Path, **settings: object) -> None:
        self.data_dir = data_dir
        self.role = "serve"
        """The command that runs it; `gateway` and `worker` need settings that name services."""
        self.settings = {name.upper(): str(value) for name, value in settings.items()}
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self.greeting: list[str] = []
        self.client: httpx.Client = None  # type: ignore[assignment]
        self.anonymous: httpx.Client = None  # type: ignore[assignment]
        self.launcher: list[str] = []
        """What starts the program, where it must run in a place of its own; it keeps the process id."""

    def start(self) -> Server:
        """Start it and wait until it answers."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SENSORKEEP_")}
        environment |= {
            "SENSORKEEP_PORT": "0",
            "SENSORKEEP_WORKER_PORT": "0",
            "SENSORKEEP_DATA_DIR": str(self.data_dir),
            "SENSORKEEP_ADMIN_PASSWORD": PASSWORD,
            "SENSORKEEP_GATHER_SECONDS": "0.05",
            "API_KEY": API_KEY,
            "API_KEY_WS": API_KEY_WS,
        } | self.settings
        environment = {name: value for name, value in environment.items() if value != "None"}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.launcher, PROGRAM, self.role],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.data_dir.parent,
            )
        self.greeting = []
        self.url = self._read_address()
        self._drain = threading.Thread(target=self._keep_greeting, daemon=True)
        self._drain.start()
        self.anonymous = httpx.Client(base_url=self.url + "/api/v1", timeout=30)
        self.client = httpx.Client(base_url=self.url + "/api/v1", timeout=60, headers={"X-API-Key": API_KEY})
        return self

    def refuse(self) -> str:
        """Start it where it must not start; what it said to standard error. It must end by itself, with a failure."""
        before = len(self.log) if self.log_path.exists() else 0
        try:
            self.start()
        except AssertionError:
            code = self.process.wait(DEADLINE_SECONDS)
            assert code > 0, f"it ended with {code}"
            return self.log[before:]
        self.stop()
        raise AssertionError("it started")

    def login(self) -> httpx.Client:
        """A client with the admin's bearer token: every scope."""
        answer = self.anonymous.post("/auth/login", json={"username": "admin", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        token = answer.json()["access_token"]
        return httpx.Client(base_url=self.url + "/api/v1", timeout=60, headers={"Authorization": f"Bearer {token}"})

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(kind)
        code = self.process.wait(DEADLINE_SECONDS)
        for client in (self.client, self.anonymous):
            if client is not None:  # it may never have answered
                client.close()
        return code

    def kill(self) -> None:
        """End it as a power cut would."""
        self.stop(signal.SIGKILL)

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_path.read_text("utf-8", "replace")

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def peak_bytes(self) -> int:
        """Greatest resident memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def accounting(self) -> dict[str, int]:
        """All-time totals; the equation must hold whenever anybody looks."""
        answer = self.client.get("/telemetry/accounting")
        assert answer.status_code == 200, answer.text
        for totals in answer.json().values():
            parts = ("stored", "updated", "duplicate", "quarantined", "pending")
            assert totals["received"] == sum(totals[part] for part in parts), totals
        all_time: dict[str, int] = answer.json()["all_time"]
        return all_time

    def settled(self) -> dict[str, int]:
        """The totals once nothing is pending."""

        def totals() -> dict[str, int] | None:
            now = self.accounting()
            return now if now["pending"] == 0 else None

        return wait_until(totals)

    def bulk(self, body: object, *, client: httpx.Client | None = None, **headers: str) -> httpx.Response:
        """POST the bulk form as gzip, as the deployed clients do; `headers` with `_` for `-`."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return (client or self.client).post(
            "/telemetry/bulk",
            content=gzip.compress(json.dumps(body).encode()),
            headers={"Content-Type": "application/json", "Content-Encoding": "gzip"} | fields,
        )

    def stored(self, body: object, *, client: httpx.Client | None = None, prefer: str = "wait=30") -> dict[str, Any]:
        """The answer to a bulk request that waits until its readings are stored."""
        answer = self.bulk(body, client=client, prefer=prefer)
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()
        assert "stored" in document, document
        return document

    def get(self, path: str, **parameters: object) -> Any:
        """The JSON of a GET with the static key, which must succeed."""
        answer = self.client.get(path, params={name: str(value) for name, value in parameters.items()})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def _read_address(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.greeting.append(line)
            found = re.search(r"address:\s+(http://\S+)", line)
            if found:
                return found[1]
        raise AssertionError(f"the server did not start: {self.log[-2000:]}")

    def _keep_greeting(self) -> None:
        assert self.process.stdout is not None
        self.greeting.extend(self.process.stdout)


def command(
    *arguments: object, server: Server | None = None, text: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `sensorkeep` with these arguments; `server`: as a client of it with its data directory. `text`: its input."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENSORKEEP_")}
    if server is not None:
        environment |= {"SENSORKEEP_URL": server.url, "SENSORKEEP_DATA_DIR": str(server.data_dir)}
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        env=environment | variables,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@contextmanager
def running(data_dir: Path, **settings: object) -> Iterator[Server]:
    """A server for the time of the block."""
    server = Server(data_dir, **settings).start()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


def wait_until(condition: Callable[[], T | None], seconds: float = DEADLINE_SECONDS, pause: float = 0.02) -> T:
    """The first true answer of `condition`, asked every `pause` seconds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(pause)


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an error, checked as RFC 9457 and SPEC section 1.5 ask."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code, document
    assert document["status"] == status
    assert document["type"] == f"urn:sensorkeep:error:{code}"
    assert document["title"]
    assert document["detail"]
    assert document["instance"] == answer.headers["x-request-id"]
    return document


def new_uuid() -> str:
    """An id that no other test uses."""
    return str(uuid.uuid4())


def hours_ago(hours: float) -> datetime:
    """A whole minute in the past."""
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=hours)


def stamp(moment: datetime) -> str:
    """`moment` as the API writes it."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def esm_reading(sensor: str, value: object, moment: datetime | str | None, **fields: object) -> dict[str, Any]:
    """One reading of the bulk form."""
    when = {} if moment is None else {"timestamp": moment if isinstance(moment, str) else stamp(moment)}
    return {"sensor_uuid": sensor, "valor": value, **when, **fields}


def esm_equipment(equipment: str, readings: list[dict[str, Any]], **fields: object) -> dict[str, Any]:
    """One equipment object of the bulk form."""
    return {"equip_uuid": equipment, "sensor": readings, **fields}
