"""PostgreSQL and TimescaleDB as their users set them up for telemetry: COPY, a unique index, an hourly rollup.

A server of its own is started where the programs are (`/usr/lib/postgresql/*`, or on the PATH), with TimescaleDB where
its library is beside them. SENSORKEEP_BENCH_POSTGRESQL_URL and SENSORKEEP_BENCH_TIMESCALE_URL name running servers of
this machine instead (superuser; a database is made and dropped).
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from bench.contenders import Contender, Maker
from bench.debian import Missing
from bench.processes import MIB, ProcessTree, Program, free_port
from bench.workload import Load

_DATABASE = "sensorkeep_bench"
_COLUMNS = "(sensor, ts, value, battery, rssi, lqi, battery_voltage)"
_SCHEMA = """
CREATE TABLE readings (
    sensor uuid NOT NULL, ts timestamptz NOT NULL, value double precision, battery real, rssi smallint, lqi smallint,
    battery_voltage real
);
CREATE TABLE hourly (
    sensor uuid, hour timestamptz, samples bigint, total double precision, low double precision, high double precision,
    PRIMARY KEY (sensor, hour)
);
"""
_INCOMING = "CREATE TEMP TABLE incoming (LIKE readings) ON COMMIT DELETE ROWS"
_TAKE_IN = """
WITH taken AS (
    INSERT INTO readings SELECT DISTINCT ON (sensor, ts) * FROM incoming ON CONFLICT (sensor, ts) DO NOTHING
    RETURNING sensor, ts, value
)
"""
_TAKE_IN_AND_ROLL = f"""{_TAKE_IN}
INSERT INTO hourly
SELECT sensor, date_trunc('hour', ts), count(value), sum(value), min(value), max(value) FROM taken GROUP BY 1, 2
ON CONFLICT (sensor, hour) DO UPDATE SET
    samples = hourly.samples + excluded.samples, total = hourly.total + excluded.total,
    low = least(hourly.low, excluded.low), high = greatest(hourly.high, excluded.high)
"""
_AGGREGATE = """
CREATE MATERIALIZED VIEW hourly_aggregate
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT sensor, time_bucket('1 hour', ts) AS hour, count(value), sum(value), min(value), max(value)
FROM readings GROUP BY 1, 2 WITH NO DATA
"""
_SIZE_WITH_AGGREGATE = """
SELECT hypertable_size('readings')
    + hypertable_size(format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)::regclass)
