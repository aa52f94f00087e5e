"""A whole installation moved with an archive is the same installation: readings, rollups, catalog, totals, payloads."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import sqlalchemy as sa
from archive_world import (
    KEY_SECRET,
    SENDER,
    Answers,
    History,
    answers,
    assert_same,
    bring_in,
    empty_pipeline,
    export,
    installation_of,
    payloads,
    quiet,
    tables,
    write_readings,
)

from sensorkeep.archive import readings, rollups
from sensorkeep.archive.catalog_tables import begin_import
from sensorkeep.archive.files import Archive
from sensorkeep.archive.installation import Installation
from sensorkeep.archive.layout import MANIFEST, Manifest
from sensorkeep.auth.credentials import secret_sha256
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.base import User
from sensorkeep.catalog.idempotency import CatalogIdempotencyKeys
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import ManualClock
from sensorkeep.errors import Conflict, Corrupt, InvalidInput, NotFound, SensorkeepError, Unavailable
from sensorkeep.testing.faulty import Crashed, Fault, Faults, faulty
from sensorkeep.testing.pipeline import Pipeline

CRASH_SEEDS = range(3)


class Source(NamedTuple):
    """An installation at rest, what it answers, and its archive. Nobody changes it."""

    history: History
    archive: Path
    manifest: Manifest
    answers: Answers


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    folder = tmp_path_factory.mktemp("moved")
    history = History(folder / "source", seed=1).run()
    manifest = export(history.installation(), folder / "archive")
    before = answers(history.pipeline.store, history.clock.now_us())
    yield Source(history, folder / "archive", manifest, before)
    history.pipeline.close()


@pytest.fixture
def clock(source: Source) -> ManualClock:
    """A clock of the target's own, at the time of the source."""
    return ManualClock(source.history.clock.now_us())


@pytest.fixture
def target(tmp_path: Path, clock: ManualClock) -> Iterator[Pipeline]:
    with empty_pipeline(tmp_path / "target", clock) as pipeline:
        yield pipeline


@pytest.fixture
def damaged(source: Source, tmp_path: Path) -> Path:
    """A copy of the archive to damage."""
    return Path(shutil.copytree(source.archive, tmp_path / "damaged"))


def assert_moved(source: Source, target: Installation) -> None:
    """The target is what the source is."""
    assert_same(source.answers, answers(target.store, target.clock.now_us()))
    original = source.history.installation()
    assert tables(target) == tables(original)
    assert payloads(target) == payloads(original)
    assert target.accounting() == original.accounting() == source.manifest.accounting


def assert_untouched(target: Pipeline) -> None:
    """Nothing was brought in, and nothing was begun."""
    assert {name for name, rows in tables(installation_of(target)).items() if rows} <= {"ledger"}
    assert target.store.status().raw_readings == 0
    assert target.store.days() == {}
    assert list(target.objects.list()) == []


def test_the_history_holds_what_makes_moving_hard(source: Source) -> None:
    """Otherwise the tests below would prove little."""
    accounting = source.manifest.accounting
    assert min(accounting.stored, accounting.updated, accounting.duplicate, accounting.quarantined) > 0
    assert source.manifest.readings > 500
    assert source.manifest.rollups("hour") > 100
    approximate = source.answers["sealed hour"]["approximate"].to_pylist()
    assert True in approximate
    assert False in approximate
    filled = {name for name, rows in tables(source.history.installation()).items() if rows}
    assert len(filled) >= 14, filled


def test_a_moved_installation_is_the_same(source: Source, target: Pipeline) -> None:
    resumed = bring_in(source.archive, installation_of(target))
    assert resumed is False
    assert_moved(source, installation_of(target))


def test_a_moved_installation_exports_the_same_archive(source: Source, target: Pipeline, tmp_path: Path) -> None:
    bring_in(source.archive, installation_of(target))
    again = export(installation_of(target), tmp_path / "again")
    assert again.files == source.manifest.files
    assert again.accounting == source.manifest.accounting


