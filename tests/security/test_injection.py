"""Text that would be a command somewhere else comes back as the text that it is, and changes nothing but what it names.

Every string field of every form is tried with all of it at once: statements of SQL, paths, control characters, markup,
templates, formats, and what databases and JSON find hard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, running, stamp

from sensorkeep.catalog.schema import METADATA
from sensorkeep.config import load_config
from sensorkeep.errors import BadConfig
from sensorkeep.model import external_uuid

NASTY = [
    "'; DROP TABLE batches; --",
    '"; DELETE FROM users; --',
    "' OR '1'='1",
    "1) UNION SELECT username, password_hash FROM users --",
    "x'); ATTACH '/tmp/sensorkeep-attacked.db' AS a; --",
    "'; COPY readings TO '/tmp/sensorkeep-attacked.csv'; --",
    "read_csv('/etc/passwd')",
    "$1 ?1 :name @name %s {0} {{7*7}} ${7*7} #{7*7}",
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "file:///etc/passwd",
    "%2e%2e%2fetc%2fpasswd",
    "a\u0000b",
    "a\r\nX-Injected: yes",
    "a\tb\u001b[31mred\u0007",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "\u202egnp.exe",
    "Ω≈ç√∫ \U0001f9ca é e\u0301",
    "\ufeffzero\u200bwidth",
    "null",
    "true",
    "[]",
    "\\",
    "'",
    '"',
    "%",
    "_%",
    "*",
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose whole content these tests know."""
    with running(tmp_path_factory.mktemp("injected") / "data") as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def admin(target: Server) -> Iterator[httpx.Client]:
    with target.login() as client:
        yield client


def equipment_count(server: Server) -> int:
    count = 0
    cursor: dict[str, str] = {}
    while True:
        page = server.get("/equipment", limit=1000, **cursor)
        count += len(page["equipment"])
        if page["next_cursor"] is None:
            return count
        cursor = {"cursor": page["next_cursor"]}


def files_of(server: Server) -> set[Path]:
    """What is in the data directory, but for payloads and the logs of databases."""
    return {
        path.relative_to(server.data_dir)
        for path in server.data_dir.rglob("*")
        if path.is_file() and "telemetry" not in path.parts and not path.name.endswith(("-wal", "-shm", ".wal"))
    }


@pytest.fixture(autouse=True)
def _nothing_else_changes(target: Server, admin: httpx.Client) -> Iterator[None]:
    """Users, keys and files are after a test what they were before it."""
    files = files_of(target)
    users, keys = admin.get("/users").json(), admin.get("/keys").json()
    yield
    assert admin.get("/users").json() == users
    assert admin.get("/keys").json() == keys
    assert files_of(target) == files
    assert not list(Path("/tmp").glob("sensorkeep-attacked*"))


@pytest.mark.parametrize("text", NASTY)
def test_every_text_of_the_bulk_form_comes_back_as_it_was_sent(target: Server, text: str) -> None:
    before, known = target.settled(), equipment_count(target)
    equipment, sensor = new_uuid(), new_uuid()
    moment = hours_ago(1)
    described = {
        "sensor_nome": text,
        "sensor_tipo": text,
        "sensor_unidade": text,
        "sensor_fabricante": text,
        "sensor_modelo": text,
        "sensor_firmware": text,
        "sensor_id_hardware": text,
        "sensor_via_hub": text,
    }
    reading = esm_reading(sensor, None, moment, sensor_telemetria=text, **described)
    body = [esm_equipment(equipment, [reading], equip_nome=text, equip_local=text, equip_status=text)]
    answer = target.stored(body)
    assert (answer["stored"], answer["quarantined"]) == (1, 0)
    shown = target.get(f"/equipment/{equipment}")
    assert (shown["name"], shown["location"], shown["status"]) == (text, text, text)
    one = target.get(f"/sensors/{sensor}")
    names = ("sensor_name", "sensor_type", "sensor_unit", "manufacturer", "model", "firmware", "hardware_id", "via_hub")
    assert [one[name] for name in names] == [text] * len(names)
    if "\u0000" in text:  # which no parameter may hold
        refused = target.client.get(f"/analytics/equipment/{equipment}/history", params={"sensor_type": text})
        problem(refused, 400, "bad_parameter")
        return
    raw = target.get(f"/analytics/equipment/{equipment}/history", period="raw", sensor_type=text)["data"]
    assert [(row["time"], row["status"], row["sensor_type"]) for row in raw] == [(stamp(moment), text, text)]
    after = target.settled()
    assert after["stored"] == before["stored"] + 1
    assert equipment_count(target) == known + 1
    assert target.get(f"/analytics/equipment/{equipment}/history", sensor_type=text + "x")["data"] == []


