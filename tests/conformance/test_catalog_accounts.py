"""What the Accounts of the catalog promise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from catalog_databases import EVERY, KEPT, fresh_database, opened

from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.base import Accounts, ApiKey, RefreshToken, User
from sensorkeep.catalog.database import Database
from sensorkeep.clock import ManualClock
from sensorkeep.errors import Conflict, NotFound

NOW_US = 1_790_000_000_000_000
ADA = User("ada", "$argon2id$1", frozenset({"admin", "read"}))
KEY = ApiKey("k1", "gateway", "a" * 64, frozenset({"ingest"}), NOW_US, expires_us=NOW_US + 5, max_ws_connections=3)


@pytest.fixture(params=EVERY)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as database:
        yield database


@pytest.fixture
def accounts(database: Database) -> CatalogAccounts:
    return CatalogAccounts(database, ManualClock(NOW_US))


def token(token_id: str, family: str = "f1", username: str = "ada", expires_us: int = NOW_US + 100) -> RefreshToken:
    return RefreshToken(token_id, family, username, expires_us)


def test_a_user_reads_back_as_put_and_is_replaced_by_name(accounts: Accounts) -> None:
    accounts.put_user(ADA)
    assert accounts.user("ada") == ADA
    replaced = User("ada", "$argon2id$2", frozenset(), disabled=True)
    accounts.put_user(replaced)
    assert accounts.user("ada") == replaced
    assert accounts.user("Ada") is None


def test_users_are_listed_by_name(accounts: Accounts) -> None:
    for name in ("eve", "ada", "bob"):
        accounts.put_user(User(name, "h", frozenset({"read"})))
    assert [user.username for user in accounts.users()] == ["ada", "bob", "eve"]


def test_a_deleted_user_is_gone_with_its_refresh_tokens(accounts: Accounts) -> None:
    accounts.put_user(ADA)
    accounts.put_refresh_token(token("t1"))
    accounts.put_refresh_token(token("t2", "f2", "bob"))
    accounts.delete_user("ada")
    assert accounts.user("ada") is None
    assert accounts.use_refresh_token("t1") is None
    assert accounts.use_refresh_token("t2") == token("t2", "f2", "bob")


def test_deleting_an_unknown_user_or_key_raises_not_found(accounts: Accounts) -> None:
    with pytest.raises(NotFound):
        accounts.delete_user("nobody")
    with pytest.raises(NotFound):
        accounts.delete_key("none")


def test_a_key_is_found_by_the_hash_of_its_secret_and_replaced_by_id(accounts: Accounts) -> None:
    accounts.put_key(KEY)
    assert accounts.key_by_secret("a" * 64) == KEY
    assert accounts.key_by_secret("b" * 64) is None
    used = ApiKey("k1", "gateway", "a" * 64, frozenset({"ingest", "read"}), NOW_US, last_used_us=NOW_US + 9)
    accounts.put_key(used)
    assert accounts.keys() == [used]


def test_a_touched_key_tells_its_last_use_and_a_deleted_one_does_not_come_back(accounts: Accounts) -> None:
    accounts.put_key(KEY)
    accounts.touch_key("k1", NOW_US + 7)
    (touched,) = accounts.keys()
    assert touched.last_used_us == NOW_US + 7
    accounts.delete_key("k1")
    accounts.touch_key("k1", NOW_US + 8)
    assert accounts.keys() == []


def test_two_keys_cannot_share_a_secret(accounts: Accounts) -> None:
    accounts.put_key(KEY)
    with pytest.raises(Conflict) as caught:
        accounts.put_key(ApiKey("k2", "other", "a" * 64, frozenset(), NOW_US))
    assert caught.value.code == "already_exists"
    assert accounts.keys() == [KEY]


def test_keys_are_listed_newest_first_and_a_deleted_key_is_not_found(accounts: Accounts) -> None:
    for age, name in enumerate("abc"):
        accounts.put_key(ApiKey(name, name, name * 64, frozenset(), NOW_US - age))
    accounts.delete_key("b")
    listed = accounts.keys()
    assert [key.id for key in listed] == ["a", "c"]
    assert accounts.key_by_secret("b" * 64) is None


def test_a_refresh_token_is_returned_once(accounts: Accounts) -> None:
    accounts.put_refresh_token(token("t1"))
    assert accounts.use_refresh_token("t1") == token("t1")
    assert accounts.use_refresh_token("t1") is None
    assert accounts.use_refresh_token("unknown") is None


def test_a_token_for_a_user_who_was_changed_since_it_was_read_is_not_entered(accounts: Accounts) -> None:
    accounts.put_user(ADA)
    assert accounts.put_refresh_token(token("t1"), ADA)
    assert accounts.use_refresh_token("t1") is not None
    accounts.put_user(replace(ADA, scopes=frozenset({"read"})))
    assert accounts.put_refresh_token(token("t2", "f2"), ADA), "the scopes are asked for at each request"
    for change in ({"password_hash": "$argon2id$2"}, {"disabled": True}):
        accounts.put_user(replace(ADA, **change))
        assert not accounts.put_refresh_token(token("t3", "f3"), ADA)
    accounts.delete_user("ada")
    assert not accounts.put_refresh_token(token("t3", "f3"), ADA)
    assert accounts.use_refresh_token("t3") is None


def test_reuse_of_a_spent_token_kills_its_family_and_no_other(accounts: Accounts) -> None:
    for name, family in (("t1", "f1"), ("t2", "f1"), ("t3", "f2")):
        accounts.put_refresh_token(token(name, family))
    assert accounts.use_refresh_token("t1") is not None
    assert accounts.use_refresh_token("t1") is None
    assert accounts.use_refresh_token("t2") is None
    assert accounts.use_refresh_token("t3") is not None


def test_a_token_entered_after_its_family_was_killed_is_dead(accounts: Accounts) -> None:
    accounts.put_refresh_token(token("t1"))
    accounts.use_refresh_token("t1")
    accounts.use_refresh_token("t1")
    accounts.put_refresh_token(token("t2"))
    assert accounts.use_refresh_token("t2") is None


def test_a_successor_is_entered_where_its_token_is_spent_and_only_there(accounts: Accounts) -> None:
    accounts.put_refresh_token(token("t1"))
    assert accounts.use_refresh_token("unknown", token("t0")) is None
    assert accounts.use_refresh_token("t1", token("t2")) is not None
    assert accounts.use_refresh_token("t2") is not None
    assert accounts.use_refresh_token("t0") is None
    accounts.put_refresh_token(token("t3", "f3"))
    with pytest.raises(Conflict):
        accounts.use_refresh_token("t3", token("t1", "f3"))
    assert accounts.use_refresh_token("t3") is not None, "it failed, so nothing was done"


@pytest.mark.parametrize("change", [{"password_hash": "$argon2id$2"}, {"disabled": True}])
def test_another_password_or_being_disabled_ends_all_families_of_the_user(
    accounts: Accounts, change: dict[str, Any]
) -> None:
    for user in (ADA, replace(ADA, username="bob")):
        accounts.put_user(user)
    accounts.put_refresh_token(token("t1", "f1"))
    accounts.put_refresh_token(token("t2", "f2"))
    accounts.put_refresh_token(token("t3", "f3", "bob"))
    assert accounts.change_user("ada", **change) == replace(ADA, **change)
    assert [accounts.use_refresh_token(name) is None for name in ("t1", "t2", "t3")] == [True, True, False]


def test_a_change_touches_what_is_given_and_never_makes_a_user(accounts: Accounts) -> None:
    accounts.put_user(ADA)
    accounts.put_refresh_token(token("t1"))
    assert accounts.change_user("ada") == ADA
    scoped = accounts.change_user("ada", scopes=frozenset({"read"}))
    assert scoped == accounts.user("ada") == replace(ADA, scopes=frozenset({"read"}))
    assert accounts.change_user("ada", disabled=False) == scoped
    assert accounts.use_refresh_token("t1") is not None
    assert not accounts.replace_password_hash("ada", "$argon2id$another", "$argon2id$2")
    assert accounts.replace_password_hash("ada", "$argon2id$1", "$argon2id$2")
    assert accounts.user("ada") == replace(scoped, password_hash="$argon2id$2")
    for keeping in (None, "admin"):
        with pytest.raises(NotFound):
            accounts.change_user("bob", disabled=True, keeping=keeping)
    assert not accounts.replace_password_hash("bob", "$argon2id$1", "$argon2id$2")
    assert [user.username for user in accounts.users()] == ["ada"]


def test_a_user_is_added_once(accounts: Accounts) -> None:
    accounts.add_user(ADA)
    with pytest.raises(Conflict):
        accounts.add_user(replace(ADA, password_hash="$argon2id$2"))
    assert accounts.user("ada") == ADA


def test_the_last_user_who_has_a_scope_keeps_it(accounts: Accounts) -> None:
    for user in (ADA, User("bob", "h", frozenset({"admin"}), disabled=True), User("eve", "h", frozenset({"read"}))):
        accounts.put_user(user)
    acts: list[Callable[[], object]] = [
        lambda: accounts.delete_user("ada", keeping="admin"),
        lambda: accounts.change_user("ada", disabled=True, keeping="admin"),
        lambda: accounts.change_user("ada", scopes=frozenset({"read"}), keeping="admin"),
    ]
    for act in acts:
        with pytest.raises(Conflict):
            act()
    assert accounts.user("ada") == ADA
    accounts.change_user("ada", password_hash="$argon2id$2", scopes=frozenset({"admin"}), keeping="admin")
    accounts.delete_user("eve", keeping="admin")
    accounts.change_user("bob", disabled=False, keeping="admin")
    accounts.delete_user("ada", keeping="admin")
    assert [user.username for user in accounts.users()] == ["bob"]


def test_of_many_threads_that_spend_a_token_exactly_one_wins(accounts: Accounts) -> None:
    accounts.put_refresh_token(token("t1"))
    barrier = threading.Barrier(8)
    answers: list[RefreshToken | None] = []

    def spend() -> None:
        barrier.wait()
        answers.append(accounts.use_refresh_token("t1"))

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert [answer for answer in answers if answer is not None] == [token("t1")]


def test_purge_forgets_expired_tokens_but_never_revives_a_dead_family(accounts: CatalogAccounts) -> None:
    accounts.put_refresh_token(token("old", "f1", expires_us=NOW_US + 1))
    accounts.put_refresh_token(token("dead", "f2", expires_us=NOW_US + 1))
    accounts.use_refresh_token("dead")
    accounts.use_refresh_token("dead")
    accounts.put_refresh_token(token("late", "f2", expires_us=NOW_US + 100))
    accounts.purge(NOW_US + 2)
    assert accounts.use_refresh_token("old") is None
    assert accounts.use_refresh_token("late") is None


@pytest.mark.parametrize("kind", KEPT)
def test_accounts_outlive_the_process(kind: str, tmp_path: Path) -> None:
    with fresh_database(kind, tmp_path) as database:
        accounts = CatalogAccounts(database, ManualClock(NOW_US))
        accounts.put_user(ADA)
        accounts.put_key(KEY)
        accounts.put_refresh_token(token("t1"))
        accounts.use_refresh_token("t1")
    with opened(kind, tmp_path) as database:
        accounts = CatalogAccounts(database, ManualClock(NOW_US))
        assert accounts.users() == [ADA]
        assert accounts.keys() == [KEY]
        assert accounts.use_refresh_token("t1") is None
