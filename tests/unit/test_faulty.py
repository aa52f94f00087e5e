"""The fault injector does what it says, counts it, and repeats it by seed."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from sensorkeep.clock import ManualClock
from sensorkeep.errors import Conflict, Unavailable
from sensorkeep.model import Claim, WireFormat
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.object_store.memory import MemoryObjectStore
from sensorkeep.queue.base import ClaimQueue, Delivery
from sensorkeep.queue.sqlite import SqliteClaimQueue
from sensorkeep.testing.faulty import Crashed, Fault, Faults, faulty
from sensorkeep.testing.redelivery import RedeliveringQueue, reorder_list, reorder_sources

CALLS = 400


def store() -> ObjectStore:
    return MemoryObjectStore(ManualClock(0))


def keys(backend: ObjectStore) -> list[str]:
    return [found.key for found in backend.list()]


def certain(fault: Fault, *methods: str, **options: object) -> Faults:
    return Faults(random.Random(1), {fault: 1.0}, methods, **options)  # type: ignore[arg-type]


def test_fail_before_does_nothing_and_fail_after_does_all() -> None:
    for fault, expected in ((Fault.FAIL_BEFORE, []), (Fault.FAIL_AFTER, ["a"])):
        real = store()
        with pytest.raises(Unavailable) as caught:
            faulty(real, certain(fault, "put", code="disk_full")).put("a", [b"1"])
        assert caught.value.code == "disk_full"
        assert keys(real) == expected


def test_a_crash_is_no_exception_that_code_could_handle() -> None:
    for fault, expected in ((Fault.CRASH_BEFORE, []), (Fault.CRASH_AFTER, ["a"])):
        real = store()
        with pytest.raises(Crashed) as caught:
            faulty(real, certain(fault, "put")).put("a", [b"1"])
        assert not isinstance(caught.value, Exception)
        assert keys(real) == expected


def test_duplicate_calls_idempotent_methods_twice_and_no_others(tmp_path: Path) -> None:
    queue = SqliteClaimQueue(tmp_path / "queue.db", ManualClock(0))
    faults = certain(Fault.DUPLICATE, "publish", "fetch", idempotent=("publish",))
    wrapped: ClaimQueue = faulty(queue, faults)
    wrapped.publish([Claim(batch_id="1", wire_format=WireFormat.READINGS, received_us=1, readings=1)])
    assert [delivery.claim.batch_id for delivery in wrapped.fetch(9, 9, 0.0)] == ["1", "1"]
    assert faults.counts == Counter({("publish", Fault.DUPLICATE): 1})
    queue.close()


def test_delay_tells_the_callback_and_goes_on() -> None:
    clock = ManualClock(0)
    faults = certain(Fault.DELAY, "put", delay=clock.advance, delay_seconds_max=2.0)
    real = store()
    faulty(real, faults).put("a", [b"1"])
    assert 0 < clock.monotonic() <= 2.0
    assert keys(real) == ["a"]


def test_only_the_named_methods_are_hit_and_only_while_active() -> None:
    faults = certain(Fault.FAIL_BEFORE, "put")
    backend = faulty(store(), faults)
    backend.delete("a")
    backend.check()
    faults.active = False
    backend.put("a", [b"1"])
    assert faults.calls == Counter()
    faults.active = True
    with pytest.raises(Unavailable):
        backend.put("b", [b"1"])
    assert faults.calls == Counter({"put": 1})


def test_errors_and_answers_of_the_backend_pass_through() -> None:
    backend = faulty(store(), Faults(random.Random(1), {}, ["put", "get"]))
    assert backend.put("a", [b"12"]) == 2
    assert b"".join(backend.get("a")) == b"12"
    with pytest.raises(Conflict):
        backend.put("a", [b"12"])


def run(seed: int, rates: dict[Fault, float]) -> tuple[list[str], Faults]:
    """What became of CALLS puts."""
    faults = Faults(random.Random(seed), rates, ["put"], idempotent=["put"], delay=lambda _: None)
    backend, outcomes = faulty(store(), faults), []
    for number in range(CALLS):
        try:
            backend.put(str(number), [b""])
            outcomes.append("done")
        except (Unavailable, Conflict, Crashed) as error:
            outcomes.append(str(error))
    return outcomes, faults


def test_the_same_seed_gives_the_same_faults_at_about_the_rates_asked_for() -> None:
    rates = dict.fromkeys(Fault, 0.2)
    outcomes, faults = run(7, rates)
    again, faults_again = run(7, rates)
    assert outcomes == again
    assert faults.counts == faults_again.counts
    assert run(8, rates)[0] != outcomes
    assert faults.calls["put"] == CALLS
    assert faults.total(Fault.REORDER) == 0, "nobody said how"
    for fault in set(Fault) - {Fault.REORDER}:
        assert 0.05 * CALLS < faults.total(fault) < 0.3 * CALLS, fault


def test_counts_equal_what_the_callers_saw() -> None:
    outcomes, faults = run(9, {Fault.FAIL_BEFORE: 0.3, Fault.FAIL_AFTER: 0.3, Fault.CRASH_AFTER: 0.1})
    assert sum("fail_before" in outcome for outcome in outcomes) == faults.total(Fault.FAIL_BEFORE) > 0
    assert sum("fail_after" in outcome for outcome in outcomes) == faults.total(Fault.FAIL_AFTER) > 0
    assert sum("crash_after" in outcome for outcome in outcomes) == faults.total(Fault.CRASH_AFTER) > 0
    assert outcomes.count("done") == CALLS - sum(faults.counts.values())


def test_reorder_gives_the_answer_in_another_order_that_the_seed_decides() -> None:
    orders = []
    for seed in (1, 1, 2):
        real = store()
        for number in range(20):
            real.put(str(number), [b""])
        faults = Faults(random.Random(seed), {Fault.REORDER: 1.0}, ["list"], reorder={"list": reorder_list})
        orders.append(keys(faulty(real, faults)))
        assert faults.counts == Counter({("list", Fault.REORDER): 1})
        assert sorted(orders[-1]) == sorted(keys(real)) != orders[-1]
    assert orders[0] == orders[1] != orders[2]


def test_a_method_is_spared_what_cannot_happen_to_it() -> None:
    rates = {Fault.FAIL_BEFORE: 1.0, Fault.CRASH_AFTER: 1.0}
    faults = Faults(random.Random(1), rates, ["put", "get"], spared={"put": [Fault.FAIL_BEFORE]})
    backend = faulty(store(), faults)
    with pytest.raises(Crashed):
        backend.put("a", [b"1"])
    with pytest.raises(Unavailable):
        backend.get("a")


def delivery(number: int, credential: str) -> Delivery:
    claim = Claim(
        batch_id=str(number), wire_format=WireFormat.READINGS, received_us=1, readings=1, credential=credential
    )
    return Delivery(claim, number, 1)


def test_sources_are_mixed_anew_and_each_stays_in_order() -> None:
    sent = [delivery(number, "ab"[number % 2]) for number in range(20)]
    seen = set()
    for seed in range(5):
        mixed = reorder_sources(random.Random(seed), sent)
        seen.add(tuple(d.token for d in mixed))
        for credential in "ab":
            mine = [d.token for d in mixed if d.claim.credential == credential]
            assert mine == sorted(mine)
        assert sorted(mixed, key=lambda d: d.token) == sent
    assert len(seen) == 5


def test_a_redelivering_queue_delivers_claims_again_and_owes_the_copies_too(tmp_path: Path) -> None:
    clock = ManualClock(0)
    taken: list[Claim] = []
    queue = RedeliveringQueue(SqliteClaimQueue(tmp_path / "queue.db", clock), clock, random.Random(1), rate=1.0)
    queue.on_publish = taken.extend
    queue.publish([delivery(number, "a").claim for number in range(3)])
    assert [claim.batch_id for claim in taken] == ["0", "1", "2"]
    first = queue.fetch(9, 9, 0.0)
    again = queue.fetch(9, 9, 0.0)
    assert {d.claim.batch_id for d in again} <= {d.claim.batch_id for d in first}
    assert len(again) == queue.redelivered > 0
    queue.rate = 0.0
    queue.release(again)
    assert queue.fetch(9, 9, 0.0) == again, "a copy is owed until it is acknowledged"
    queue.close()
    queue.reopen(SqliteClaimQueue(tmp_path / "queue.db", clock))
    assert {d.token for d in queue.fetch(9, 9, 0.0)} == {d.token for d in first + again}
    queue.ack(again)
    assert queue.depth().claims == 3
    queue.ack(first)
    assert queue.depth().claims == 0
    queue.rate = 1.0
    assert queue.fetch(9, 9, 0.0), "what is acknowledged may come again"
    assert queue.depth().claims > 0
    queue.close()


def test_a_mistake_in_the_plan_is_an_error_at_once() -> None:
    with pytest.raises(AttributeError):
        faulty(store(), certain(Fault.FAIL_BEFORE, "putt"))
    with pytest.raises(ValueError, match="callback"):
        certain(Fault.DELAY, "put")