@pytest.mark.parametrize("text", NASTY)
def test_an_external_id_names_itself_and_nothing_else(target: Server, text: str) -> None:
    body = {"sensor_id": text, "values": {"temperature": 1.5}, "status": text}
    answer = target.client.post("/readings", json=body)
    assert answer.status_code == 201, answer.text
    target.settled()
    # An id with a NUL can be asked for by its uuid alone: PostgreSQL could not hold it.
    identifier = external_uuid(text) if "\u0000" in text else quote(text, safe="")
    latest = target.get(f"/sensor/{identifier}/latest")
    assert latest["equipment_uuid"] == external_uuid(text)
    assert target.get(f"/equipment/{identifier}")["external_id"] == text
    single = target.client.post("/temperature_reading", json={"sensor_id": text, "temperature": 2.5})
    assert single.status_code == 201, single.text
    assert single.json()["sensor_id"] == text
    assert target.get(f"/sensor/{identifier}/latest")["sensor_id"] == text
    assert target.client.get(f"/sensors/{identifier}%0A").status_code == 404, "a line end is part of an id"


@pytest.mark.parametrize("text", NASTY)
def test_a_quantity_may_have_any_name_or_is_refused(target: Server, text: str) -> None:
    sensor = f"quantities-{new_uuid()}"
    answer = target.client.post("/readings", json={"sensor_id": sensor, "values": {text: 1.5, "plain": 2.5}})
    if answer.status_code != 201:
        problem(answer, 422, "invalid_fields")
        return
    target.settled()
    shown = {item["sensor_type"] for item in target.get(f"/equipment/{sensor}")["sensors"]}
    assert shown == {text, "plain"}
    name = f"{sensor}/{text}"
    identifier = external_uuid(name) if "\u0000" in text else quote(name, safe="")
    assert target.get(f"/sensors/{identifier}")["sensor_type"] == text


LOOKUPS = [
    "/telemetry/batches/{}",
    "/equipment/{}",
    "/sensors/{}",
    "/sensor/{}/latest",
    "/analytics/equipment/{}/history",
    "/analytics/sensor/{}/history",
    "/analytics/equipment/{}/stats",
    "/analytics/home-assistant/{}",
    "/docs/assets/{}",
]


@pytest.mark.parametrize("path", LOOKUPS)
def test_a_look_up_of_what_is_not_there_is_a_404_whatever_it_is_called(target: Server, path: str) -> None:
    base = "" if path.startswith("/docs") else "/api/v1"
    for text in NASTY:
        answer = target.client.get(target.url + base + path.format(quote("no-" + text, safe="")))
        assert answer.status_code == 404, (text, answer.text)
        assert "root:" not in answer.text


PARAMETERS = {
    "/equipment": ["cursor", "limit"],
    "/telemetry/batches": ["cursor", "state", "limit"],
    "/telemetry/quarantine": ["cursor", "limit"],
    "/analytics/equipment/{known}/history": ["cursor", "period", "start_date", "end_date", "limit"],
    "/analytics/equipment/{known}/stats": ["period"],
    "/analytics/home-assistant/{known}": ["hours"],
}


@pytest.mark.parametrize("path", PARAMETERS)
def test_a_parameter_that_means_nothing_is_a_400(target: Server, path: str) -> None:
    known = new_uuid()
    target.stored([esm_equipment(known, [esm_reading(new_uuid(), 1.0, hours_ago(1))])])
    for name in PARAMETERS[path]:
        for text in NASTY:
            answer = target.client.get(path.format(known=known), params={name: text})
            assert answer.status_code == 400, (name, text, answer.text)


