"""What the store on PostgreSQL does when the server fails, refuses, hangs, or is not what it expects."""

from __future__ import annotations

import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from tsdb_world import (
    FOREVER_US,
    MANY,
    NOON_US,
    SHARED,
    UUIDS,
    buckets,
    postgres_database,
    values,
    whole,
    write_of,
)

from sensorkeep.clock import HOUR_US, MINUTE_US, ManualClock
from sensorkeep.errors import BadConfig, Conflict, Corrupt, Poisoned, SensorkeepError, Unavailable
from sensorkeep.model import Counts
from sensorkeep.tsdb.base import Settled
from sensorkeep.tsdb.postgres import PostgresStore, engine, migration, rows, writing
from sensorkeep.tsdb.postgres.engine import Engine, meaning
from sensorkeep.tsdb.postgres.statements import statement
from services import POSTGRESQL_URL, TIMESCALE_URL, address, drop_database, make_database, new_name
from services.postgresql import PostgreSQL

pytestmark = pytest.mark.distributed

DEADLINE_SECONDS = 60.0
PASSWORD = "not-to-be-seen-anywhere"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_US)


@pytest.fixture(params=[str(kind.values[0]) for kind in SHARED])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with the tables of the store."""
    with postgres_database(request.param) as made:
        yield made


@pytest.fixture
def store(url: str, clock: ManualClock) -> Iterator[PostgresStore]:
    made = PostgresStore(url, clock=clock, raw_retention_days=30)
    yield made
    made.close()


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """A server of our own, to be killed and halted."""
    with PostgreSQL(tmp_path_factory.mktemp("postgresql")) as running:
        yield running


@pytest.fixture
def own(postgresql: PostgreSQL, clock: ManualClock) -> Iterator[PostgresStore]:
    """A store on it."""
    url = make_database(postgresql.url)
    migration.upgrade(url)
    made = PostgresStore(url, clock=clock, raw_retention_days=30)
    yield made
    made.close()
    drop_database(postgresql.url, url)


def until_it_works(act: Callable[[], Any]) -> Any:
    """Try until the store can."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return act()
        except Unavailable:
            assert time.monotonic() < deadline, "it does not recover"
            time.sleep(0.05)


# --- outages ----------------------------------------------------------------------------------------------------------


def test_nothing_acknowledged_is_lost_or_doubled_when_the_server_is_killed_while_it_is_written_to(
    own: PostgresStore, postgresql: PostgreSQL, clock: ManualClock
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    acknowledged: list[int] = []
    failures: list[BaseException] = []
    ending = threading.Event()

    def write() -> None:
        number = 0
        try:
            while not ending.is_set():
                moment_us = NOON_US + number * MINUTE_US
                rows_ = [(sensor, moment_us - number % 5 * HOUR_US, float(number)) for sensor in range(3)]
                (settled,) = until_it_works(lambda: own.write([write_of(f"batch-{number}", *rows_)]))  # noqa: B023
                assert settled.counts.total == 3
                acknowledged.append(number)
                number += 1
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failures.append(error)

    def keep() -> None:
        while not ending.wait(0.01):
            until_it_works(lambda: own.maintain(clock.now_us()))

    threads = [threading.Thread(target=work) for work in (write, keep)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        wanted = len(acknowledged) + source.randrange(5, 25)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(acknowledged) < wanted and time.monotonic() < deadline and not failures:
            time.sleep(0.005)
        postgresql.kill()
        with pytest.raises(Unavailable) as raised:
            own.status()
        assert raised.value.code == "dependency_down"
        postgresql.start()
    ending.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert not failures, failures[0]
    found = values(own)
    assert sorted({int(value or 0) for _, _, value in found}) == acknowledged
    assert len(found) == 3 * len(acknowledged)
    assert sum(row["count"] for row in buckets(own)) == len(found)
    again = own.write([write_of("batch-0", (0, NOON_US, -1.0))])
    assert again == [Settled("batch-0", Counts(stored=3))]


def test_a_server_that_hangs_holds_nobody_up_for_ever(
    own: PostgresStore, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write([write_of("a", (0, NOON_US, 1.0))])
    assert values(own) == [(0, NOON_US, 1.0)]
    for name in ("POSTGRES_CONNECT_SECONDS_MAX", "POSTGRES_STATEMENT_SECONDS_MAX", "POSTGRES_ANSWER_GRACE_SECONDS"):
        monkeypatch.setattr(engine, name, 1)
    monkeypatch.setattr(engine.Session, "patience_seconds", 1)
    assert postgresql.process is not None
    with own._engine.session(0) as session:
        processes = [psutil.Process(postgresql.process.pid)]
        processes += processes[0].children()  # they are in sessions of their own
        for process in processes:
            process.suspend()
        try:
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
            for act in (own.status, lambda: own.write([write_of("b", (0, NOON_US, 2.0))]), lambda: values(own)):
                began = time.monotonic()
                with pytest.raises(Unavailable) as raised:
                    act()
                assert raised.value.code == "dependency_down"
                assert time.monotonic() - began < 20
        finally:
            for process in processes:
                process.resume()
    until_it_works(own.status)
    assert until_it_works(lambda: own.write([write_of("b", (0, NOON_US, 2.0))])) == [Settled("b", Counts(updated=1))]


def test_connections_that_the_server_ends_are_made_anew(store: PostgresStore, url: str) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0))])
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sensorkeep'"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(ending + " AND datname = current_database()")
    assert until_it_works(lambda: values(store)) == [(0, NOON_US, 1.0)]


