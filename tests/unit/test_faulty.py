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
from sensorkeep.queue.base import ClaimQueue
from sensorkeep.queue.sqlite import SqliteClaimQueue
from sensorkeep.testing.faulty import Crashed, Fault, Faults, faulty

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
    for fault in Fault:
        assert 0.05 * CALLS < faults.total(fault) < 0.3 * CALLS, fault


def test_counts_equal_what_the_callers_saw() -> None:
    outcomes, faults = run(9, {Fault.FAIL_BEFORE: 0.3, Fault.FAIL_AFTER: 0.3, Fault.CRASH_AFTER: 0.1})
    assert sum("fail_before" in outcome for outcome in outcomes) == faults.total(Fault.FAIL_BEFORE) > 0
    assert sum("fail_after" in outcome for outcome in outcomes) == faults.total(Fault.FAIL_AFTER) > 0
    assert sum("crash_after" in outcome for outcome in outcomes) == faults.total(Fault.CRASH_AFTER) > 0
    assert outcomes.count("done") == CALLS - sum(faults.counts.values())


def test_a_mistake_in_the_plan_is_an_error_at_once() -> None:
    with pytest.raises(AttributeError):
        faulty(store(), certain(Fault.FAIL_BEFORE, "putt"))
    with pytest.raises(ValueError, match="callback"):
        certain(Fault.DELAY, "put")
