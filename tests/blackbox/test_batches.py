"""What became of what was sent: batches, the quarantine, replays."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid, problem, stamp, wait_until

BATCH = {
    "batch_id", "state", "received_at", "stored_at", "readings", "stored", "updated", "duplicate", "quarantined",
    "errors",
}  # fmt: skip
OLD = hours_ago(24 * 45)


@pytest.fixture(scope="module")
def sent(server: Server) -> tuple[Server, list[str]]:
    """The server, and the ids of five stored and two partial batches in the order sent; there are others."""
    ids = []
    for number in range(7):
        readings = [esm_reading(new_uuid(), number, hours_ago(1))]
        if number in (2, 5):
            readings += [esm_reading(new_uuid(), 1.0, "never"), esm_reading(new_uuid(), 1.0, OLD)]
        ids.append(server.stored([esm_equipment(new_uuid(), readings)])["batch_id"])
    return server, ids


def walk(server: Server, path: str, name: str, **parameters: object) -> list[list[dict[str, Any]]]:
    """All pages of a listing."""
    pages: list[list[dict[str, Any]]] = []
    cursor: dict[str, object] = {}
    while True:
        page = server.get(path, **parameters, **cursor)
        pages.append(page[name])
        if page["next_cursor"] is None:
            return pages
        cursor = {"cursor": page["next_cursor"]}
        assert len(pages) < 1000


def wait_for_worker(server: Server) -> None:
    """Claims are worked on in their order: what was asked for before this is done after it."""
    server.stored([esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, hours_ago(1))])])


def test_a_batch_tells_what_became_of_its_readings(sent: tuple[Server, list[str]]) -> None:
    server, ids = sent
    stored, partial = (server.get(f"/telemetry/batches/{ids[i]}") for i in (0, 2))
    assert stored.keys() >= BATCH
    assert [stored[name] for name in ("state", "readings", "stored", "quarantined")] == ["stored", 1, 1, 0]
    assert stored["errors"] == []
    assert [partial[name] for name in ("state", "readings", "stored", "quarantined")] == ["partial", 3, 1, 2]
    for batch in (stored, partial):
        assert batch["received_at"].endswith("Z")
        assert batch["stored_at"] >= batch["received_at"]


def test_a_batch_lists_twenty_of_its_errors_and_the_quarantine_all(server: Server) -> None:
    readings = [esm_reading(new_uuid(), 1.0, "never") for _ in range(25)] + [esm_reading(new_uuid(), 1.0, hours_ago(1))]
    answer = server.stored([esm_equipment(new_uuid(), readings)])
    assert [error["sensor"] for error in answer["errors"]] == list(range(20))
    batch = server.get(f"/telemetry/batches/{answer['batch_id']}")
    assert (batch["quarantined"], len(batch["errors"])) == (25, 20)
    pages = walk(server, "/telemetry/quarantine", "readings", batch_id=answer["batch_id"], limit=10)
    assert [len(page) for page in pages] == [10, 10, 5]
    assert sorted(item["sensor"] for page in pages for item in page) == list(range(25))


@pytest.mark.parametrize("batch_id", ["7b84ac17-e971-4c58-bc0b-000000000404", "not-a-uuid"])
def test_an_unknown_batch_is_a_404(server: Server, admin: httpx.Client, batch_id: str) -> None:
    problem(server.client.get(f"/telemetry/batches/{batch_id}"), 404, "not_found")
    problem(admin.post(f"/telemetry/batches/{batch_id}/replay"), 404, "not_found")


@pytest.mark.parametrize("limit", [3, 7, 1000])
def test_a_walk_over_the_batches_sees_each_of_them_once_newest_first(
    sent: tuple[Server, list[str]], limit: int
) -> None:
    server, ids = sent
    pages = walk(server, "/telemetry/batches", "batches", limit=limit)
    found = [batch["batch_id"] for page in pages for batch in page]
    assert [batch_id for batch_id in found if batch_id in ids] == ids[::-1]
    assert len(set(found)) == len(found)
    assert all(len(page) <= limit for page in pages)


def test_batches_are_filtered_by_state(sent: tuple[Server, list[str]]) -> None:
    server, ids = sent
    for state, expected in (("partial", {ids[2], ids[5]}), ("stored", set(ids) - {ids[2], ids[5]})):
        pages = walk(server, "/telemetry/batches", "batches", state=state, limit=2)
        assert all(batch["state"] == state for page in pages for batch in page)
        assert {batch["batch_id"] for page in pages for batch in page} >= expected
    assert server.get("/telemetry/batches", state="dead_letter")["batches"] == []


@pytest.mark.parametrize(
    "parameters", [{"state": "lost"}, {"limit": 0}, {"limit": 1001}, {"limit": "ten"}, {"cursor": "nonsense"}]
)
@pytest.mark.parametrize("path", ["/telemetry/batches", "/telemetry/quarantine"])
def test_a_parameter_that_cannot_be_served_is_a_400(server: Server, path: str, parameters: dict[str, Any]) -> None:
    if path == "/telemetry/quarantine" and "state" in parameters:
        parameters = {"limit": -1}
    problem(server.client.get(path, params=parameters), 400, "bad_parameter")


def test_the_quarantine_is_filtered_and_walked(sent: tuple[Server, list[str]]) -> None:
    server, ids = sent
    everything = [item for page in walk(server, "/telemetry/quarantine", "readings", limit=3) for item in page]
    assert len({item["id"] for item in everything}) == len(everything) >= 4
    mine = server.get("/telemetry/quarantine", batch_id=ids[2])["readings"]
    assert {(item["batch_id"], item["sensor"], item["reason"]) for item in mine} == {
        (ids[2], 1, "bad_timestamp"),
        (ids[2], 2, "too_old"),
    }
    assert {item["id"] for item in mine} <= {item["id"] for item in everything}
    old = server.get("/telemetry/quarantine", reason="too_old")["readings"]
    assert {item["batch_id"] for item in old} >= {ids[2], ids[5]}
    assert {item["reason"] for item in old} == {"too_old"}
    assert server.get("/telemetry/quarantine", batch_id=ids[2], reason="too_old")["readings"] == [
        item for item in mine if item["reason"] == "too_old"
    ]
    assert server.get("/telemetry/quarantine", batch_id=new_uuid())["readings"] == []


def test_a_replay_needs_the_admin_scope(sent: tuple[Server, list[str]]) -> None:
    server, ids = sent
    problem(server.client.post(f"/telemetry/batches/{ids[2]}/replay"), 403, "forbidden")
    problem(server.anonymous.post(f"/telemetry/batches/{ids[2]}/replay"), 401, "unauthenticated")


def test_a_batch_without_quarantined_readings_is_not_replayed(server: Server, admin: httpx.Client) -> None:
    answer = server.stored([esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.0, hours_ago(1))])])
    problem(admin.post(f"/telemetry/batches/{answer['batch_id']}/replay"), 409, "conflict")


def test_a_replay_with_backfill_stores_what_was_too_old(server: Server, admin: httpx.Client) -> None:
    equipment = new_uuid()
    readings = [esm_reading(new_uuid(), 1.0, hours_ago(1)), esm_reading(new_uuid(), 4.5, OLD)]
    batch_id = server.stored([esm_equipment(equipment, readings)])["batch_id"]
    before = server.settled()
    answer = admin.post(f"/telemetry/batches/{batch_id}/replay", headers={"Prefer": "backfill"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["batch_id"] == batch_id
    server.accounting()

    def replayed() -> dict[str, Any] | None:
        server.accounting()
        batch: dict[str, Any] = server.get(f"/telemetry/batches/{batch_id}")
        return batch if batch["state"] == "stored" else None

    batch = wait_until(replayed)
    assert [batch[name] for name in ("readings", "stored", "quarantined")] == [2, 2, 0]
    assert server.get("/telemetry/quarantine", batch_id=batch_id)["readings"] == []
    after = server.settled()
    assert after == before | {"stored": before["stored"] + 1, "quarantined": before["quarantined"] - 1}
    bounds = {"start_date": stamp(OLD - timedelta(hours=1)), "end_date": stamp(OLD + timedelta(hours=1))}
    (hour,) = server.get(f"/analytics/equipment/{equipment}/history", **bounds)["data"]
    assert (hour["avg_value"], hour["sample_count"]) == (4.5, 1)
    problem(admin.post(f"/telemetry/batches/{batch_id}/replay"), 409, "conflict")


def test_a_replay_without_backfill_leaves_what_is_too_old_set_aside(server: Server, admin: httpx.Client) -> None:
    readings = [esm_reading(new_uuid(), 1.0, hours_ago(1)), esm_reading(new_uuid(), 4.5, OLD)]
    batch_id = server.stored([esm_equipment(new_uuid(), readings)])["batch_id"]
    before = server.settled()
    assert admin.post(f"/telemetry/batches/{batch_id}/replay").status_code == 202
    wait_for_worker(server)
    batch = server.get(f"/telemetry/batches/{batch_id}")
    assert [batch[name] for name in ("state", "stored", "quarantined")] == ["partial", 1, 1]
    after = server.settled()
    assert after["quarantined"] == before["quarantined"]


def test_a_reading_that_is_still_in_the_future_stays_set_aside(server: Server, admin: httpx.Client) -> None:
    readings = [esm_reading(new_uuid(), 1.0, hours_ago(1)), esm_reading(new_uuid(), 2.0, hours_ago(-5))]
    batch_id = server.stored([esm_equipment(new_uuid(), readings)])["batch_id"]
    for _ in range(2):
        assert admin.post(f"/telemetry/batches/{batch_id}/replay").status_code == 202
        wait_for_worker(server)
        batch = server.get(f"/telemetry/batches/{batch_id}")
        assert [batch[name] for name in ("state", "readings", "stored", "quarantined")] == ["partial", 2, 1, 1]
        (item,) = server.get("/telemetry/quarantine", batch_id=batch_id)["readings"]
        assert (item["reason"], item["equipment"], item["sensor"]) == ("in_future", 0, 1)
        server.accounting()
