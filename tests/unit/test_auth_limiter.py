"""Rate limits: the counting, the header fields, the bounds."""

from __future__ import annotations

import re
import threading

import pytest
from limits.storage import Storage

from sensorkeep.auth import counters as counters_module
from sensorkeep.auth.counters import CounterStorage
from sensorkeep.auth.limiter import RateLimiter, network_of
from sensorkeep.clock import ManualClock
from sensorkeep.errors import RateLimited, Unavailable

NOW_US = 1_790_000_000_000_000


def make(requests_per_minute: int = 3) -> tuple[RateLimiter, ManualClock]:
    clock = ManualClock(NOW_US)
    return RateLimiter(clock, requests_per_minute), clock


def test_as_many_as_the_quota_pass_in_a_minute_and_the_next_is_refused() -> None:
    limiter, clock = make()
    left = []
    for _ in range(3):
        state = limiter.hit("request", "key:1")
        assert state is not None
        left.append(state.remaining)
    assert left == [2, 1, 0]
    clock.advance(20.5)
    with pytest.raises(RateLimited) as caught:
        limiter.hit("request", "key:1")
    assert caught.value.retry_after_seconds == 40
    assert caught.value.extra == {"violated-policies": ["request"]}
    assert caught.value.headers == {"RateLimit-Policy": '"request";q=3;w=60', "RateLimit": '"request";r=0;t=40'}


def test_the_wait_that_is_announced_is_enough() -> None:
    limiter, clock = make(1)
    limiter.hit("request", "key:1")
    clock.advance(0.001)
    with pytest.raises(RateLimited) as caught:
        limiter.hit("request", "key:1")
    assert caught.value.retry_after_seconds is not None
    clock.advance(caught.value.retry_after_seconds)
    assert limiter.hit("request", "key:1") is not None


def test_header_fields_are_structured_fields_of_the_draft() -> None:
    limiter, _ = make(100)
    state = limiter.hit("request", "key:1")
    assert state is not None
    assert re.fullmatch(r'"[a-z-]+";q=100;w=60', state.headers["RateLimit-Policy"])
    assert re.fullmatch(r'"[a-z-]+";r=99;t=60', state.headers["RateLimit"])


def test_identities_and_kinds_are_counted_apart() -> None:
    limiter, _ = make(1)
    limiter.hit("request", "key:1")
    limiter.hit("request", "key:2")
    limiter.hit("login-ip", "key:1")
    with pytest.raises(RateLimited):
        limiter.hit("request", "key:1")


def test_zero_requests_per_minute_sets_no_limit_for_requests_and_keeps_that_of_logins() -> None:
    limiter, _ = make(0)
    assert [limiter.hit("request", "key:1") for _ in range(1000)] == [None] * 1000
    limiter.give_back("request", "key:1")
    for _ in range(5):
        limiter.hit("login-username", "maria")
    with pytest.raises(RateLimited):
        limiter.hit("login-username", "maria")


def test_what_is_given_back_can_be_used_again_and_never_more_than_the_quota() -> None:
    limiter, _ = make(2)
    for _ in range(5):
        limiter.hit("request", "key:1")
        limiter.give_back("request", "key:1")
    limiter.give_back("request", "key:1")
    limiter.hit("request", "key:1")
    limiter.hit("request", "key:1")
    with pytest.raises(RateLimited):
        limiter.hit("request", "key:1")


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    limiter, clock = make(1)
    limiter.hit("request", "key:1")
    clock.advance(-7200)
    assert limiter.hit("request", "key:1") is not None


def test_counters_are_bounded_and_ended_windows_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters_module, "RATE_COUNTERS_MAX", 100)
    clock = ManualClock(NOW_US)
    storage = CounterStorage(clock)
    for number in range(1000):
        storage.incr(f"a{number}", 60)
    assert storage.reset() == 100
    for number in range(80):
        storage.incr(f"b{number}", 60)
    clock.advance(60)
    for number in range(80):
        storage.incr(f"c{number}", 60)
    assert storage.reset() == 80


def test_hits_from_many_threads_are_all_counted() -> None:
    limiter, _ = make(1000)

    def hit() -> None:
        for _ in range(250):
            limiter.hit("request", "key:1")

    threads = [threading.Thread(target=hit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    with pytest.raises(RateLimited):
        limiter.hit("request", "key:1")


def test_a_shared_storage_that_does_not_answer_makes_the_service_unavailable() -> None:
    class Broken(CounterStorage):
        STORAGE_SCHEME = ["broken"]  # noqa: RUF012

        @property
        def base_exceptions(self) -> type[Exception]:
            return ConnectionError

        def incr(self, key: str, expiry: int, amount: int = 1) -> int:
            raise ConnectionError

        def get(self, key: str) -> int:
            raise ConnectionError

    storage: Storage = Broken(ManualClock(NOW_US))
    storage.wrap_exceptions = True
    limiter = RateLimiter(ManualClock(NOW_US), 1, storage)
    for act in (limiter.hit, limiter.give_back):
        with pytest.raises(Unavailable):
            act("request", "key:1")


@pytest.mark.parametrize(
    ("client_ip", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_one_client_is_an_ipv4_address_or_an_ipv6_network(client_ip: str, network: str) -> None:
    assert network_of(client_ip) == network
