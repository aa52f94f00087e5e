"""What the Registry and the IdempotencyKeys of the catalog promise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from catalog_databases import EVERY, KEPT, fresh_database, opened

from sensorkeep.catalog.base import AuditEntry, StoredAnswer
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.idempotency import CatalogIdempotencyKeys
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.errors import Conflict
from sensorkeep.limits import IDEMPOTENCY_CLAIM_SECONDS, IDEMPOTENCY_KEPT_SECONDS

NOW_US = 1_790_000_000_000_000
CLAIM_US = IDEMPOTENCY_CLAIM_SECONDS * 1_000_000
KEPT_US = IDEMPOTENCY_KEPT_SECONDS * 1_000_000
ANSWER = StoredAnswer(status=201, headers={"location": "/x"}, body=b'{"a":"\xc3\xa9"}')
OTHER = StoredAnswer(status=201, headers={}, body=b"{}")


@pytest.fixture(params=EVERY)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as database:
        yield database


@pytest.fixture
def keys(database: Database) -> CatalogIdempotencyKeys:
    return CatalogIdempotencyKeys(database)


def in_threads(count: int, act: Callable[[int], None]) -> None:
    """Run `act(0..count-1)` at the same time."""
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        act(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_ids_are_consecutive_from_one_and_never_repeat(database: Database) -> None:
    registry, second = CatalogRegistry(database), CatalogRegistry(database)
    assert [registry.reserve_ids(3), second.reserve_ids(1), registry.reserve_ids(10)] == [1, 4, 5]


def test_no_id_is_reserved_by_two_threads(database: Database) -> None:
    registry = CatalogRegistry(database)
    reserved: list[int] = []
    in_threads(6, lambda _: reserved.extend(first for first in (registry.reserve_ids(2) for _ in range(10))))
    assert sorted(reserved) == list(range(1, 121, 2))


@pytest.mark.parametrize("kind", KEPT)
def test_ids_and_secrets_outlive_the_process(kind: str, tmp_path: Path) -> None:
    with fresh_database(kind, tmp_path) as database:
        assert CatalogRegistry(database).reserve_ids(100) == 1
        assert CatalogRegistry(database).secret("token", "first") == "first"
    with opened(kind, tmp_path) as database:
        assert CatalogRegistry(database).reserve_ids(1) == 101
        assert CatalogRegistry(database).secret("token", "second") == "first"


def test_a_reservation_of_nothing_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="0"):
        CatalogRegistry(database).reserve_ids(0)


def test_of_many_defaults_for_a_secret_one_wins(database: Database) -> None:
    registry = CatalogRegistry(database)
    seen: list[str] = []
    in_threads(6, lambda number: seen.append(registry.secret("token", f"secret {number}")))
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert registry.secret("other", "x") == "x"


def test_the_audit_log_is_listed_newest_first(database: Database) -> None:
    registry = CatalogRegistry(database)
    entries = [
        AuditEntry(at_us=NOW_US + i // 2, actor="ada", action=f"act {i}", subject="s", client_ip="::1")
        for i in range(5)
    ]
    for entry in entries:
        registry.audit(entry)
    assert registry.audit_log(10) == entries[::-1]
    assert registry.audit_log(2) == [entries[4], entries[3]]
    assert registry.audit_log(10, before_us=NOW_US + 1) == [entries[1], entries[0]]


def test_a_key_is_claimed_once_and_then_answers_with_the_first_answer(keys: CatalogIdempotencyKeys) -> None:
    assert keys.begin("c", "k", NOW_US) is None
    with pytest.raises(Conflict) as caught:
        keys.begin("c", "k", NOW_US + 1)
    assert caught.value.code == "idempotency_in_progress"
    keys.finish("c", "k", "hash", ANSWER)
    assert keys.begin("c", "k", NOW_US + 2) == ("hash", ANSWER)
    assert keys.begin("other", "k", NOW_US) is None
    assert keys.begin("c", "other", NOW_US) is None


def test_an_abandoned_key_is_free_and_a_finished_one_cannot_be_abandoned(keys: CatalogIdempotencyKeys) -> None:
    assert keys.begin("c", "k", NOW_US) is None
    keys.abandon("c", "k")
    assert keys.begin("c", "k", NOW_US) is None
    keys.finish("c", "k", "hash", ANSWER)
    keys.abandon("c", "k")
    assert keys.begin("c", "k", NOW_US) == ("hash", ANSWER)


def test_a_claim_of_a_process_that_died_ends_and_the_answer_given_first_stands(keys: CatalogIdempotencyKeys) -> None:
    assert keys.begin("c", "k", NOW_US) is None
    with pytest.raises(Conflict):
        keys.begin("c", "k", NOW_US + CLAIM_US - 1)
    assert keys.begin("c", "k", NOW_US + CLAIM_US) is None
    with pytest.raises(Conflict):
        keys.begin("c", "k", NOW_US + CLAIM_US + 1)
    keys.finish("c", "k", "hash", ANSWER)
    keys.finish("c", "k", "other", OTHER)
    assert keys.begin("c", "k", NOW_US + CLAIM_US + 2) == ("hash", ANSWER)


def test_an_answer_is_kept_for_its_time_and_no_longer(keys: CatalogIdempotencyKeys) -> None:
    assert keys.begin("c", "k", NOW_US) is None
    keys.finish("c", "k", "hash", ANSWER)
    assert keys.begin("c", "k", NOW_US + KEPT_US - 1) == ("hash", ANSWER)
    assert keys.begin("c", "k", NOW_US + KEPT_US) is None
    keys.finish("c", "k", "new", OTHER)
    assert keys.begin("c", "k", NOW_US + KEPT_US + 1) == ("new", OTHER)


def test_purge_forgets_only_expired_answers(keys: CatalogIdempotencyKeys) -> None:
    for key, begun_us in (("old", NOW_US), ("new", NOW_US + 1)):
        keys.begin("c", key, begun_us)
        keys.finish("c", key, key, ANSWER)
    keys.purge(NOW_US + KEPT_US)
    # Asked at an earlier time, an answer that is still stored would come back.
    assert keys.begin("c", "new", NOW_US + 2) == ("new", ANSWER)
    assert keys.begin("c", "old", NOW_US + 2) is None


def test_of_many_threads_that_begin_a_key_exactly_one_goes_on(keys: CatalogIdempotencyKeys) -> None:
    outcomes: list[str] = []

    def begin(_: int) -> None:
        try:
            outcomes.append("go" if keys.begin("c", "k", NOW_US) is None else "answer")
        except Conflict:
            outcomes.append("wait")

    in_threads(8, begin)
    assert sorted(outcomes) == ["go"] + ["wait"] * 7
