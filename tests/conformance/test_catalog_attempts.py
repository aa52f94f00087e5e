"""What the Attempts of the catalog promise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_databases import EVERY, KEPT, fresh_database, opened

from sensorkeep.catalog.attempts import CatalogAttempts
from sensorkeep.clock import ManualClock
from sensorkeep.limits import GATHER_CLAIMS_MAX, LEDGER_PORTION_ROWS

CLOCK = ManualClock(1_790_000_000_000_000)


@pytest.fixture(params=EVERY)
def attempts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CatalogAttempts]:
    with fresh_database(request.param, tmp_path) as database:
        yield CatalogAttempts(database, CLOCK)


def test_attempts_that_never_end_are_counted_by_batch(attempts: CatalogAttempts) -> None:
    attempts.begin(["a", "b"])
    attempts.begin(["b"])
    assert attempts.unfinished(["a", "b", "c"]) == {"a": 1, "b": 2}


def test_the_end_of_one_forgets_all_of_its_batch_and_no_other(attempts: CatalogAttempts) -> None:
    attempts.begin(["a", "b"])
    attempts.begin(["a"])
    attempts.end(["a", "never begun"])
    assert attempts.unfinished(["a", "b"]) == {"b": 1}
    attempts.begin(["a"])
    assert attempts.unfinished(["a"]) == {"a": 1}


def test_none_and_as_many_as_a_worker_takes_and_more(attempts: CatalogAttempts) -> None:
    attempts.begin([])
    attempts.end([])
    assert attempts.unfinished([]) == {}
    many = [f"{number:05}" for number in range(max(GATHER_CLAIMS_MAX, LEDGER_PORTION_ROWS) + 1)]
    attempts.begin(many)
    assert attempts.unfinished(many) == dict.fromkeys(many, 1)
    attempts.end(many)
    assert attempts.unfinished(many) == {}


@pytest.mark.parametrize("kind", KEPT)
def test_what_was_begun_outlives_the_process(kind: str, tmp_path: Path) -> None:
    with fresh_database(kind, tmp_path) as database:
        CatalogAttempts(database, CLOCK).begin(["a"])
    with opened(kind, tmp_path) as database:
        assert CatalogAttempts(database, CLOCK).unfinished(["a"]) == {"a": 1}
