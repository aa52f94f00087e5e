"""An installation moved from the embedded stores to the distributed ones, and back, is the same installation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from archive_world import (
    SENDER,
    START_US,
    History,
    answers,
    assert_same,
    bring_in,
    empty_pipeline,
    export,
    installation_of,
    payloads,
    tables,
    write_readings,
)

from sensorkeep.app.archive import open_installation
from sensorkeep.app.migrating import upgrade_schemas
from sensorkeep.archive.installation import Installation
from sensorkeep.catalog.base import AuditEntry
from sensorkeep.catalog.inventory import CatalogInventory
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import ManualClock
from sensorkeep.config import load_config
from sensorkeep.errors import Conflict
from sensorkeep.model import Equipment, external_uuid

pytestmark = pytest.mark.distributed


@pytest.fixture
def distributed(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The settings of a new distributed installation, migrated; they are in the environment."""
    for name in [name for name in os.environ if name.startswith("SENSORKEEP_TEST_")]:
        monkeypatch.delenv(name)  # of the run; no setting has such a name
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SENSORKEEP_ADMIN_PASSWORD", "the first start's 1")
    upgrade_schemas(load_config())
    return services


@contextmanager
def opened() -> Iterator[Installation]:
    """The distributed installation of the environment."""
    with open_installation(load_config(), existing=True) as installation:
        yield installation


@pytest.mark.parametrize("seed", [1, 2])
def test_to_the_distributed_stores_and_back_every_reading_rollup_and_row_is_kept(
    tmp_path: Path, distributed: dict[str, str], seed: int
) -> None:
    print(f"seed {seed}")
    history = History(tmp_path / "source", seed).run()
    now_us = history.clock.now_us()
    before = answers(history.pipeline.store, now_us)
    original = history.installation()
    export(original, tmp_path / "archive")
    with opened() as installation:
        assert bring_in(tmp_path / "archive", installation) is False
        assert_same(before, answers(installation.store, now_us))
        assert tables(installation) == tables(original)
        assert payloads(installation) == payloads(original)
        assert installation.accounting() == original.accounting()
        again = export(installation, tmp_path / "again")
        assert again.accounting == original.accounting()
    with empty_pipeline(tmp_path / "back", ManualClock(now_us)) as pipeline:
        bring_in(tmp_path / "again", installation_of(pipeline))
        assert_same(before, answers(pipeline.store, now_us))
        assert tables(installation_of(pipeline)) == tables(original)
        assert payloads(installation_of(pipeline)) == payloads(original)
    history.pipeline.close()


def test_an_interrupted_import_into_the_distributed_stores_is_gone_on_with(
    tmp_path: Path, distributed: dict[str, str]
) -> None:
    history = History(tmp_path / "source", 3).run()
    now_us = history.clock.now_us()
    export(history.installation(), tmp_path / "archive")
    payload = sorted((tmp_path / "archive" / "payloads").rglob("*.gz"))[-1]
    content = payload.read_bytes()
    payload.write_bytes(b"")
    with opened() as installation, pytest.raises(Exception, match=payload.name):
        bring_in(tmp_path / "archive", installation)
    payload.write_bytes(content)
    with opened() as installation:
        assert bring_in(tmp_path / "archive", installation) is True
        assert_same(answers(history.pipeline.store, now_us), answers(installation.store, now_us))
        assert tables(installation) == tables(history.installation())
        with pytest.raises(Conflict, match="in use"):
            bring_in(tmp_path / "archive", installation)
    history.pipeline.close()


def test_what_comes_after_the_move_gets_numbers_of_its_own(tmp_path: Path, distributed: dict[str, str]) -> None:
    history = History(tmp_path / "source", 3)
    registry = CatalogRegistry(history.pipeline.database)
    entries = [AuditEntry(at_us=i, actor="ana", action="act", subject="s", client_ip="10.0.0.1") for i in range(4)]
    for entry in entries[:3]:
        registry.audit(entry)
    export(history.installation(), tmp_path / "archive")
    history.pipeline.close()
    with opened() as installation:
        bring_in(tmp_path / "archive", installation)
        moved = CatalogRegistry(installation.database)
        moved.audit(entries[3])
        assert moved.audit_log(10) == entries[::-1]


def test_texts_that_postgresql_cannot_hold_come_in_with_a_substitute(
    tmp_path: Path, distributed: dict[str, str]
) -> None:
    with empty_pipeline(tmp_path / "source", ManualClock(START_US)) as pipeline:
        body = b'{"sensor_id":"n","values":{"t":1},"status":"a\\u0000b","timestamp":"2026-02-17T00:00:00Z"}'
        pipeline.acceptor.readings(body, SENDER)
        equipment = Equipment(uuid=external_uuid("n"), name="c\x00d")
        pipeline.inventory.describe([equipment], [])
        pipeline.worker.round()
        pipeline.worker.round()
        export(installation_of(pipeline), tmp_path / "archive")
    with opened() as installation:
        bring_in(tmp_path / "archive", installation)
        assert CatalogInventory(installation.database).equipment("n").name == "c\N{REPLACEMENT CHARACTER}d"
        found = installation.store.read_raw([external_uuid("n/t")], 0, 2 * START_US, 10)
        assert found["status"].to_pylist() == ["a\N{REPLACEMENT CHARACTER}b"]


def test_distributed_stores_in_use_take_no_archive(tmp_path: Path, distributed: dict[str, str]) -> None:
    history = History(tmp_path / "source", 3)
    export(history.installation(), tmp_path / "archive")
    history.pipeline.close()
    with opened() as installation:
        write_readings(installation.store, 5)
        with pytest.raises(Conflict, match="in use"):
            bring_in(tmp_path / "archive", installation)