@pytest.mark.parametrize("seed", [2, 3])
def test_after_the_move_both_go_on_alike(tmp_path: Path, seed: int) -> None:
    """Late readings of days without raw merge, corrections meet what they correct, what is due is rolled up, replays
    find their payloads."""
    print(f"seed {seed}")
    left = History(tmp_path / "source", seed).run()
    export(left.installation(), tmp_path / "archive")
    with empty_pipeline(tmp_path / "target", ManualClock(left.clock.now_us())) as pipeline:
        bring_in(tmp_path / "archive", installation_of(pipeline))
        pipeline.restart()
        right = left.twin(pipeline)
        for history in (left, right):
            history.be_quiet()
            history.late_readings_of_sealed_days()
            history.replay()
            history.go_on(hours=30)
        assert left.clock.now_us() == right.clock.now_us()
        assert_same(
            answers(left.pipeline.store, left.clock.now_us()), answers(right.pipeline.store, right.clock.now_us())
        )
        totals = left.installation().accounting()
        assert right.installation().accounting() == totals
        assert totals.quarantined < totals.received
        assert tables(right.installation())["latest_readings"] == tables(left.installation())["latest_readings"]
        assert left.pipeline.store.days() == right.pipeline.store.days()
    left.pipeline.close()


def test_users_keys_and_answers_to_idempotency_keys_work_after_the_move(source: Source, target: Pipeline) -> None:
    bring_in(source.archive, installation_of(target))
    accounts = CatalogAccounts(target.database, target.clock)
    key = accounts.key_by_secret(secret_sha256(KEY_SECRET))
    assert key is not None
    assert (key.name, key.max_ws_connections) == ("gateway", 3)
    assert [user.username for user in accounts.users()] == ["ana", "téo"]
    assert accounts.use_refresh_token("token") is not None
    known = CatalogIdempotencyKeys(target.database).begin("key:k1", "first", target.clock.now_us())
    assert known is not None
    assert known[1].body == b'{"a":"\xc3\xa9"}\x00\xff'
    registry = CatalogRegistry(target.database)
    assert registry.reserve_ids(1) == 1001, "ids go on where they were"
    assert registry.secret("signing", "other") == "s" * 40


def test_payloads_can_be_left_out(source: Source, target: Pipeline, tmp_path: Path) -> None:
    manifest = export(source.history.installation(), tmp_path / "archive", with_payloads=False)
    assert manifest.payload_bytes is None
    assert not (tmp_path / "archive" / "payloads").exists()
    bring_in(tmp_path / "archive", installation_of(target))
    assert payloads(installation_of(target)) == {}
    assert_same(source.answers, answers(target.store, target.clock.now_us()))


@pytest.mark.parametrize(("sensors", "page", "buckets"), [(2, 7, 5), (1, 1000, 1000), (100, 13, 1)])
def test_small_pages_and_groups_of_sensors_give_the_same(
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: Pipeline,
    sensors: int,
    page: int,
    buckets: int,
) -> None:
    monkeypatch.setattr(readings, "ARCHIVE_SENSORS_AT_ONCE", sensors)
    monkeypatch.setattr(readings, "ARCHIVE_PAGE_READINGS", page)
    monkeypatch.setattr(rollups, "_AT_ONCE", {"hour": buckets, "day": buckets})
    manifest = export(source.history.installation(), tmp_path / "archive")
    assert manifest.readings == source.manifest.readings
    bring_in(tmp_path / "archive", installation_of(target))
    assert_moved(source, installation_of(target))


def test_an_installation_without_anything_moves_too(clock: ManualClock, tmp_path: Path, target: Pipeline) -> None:
    with empty_pipeline(tmp_path / "new", clock) as new:
        manifest = export(installation_of(new), tmp_path / "archive")
    assert (manifest.readings, manifest.rollups("hour"), manifest.payloads) == (0, 0, 0)
    assert bring_in(tmp_path / "archive", installation_of(target)) is False
    assert bring_in(tmp_path / "archive", installation_of(target)) is False, "still empty"


# --- what fails in the middle ---


