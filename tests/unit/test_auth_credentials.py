"""From what is presented to a credential: keys, tokens, the memory of them, tickets, the gate."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

import pytest
from auth_world import API_KEY, API_KEY_WS, OPERATOR, PASSWORD, World, make_world
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.auth import credentials as credentials_module
from sensorkeep.auth import tickets as tickets_module
from sensorkeep.auth.credentials import Credential, require, static_keys
from sensorkeep.auth.setup import AuthSettings
from sensorkeep.auth.tokens import password_stamp
from sensorkeep.catalog.base import ApiKey
from sensorkeep.errors import BadConfig, Forbidden, RateLimited, Unauthenticated, Unavailable
from sensorkeep.limits import CREDENTIAL_CACHE_SECONDS, CREDENTIAL_FAILURES_PER_MINUTE_PER_IP


@pytest.fixture
def world() -> Iterator[World]:
    made = make_world()
    yield made
    made.database.close()


def bearer(token: str) -> str:
    return f"Bearer {token}"


def new_key(world: World, *scopes: str, expires_us: int | None = None, connections: int | None = None) -> str:
    issued = world.auth.administration.issue_key(
        "a key", scopes or ["ingest"], OPERATOR, expires_us=expires_us, max_ws_connections=connections
    )
    return issued.secret


def test_a_token_stands_for_its_user(world: World) -> None:
    found = world.auth.authenticator.authenticate(bearer(world.access_token()))
    user = world.accounts.user("admin")
    assert user is not None
    scopes, most = frozenset({"ingest", "read", "live", "admin"}), world.settings.max_ws_connections
    assert found == Credential("user:admin", "user", "admin", scopes, most, password_stamp(user.password_hash))


def test_a_key_stands_for_itself_with_exactly_its_scopes(world: World) -> None:
    secret = new_key(world, "admin", connections=3)
    found = world.auth.authenticator.authenticate(None, secret)
    key = world.accounts.keys()[0]
    assert found == Credential(f"key:{key.id}", "key", "a key", frozenset({"admin"}), 3)
    assert secret.startswith(f"sk_{key.id}_")


def test_only_the_hash_of_a_key_is_kept(world: World) -> None:
    secret = new_key(world)
    assert secret not in repr(world.accounts.keys())
    assert world.accounts.key_by_secret(credentials_module.secret_sha256(secret)) is not None


def test_static_keys_have_the_scopes_of_their_setting(world: World) -> None:
    authenticate = world.auth.authenticator.authenticate
    assert authenticate(None, API_KEY).scopes == {"ingest", "read"}
    assert authenticate(None, API_KEY_WS).scopes == {"live"}
    assert (authenticate(None, API_KEY).id, authenticate(None, API_KEY_WS).id) == (
        "static:api_key",
        "static:api_key_ws",
    )


def test_one_secret_for_both_static_keys_has_the_scopes_of_both() -> None:
    world = make_world(AuthSettings(api_key=API_KEY, api_key_ws=API_KEY))
    assert world.auth.authenticator.authenticate(None, API_KEY).scopes == {"ingest", "read", "live"}
    world.database.close()


def test_static_keys_are_compared_in_constant_time_with_every_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def spy(expected: bytes, presented: bytes) -> bool:
        compared.append((len(expected), len(presented)))
        return compare(expected, presented)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    world.auth.authenticator.authenticate(None, API_KEY)
    with pytest.raises(Unauthenticated):
        world.auth.authenticator.authenticate(None, "x")
    assert compared == [(32, 32)] * 4


@pytest.mark.parametrize(
    "secret",
    ["short", "changemechangeme", "with-a-line\n-break-in-it", "não-é-ascii-mas-longa!", " padded-with-spaces "],
)
def test_static_keys_that_are_weak_or_fit_no_header_stop_the_start(secret: str) -> None:
    with pytest.raises(BadConfig, match=r"^API_KEY_WS: ") as caught:
        static_keys(None, secret, demo=False)
    assert secret not in caught.value.detail


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Bearer x", API_KEY),
        ("Basic YWRtaW46YWRtaW4=", None),
        (API_KEY, None),
        (f"Bearer {API_KEY}", None),
        (None, ""),
        (None, "sk_"),
        (None, "sk_1_2"),
        (None, f"Bearer {API_KEY}"),
        (None, API_KEY + "x"),
        (None, API_KEY[:-1]),
        (None, "\u0100" * 40),
        (None, "x" * 100_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_credential_is_refused(world: World, authorization: str | None, api_key: str | None) -> None:
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            world.auth.authenticator.authenticate(authorization, api_key)


@settings(max_examples=100, deadline=None)
@given(
    st.none() | st.text(max_size=60) | st.binary(max_size=60) | st.text(max_size=60).map(bearer),
    st.none() | st.text(max_size=60) | st.binary(max_size=60) | st.text(max_size=60).map(lambda tail: f"sk_{tail}"),
)
def test_whatever_the_headers_hold_nothing_but_a_refusal_comes_of_it(
    authorization: str | bytes | None, api_key: str | bytes | None
) -> None:
    with pytest.raises(Unauthenticated):
        SHARED.auth.authenticator.authenticate(authorization, api_key)


SHARED = make_world()


def test_header_values_may_be_bytes_or_text_and_the_scheme_in_any_case(world: World) -> None:
    token, key = world.access_token(), new_key(world)
    authenticate = world.auth.authenticator.authenticate
    assert authenticate(bearer(token).encode()) == authenticate(f"bearer {token}") == authenticate(f"BEARER   {token}")
    assert authenticate(None, key.encode()) == authenticate(None, key)


def test_a_bearer_token_goes_before_a_key_and_a_key_before_another_scheme(world: World) -> None:
    authenticate = world.auth.authenticator.authenticate
    for _ in range(2):
        assert authenticate(bearer(world.access_token()), API_KEY).id == "user:admin"
        assert authenticate("Basic YWRtaW46YWRtaW4=", API_KEY).id == "static:api_key"


def test_a_remembered_credential_asks_the_catalog_for_nothing(world: World) -> None:
    token, key = world.access_token(), new_key(world)
    authenticator = world.auth.authenticator
    assert authenticator.cached(bearer(token)) is None
    first = authenticator.authenticate(bearer(token)), authenticator.authenticate(None, key)
    world.database.close()
    assert (authenticator.authenticate(bearer(token)), authenticator.authenticate(None, key)) == first
    assert authenticator.cached(bearer(token)) == first[0]
    world.clock.advance(CREDENTIAL_CACHE_SECONDS)
    with pytest.raises(Unavailable):
        authenticator.authenticate(None, key)


def test_a_revoked_key_is_refused_at_once_here_and_soon_in_another_process(world: World) -> None:
    key = new_key(world)
    other = world.another_process().authenticator
    here = world.auth.authenticator
    assert here.authenticate(None, key) == other.authenticate(None, key)
    world.auth.administration.revoke_key(world.accounts.keys()[0].id, OPERATOR)
    with pytest.raises(Unauthenticated):
        here.authenticate(None, key)
    world.clock.advance(CREDENTIAL_CACHE_SECONDS - 1)
    other.authenticate(None, key)
    world.clock.advance(1)
    with pytest.raises(Unauthenticated):
        other.authenticate(None, key)


def test_a_key_revoked_during_its_look_up_is_not_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = new_key(world)
    look_up = world.accounts.key_by_secret

    def overtaken(digest: str) -> ApiKey | None:
        found = look_up(digest)
        monkeypatch.undo()
        world.auth.administration.revoke_key(world.accounts.keys()[0].id, OPERATOR)
        return found

    monkeypatch.setattr(world.accounts, "key_by_secret", overtaken)
    world.auth.authenticator.authenticate(None, secret)
    with pytest.raises(Unauthenticated):
        world.auth.authenticator.authenticate(None, secret)


def test_a_key_ends_when_it_expires_though_it_is_remembered(world: World) -> None:
    key = new_key(world, expires_us=world.clock.now_us() + 10_000_000)
    world.auth.authenticator.authenticate(None, key)
    world.clock.advance(9.9)
    world.auth.authenticator.authenticate(None, key)
    world.clock.advance(0.1)
    with pytest.raises(Unauthenticated):
        world.auth.authenticator.authenticate(None, key)


def test_a_token_ends_when_it_expires_though_it_is_remembered() -> None:
    world = make_world(AuthSettings(access_token_seconds=10))
    header = bearer(world.access_token())
    world.auth.authenticator.authenticate(header)
    world.clock.advance(9.9)
    world.auth.authenticator.authenticate(header)
    world.clock.advance(0.1)
    with pytest.raises(Unauthenticated):
        world.auth.authenticator.authenticate(header)
    world.database.close()


def test_a_user_who_is_disabled_changed_or_removed_loses_it_at_once(world: World) -> None:
    administration, authenticate = world.auth.administration, world.auth.authenticator.authenticate
    administration.add_user("maria", PASSWORD, ["read", "live"], OPERATOR)
    header = bearer(world.access_token("maria"))
    assert authenticate(header).scopes == {"read", "live"}
    administration.change_user("maria", OPERATOR, scopes=["read", "ingest"])
    assert authenticate(header).scopes == {"read"}
    administration.change_user("maria", OPERATOR, disabled=True)
    with pytest.raises(Unauthenticated):
        authenticate(header)
    administration.change_user("maria", OPERATOR, disabled=False)
    authenticate(header)
    administration.change_user("maria", OPERATOR, password="another good one")
    with pytest.raises(Unauthenticated):
        authenticate(header)
    header = bearer(world.access_token("maria", "another good one"))
    authenticate(header)
    administration.remove_user("maria", OPERATOR)
    with pytest.raises(Unauthenticated):
        authenticate(header)
    administration.add_user("maria", PASSWORD, ["read"], OPERATOR)
    with pytest.raises(Unauthenticated):
        authenticate(header)


def test_a_review_forgets_what_another_process_changed_or_time_has_ended_and_nothing_else(world: World) -> None:
    authenticate, elsewhere = world.auth.authenticator.authenticate, world.another_process().administration
    users = ("password", "scopes", "disabled", "removed", "kept")
    for name in users:
        elsewhere.add_user(name, PASSWORD, ["read", "live"], OPERATOR)
    issued = [elsewhere.issue_key("a key", ["live"], OPERATOR) for _ in range(2)]
    ends = new_key(world, "live", expires_us=world.clock.now_us() + 10_000_000)
    held = [authenticate(bearer(world.access_token(name))) for name in users]
    held += [authenticate(None, key) for key in (issued[0].secret, issued[1].secret, ends, API_KEY_WS)]
    forgotten: list[str] = []
    world.auth.authenticator.on_forget(forgotten.append)
    world.auth.authenticator.review(held)
    assert forgotten == []
    elsewhere.change_user("password", OPERATOR, password=PASSWORD)
    elsewhere.change_user("scopes", OPERATOR, scopes=["read"])
    elsewhere.change_user("disabled", OPERATOR, disabled=True)
    elsewhere.change_user("kept", OPERATOR, scopes=["read", "live", "ingest"])
    elsewhere.remove_user("removed", OPERATOR)
    elsewhere.revoke_key(issued[0].key.id, OPERATOR)
    world.clock.advance(10)
    world.auth.authenticator.review(held)
    named = [f"user:{name}" for name in ("password", "scopes", "disabled", "removed")]
    assert sorted(forgotten) == sorted([*named, f"key:{issued[0].key.id}", held[7].id])
    with pytest.raises(Unauthenticated):
        authenticate(None, issued[0].secret)


def test_what_is_remembered_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials_module, "CREDENTIAL_CACHE_ENTRIES_MAX", 3)
    keys = [new_key(world) for _ in range(5)]
    authenticator = world.auth.authenticator
    for key in keys:
        authenticator.authenticate(None, key)
    assert [authenticator.cached(None, key) is not None for key in keys] == [False, False, True, True, True]


def test_the_use_of_a_key_is_noted_to_the_minute_and_off_the_requests_way(world: World) -> None:
    key = new_key(world)
    authenticator, first_use = world.auth.authenticator, world.clock.now_us()
    authenticator.authenticate(None, key)
    assert world.accounts.keys()[0].last_used_us is None
    authenticator.save_usage()
    assert world.accounts.keys()[0].last_used_us == first_use
    world.clock.advance(59)
    authenticator.authenticate(None, key)
    authenticator.save_usage()
    assert world.accounts.keys()[0].last_used_us == first_use
    world.clock.advance(CREDENTIAL_CACHE_SECONDS)
    authenticator.authenticate(None, key)
    assert world.auth.administration.keys()[0].last_used_us == world.clock.now_us()


def test_noting_the_use_of_a_key_never_brings_a_revoked_one_back(world: World) -> None:
    key = new_key(world)
    other = world.another_process().authenticator
    other.authenticate(None, key)
    world.auth.administration.revoke_key(world.accounts.keys()[0].id, OPERATOR)
    other.save_usage()
    assert world.accounts.keys() == []


def test_uses_that_could_not_be_noted_are_noted_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [new_key(world) for _ in range(3)]
    for key in keys:
        world.auth.authenticator.authenticate(None, key)
    touch, calls = world.accounts.touch_key, 0

    def failing_once(key_id: str, used_us: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Unavailable("The disk is full.", code="disk_full")
        touch(key_id, used_us)

    monkeypatch.setattr(world.accounts, "touch_key", failing_once)
    with pytest.raises(Unavailable):
        world.auth.authenticator.save_usage()
    world.auth.authenticator.save_usage()
    assert calls == 4
    noted = world.accounts.keys()
    assert [key.last_used_us for key in noted] == [world.clock.now_us()] * 3


def test_a_scope_that_is_missing_is_named() -> None:
    credential = Credential("key:1", "key", "k", frozenset({"admin"}), 10)
    require(credential, "admin")
    require(credential, None)
    with pytest.raises(Forbidden, match="'read'"):
        require(credential, "read")


# --- tickets ------------------------------------------------------------------------------------------------------


def test_a_ticket_stands_for_its_credential_once(world: World) -> None:
    credential = world.auth.authenticator.authenticate(None, API_KEY_WS)
    ticket = world.auth.tickets.issue(credential)
    assert world.auth.tickets.redeem(ticket) == credential
    with pytest.raises(Unauthenticated):
        world.auth.tickets.redeem(ticket)


def test_a_ticket_ends_after_half_a_minute(world: World) -> None:
    credential = world.auth.authenticator.authenticate(None, API_KEY_WS)
    early, late = world.auth.tickets.issue(credential), world.auth.tickets.issue(credential)
    world.clock.advance(29.9)
    assert world.auth.tickets.redeem(early) == credential
    world.clock.advance(0.1)
    with pytest.raises(Unauthenticated):
        world.auth.tickets.redeem(late)


@pytest.mark.parametrize("ticket", ["", "x", "\ud800", "é"])
def test_what_is_no_ticket_is_refused(world: World, ticket: str) -> None:
    with pytest.raises(Unauthenticated):
        world.auth.tickets.redeem(ticket)


def test_a_ticket_dies_with_the_key_it_was_issued_for(world: World) -> None:
    credential = world.auth.authenticator.authenticate(None, new_key(world, "live"))
    ticket = world.auth.tickets.issue(credential)
    world.auth.administration.revoke_key(credential.id.removeprefix("key:"), OPERATOR)
    with pytest.raises(Unauthenticated):
        world.auth.tickets.redeem(ticket)


def test_tickets_that_wait_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "WS_TICKETS_MAX", 3)
    credential = world.auth.authenticator.authenticate(None, API_KEY_WS)
    issued = [world.auth.tickets.issue(credential) for _ in range(5)]
    good = 0
    for ticket in issued:
        try:
            world.auth.tickets.redeem(ticket)
        except Unauthenticated:
            continue
        good += 1
    assert good == 3


# --- the gate -----------------------------------------------------------------------------------------------------


def test_the_gate_admits_at_once_only_who_is_remembered(world: World) -> None:
    gate, key = world.auth.gate, new_key(world, "ingest")
    assert gate.admit_now("ingest", None, key) is None
    admitted = gate.admit("ingest", None, key, "192.0.2.1")
    assert gate.admit_now("ingest", None, key) == admitted
    assert admitted.rate is None
    with pytest.raises(Forbidden):
        gate.admit_now("read", None, key)
    with pytest.raises(Unauthenticated):
        gate.admit_now("read", None, None)


def test_the_gate_limits_requests_by_credential() -> None:
    world = make_world(AuthSettings(api_key=API_KEY, api_key_ws=API_KEY_WS, requests_per_minute=2))
    for client_ip in ("192.0.2.1", "192.0.2.2"):
        admitted = world.auth.gate.admit("read", None, API_KEY, client_ip)
        assert admitted.rate is not None
    with pytest.raises(RateLimited):
        world.auth.gate.admit_now("read", None, API_KEY)
    world.auth.gate.admit("live", None, API_KEY_WS, "192.0.2.1")
    world.clock.advance(60)
    assert world.auth.gate.admit("read", None, API_KEY, "192.0.2.1").rate is not None
    world.database.close()


def test_the_gate_limits_refused_credentials_by_client_and_not_the_good_ones(world: World) -> None:
    gate = world.auth.gate
    for number in range(CREDENTIAL_FAILURES_PER_MINUTE_PER_IP):
        with pytest.raises(Unauthenticated):
            gate.admit("read", None, f"sk_1_{number}", "192.0.2.1")
    with pytest.raises(RateLimited):
        gate.admit("read", None, "sk_1_x", "192.0.2.1")
    assert gate.admit("read", None, API_KEY, "192.0.2.1").credential.id == "static:api_key"
    with pytest.raises(Unauthenticated):
        gate.admit("read", None, "sk_1_x", "192.0.2.2")
    world.clock.advance(60)
    with pytest.raises(Unauthenticated):
        gate.admit("read", None, "sk_1_x", "192.0.2.1")
