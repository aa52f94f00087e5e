"""A service that is down is asked now and then, by one caller at a time."""

from __future__ import annotations

import threading

from sensorkeep.breaker import Breaker
from sensorkeep.clock import ManualClock


def make() -> tuple[Breaker, ManualClock]:
    clock = ManualClock(0)
    return Breaker(clock.monotonic, pause_seconds=1.0, try_seconds_max=5.0), clock


def test_while_the_service_works_everybody_is_admitted() -> None:
    breaker, _ = make()
    assert all(breaker.admit() for _ in range(3))
    assert breaker.closed
    assert not breaker.succeeded()


def test_after_a_failure_nobody_tries_until_the_pause_is_over_and_then_one_does() -> None:
    breaker, clock = make()
    assert breaker.failed()
    assert not breaker.failed()
    assert not breaker.closed
    clock.advance(0.9)
    assert not breaker.admit()
    clock.advance(0.1)
    assert [breaker.admit() for _ in range(3)] == [True, False, False]
    assert breaker.succeeded()
    assert breaker.admit()
    assert breaker.closed


def test_a_try_that_fails_begins_another_pause() -> None:
    breaker, clock = make()
    breaker.failed()
    clock.advance(1.0)
    assert breaker.admit()
    breaker.failed()
    clock.advance(0.5)
    assert not breaker.admit()
    clock.advance(0.5)
    assert breaker.admit()


def test_a_try_that_never_tells_its_end_keeps_nobody_out_for_good() -> None:
    breaker, clock = make()
    breaker.failed()
    clock.advance(1.0)
    assert breaker.admit()
    clock.advance(4.9)
    assert not breaker.admit()
    clock.advance(0.1)
    assert breaker.admit()


def test_of_many_threads_one_tries() -> None:
    breaker, clock = make()
    breaker.failed()
    clock.advance(1.0)
    admitted: list[bool] = []
    threads = [threading.Thread(target=lambda: admitted.append(breaker.admit())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admitted.count(True) == 1