def test_a_database_that_was_made_anew_is_not_taken_for_the_old_one(url: str, store: PostgresStore) -> None:
    """Restored from an older backup, say: numbers of sensors, and days, that are remembered are not those in it."""
    store.write([write_of("a", (0, NOON_US, 1.0), (1, NOON_US + 90 * HOUR_US, 1.0))])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA telemetry CASCADE")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sensorkeep'"
            " AND datname = current_database()"
        )
    migration.upgrade(url)
    until_it_works(store.status)
    assert store.write([write_of("b", (3, NOON_US, 3.0))]) == [Settled("b", Counts(stored=1))]
    assert store.write([write_of("a", (0, NOON_US, 1.0))]) == [Settled("a", Counts(stored=1))]
    assert values(store) == [(0, NOON_US, 1.0), (3, NOON_US, 3.0)]


@pytest.mark.parametrize("broken", ["rows.Target._mark", "writing._save_counts", "rows.copy_in"])
def test_a_write_that_fails_midway_changes_nothing_and_can_be_repeated(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    store.write([write_of("a", (0, NOON_US, 1.0))])
    before = (values(store), buckets(store))
    failing = write_of("b", (0, NOON_US, 2.0), (3, NOON_US + 24 * HOUR_US, 1.0), (0, NOON_US - 40 * HOUR_US, 6.0))

    def fail(*_: object, **__: object) -> None:
        raise Unavailable("no room", code="disk_full")

    module, _, name = broken.partition(".")
    with monkeypatch.context() as patch:
        patch.setattr(f"{ {'rows': rows, 'writing': writing}[module].__name__ }.{name}", fail)
        with pytest.raises(Unavailable) as raised:
            store.write([failing])
    assert raised.value.code == "disk_full"
    assert (values(store), buckets(store)) == before
    assert store.write([failing]) == [Settled("b", Counts(stored=2, updated=1))]


def test_two_transactions_that_wait_for_each_other_are_both_done_in_the_end(url: str, store: PostgresStore) -> None:
    """The store takes its locks in order; whoever does not is its victim, or makes it try again."""
    store.write([write_of("a", (0, NOON_US, 1.0), (1, NOON_US, 1.0))])
    with psycopg.connect(url) as other:
        other.execute("SET deadlock_timeout = '100s'")
        other.execute("UPDATE telemetry.readings SET battery = 1 WHERE series = 2")
        writing_ = threading.Thread(
            target=lambda: store.write([write_of("b", (0, NOON_US, 2.0), (1, NOON_US, 2.0))]), name="writes"
        )
        writing_.start()
        _wait_for_a_lock(url)
        other.execute("UPDATE telemetry.readings SET battery = 1 WHERE series = 1")
        other.commit()
    writing_.join(DEADLINE_SECONDS)
    assert not writing_.is_alive()
    assert values(store) == [(0, NOON_US, 2.0), (1, NOON_US, 2.0)]


def _wait_for_a_lock(url: str) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    deadline = time.monotonic() + DEADLINE_SECONDS
    with psycopg.connect(url, autocommit=True) as connection:
        while not connection.execute(waiting).fetchall():
            assert time.monotonic() < deadline
            time.sleep(0.01)


# --- what errors mean -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kind", "code"),
    [
        ("53100", Unavailable, "disk_full"),
        ("57P01", Unavailable, "dependency_down"),
        ("53300", Unavailable, "dependency_down"),
        ("53200", Unavailable, "dependency_down"),
        ("57014", Unavailable, "dependency_down"),
        ("25006", Unavailable, "dependency_down"),
        ("42501", Unavailable, "dependency_down"),
        ("42P01", Unavailable, "dependency_down"),
        ("XX001", Corrupt, "corrupt"),
        ("22021", Poisoned, "poisoned"),
        ("23505", Conflict, "conflict"),
    ],
)
def test_errors_of_the_server_become_ours(
    postgresql: PostgreSQL, state: str, kind: type[SensorkeepError], code: str
) -> None:
    pool = Engine(postgresql.url)
    with pytest.raises(kind) as raised, pool.session() as session:
        session.execute(f"DO $$ BEGIN RAISE EXCEPTION 'it broke' USING ERRCODE = '{state}'; END $$")
    assert raised.value.code == code
    assert "it broke" in raised.value.detail
    pool.close()


