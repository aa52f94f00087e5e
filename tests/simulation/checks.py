"""What must hold of a simulation: SPEC 1.1 to 1.4, and what is kept of payloads, batches and the quarantine."""

from __future__ import annotations

import gzip
from typing import Any, Literal

from expectation import Content, Outcome, assert_bucket, buckets_of
from seeded_life import PAYLOAD_DAYS, RETENTION_DAYS, START_US, Simulation

from sensorkeep.clock import DAY_US, HOUR_US, to_us
from sensorkeep.errors import NotFound

LENGTHS_US: dict[Literal["hour", "day"], int] = {"hour": HOUR_US, "day": DAY_US}
END_US = 2 * START_US
ROWS_MAX = 100_000
PARTS = ("stored", "updated", "duplicate", "quarantined", "pending")


def check_moment(simulation: Simulation) -> None:
    """At every moment: the accounts add up, whichever process is asked, and tell of nothing that never came."""
    most = simulation.expectation.outcome().totals
    for totals in simulation.accounting():
        parts = [getattr(totals, part) for part in PARTS]
        assert totals.received == sum(parts), totals
        assert min(parts) >= 0, totals
        assert totals.received <= most["received"], (totals, most)


def check_store_agrees_with_itself(simulation: Simulation) -> None:
    """At every moment: the rollups are those of the raw readings, where raw is kept."""
    raw = _raw(simulation)
    kept_us = (simulation.clock.now_us() // DAY_US - RETENTION_DAYS) * DAY_US
    for period, length_us in LENGTHS_US.items():
        expected = {key: members for key, members in buckets_of(raw, length_us).items() if key[1] >= kept_us}
        found = {key: row for key, row in _buckets(simulation, period).items() if key[1] >= kept_us}
        assert found.keys() == expected.keys()
        for key, row in found.items():
            assert_bucket(row, expected[key])


def check_end(simulation: Simulation) -> None:
    """At rest: exactly what was accepted is there."""
    outcome = simulation.expectation.outcome()
    _check_accounts(simulation, outcome)
    _check_raw(simulation, outcome)
    _check_rollups(simulation, outcome)
    _check_newest(simulation, outcome)
    _check_batches(simulation, outcome)
    _check_payloads(simulation)


def _check_accounts(simulation: Simulation, outcome: Outcome) -> None:
    check_moment(simulation)
    assert simulation.pipeline.queue.depth().claims == 0
    totals = simulation.pipeline.working.ledger.accounting()[1]
    found = {name: getattr(totals, name) for name in ("received", *PARTS)}
    assert found == outcome.totals | {"pending": 0}
    assert found["stored"] == len(outcome.readings)


def _check_raw(simulation: Simulation, outcome: Outcome) -> None:
    """All of the retention is there, once; what is there beyond it is not wrong either."""
    found = _raw(simulation)
    kept_us = simulation.clock.now_us() - RETENTION_DAYS * DAY_US
    expected = {key: content for key, content in outcome.readings.items() if key[1] >= kept_us}
    missing = expected.keys() - found.keys()
    assert not missing, f"{len(missing)} readings are missing: {sorted(missing)[:3]}"
    wrong = [key for key, content in found.items() if outcome.readings.get(key) != content]
    assert not wrong, [(key, found[key], outcome.readings.get(key)) for key in wrong[:3]]


def _check_rollups(simulation: Simulation, outcome: Outcome) -> None:
    """Rollups are kept for ever and hold everything that was ever stored."""
    for period, length_us in LENGTHS_US.items():
        expected = buckets_of(outcome.readings, length_us)
        found = _buckets(simulation, period)
        assert found.keys() == expected.keys()
        for key, row in found.items():
            assert_bucket(row, expected[key])


def _check_newest(simulation: Simulation, outcome: Outcome) -> None:
    newest: dict[str, int] = {}
    for sensor, time_us in outcome.readings:
        newest[sensor] = max(newest.get(sensor, 0), time_us)
    found = simulation.pipeline.working.latest.find(sorted(newest))[0]
    assert {sensor: reading.time_us for sensor, reading in found.items()} == newest
    for sensor, reading in found.items():
        content = Content(reading.value, reading.status, reading.battery)
        assert content == outcome.readings[sensor, reading.time_us], sensor


def _check_batches(simulation: Simulation, outcome: Outcome) -> None:
    """Every batch tells of its end, and what is set aside is listed, as long as batches are kept."""
    ledger = simulation.pipeline.working.ledger
    purged_us = simulation.clock.now_us() - PAYLOAD_DAYS * DAY_US
    listed: dict[str, dict[tuple[int, int], str]] = {}
    for item in ledger.quarantine(None, None, ROWS_MAX):
        listed.setdefault(item.batch_id, {})[item.equipment, item.sensor] = item.reason
    for batch_id, fate in outcome.fates.items():
        try:
            batch = ledger.batch(batch_id)
        except NotFound:
            assert simulation.expectation.claim(batch_id).received_us < purged_us, f"{batch_id} is not in the ledger"
            continue
        told = (batch.readings, batch.stored, batch.updated, batch.duplicate, batch.quarantined)
        assert told == (fate.readings, fate.stored, fate.updated, fate.duplicate, len(fate.quarantined)), batch_id
        if batch_id in simulation.expectation.dead and fate.quarantined:
            assert batch.state == "dead_letter"
            continue
        assert batch.state == ("partial" if fate.quarantined else "stored")
        assert listed.get(batch_id, {}) == fate.quarantined
    assert set(simulation.acknowledged) <= outcome.fates.keys()


def _check_payloads(simulation: Simulation) -> None:
    """What was accepted as bulk is kept as it was sent, and no longer than it should be."""
    objects = simulation.pipeline.objects
    kept = {stored.key for stored in objects.list()}
    now_us = simulation.clock.now_us()
    for batch_id, body in simulation.bodies.items():
        claim = simulation.expectation.claim(batch_id)
        assert claim.object_key is not None
        if claim.received_us >= now_us - PAYLOAD_DAYS * DAY_US:
            assert gzip.decompress(b"".join(objects.get(claim.object_key))) == body
        elif claim.received_us < now_us - PAYLOAD_DAYS * DAY_US - 3 * HOUR_US:
            assert claim.object_key not in kept, "a payload is kept past its time"


def _raw(simulation: Simulation) -> dict[tuple[str, int], Content]:
    sensors = simulation.letters.sensors()
    table = simulation.pipeline.store.read_raw(sensors, 0, END_US, ROWS_MAX)
    rows = table.select(["sensor", "time", "value", "status", "battery"]).to_pylist()
    found = {
        (sensors[row["sensor"]], to_us(row["time"])): Content(row["value"], row["status"], row["battery"])
        for row in rows
    }
    assert len(found) == len(rows), "a reading is stored twice"
    return found


def _buckets(simulation: Simulation, period: Literal["hour", "day"]) -> dict[tuple[str, int], dict[str, Any]]:
    sensors = simulation.letters.sensors()
    rows = simulation.pipeline.store.read_rollup(period, sensors, 0, END_US, ROWS_MAX).to_pylist()
    found = {(sensors[row["sensor"]], to_us(row["time"])): row for row in rows}
    assert len(found) == len(rows), "a bucket is there twice"
    return found
