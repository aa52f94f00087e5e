"""Tokens by RFC 8725: what is refused, and when."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.auth.tokens import ALGORITHM, AUDIENCE, ISSUER, TokenIssuer, password_stamp, signing_secret
from sensorkeep.catalog.database import open_database
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import ManualClock
from sensorkeep.errors import BadConfig, Unauthenticated
from sensorkeep.limits import CLOCK_SKEW_SECONDS

SECRET = "0123456789abcdef-0123456789abcdef"
NOW_SECONDS = 1_790_000_000


def make(access_seconds: int = 900) -> tuple[TokenIssuer, ManualClock]:
    clock = ManualClock(NOW_SECONDS * 1_000_000)
    return TokenIssuer(SECRET, clock, access_seconds, 3600), clock


def good_claims(**changes: Any) -> dict[str, Any]:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "maria",
        "jti": "1",
        "iat": NOW_SECONDS,
        "nbf": NOW_SECONDS,
        "exp": NOW_SECONDS + 60,
        "scope": "read",
        "stamp": "s",
        "family": "f",
    } | changes
    return {name: value for name, value in claims.items() if value is not ...}


def signed(claims: dict[str, Any], typ: str | None = "at+jwt", secret: str = SECRET, **header: Any) -> str:
    # The layer below jwt.encode, which refuses to sign some of what an attacker would.
    return jwt.PyJWS().encode(json.dumps(claims).encode(), secret, ALGORITHM, {"typ": typ, **header})


def encoded(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_an_access_token_tells_what_it_was_issued_with() -> None:
    issuer, _ = make()
    claims = issuer.verify_access(issuer.issue_access("maria", {"read", "live"}, "stamp"))
    assert (claims.username, claims.scopes, claims.stamp) == ("maria", frozenset({"read", "live"}), "stamp")
    assert claims.expires_us == (NOW_SECONDS + 900) * 1_000_000


def test_a_refresh_token_and_its_record_agree() -> None:
    issuer, _ = make()
    token, record = issuer.issue_refresh("maria")
    claims = issuer.verify_refresh(token)
    assert (claims.username, claims.token_id, claims.family) == ("maria", record.token_id, record.family)
    assert record.expires_us == (NOW_SECONDS + 3600) * 1_000_000
    _, successor = issuer.issue_refresh("maria", record.family)
    assert successor.family == record.family
    assert successor.token_id != record.token_id


def test_the_hand_made_token_of_these_tests_is_accepted_when_nothing_is_wrong_with_it() -> None:
    issuer, _ = make()
    assert issuer.verify_access(signed(good_claims())).username == "maria"
    assert issuer.verify_refresh(signed(good_claims(), "rt+jwt")).family == "f"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "another"},
        {"iss": ...},
        {"iss": [ISSUER]},
        {"aud": "another"},
        {"aud": ...},
        {"aud": [AUDIENCE, "another"]},
        {"sub": ...},
        {"sub": 7},
        {"jti": ...},
        {"jti": 7},
        {"exp": ...},
        {"exp": NOW_SECONDS},
        {"exp": "9999999999"},
        {"exp": 9999999999.5},
        {"exp": True},
        {"exp": None},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"nbf": ...},
        {"nbf": NOW_SECONDS + CLOCK_SKEW_SECONDS + 1},
        {"iat": ...},
        {"iat": NOW_SECONDS + CLOCK_SKEW_SECONDS + 1},
        {"scope": ...},
        {"scope": ["read"]},
        {"stamp": ...},
    ],
    ids=str,
)
def test_a_token_with_a_wrong_claim_is_refused(changes: dict[str, Any]) -> None:
    issuer, _ = make()
    with pytest.raises(Unauthenticated):
        issuer.verify_access(signed(good_claims(**changes)))


@pytest.mark.parametrize("typ", ["JWT", "rt+jwt", None, "", "AT+JWT"])
def test_a_token_of_another_type_is_no_access_token(typ: str | None) -> None:
    issuer, _ = make()
    with pytest.raises(Unauthenticated):
        issuer.verify_access(signed(good_claims(), typ))


def test_access_and_refresh_tokens_do_not_stand_for_each_other() -> None:
    issuer, _ = make()
    with pytest.raises(Unauthenticated):
        issuer.verify_access(issuer.issue_refresh("maria")[0])
    with pytest.raises(Unauthenticated):
        issuer.verify_refresh(issuer.issue_access("maria", {"read"}, "s"))


def test_a_token_that_is_not_signed_is_refused() -> None:
    issuer, _ = make()
    for algorithm in ("none", "None", "NONE", ""):
        unsigned = f"{encoded({'alg': algorithm, 'typ': 'at+jwt'})}.{encoded(good_claims())}."
        with pytest.raises(Unauthenticated):
            issuer.verify_access(unsigned)


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_a_token_signed_with_our_secret_by_another_algorithm_is_refused(algorithm: str) -> None:
    long_secret = SECRET * 2
    strict = TokenIssuer(long_secret, ManualClock(NOW_SECONDS * 1_000_000))
    token = jwt.encode(good_claims(), long_secret, algorithm=algorithm, headers={"typ": "at+jwt"})
    with pytest.raises(Unauthenticated):
        strict.verify_access(token)


def test_a_header_that_names_another_algorithm_than_its_signature_is_refused() -> None:
    issuer, _ = make()
    _, payload, signature = signed(good_claims()).split(".")
    for algorithm in ("RS256", "ES256", "none", "HS512"):
        with pytest.raises(Unauthenticated):
            issuer.verify_access(f"{encoded({'alg': algorithm, 'typ': 'at+jwt'})}.{payload}.{signature}")


def test_a_token_of_another_installation_is_refused() -> None:
    issuer, _ = make()
    with pytest.raises(Unauthenticated):
        issuer.verify_access(signed(good_claims(), secret="another-secret-another-secret-xyz"))


def test_a_token_with_an_extension_we_do_not_know_is_refused() -> None:
    issuer, _ = make()
    with pytest.raises(Unauthenticated):
        issuer.verify_access(signed(good_claims(), crit=["exp"], exp=1))
    with pytest.raises(Unauthenticated):
        issuer.verify_access(signed(good_claims(), crit=["b64"], b64=True))


def test_no_change_of_one_character_leaves_a_token_valid() -> None:
    issuer, _ = make()
    token = issuer.issue_access("maria", {"read"}, "s")
    for position in range(len(token)):
        other = "A" if token[position] != "A" else "B"
        with pytest.raises(Unauthenticated):
            issuer.verify_access(token[:position] + other + token[position + 1 :])


def test_a_token_dies_the_second_it_expires_by_our_clock() -> None:
    issuer, clock = make(access_seconds=60)
    token = issuer.issue_access("maria", {"read"}, "s")
    clock.advance(59.9)
    assert issuer.verify_access(token).username == "maria"
    clock.advance(0.1)
    with pytest.raises(Unauthenticated):
        issuer.verify_access(token)


def test_a_gateway_whose_clock_is_a_little_behind_takes_a_fresh_token() -> None:
    issuer, clock = make()
    token = issuer.issue_access("maria", {"read"}, "s")
    clock.advance(-CLOCK_SKEW_SECONDS)
    assert issuer.verify_access(token).username == "maria"
    clock.advance(-1)
    with pytest.raises(Unauthenticated):
        issuer.verify_access(token)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300)))
def test_whatever_is_sent_as_a_token_is_refused_and_never_repeated(token: bytes | str) -> None:
    issuer, _ = make()
    with pytest.raises(Unauthenticated) as caught:
        issuer.verify_access(token)
    assert caught.value.detail == "The token is not valid or has expired."


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_whatever_a_signed_token_holds_it_is_refused_where_it_is_not_ours(value: object) -> None:
    issuer, _ = make()
    for name in ("exp", "iat", "nbf", "aud", "iss", "sub", "jti", "scope"):
        claims = good_claims() | {name: value}
        body = f"{encoded({'alg': ALGORITHM, 'typ': 'at+jwt'})}.{encoded(claims)}"
        signature = jwt.get_algorithm_by_name(ALGORITHM).sign(body.encode(), SECRET.encode())
        try:
            claims_read = issuer.verify_access(f"{body}.{encoded(signature)}")
        except Unauthenticated:
            continue
        assert isinstance(claims_read.username, str)
        assert claims_read.expires_us > NOW_SECONDS * 1_000_000


def test_an_endless_token_is_refused_without_a_look_at_it() -> None:
    issuer, _ = make()
    with pytest.raises(Unauthenticated):
        issuer.verify_access(signed(good_claims(scope="read " * 2000)))


@pytest.mark.parametrize("secret", ["", "x" * 31, "é" * 15])
def test_a_secret_of_fewer_than_32_bytes_cannot_sign(secret: str) -> None:
    with pytest.raises(BadConfig, match="SECRET_KEY"):
        TokenIssuer(secret, ManualClock(0))


def test_the_signing_secret_is_made_once_and_kept() -> None:
    database = open_database("sqlite://")
    registry = CatalogRegistry(database)
    first = signing_secret(registry, None, demo=False)
    assert signing_secret(registry, None, demo=False) == first
    assert len(first.encode()) >= 32
    configured = "a-configured-secret-of-forty-characters!"
    assert signing_secret(registry, configured, demo=False) == configured
    with pytest.raises(BadConfig, match="SECRET_KEY"):
        signing_secret(registry, "short", demo=False)
    database.close()
    other = open_database("sqlite://")
    assert signing_secret(CatalogRegistry(other), None, demo=False) != first
    other.close()


def test_a_password_stamp_follows_the_password_and_tells_nothing_of_it() -> None:
    stamp = password_stamp("$argon2id$a")
    assert stamp == password_stamp("$argon2id$a")
    assert stamp != password_stamp("$argon2id$b")
    assert len(stamp) == 16