def test_mistakes_of_ours_stay_what_they_are(postgresql: PostgreSQL) -> None:
    pool = Engine(postgresql.url)
    with pytest.raises(psycopg.errors.SyntaxError), pool.session() as session:
        session.execute("SELEKT 1")
    pool.close()
    mistake = psycopg.errors.UndefinedFunction("no such function")
    assert meaning(mistake) is mistake


def test_a_closed_store_is_unavailable(store: PostgresStore) -> None:
    store.close()
    for act in (store.status, lambda: store.write([write_of("a", (0, NOON_US, 1.0))]), lambda: values(store)):
        with pytest.raises(Unavailable):
            act()
    store.close()


# --- the start --------------------------------------------------------------------------------------------------------


def with_user(url: str, user: str, password: str, database: str | None = None) -> str:
    """The URL with another user, and perhaps another database."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.rpartition("@")[2].partition("/")
    return f"{scheme}://{user}:{password}@{host}/{database or path}"


@pytest.fixture
def database(postgresql: PostgreSQL) -> Iterator[str]:
    """An empty database."""
    made = make_database(postgresql.url)
    yield made
    drop_database(postgresql.url, made)


@pytest.fixture
def user(postgresql: PostgreSQL, database: str) -> Iterator[str]:
    """A user without any right but to connect, who needs a password."""
    name = new_name("somebody").replace("-", "_")
    hba = postgresql._data / "pg_hba.conf"
    shutil.copy(hba, hba.with_suffix(".before"))
    hba.write_text(f"host all {name} 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
        connection.execute("SELECT pg_reload_conf()")
    yield name
    shutil.copy(hba.with_suffix(".before"), hba)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {name} CASCADE")
    drop_database(postgresql.url, database)
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute(f"DROP USER {name}")


def refusal(url: str, clock: ManualClock) -> str:
    """What a start says."""
    with pytest.raises(BadConfig) as raised:
        PostgresStore(url, clock=clock, raw_retention_days=30)
    said = f"{raised.value} {raised.value.__cause__} {raised.getrepr(style='short')}"
    assert PASSWORD not in said
    return str(raised.value)


def test_a_start_without_the_tables_says_what_to_run(database: str, clock: ManualClock) -> None:
    assert "sensorkeep migrate upgrade" in refusal(database, clock)
    assert migration.status(database) == (None, migration.HEAD)


def test_a_start_with_newer_tables_is_refused(database: str, clock: ManualClock) -> None:
    migration.upgrade(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE telemetry.marks SET revision = '9999'")
    assert "9999" in refusal(database, clock)
    with pytest.raises(BadConfig, match="newer"):
        migration.upgrade(database)


def test_a_server_that_cannot_be_reached_or_a_wrong_password_stops_the_start(
    postgresql: PostgreSQL, database: str, user: str, clock: ManualClock
) -> None:
    assert "connection" in refusal(f"postgresql://somebody:{PASSWORD}@127.0.0.1:1/nothing", clock)
    wrong = with_user(database, user, "wrong")
    assert "authentication failed" in refusal(wrong, clock)
    assert "does not exist" in refusal(with_user(database, user, PASSWORD, "nowhere"), clock)
    for not_a_url in (f"postgresql://{PASSWORD}@[::1", f"postgresql://host/base?sslmode=require&{PASSWORD}=1"):
        assert "SENSORKEEP_TSDB_URL" in refusal(not_a_url, clock)


def test_missing_privileges_are_told_at_the_start(database: str, user: str, clock: ManualClock) -> None:
    url = with_user(database, user, PASSWORD)
    with pytest.raises(BadConfig, match="may not do what is needed"):
        migration.upgrade(url)
    migration.upgrade(database)
    assert "may not do what is needed" in refusal(url, clock)


@pytest.mark.parametrize("kind", [str(kind.values[0]) for kind in SHARED])
def test_whoever_owns_the_database_needs_no_other_right(kind: str, clock: ManualClock) -> None:
    admin_url = address(TIMESCALE_URL if kind == "timescaledb" else POSTGRESQL_URL)
    url, name = make_database(admin_url), new_name("owner").replace("-", "_")
    try:
        with psycopg.connect(admin_url, autocommit=True) as connection:
            connection.execute(f"CREATE USER {name} PASSWORD '{PASSWORD}'")
            connection.execute(f'ALTER DATABASE "{url.rpartition("/")[2]}" OWNER TO {name}')
        own_url = with_user(url, name, PASSWORD)
        migration.upgrade(own_url)
        assert _is_timescale(own_url) is (kind == "timescaledb")
        _live(own_url, clock)
    finally:
        drop_database(admin_url, url)
        with psycopg.connect(admin_url, autocommit=True) as connection:
            connection.execute(f"DROP USER {name}")


def _live(url: str, clock: ManualClock) -> None:
    """Write, correct, roll up, seal, merge and read."""
    store = PostgresStore(url, clock=clock, raw_retention_days=2)
    store.write([write_of("a", (0, NOON_US, 1.0), (0, NOON_US + 30 * HOUR_US, 2.0))])
    store.maintain(clock.now_us())
    store.write([write_of("b", (0, NOON_US, 3.0))])
    clock.advance(9 * 24 * 3600)
    for _ in range(10):
        store.maintain(clock.now_us())
    assert values(store) == []
    store.write([write_of("c", (0, NOON_US + 1, 4.0))])
    assert [row["sum"] for row in buckets(store, "day")] == [7.0, 2.0]
    assert not store.status().empty
    store.close()


# --- migration --------------------------------------------------------------------------------------------------------

STRUCTURE = """
SELECT kind, name, detail FROM (
    SELECT 'relation' AS kind, relname::TEXT AS name, relkind::TEXT AS detail FROM pg_class
    WHERE relnamespace = 'telemetry'::REGNAMESPACE
    UNION ALL
    SELECT 'column', relname || '.' || attname, format_type(atttypid, atttypmod) || attnotnull || attnum
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'telemetry'::REGNAMESPACE AND attnum > 0
    UNION ALL
    SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'telemetry'
    UNION ALL
    SELECT 'view', viewname, definition FROM pg_views WHERE schemaname = 'telemetry'
    UNION ALL
    SELECT 'function', proname || '(' || pg_get_function_identity_arguments(oid) || ')', prosrc
    FROM pg_proc WHERE pronamespace = 'telemetry'::REGNAMESPACE
    UNION ALL
    SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'telemetry'::REGNAMESPACE
) AS structure
ORDER BY 1, 2, 3
"""


def structure(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(STRUCTURE).fetchall()


@pytest.fixture(params=[str(kind.values[0]) for kind in SHARED])
def empty(request: pytest.FixtureRequest) -> Iterator[str]:
    admin_url = address(TIMESCALE_URL if request.param == "timescaledb" else POSTGRESQL_URL)
    made = make_database(admin_url)
    yield made
    drop_database(admin_url, made)


def test_tables_made_fresh_equal_migrated_ones(empty: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revision by revision, as the releases came, with a second run of each in between."""
    revisions = migration.REVISIONS
    for count in range(1, len(revisions) + 1):
        known = dict(list(revisions.items())[:count])
        with monkeypatch.context() as patch:
            patch.setattr(migration, "REVISIONS", known)
            patch.setattr(migration, "HEAD", list(known)[-1])
            migration.upgrade(empty)
            migration.upgrade(empty)
            assert migration.status(empty) == (list(known)[-1], list(known)[-1])
    if (_is_timescale(empty), _is_timescale(url)) in ((True, True), (False, False)):
        assert structure(empty) == structure(url)
    assert migration.status(empty) == (migration.HEAD, migration.HEAD)