FROM timescaledb_information.continuous_aggregates
"""
_SETTINGS = {
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "max_connections": "20",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timescaledb.telemetry_level": "off",
}


class PostgreSQL(Contender):
    """Plain PostgreSQL: one table, its unique index, and an hourly table kept in the same transaction."""

    name = "postgresql"
    differs = "rollups without percentiles; a reading sent again with another value is left as it was"
    variable = "SENSORKEEP_BENCH_POSTGRESQL_URL"
    timescale = False

    def __init__(self, folder: Path) -> None:
        self._program: Program | None = None
        url = os.environ.get(self.variable)
        if url is None:
            self._program, url = _start(folder, timescale=self.timescale)
        try:
            self._set_up(url)
        except BaseException:
            if self._program:
                self._program.stop()
            raise

    def _set_up(self, url: str) -> None:
        self._admin = _connect_when_ready(url)
        self._admin.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(_DATABASE)))
        self._admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))
        self._parameters = self._admin.info.get_parameters() | {"dbname": _DATABASE}
        self._control = self._connect(autocommit=True)
        self.version = str(self._control.info.server_version // 10_000)
        self.tree = self._program.tree if self._program else _tree_of(self._control)
        self._control.execute(_SCHEMA)
        self._prepare()

    def sender(self) -> Callable[[Load], None]:
        """See Contender: a batch is one transaction."""
        connection = self._connect(autocommit=False)
        connection.execute(_INCOMING)
        connection.commit()
        return lambda load: self._send(connection, load)

    def finish(self) -> None:
        """See Contender."""

    def disk_bytes(self) -> int:
        """See Contender."""
        self._control.execute("VACUUM")
        return self._size()

    def stop(self) -> None:
        """See Contender."""
        if self._program is None:
            self._control.close()
            self._admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(_DATABASE)))
        else:
            self._program.stop()

    def _prepare(self) -> None:
        self._control.execute("CREATE UNIQUE INDEX ON readings (sensor, ts)")

    def _size(self) -> int:
        return _number(self._control, "SELECT pg_total_relation_size('readings') + pg_total_relation_size('hourly')")

    def _send(self, connection: psycopg.Connection, load: Load) -> None:
        with connection.cursor() as cursor:
            with cursor.copy(f"COPY incoming {_COLUMNS} FROM STDIN") as copy:
                for start in range(0, len(load.rows), MIB):
                    copy.write(load.rows[start : start + MIB])
            cursor.execute(_TAKE_IN_AND_ROLL)
        connection.commit()

    def _connect(self, *, autocommit: bool) -> psycopg.Connection:
        parameters: dict[str, Any] = dict(self._parameters)
        return psycopg.connect(**parameters, autocommit=autocommit)


class TimescaleDB(PostgreSQL):
    """A hypertable with its unique index, and an hourly continuous aggregate refreshed when all is in."""

    name = "timescaledb"
    differs = (
        "its hourly aggregate is refreshed once, at the end, and has no percentiles; a reading sent again with another "
        "value is left as it was; not compressed (that takes 15 bytes a reading, and writes to it cost more)"
    )
    variable = "SENSORKEEP_BENCH_TIMESCALE_URL"
    timescale = True

    def finish(self) -> None:
        """See Contender: the aggregate is refreshed over all that is in."""
        self._control.execute("CALL refresh_continuous_aggregate('hourly_aggregate', NULL, NULL)")

    def _prepare(self) -> None:
        self._control.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        found = self._control.execute("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
        self.version = str(found[0]) if found else ""
        self._control.execute("SELECT create_hypertable('readings', 'ts', chunk_time_interval => INTERVAL '1 day')")
        self._control.execute("CREATE UNIQUE INDEX ON readings (sensor, ts)")
        self._control.execute(_AGGREGATE)

    def _send(self, connection: psycopg.Connection, load: Load) -> None:
        with connection.cursor() as cursor:
            with cursor.copy(f"COPY incoming {_COLUMNS} FROM STDIN") as copy:
                for start in range(0, len(load.rows), MIB):
                    copy.write(load.rows[start : start + MIB])
            cursor.execute(
                "INSERT INTO readings SELECT DISTINCT ON (sensor, ts) * FROM incoming ON CONFLICT DO NOTHING"
            )
        connection.commit()

    def _size(self) -> int:
        return _number(self._control, _SIZE_WITH_AGGREGATE)


POSTGRESQL_CONTENDERS: tuple[Maker, ...] = (PostgreSQL, TimescaleDB)


def _connect_when_ready(url: str) -> psycopg.Connection:
    """A connection, once the server has started."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return psycopg.connect(url, autocommit=True)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _number(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _tree_of(connection: psycopg.Connection) -> ProcessTree:
    """The processes of the server behind a connection. Raises Missing where it is on another machine."""
    try:
        postmaster = psutil.Process(connection.info.backend_pid).parent()
    except psutil.NoSuchProcess:
        postmaster = None
    if postmaster is None or not postmaster.name().startswith("postgres"):
        raise Missing("the server of the URL is not on this machine, so its CPU time cannot be read")
    return ProcessTree(postmaster.pid)


def _start(folder: Path, *, timescale: bool) -> tuple[Program, str]:
    """A new server in `folder` and its URL. Raises Missing."""
    programs = _programs(timescale=timescale)
    data, port = folder / "data", free_port()
    user = _as_other_user(folder)
    _run([*user, str(programs / "initdb"), "-D", str(data), "-U", "bench", "-A", "trust", "--no-sync"])
    settings = _SETTINGS | {"port": str(port)} | ({"shared_preload_libraries": "timescaledb"} if timescale else {})
    options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
    program = Program([*user, str(programs / "postgres"), "-D", str(data), *options], folder / "log")
    program.wait_port(port)
    return program, f"postgresql://bench@127.0.0.1:{port}/postgres"


def _programs(*, timescale: bool) -> Path:
    """The folder of initdb and postgres."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (not timescale or (folder.parent / "lib" / "timescaledb.so").exists()):
            return folder
    name = TimescaleDB.variable if timescale else PostgreSQL.variable
    raise Missing(f"there is none in /usr/lib/postgresql or on the PATH; {name} can name a running one")


def _as_other_user(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: the words that begin a command of a user who may."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    if shutil.which("setpriv") is None:
        raise Missing("PostgreSQL refuses to run as root, and there is no setpriv to run it as another user")
    os.chown(folder, user.pw_uid, user.pw_gid)
    folder.chmod(0o755)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _run(command: list[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if answer.returncode:
        raise Missing(f"{command[-1]}: {answer.stderr.strip()[-300:]}")
