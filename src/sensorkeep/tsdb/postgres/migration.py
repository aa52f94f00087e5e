"""The tables of the store in PostgreSQL, and the way to this version of them."""

from __future__ import annotations

import psycopg

from sensorkeep import rollup
from sensorkeep.errors import BadConfig
from sensorkeep.limits import POSTGRES_POLICY_DAYS_MAX
from sensorkeep.tsdb.postgres.engine import Engine, Session
from sensorkeep.tsdb.postgres.statements import statement

HEAD = "0001"
"""The newest revision."""

_VERSION_MIN = 150_000
"""PostgreSQL 15."""
_LOCK = "SELECT pg_advisory_lock(7363282, 4)"
_UNLOCK = "SELECT pg_advisory_unlock(7363282, 4)"
_EXTENSION = """
SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'timescaledb'
"""


def upgrade(url: str, raw_retention_days: int) -> None:
    """Bring the tables to this version. Idempotent; two at a time wait for each other.

    Where TimescaleDB can be had, a new store is made on it: `raw_retention_days` (0: for ever) bounds how far back
    its own refresh reaches. A store stays on what it was made on. Raises BadConfig, Unavailable.
    """
    engine = Engine(url)
    try:
        with engine.session() as session:
            if session.info.server_version < _VERSION_MIN:
                raise BadConfig("SENSORKEEP_TSDB_URL: PostgreSQL 15 or newer is needed")
            session.execute(_LOCK)
            try:
                if _revision(session) is None:
                    _create(session, raw_retention_days)
            finally:
                if not session.closed:
                    session.execute(_UNLOCK)
        require_head(engine)
    finally:
        engine.close()


def status(url: str) -> tuple[str | None, str]:
    """(revision of the tables, None where there are none; revision this version needs). Raises Unavailable."""
    engine = Engine(url)
    try:
        with engine.session() as session:
            return _revision(session), HEAD
    finally:
        engine.close()


def require_head(engine: Engine) -> str | None:
    """The schema that TimescaleDB lives in, None where the store is without it.

    Raises BadConfig where the tables are not at this version, or the extension that they were made with is gone.
    """
    with engine.session() as session:
        found = _revision(session)
        if found != HEAD:
            raise BadConfig(
                f"the time series store's schema is at {found or 'nothing'}, this version needs {HEAD}; run:"
                " sensorkeep migrate upgrade"
            )
        ((timescale,),) = session.execute("SELECT timescale FROM telemetry.marks").fetchall()
        if not timescale:
            return None
        extension = _extension(session)
        if extension is None:
            raise BadConfig("the time series store was made on TimescaleDB, which is no longer in its database")
        return extension


def _revision(session: Session) -> str | None:
    ((there,),) = session.execute("SELECT to_regclass('telemetry.marks') IS NOT NULL").fetchall()
    if not there:
        return None
    ((revision,),) = session.execute("SELECT revision FROM telemetry.marks").fetchall()
    return str(revision)


def _create(session: Session, raw_retention_days: int) -> None:
    extension = _offered_extension(session)
    with session.transaction():
        session.execute(statement("r0001"))
        if extension is None:
            session.execute(statement("readings_plain"))
        else:
            _create_on_timescale(session, extension, raw_retention_days)
        made = (HEAD, extension is not None)
        session.execute("INSERT INTO telemetry.marks (revision, timescale) VALUES (%s, %s)", made)


def _create_on_timescale(session: Session, extension: str, raw_retention_days: int) -> None:
    session.execute(statement("readings_timescale", schema=extension))
    grid = "ARRAY[" + ", ".join(repr(probability) for probability in rollup.DAY_PROBABILITIES) + "]"
    session.execute(statement("hourly_aggregate", schema=extension))
    session.execute(statement("daily_aggregate", schema=extension, grid=grid))
    kept_days = raw_retention_days or POSTGRES_POLICY_DAYS_MAX + 1
    # Three days at least: a policy of whole days needs two, and leaves the present one out.
    start_days = max(3, min(POSTGRES_POLICY_DAYS_MAX, kept_days - 1))
    session.execute(statement("policies", schema=extension, start=str(start_days)))


def _offered_extension(session: Session) -> str | None:
    """The schema of TimescaleDB, made where it is installed and this user may; None where it cannot be had, or comes
    without the parts under its own licence, which aggregates need."""
    if _extension(session) is None:
        # Where the server has not loaded its library, creating it would end the connection.
        if not _setting(session, "timescaledb.disable_load"):
            return None
        try:
            session.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        except (psycopg.ProgrammingError, psycopg.NotSupportedError):
            return None
    return _extension(session) if _setting(session, "timescaledb.license") == "timescale" else None


def _extension(session: Session) -> str | None:
    found = session.execute(_EXTENSION).fetchall()
    return str(found[0][0]) if found else None


def _setting(session: Session, name: str) -> str | None:
    ((value,),) = session.execute("SELECT current_setting(%s, true)", (name,)).fetchall()
    return None if value is None else str(value)
