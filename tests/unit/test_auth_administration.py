"""Changing users while another process changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from auth_world import OPERATOR, PASSWORD, World, make_world

from sensorkeep.auth.administration import Actor, Administration
from sensorkeep.errors import Conflict, NotFound


@pytest.fixture
def world() -> Iterator[World]:
    made = make_world()
    yield made
    made.database.close()


Between = Callable[[Callable[[], object]], Administration]


@pytest.fixture
def between(world: World, monkeypatch: pytest.MonkeyPatch) -> Between:
    """An administration that looks, and before it acts another process does something."""

    def meanwhile(act: Callable[[], object]) -> Administration:
        slow = world.another_process().administration
        audit = slow.audit

        def audit_after(actor: Actor, action: str, subject: str) -> None:
            act()
            audit(actor, action, subject)

        monkeypatch.setattr(slow, "audit", audit_after)
        return slow

    return meanwhile


def test_a_change_undoes_nothing_that_another_process_changed_meanwhile(world: World, between: Between) -> None:
    administration = world.auth.administration
    for name in ("eve", "bob"):
        administration.add_user(name, PASSWORD, ["read"], OPERATOR)
    slow = between(lambda: administration.change_user("eve", OPERATOR, disabled=True))
    assert slow.change_user("eve", OPERATOR, scopes=["read", "live"]).disabled
    slow = between(lambda: administration.remove_user("bob", OPERATOR))
    with pytest.raises(NotFound):
        slow.change_user("bob", OPERATOR, scopes=["live"])
    assert world.accounts.user("bob") is None
    slow = between(lambda: administration.add_user("bob", PASSWORD, ["read"], OPERATOR))
    with pytest.raises(Conflict):
        slow.add_user("bob", "another good one 77", ["admin"], OPERATOR)
    assert world.access_token("bob")


def test_administrators_do_not_remove_each_other(world: World, between: Between) -> None:
    administration = world.auth.administration
    ways: list[Callable[[Administration], object]] = [
        lambda slow: slow.remove_user("admin", OPERATOR),
        lambda slow: slow.change_user("admin", OPERATOR, disabled=True),
        lambda slow: slow.change_user("admin", OPERATOR, scopes=["read"]),
    ]
    for number, leave in enumerate(ways):
        second = f"second{number}"
        administration.add_user(second, PASSWORD, ["admin"], OPERATOR)
        slow = between(lambda second=second: administration.remove_user(second, OPERATOR))  # type: ignore[misc]
        with pytest.raises(Conflict):
            leave(slow)
    assert [(user.username, user.disabled) for user in world.accounts.users()] == [("admin", False)]


def test_keeping_a_password_anew_undoes_no_change_and_brings_no_user_back(world: World) -> None:
    administration, other = world.auth.administration, world.another_process().administration
    administration.add_user("eve", PASSWORD, ["read"], OPERATOR)
    eve = world.accounts.user("eve")
    assert eve is not None
    other.change_user("eve", OPERATOR, disabled=True)
    administration.rehash(eve, PASSWORD)
    renewed = world.accounts.user("eve")
    assert renewed is not None
    assert renewed.disabled
    other.change_user("eve", OPERATOR, password="another good one 77")
    assert administration.rehash(renewed, PASSWORD) == renewed
    changed = world.accounts.user("eve")
    assert changed is not None
    assert world.auth.passwords.verify(changed.password_hash, "another good one 77")
    other.remove_user("eve", OPERATOR)
    administration.rehash(changed, "another good one 77")
    assert world.accounts.user("eve") is None
