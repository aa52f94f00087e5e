"""The first start: the user admin, its password, and the settings that stop it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from argon2.profiles import CHEAPEST

from sensorkeep.auth.administration import Administration, ensure_admin
from sensorkeep.auth.passwords import Passwords
from sensorkeep.auth.scopes import ALL_SCOPES, Scope, known_scopes, user_scopes
from sensorkeep.auth.setup import AuthSettings, open_auth
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.database import Database, open_database
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import IdSource, ManualClock
from sensorkeep.errors import BadConfig, InvalidInput

CLOCK = ManualClock(1_790_000_000_000_000)


@pytest.fixture
def database() -> Iterator[Database]:
    opened = open_database("sqlite://")
    yield opened
    opened.close()


def start(database: Database, password: str | None, demo: bool = False) -> str | None:
    accounts, registry = CatalogAccounts(database, CLOCK), CatalogRegistry(database)
    return ensure_admin(accounts, registry, password, demo, passwords=Passwords(CHEAPEST), clock=CLOCK)


def can_log_in(database: Database, password: str) -> bool:
    user = CatalogAccounts(database, CLOCK).user("admin")
    return user is not None and Passwords(CHEAPEST).verify(user.password_hash, password)


def test_a_password_is_generated_once_and_told_once(database: Database) -> None:
    password = start(database, None)
    assert password is not None
    assert len(password) >= 24
    assert can_log_in(database, password)
    assert start(database, None) is None
    assert start(database, "another good one") is None
    assert can_log_in(database, password)


def test_a_password_that_was_given_is_used_and_not_told(database: Database) -> None:
    assert start(database, "correct horse battery") is None
    assert can_log_in(database, "correct horse battery")


def test_the_first_user_has_every_scope_and_is_in_the_audit_log(database: Database) -> None:
    start(database, None)
    user = CatalogAccounts(database, CLOCK).user("admin")
    assert user is not None
    assert user.scopes == ALL_SCOPES == {"ingest", "read", "live", "admin"}
    entry = CatalogRegistry(database).audit_log(10)[0]
    assert (entry.actor, entry.action, entry.subject) == ("first-start", "user.add", "admin")


@pytest.mark.parametrize("password", ["admin", "admin123", "Password123", "", "1234567"])
def test_a_weak_password_stops_the_start_and_names_the_setting(database: Database, password: str) -> None:
    with pytest.raises(BadConfig, match="SENSORKEEP_ADMIN_PASSWORD"):
        start(database, password)
    assert CatalogAccounts(database, CLOCK).users() == []


def test_demo_mode_takes_the_seeds_password(database: Database) -> None:
    assert start(database, None, demo=True) == "admin123"
    assert can_log_in(database, "admin123")


def open_with(database: Database, **settings: object) -> Administration:
    chosen = AuthSettings(password_parameters=CHEAPEST, **settings)  # type: ignore[arg-type]
    accounts, registry = CatalogAccounts(database, CLOCK), CatalogRegistry(database)
    return open_auth(accounts, registry, CLOCK, IdSource(CLOCK), chosen).administration


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"api_key": "short"}, "API_KEY"),
        ({"api_key_ws": "changemechangeme"}, "API_KEY_WS"),
        ({"secret_key": "short"}, "SECRET_KEY"),
        ({"secret_key": "sixteen-to-31-bytes-xyz"}, "SECRET_KEY"),
        ({"secret_key": "a" * 40}, "SECRET_KEY"),
    ],
    ids=str,
)
def test_weak_settings_stop_the_start_and_are_named(database: Database, settings: dict[str, str], named: str) -> None:
    with pytest.raises(BadConfig, match=named) as caught:
        open_with(database, **settings)
    assert next(iter(settings.values())) not in caught.value.detail


def test_demo_mode_takes_short_keys(database: Database) -> None:
    open_with(database, demo=True, api_key="demo", api_key_ws="demo")


def test_no_scope_implies_another_but_a_user_with_admin_has_all() -> None:
    assert known_scopes([Scope.ADMIN]) == {"admin"}
    assert user_scopes(["admin"]) == ALL_SCOPES
    assert user_scopes(["read", "read"]) == {"read"}
    for names in ([], ["root"], ["read", "root"]):
        with pytest.raises(InvalidInput):
            known_scopes(names)