@pytest.mark.parametrize("seed", CRASH_SEEDS)
def test_an_import_that_dies_anywhere_can_be_repeated(
    source: Source, target: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    print(f"seed {seed}")
    monkeypatch.setattr(readings, "ARCHIVE_PAGE_READINGS", 40)
    monkeypatch.setattr(rollups, "_AT_ONCE", {"hour": 40, "day": 40})
    export(source.history.installation(), tmp_path / "archive")
    rates = {Fault.FAIL_BEFORE: 0.01, Fault.FAIL_AFTER: 0.01, Fault.CRASH_BEFORE: 0.01, Fault.CRASH_AFTER: 0.01}
    chance = random.Random(seed)
    store_faults = Faults(chance, rates, ("write", "settle", "import_buckets"))
    object_faults = Faults(chance, rates, ("put",))
    resumed = []
    for attempt in range(9):
        store_faults.active = object_faults.active = attempt < 8
        whole = installation_of(target)
        fragile = Installation(
            whole.database,
            faulty(whole.store, store_faults),
            faulty(whole.object_store, object_faults),
            whole.queue,
            whole.clock,
        )
        try:
            resumed.append(bring_in(tmp_path / "archive", fragile))
            break
        except (Unavailable, Crashed):
            resumed.append(False)
            assert tables(whole)["sensors"] == [], "no catalog before all the rest is in"
            target.restart()
    assert resumed[-1] is True
    assert len(resumed) > 2
    assert_moved(source, installation_of(target))


def test_an_import_whose_catalog_cannot_be_written_leaves_none_of_it(
    source: Source, target: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with target.database.write() as connection:
        connection.execute(
            sa.text(
                "CREATE TRIGGER refuse BEFORE INSERT ON users WHEN NEW.username <> 'ana'"
                " BEGIN SELECT RAISE(FAIL, 'no'); END"
            )
        )
    with pytest.raises(SensorkeepError):
        bring_in(source.archive, installation_of(target))
    assert tables(installation_of(target))["users"] == []
    assert tables(installation_of(target))["batches"] == []
    with target.database.write() as connection:
        connection.execute(sa.text("DROP TRIGGER refuse"))
    assert bring_in(source.archive, installation_of(target)) is True
    assert_moved(source, installation_of(target))


def test_an_unfinished_import_is_finished_by_its_own_archive_only(
    source: Source, target: Pipeline, tmp_path: Path
) -> None:
    begin_import(target.database, "another archive")
    with pytest.raises(Conflict, match="another archive"):
        bring_in(source.archive, installation_of(target))
    with pytest.raises(Conflict, match="unfinished"):
        export(installation_of(target), tmp_path / "archive")


@pytest.mark.parametrize("limit_bytes", [0, 100, 5_000])
def test_an_export_without_room_leaves_nothing(source: Source, tmp_path: Path, limit_bytes: int) -> None:
    """A limit on file sizes stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(Unavailable) as raised:
            export(source.history.installation(), tmp_path / "archive")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.code == "disk_full"
    assert not (tmp_path / "archive").exists()


# --- what is refused ---


def test_an_archive_is_not_written_over_anything(source: Source, tmp_path: Path) -> None:
    installation = source.history.installation()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for directory in (source.archive, tmp_path / "file", tmp_path / "full"):
        with pytest.raises(Conflict) as raised:
            export(installation, directory)
        assert raised.value.code == "already_exists"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export(installation, tmp_path / "empty")
    assert (tmp_path / "empty" / MANIFEST).exists()


def test_an_archive_is_for_its_owner_alone(source: Source) -> None:
    for path in source.archive.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert source.archive.stat().st_mode & 0o077 == 0


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: list[Callable[[Path], None]] = [flip_a_bit, cut, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_nothing_is_brought_in(
    source: Source, target: Pipeline, damaged: Path, damage: Callable[[Path], None]
) -> None:
    for file in source.manifest.files:
        path = damaged / file.path
        kept = path.read_bytes()
        damage(path)
        with pytest.raises(Corrupt, match=file.path):
            bring_in(damaged, installation_of(target))
        path.write_bytes(kept)
    assert_untouched(target)
    bring_in(damaged, installation_of(target))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_payload_stops_the_import_which_goes_on_once_it_is_mended(
    source: Source, target: Pipeline, damaged: Path, damage: Callable[[Path], None]
) -> None:
    path = sorted((damaged / "payloads").rglob("*.gz"))[3]
    kept = path.read_bytes()
    damage(path)
    with pytest.raises(Corrupt, match=path.name):
        bring_in(damaged, installation_of(target))
    assert path.name not in " ".join(payloads(installation_of(target)))
    path.write_bytes(kept)
    assert bring_in(damaged, installation_of(target)) is True
    assert_moved(source, installation_of(target))


def test_a_directory_without_a_manifest_is_no_archive(target: Pipeline, damaged: Path, tmp_path: Path) -> None:
    (damaged / MANIFEST).unlink()
    for directory in (damaged, tmp_path / "nothing"):
        with pytest.raises(NotFound, match="no manifest"):
            Archive(directory)
    assert_untouched(target)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1}', b'{"format":"tar","format_version":1}', b"\xff"])
def test_a_manifest_that_does_not_read_back_is_damaged(damaged: Path, content: bytes) -> None:
    (damaged / MANIFEST).write_bytes(content)
    with pytest.raises(Corrupt):
        Archive(damaged)


@pytest.mark.parametrize(("name", "value"), [("format_version", 2), ("catalog_revision", "9999")])
def test_an_archive_of_another_version_is_refused(target: Pipeline, damaged: Path, name: str, value: object) -> None:
    manifest = msgspec.json.decode((damaged / MANIFEST).read_bytes())
    (damaged / MANIFEST).write_bytes(msgspec.json.encode(manifest | {name: value}))
    with pytest.raises(InvalidInput) as raised:
        bring_in(damaged, installation_of(target))
    assert raised.value.code == "wrong_version"
    assert_untouched(target)


def test_an_installation_in_use_takes_no_archive(source: Source, target: Pipeline) -> None:
    write_readings(target.store, 3)
    with pytest.raises(Conflict, match="about 3 readings"):
        bring_in(source.archive, installation_of(target))


def test_an_installation_with_payloads_or_claims_takes_no_archive(source: Source, target: Pipeline) -> None:
    target.objects.put("telemetry/mine", iter([b"x"]))
    target.acceptor.readings(b'{"sensor_id":"s","values":{"t":1}}', SENDER)
    with pytest.raises(Conflict, match="1 claims in the queue, payloads in the object store"):
        bring_in(source.archive, installation_of(target))


def test_a_catalog_in_use_takes_no_archive(source: Source, target: Pipeline) -> None:
    accounts = CatalogAccounts(target.database, target.clock)
    for name in ("admin", "second"):
        accounts.put_user(User(name, "hash", frozenset({"admin"})))
    with pytest.raises(Conflict, match="1 users"):
        bring_in(source.archive, installation_of(target))
    accounts.delete_user("second")
    bring_in(source.archive, installation_of(target))
    assert [user.username for user in accounts.users()] == ["ana", "téo"], "what a first start made is replaced"
    with pytest.raises(Conflict, match="readings and their rollups"):
        bring_in(source.archive, installation_of(target))


def test_an_installation_with_readings_on_their_way_is_not_exported(
    tmp_path: Path, clock: ManualClock, target: Pipeline
) -> None:
    target.acceptor.readings(b'{"sensor_id":"s","values":{"t":1}}', SENDER)
    with pytest.raises(Conflict, match="start the server") as raised:
        export(installation_of(target), tmp_path / "archive")
    assert "1 claims wait" in raised.value.detail
    assert not (tmp_path / "archive").exists()
    target.worker.round()
    target.worker.round()
    assert export(installation_of(target), tmp_path / "archive").readings == 1


def test_an_installation_with_staged_readings_is_not_exported(tmp_path: Path, target: Pipeline) -> None:
    write_readings(target.store, 1)
    write_readings(target.store, 1, hours_ago=9)
    with pytest.raises(Conflict, match="1 late readings"):
        export(installation_of(target), tmp_path / "archive")


def test_readings_that_come_in_meanwhile_spoil_the_export(
    tmp_path: Path, target: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = installation_of(target)
    exported = readings.ReadingsExport.run

    def meanwhile(*arguments: Any) -> int:
        target.acceptor.readings(b'{"sensor_id":"s","values":{"t":1}}', SENDER)
        return exported(*arguments)

    monkeypatch.setattr(readings.ReadingsExport, "run", meanwhile)
    with pytest.raises(Conflict, match="1 claims wait"):
        export(whole, tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


def test_a_reading_of_no_sensor_in_the_catalog_is_damage(source: Source, target: Pipeline) -> None:
    """As where somebody changed a table and its entry in the manifest."""
    reader = readings.ReadingsImport(target.store, Archive(source.archive), {})
    with pytest.raises(Corrupt, match="not in the catalog"):
        reader.run(quiet)