@pytest.mark.parametrize("path", ["/telemetry/quarantine"])
def test_a_filter_that_matches_nothing_finds_nothing(target: Server, path: str) -> None:
    sensor = new_uuid()
    body = [esm_equipment(new_uuid(), [esm_reading(sensor, 1.0, hours_ago(1)), esm_reading(sensor, 1.0, "no time")])]
    assert target.stored(body)["quarantined"] == 1
    assert target.get(path)["readings"]
    for name in ("batch_id", "reason"):
        for text in NASTY:
            assert target.get(path, **{name: text})["readings"] == [], (name, text)


def test_what_is_quarantined_is_shown_as_it_was_sent(target: Server) -> None:
    for text in NASTY:
        reading = esm_reading(new_uuid(), 1.0, text or "no time", sensor_nome=text)
        good = esm_reading(new_uuid(), 1.0, hours_ago(1))
        batch = target.stored([esm_equipment(new_uuid(), [reading, good])])
        (shown,) = target.get("/telemetry/quarantine", batch_id=batch["batch_id"])["readings"]
        assert shown["reason"] == "bad_timestamp"


def test_names_of_users_and_keys_are_taken_as_names_or_refused(target: Server, admin: httpx.Client) -> None:
    made = []
    for text in NASTY:
        user = {"username": text, "password": "a passphrase that is good 3", "scopes": ["read"]}
        answer = admin.post("/users", json=user)
        if answer.status_code == 201:
            assert answer.json()["username"] == text
            assert admin.delete(f"/users/{text}").status_code == 204
        else:
            problem(answer, 422, "invalid_fields")
        key = admin.post("/keys", json={"name": text, "scopes": ["read"]})
        if key.status_code == 201:
            assert key.json()["name"] == text
            made.append(key.json()["id"])
        else:
            problem(key, 422, "invalid_fields")
        for path in ("/users/", "/keys/"):
            assert admin.delete(path + quote(text, safe="")).status_code == 404
        login = target.anonymous.post("/auth/login", json={"username": text, "password": text})
        assert login.status_code in (401, 422, 429), login.text
    for key_id in made:
        assert admin.delete(f"/keys/{key_id}").status_code == 204


def test_header_values_are_taken_as_text(target: Server) -> None:
    body: Any = {"sensor_id": "headers", "temperature": 1.0}
    for text in NASTY:
        value = "".join(c for c in text if c.isprintable()).encode()
        for name in (b"Idempotency-Key", b"Prefer", b"X-Request-Id"):
            answer = target.client.post("/temperature_reading", json=body, headers={name: value})
            assert answer.status_code in (201, 400, 422), (name, text, answer.text)
        for name in (b"X-API-Key", b"Authorization"):
            assert target.anonymous.get("/equipment", headers={name: value}).status_code in (401, 429)
        assert "x-injected" not in answer.headers


@pytest.mark.parametrize("name", ["naive_timezone", "display_timezone"])
def test_the_name_of_a_time_zone_opens_no_file(name: str, tmp_path: Path) -> None:
    for text in [*NASTY, "../../../etc/passwd", "/etc/passwd", "Europe/../../../../etc/passwd"]:
        with pytest.raises(BadConfig) as caught:
            load_config(data_dir=tmp_path, **{name: text})  # type: ignore[arg-type]
        assert name.upper() in str(caught.value)
        assert "root:" not in str(caught.value)


def test_all_tables_are_still_there(target: Server, admin: httpx.Client) -> None:
    """Last in this file: after all of that."""
    import sqlite3

    with sqlite3.connect(f"file:{target.data_dir}/catalog.sqlite?mode=ro", uri=True) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert METADATA.tables.keys() <= tables
    totals = target.settled()
    assert totals["received"] == totals["stored"] + totals["updated"] + totals["duplicate"] + totals["quarantined"]
    assert [user["username"] for user in admin.get("/users").json()["users"]] == ["admin"]
