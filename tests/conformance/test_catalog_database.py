"""What the catalog's database promises: transactions, durability settings, and what its errors mean."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from catalog_databases import EVERY, fresh_database, opened

from sensorkeep.catalog.database import Database, open_database
from sensorkeep.errors import BadConfig, Corrupt, Unavailable


@pytest.fixture(params=EVERY)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as database:
        yield database


def insert(connection: sa.Connection, name: str) -> None:
    connection.exec_driver_sql(f"INSERT INTO secrets (name, value) VALUES ('{name}', 'x')")


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.exec_driver_sql("SELECT name FROM secrets ORDER BY name").scalars())


@pytest.mark.parametrize("relaxed", [False, True])
def test_an_exception_undoes_the_whole_transaction(database: Database, relaxed: bool) -> None:
    def fail() -> None:
        with database.write(relaxed=relaxed) as connection:
            insert(connection, "lost")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.write(relaxed=relaxed) as connection:
        insert(connection, "kept")
    assert names(database) == ["kept"]


def test_writers_in_many_threads_all_succeed(database: Database) -> None:
    def write(number: int) -> None:
        for i in range(20):
            with database.write(relaxed=bool(i % 2)) as connection:
                insert(connection, f"{number}-{i}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(database)) == 120


def test_a_database_that_was_closed_is_unavailable(database: Database) -> None:
    database.check()
    database.close()
    database.close()
    for use in (database.check, lambda: names(database)):
        with pytest.raises(Unavailable):
            use()


def test_two_connections_of_a_file_see_each_others_commits(tmp_path: Path) -> None:
    with fresh_database("sqlite-file", tmp_path) as one, opened("sqlite-file", tmp_path) as other:
        with one.write() as connection:
            insert(connection, "a")
        with other.write(relaxed=True) as connection:
            insert(connection, "b")
        assert names(one) == names(other) == ["a", "b"]


def test_writers_in_two_processes_wait_for_each_other(tmp_path: Path) -> None:
    with fresh_database("sqlite-file", tmp_path) as one, opened("sqlite-file", tmp_path) as other:

        def write(database: Database, number: int) -> None:
            for i in range(50):
                with database.write(relaxed=bool(i % 2)) as connection:
                    insert(connection, f"{number}-{i}")

        threads = [
            threading.Thread(target=write, args=(database, number)) for number, database in enumerate((one, other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(names(one)) == 100


def test_databases_in_memory_are_apart(tmp_path: Path) -> None:
    with fresh_database("sqlite-memory", tmp_path) as one, fresh_database("sqlite-memory", tmp_path) as other:
        with one.write() as connection:
            insert(connection, "a")
        assert names(other) == []


def test_writes_are_synced_unless_relaxed(tmp_path: Path) -> None:
    with fresh_database("sqlite-file", tmp_path) as database:
        levels = []
        for relaxed in (False, True):
            with database.write(relaxed=relaxed) as connection:
                levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
                assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert levels == [2, 1]


def test_a_full_disk_is_told_apart_and_passes(tmp_path: Path) -> None:
    with fresh_database("sqlite-file", tmp_path) as database:
        # SQLite raises the same error for a full disk as for its own page limit.
        with database.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(Unavailable) as caught, database.write() as connection:
            connection.exec_driver_sql("INSERT INTO secrets VALUES ('big', hex(zeroblob(1000000)))")
        assert caught.value.code == "disk_full"
        with database.write() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
            insert(connection, "small")
        assert names(database) == ["small"]


def test_a_damaged_file_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(Corrupt):
        open_database(f"sqlite:///{tmp_path}/catalog.db")


def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        open_database(f"sqlite:///{tmp_path}/none/catalog.db")
    assert caught.value.code == "dependency_down"


def test_a_database_locked_by_another_process_is_unavailable(tmp_path: Path) -> None:
    with fresh_database("sqlite-file", tmp_path) as database:
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000
        other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        durable = database._durable
        assert durable is not None
        driver = durable.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA busy_timeout = 1")
        with pytest.raises(Unavailable) as caught, database.write():
            pass
        assert caught.value.code == "dependency_down"
        other.execute("ROLLBACK")
        other.close()
        with database.write() as connection:
            insert(connection, "after")


@pytest.mark.parametrize("url", ["mysql://x/y", "not a url", "oracle+none://x"])
def test_a_url_that_cannot_be_used_is_a_bad_config(url: str) -> None:
    with pytest.raises(BadConfig):
        open_database(url)
