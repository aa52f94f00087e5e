"""What gateways share of auth through Valkey: rate limits, tickets, the end of credentials. An Auth or a limiter here
stands for a gateway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from argon2.profiles import CHEAPEST
from pubsub_world import wait_until

from sensorkeep.app.accounts import open_administration
from sensorkeep.app.backends import open_catalog
from sensorkeep.auth.administration import Actor
from sensorkeep.auth.counters import WINDOW_SECONDS
from sensorkeep.auth.credentials import Credential
from sensorkeep.auth.limiter import Kind, RateLimiter, counted_on_the_event_loop
from sensorkeep.auth.setup import Auth, AuthSettings, open_auth
from sensorkeep.auth.shared_counters import SharedCounters
from sensorkeep.auth.shared_tickets import SharedTickets
from sensorkeep.auth.tickets import Tickets
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.database import open_database
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import IdSource, ManualClock, SystemClock
from sensorkeep.config import Config
from sensorkeep.errors import RateLimited, Unauthenticated, Unavailable
from sensorkeep.limits import LOGIN_FAILURES_PER_MINUTE_PER_USERNAME, RATE_SHARED_SECONDS
from sensorkeep.pubsub.base import AUTH_CHANNEL
from sensorkeep.pubsub.valkey import ValkeyPubSub
from sensorkeep.valkey import Valkey
from services import VALKEY_URL, address, new_name
from services.valkey import Valkey as ValkeyService

pytestmark = pytest.mark.distributed

SOMEBODY = Credential("key:1", "key", "device", frozenset({"live", "read"}), 3)


@dataclass
class Gateways:
    """Gateways of one installation."""

    url: str
    prefix: str = field(default_factory=lambda: new_name("test"))
    closing: list[Callable[[], None]] = field(default_factory=list)

    def valkey(self) -> Valkey:
        client = Valkey(self.url, prefix=self.prefix)
        self.closing.append(client.close)
        return client

    def limiter(self, requests_per_minute: int = 100) -> RateLimiter:
        clock = SystemClock()
        counters = SharedCounters(clock, self.valkey(), counted_on_the_event_loop)
        self.closing.insert(0, counters.close)
        return RateLimiter(clock, requests_per_minute, counters)

    def tickets(self) -> tuple[Tickets, SharedTickets]:
        shared = SharedTickets(self.valkey())
        return Tickets(SystemClock(), shared), shared

    def close(self) -> None:
        for close in self.closing:
            close()


@pytest.fixture
def gateways() -> Iterator[Gateways]:
    made = Gateways(address(VALKEY_URL))
    yield made
    made.close()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyService]:
    with ValkeyService(tmp_path / "valkey") as service:
        yield service


@pytest.fixture
def private(valkey: ValkeyService) -> Iterator[Gateways]:
    """Gateways whose Valkey may be stopped."""
    made = Gateways(valkey.url)
    yield made
    made.close()


def admitted(limiter: RateLimiter, kind: Kind, identity: str, tries: int) -> int:
    """How many of so many hits were admitted."""
    count = 0
    for _ in range(tries):
        try:
            limiter.hit(kind, identity)
        except RateLimited:
            continue
        count += 1
    return count


# --- rate limits --------------------------------------------------------------------------------------------------


def test_failed_logins_are_counted_over_all_gateways_exactly(gateways: Gateways) -> None:
    limiters = [gateways.limiter() for _ in range(3)]
    totals: list[int] = []

    def guess(limiter: RateLimiter) -> None:
        totals.append(admitted(limiter, "login-username", "maria", 10))

    threads = [threading.Thread(target=guess, args=(limiter,)) for limiter in limiters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(totals) == LOGIN_FAILURES_PER_MINUTE_PER_USERNAME


def test_what_one_gateway_gives_back_another_one_can_use(gateways: Gateways) -> None:
    one, other = gateways.limiter(), gateways.limiter()
    for _ in range(20):
        one.hit("login-username", "maria")
        other.give_back("login-username", "maria")
    other.give_back("login-username", "maria")
    assert admitted(one, "login-username", "maria", 10) == LOGIN_FAILURES_PER_MINUTE_PER_USERNAME


def test_a_refusal_says_when_the_shared_window_ends(gateways: Gateways) -> None:
    one, other = gateways.limiter(), gateways.limiter()
    admitted(one, "login-username", "maria", 10)
    with pytest.raises(RateLimited) as caught:
        other.hit("login-username", "maria")
    assert caught.value.retry_after_seconds is not None
    assert WINDOW_SECONDS - 15 <= caught.value.retry_after_seconds <= WINDOW_SECONDS
    assert caught.value.headers["RateLimit"].startswith('"login-username";r=0;t=')


def test_installations_and_usernames_of_any_kind_are_counted_apart(gateways: Gateways) -> None:
    stranger = Gateways(gateways.url)
    one, other = gateways.limiter(), stranger.limiter()
    names = ["maria", "mari\udc80", "m\x00", "m:a*{}", "ñ" * 60]
    for name in names:
        assert admitted(one, "login-username", name, 9) == LOGIN_FAILURES_PER_MINUTE_PER_USERNAME
        assert admitted(other, "login-username", name, 9) == LOGIN_FAILURES_PER_MINUTE_PER_USERNAME
    stranger.close()


def test_requests_are_counted_over_all_gateways_but_for_those_of_the_last_moments(gateways: Gateways) -> None:
    limiters = [gateways.limiter(100), gateways.limiter(100)]
    total = refused = 0
    while refused < 20:
        for limiter in limiters:
            passed = admitted(limiter, "request", "key:1", 1)
            total += passed
            refused += 1 - passed
        time.sleep(RATE_SHARED_SECONDS / 5)
    assert 100 <= total < 150, "each of them alone would have let 100 pass"


def test_each_gateway_alone_never_admits_more_than_the_quota_however_fast(gateways: Gateways) -> None:
    one, other = gateways.limiter(50), gateways.limiter(50)
    assert admitted(one, "request", "key:1", 500) <= 50
    assert admitted(other, "request", "key:1", 500) <= 50


def test_counting_a_request_waits_for_nobody(private: Gateways, valkey: ValkeyService) -> None:
    limiter = private.limiter(1_000_000)
    limiter.hit("request", "key:1")
    valkey.pause()
    try:
        slowest = 0.0
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            at = time.perf_counter()
            limiter.hit("request", "key:1")
            slowest = max(slowest, time.perf_counter() - at)
            time.sleep(0.001)
        assert slowest < 0.25, "Valkey's time out is twice that"
    finally:
        valkey.resume()


def test_without_valkey_every_gateway_limits_by_itself_and_after_it_they_share_again(
    private: Gateways, valkey: ValkeyService
) -> None:
    one, other = private.limiter(100), private.limiter(100)
    assert admitted(one, "login-username", "maria", 3) == 3
    valkey.kill()
    began = time.monotonic()
    # On from what was known: 3 of 5 are used.
    assert admitted(one, "login-username", "maria", 9) == LOGIN_FAILURES_PER_MINUTE_PER_USERNAME - 3
    assert admitted(other, "login-username", "maria", 9) == LOGIN_FAILURES_PER_MINUTE_PER_USERNAME
    assert admitted(one, "request", "key:1", 150) == 100
    assert time.monotonic() - began < 3, "they waited for it"
    valkey.start()

    def shared_again() -> bool:
        name = new_name("user")
        return (
            admitted(one, "login-username", name, 9) + admitted(other, "login-username", name, 9)
            == LOGIN_FAILURES_PER_MINUTE_PER_USERNAME
        )

    wait_until(shared_again)
    # What was counted meanwhile is told, too.
    wait_until(lambda: admitted(other, "request", "key:1", 1) == 0, 5)


def test_a_window_ends_for_all_gateways_and_begins_anew(gateways: Gateways) -> None:
    clocks = [ManualClock(time.time_ns() // 1000) for _ in range(2)]
    counters = [SharedCounters(clock, gateways.valkey(), counted_on_the_event_loop) for clock in clocks]
    limiters = [RateLimiter(clock, 10, storage) for clock, storage in zip(clocks, counters, strict=True)]
    for limiter, storage in zip(limiters, counters, strict=True):
        assert admitted(limiter, "request", "key:1", 7) == 7
        storage.share()
    assert admitted(limiters[1], "request", "key:1", 9) == 0
    client = gateways.valkey()
    client.run(lambda driver: [driver.delete(name) for name in driver.keys(client.name("*"))])
    for clock in clocks:
        clock.advance(WINDOW_SECONDS)
    assert admitted(limiters[0], "request", "key:1", 20) == 10
    for storage in counters:
        storage.close()


# --- the end of credentials ---------------------------------------------------------------------------------------


def test_a_key_revoked_on_one_gateway_dies_on_the_others_at_once(gateways: Gateways) -> None:
    clock = SystemClock()
    database = open_database("sqlite://")
    accounts, registry = CatalogAccounts(database, clock), CatalogRegistry(database)
    settings = AuthSettings(password_parameters=CHEAPEST)

    def gateway() -> Auth:
        pubsub = ValkeyPubSub(gateways.valkey())
        gateways.closing.insert(0, pubsub.close)
        ids = IdSource(clock)
        auth = open_auth(accounts, registry, clock, ids, settings, pubsub=pubsub, valkey=gateways.valkey())
        gateways.closing.insert(0, auth.close)
        return auth

    one, other = gateway(), gateway()
    told: list[str] = []
    other.authenticator.on_forget(told.append)
    for _ in range(3):
        issued = one.administration.issue_key("device", {"live"}, Actor("cli", "local"))
        credential = other.authenticator.authenticate(None, issued.secret)
        ticket = other.tickets.issue(credential)
        assert other.authenticator.cached(None, issued.secret) is not None
        one.administration.revoke_key(issued.key.id, Actor("cli", "local"))
        wait_until(lambda secret=issued.secret: other.authenticator.cached(None, secret) is None, 5)  # type: ignore[misc]
        with pytest.raises(Unauthenticated):
            other.authenticator.authenticate(None, issued.secret)
        with pytest.raises(Unauthenticated):
            other.tickets.redeem(ticket)
        assert told[-1] == credential.id, "open sockets end by this"
    database.close()


def test_a_key_revoked_by_the_command_line_dies_on_the_gateways_at_once(gateways: Gateways, tmp_path: Path) -> None:
    pubsub_settings = {"pubsub_url": gateways.url, "pubsub_prefix": gateways.prefix}
    config = Config().model_copy(update={"data_dir": tmp_path, **pubsub_settings})
    clock = SystemClock()
    database = open_catalog(config)
    accounts, registry = CatalogAccounts(database, clock), CatalogRegistry(database)
    pubsub, settings = ValkeyPubSub(gateways.valkey()), AuthSettings(password_parameters=CHEAPEST)
    gateways.closing.insert(0, pubsub.close)
    gateway = open_auth(accounts, registry, clock, IdSource(clock), settings, pubsub=pubsub).authenticator
    wait_until(lambda: pubsub.wanted(AUTH_CHANNEL))
    told: list[str] = []
    gateway.on_forget(told.append)
    for _ in range(3):
        with open_administration(config) as administration:
            issued = administration.issue_key("device", {"live"}, Actor("cli", "local"))
        credential = gateway.authenticate(None, issued.secret)
        with open_administration(config) as administration:
            administration.revoke_key(issued.key.id, Actor("cli", "local"))
        wait_until(lambda secret=issued.secret: gateway.cached(None, secret) is None, 5)  # type: ignore[misc]
        assert told[-1] == credential.id
    database.close()


def test_accounts_are_managed_while_valkey_is_down(private: Gateways, valkey: ValkeyService, tmp_path: Path) -> None:
    config = Config().model_copy(update={"data_dir": tmp_path, "pubsub_url": private.url})
    valkey.kill()
    with open_administration(config) as administration:
        issued = administration.issue_key("device", {"live"}, Actor("cli", "local"))
        administration.revoke_key(issued.key.id, Actor("cli", "local"))
        assert administration.keys() == []


# --- tickets ------------------------------------------------------------------------------------------------------


def test_a_ticket_of_one_gateway_is_good_for_one_use_on_any(gateways: Gateways) -> None:
    one, _ = gateways.tickets()
    other, _ = gateways.tickets()
    ticket = one.issue(SOMEBODY)
    assert other.redeem(ticket) == SOMEBODY
    for gateway in (one, other):
        with pytest.raises(Unauthenticated):
            gateway.redeem(ticket)
    ticket = one.issue(SOMEBODY)
    assert one.redeem(ticket) == SOMEBODY
    with pytest.raises(Unauthenticated):
        other.redeem(ticket)


def test_of_many_who_redeem_a_ticket_at_once_one_wins(gateways: Gateways) -> None:
    tickets = [gateways.tickets()[0] for _ in range(4)]
    for _ in range(10):
        ticket = tickets[0].issue(SOMEBODY)
        won: list[Credential] = []

        def redeem(gateway: Tickets, ticket: str = ticket, won: list[Credential] = won) -> None:
            try:
                won.append(gateway.redeem(ticket))
            except Unauthenticated:
                return

        threads = [threading.Thread(target=redeem, args=(gateway,)) for gateway in tickets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [SOMEBODY]


def test_tickets_of_a_changed_credential_are_void_and_new_ones_are_good(gateways: Gateways) -> None:
    one, _ = gateways.tickets()
    other, shared = gateways.tickets()
    before, of_another = one.issue(SOMEBODY), one.issue(Credential("key:2", "key", "x", frozenset({"live"}), 1))
    shared.revoke(SOMEBODY.id)
    after = one.issue(SOMEBODY)
    with pytest.raises(Unauthenticated):
        other.redeem(before)
    assert other.redeem(after) == SOMEBODY
    assert other.redeem(of_another).id == "key:2"


def test_valkey_holds_neither_the_ticket_nor_a_secret_and_forgets_it_in_time(gateways: Gateways) -> None:
    one, _ = gateways.tickets()
    ticket = one.issue(SOMEBODY)
    client = gateways.valkey()
    (name,) = client.run(lambda driver: driver.keys(client.name("*")))
    assert ticket.encode() not in name
    assert ticket.encode() not in client.run(lambda driver: driver.get(name))
    assert 0 < client.run(lambda driver: driver.ttl(name)) <= 30


def test_without_valkey_a_ticket_opens_a_socket_where_it_was_issued(private: Gateways, valkey: ValkeyService) -> None:
    one, _ = private.tickets()
    other, shared = private.tickets()
    valkey.kill()
    ticket = one.issue(SOMEBODY)
    with pytest.raises(Unavailable):
        other.redeem(ticket)
    assert one.redeem(ticket) == SOMEBODY
    with pytest.raises(Unavailable):
        one.redeem(ticket)
    shared.revoke(SOMEBODY.id)  # raises nothing
    valkey.start()

    def works_again() -> bool:
        try:
            return other.redeem(one.issue(SOMEBODY)) == SOMEBODY
        except (Unauthenticated, Unavailable):
            return False  # the one thinks it is back, the other one not yet

    wait_until(works_again)


def test_a_ticket_that_valkey_takes_late_is_good_for_one_use(private: Gateways, valkey: ValkeyService) -> None:
    one, other = private.tickets()[0], private.tickets()[0]
    one.redeem(one.issue(SOMEBODY))
    valkey.pause()
    try:
        ticket = one.issue(SOMEBODY)
    finally:
        valkey.resume()
    client = private.valkey()
    wait_until(lambda: bool(client.run(lambda driver: driver.keys(client.name("ticket", "*")))))
    assert one.redeem(ticket) == SOMEBODY
    with pytest.raises(Unauthenticated):
        other.redeem(ticket)