def _is_timescale(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return bool(connection.execute("SELECT timescale FROM telemetry.marks").fetchall()[0][0])


def test_many_that_migrate_at_once_do_it_once(empty: str, clock: ManualClock) -> None:
    failures: list[BaseException] = []

    def upgrade() -> None:
        try:
            migration.upgrade(empty)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failures.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert not failures, failures[0]
    store = PostgresStore(empty, clock=clock, raw_retention_days=30)
    assert store.status().empty
    store.write([write_of("a", (0, NOON_US, 1.0))])
    migration.upgrade(empty)
    assert whole(store.read_raw(UUIDS, 0, FOREVER_US, MANY)["time"]) == [NOON_US]
    store.close()


def test_a_migration_that_fails_leaves_nothing(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = statement("r0001_plain") + "; SELECT 1 / 0"
    with monkeypatch.context() as patch:
        patch.setattr(
            "sensorkeep.tsdb.postgres.migration.statement",
            lambda name: broken if name == "r0001_plain" else statement(name),
        )
        with pytest.raises(SensorkeepError):
            migration.upgrade(database)
    assert migration.status(database) == (None, migration.HEAD)
    migration.upgrade(database)


def test_the_documentation_names_every_table_and_view(url: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "TIMESCALEDB.md").read_text("utf-8")
    names = (
        "SELECT relname FROM pg_class WHERE relnamespace = 'telemetry'::REGNAMESPACE"
        " AND relkind IN ('r', 'p', 'v') AND NOT relispartition"
    )
    with psycopg.connect(url) as connection:
        for (name,) in connection.execute(names).fetchall():
            assert re.search(rf"`(telemetry\.)?{name}`", text), name
