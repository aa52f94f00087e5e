"""Password hashing, and the passwords and secrets that are refused."""

from __future__ import annotations

import dataclasses
import threading

import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST, RFC_9106_LOW_MEMORY

from sensorkeep.auth import passwords as passwords_module
from sensorkeep.auth.passwords import Passwords, refuse_weak_password, refuse_weak_secret
from sensorkeep.errors import BadConfig, Corrupt, InvalidInput, Unavailable
from sensorkeep.limits import PASSWORD_CHARS_MAX


def test_a_password_fits_its_hash_and_no_other_does() -> None:
    passwords = Passwords(CHEAPEST)
    kept = passwords.hash("correct horse")
    assert passwords.verify(kept, "correct horse")
    assert not passwords.verify(kept, "correct horsf")
    assert not passwords.verify(kept, "")
    assert "correct" not in kept


def test_hashes_use_the_rfc_9106_profile_by_default() -> None:
    assert Passwords().hash("x").startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_the_same_password_never_has_the_same_hash_twice() -> None:
    passwords = Passwords(CHEAPEST)
    assert passwords.hash("correct horse") != passwords.hash("correct horse")


def test_accents_fit_however_they_were_composed() -> None:
    passwords = Passwords(CHEAPEST)
    assert passwords.verify(passwords.hash("caf\u00e9 da manh\u00e3"), "cafe\u0301 da manha\u0303")


def test_text_that_is_no_unicode_is_refused_and_not_fatal() -> None:
    passwords = Passwords(CHEAPEST)
    assert not passwords.verify(passwords.hash("correct horse"), "\ud800")


def test_an_unknown_user_costs_the_work_of_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[str] = []
    verify = PasswordHasher.verify

    def spy(self: PasswordHasher, kept: str, password: bytes) -> bool:
        costs.append(kept.split("$")[3])
        return verify(self, kept, password)

    monkeypatch.setattr(PasswordHasher, "verify", spy)
    parameters = dataclasses.replace(CHEAPEST, time_cost=2, memory_cost=64)
    passwords = Passwords(parameters)
    kept = passwords.hash("another horse")
    monkeypatch.delattr(PasswordHasher, "hash")
    assert not passwords.verify(None, "correct horse")
    assert not passwords.verify(kept, "correct horse")
    assert costs == ["m=64,t=2,p=1"] * 2


def test_a_hash_with_other_parameters_is_outdated_and_still_verifies() -> None:
    old = Passwords(CHEAPEST).hash("correct horse")
    passwords = Passwords(RFC_9106_LOW_MEMORY)
    assert passwords.is_outdated(old)
    assert passwords.verify(old, "correct horse")
    assert not Passwords(CHEAPEST).is_outdated(old)


def test_a_damaged_hash_is_reported_as_such() -> None:
    with pytest.raises(Corrupt):
        Passwords(CHEAPEST).verify("no hash at all", "correct horse")


def test_who_waits_too_long_for_a_turn_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords_module, "PASSWORD_WAIT_SECONDS", 0.01)
    passwords = Passwords(CHEAPEST)
    entered, leave = threading.Event(), threading.Event()
    hash_really = PasswordHasher.hash

    def slow(self: PasswordHasher, password: str | bytes) -> str:
        entered.set()
        assert leave.wait(10)
        return hash_really(self, password)

    monkeypatch.setattr(PasswordHasher, "hash", slow)
    busy = threading.Thread(target=passwords.hash, args=("correct horse",))
    busy.start()
    try:
        assert entered.wait(10)
        with pytest.raises(Unavailable) as caught:
            passwords.verify(None, "correct horse")
    finally:
        leave.set()
        busy.join(10)
    assert caught.value.retry_after_seconds
    assert not passwords.verify(None, "correct horse")


@pytest.mark.parametrize("password", ["admin123", "ADMIN123", "Password123", "short7!", "aaaaaaaaaaaa", "maria-jose"])
def test_weak_passwords_are_refused_outside_demo_mode(password: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        refuse_weak_password(password, "Maria-Jose", demo=False)
    assert caught.value.code == "invalid_fields"
    assert password not in caught.value.detail
    refuse_weak_password(password, "Maria-Jose", demo=True)


@pytest.mark.parametrize("password", ["", "x" * (PASSWORD_CHARS_MAX + 1)])
def test_empty_and_endless_passwords_are_refused_in_demo_mode_too(password: str) -> None:
    with pytest.raises(InvalidInput):
        refuse_weak_password(password, "maria", demo=True)


@pytest.mark.parametrize(
    "secret", ["fifteen-chars-x", "sua_chave_http_muito_secreta_e_longa_aqui", "1234567890123456", "a" * 40]
)
def test_weak_secrets_stop_the_start_and_name_their_setting(secret: str) -> None:
    with pytest.raises(BadConfig, match=r"^API_KEY: ") as caught:
        refuse_weak_secret("API_KEY", secret, demo=False)
    assert secret not in caught.value.detail
    refuse_weak_secret("API_KEY", secret, demo=True)


def test_an_empty_secret_is_refused_in_demo_mode_too() -> None:
    with pytest.raises(BadConfig):
        refuse_weak_secret("API_KEY", "", demo=True)


def test_good_passwords_and_secrets_pass() -> None:
    refuse_weak_password("correct horse", "maria", demo=False)
    refuse_weak_secret("API_KEY", "sixteen-chars-xy", demo=False)
