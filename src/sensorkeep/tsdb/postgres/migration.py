"""The tables of the store in PostgreSQL, and the way to this version of them."""

from __future__ import annotations

import psycopg
from psycopg import errors

from sensorkeep import rollup
from sensorkeep.errors import BadConfig, SensorkeepError
from sensorkeep.tsdb.postgres.engine import Engine, Session
from sensorkeep.tsdb.postgres.statements import statement
from sensorkeep.tsdb.sealed import DAY_GRID_INDEXES

REVISIONS: dict[str, tuple[str, ...]] = {
    "0001": ("r0001", "r0001_{kind}", "r0001_views"),
}
"""Every revision, in order, with its statements in postgres_schema.sql; {kind}: plain or timescale."""

HEAD = list(REVISIONS)[-1]
"""The newest revision."""

_VERSION_MIN = 150_000
"""PostgreSQL 15."""
_TIMESCALE_MIN = (2, 19)
"""Older ones cannot refresh an aggregate by force."""
_LOCK = "SELECT pg_advisory_lock(7363282, 4)"
_UNLOCK = "SELECT pg_advisory_unlock(7363282, 4)"
_EXTENSION = """
SELECT nspname, extversion FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
WHERE extname = 'timescaledb'
"""


def upgrade(url: str) -> None:
    """Bring the tables to this version. Idempotent; two at a time wait for each other.

    Where TimescaleDB can be had, a new store is made on it; a store stays on what it was made on. Raises
    BadConfig and Unavailable.
    """
    engine = Engine(url)
    try:
        with engine.session() as session:
            if session.info.server_version < _VERSION_MIN:
                raise BadConfig("SENSORKEEP_TSDB_URL: PostgreSQL 15 or newer is needed")
            session.execute(_LOCK)
            try:
                _upgrade(session)
            finally:
                if not session.closed:
                    session.execute(_UNLOCK)
        require_head(engine)
    except SensorkeepError as error:
        raise _at_start(error) from error
    finally:
        engine.close()


def status(url: str) -> tuple[str | None, str]:
    """(revision of the tables, None where there are none; revision this version needs). Raises Unavailable."""
    engine = Engine(url)
    try:
        with engine.session() as session:
            return _revision(session), HEAD
    except SensorkeepError as error:
        raise _at_start(error) from error
    finally:
        engine.close()


def require_head(engine: Engine) -> str | None:
    """The schema that TimescaleDB is in, None where the store is without it.

    Raises BadConfig where the tables are not at this version, the extension that they were made with is gone, or
    somebody added a refresh policy; Unavailable where the server cannot be reached.
    """
    try:
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
            _require_no_policies(session)
            return extension[0]
    except SensorkeepError as error:
        raise _at_start(error) from error


def _at_start(error: SensorkeepError) -> SensorkeepError:
    """What an error means before anything runs: what a setting has wrong is BadConfig."""
    cause = error.__cause__
    cause = getattr(cause, "orig", None) or cause
    if isinstance(cause, errors.InsufficientPrivilege):
        return BadConfig(
            f"the user of SENSORKEEP_TSDB_URL may not do what is needed ({_said(cause)}): it must own the schema"
            " telemetry, or be allowed to create it in the database"
        )
    if isinstance(cause, psycopg.OperationalError) and cause.sqlstate is None:
        # While a connection is made, the driver has no class of its own for what the server says.
        return BadConfig(f"SENSORKEEP_TSDB_URL: there is no connection to the server: {_said(cause)}")
    return error


def _said(error: BaseException) -> str:
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    return str(primary or error).strip()


def _revision(session: Session) -> str | None:
    ((there,),) = session.execute("SELECT to_regclass('telemetry.marks') IS NOT NULL").fetchall()
    if not there:
        return None
    ((revision,),) = session.execute("SELECT revision FROM telemetry.marks").fetchall()
    return str(revision)


def _upgrade(session: Session) -> None:
    found = _revision(session)
    if found is not None and found not in REVISIONS:
        raise BadConfig(f"the time series store's schema is at {found}, which this version does not know: it is newer")
    if found is None:
        extension = _offered_extension(session)
    else:
        ((timescale,),) = session.execute("SELECT timescale FROM telemetry.marks").fetchall()
        extension = _extension(session) if timescale else None
    known = list(REVISIONS)
    for revision in known[known.index(found) + 1 if found else 0 :]:
        with session.transaction():
            _apply(session, revision, None if extension is None else extension[0])


def _apply(session: Session, revision: str, extension: str | None) -> None:
    """Bring the tables from the revision before to this one, within the caller's transaction."""
    kind = "plain" if extension is None else "timescale"
    for name in REVISIONS[revision]:
        text = statement(name.format(kind=kind))
        session.execute(_filled(text, extension) if extension is not None else text, prepare=False)
    session.execute(
        "INSERT INTO telemetry.marks (revision, timescale) VALUES (%s, %s)"
        " ON CONFLICT (one) DO UPDATE SET revision = excluded.revision",
        (revision, extension is not None),
    )


def _filled(text: str, extension: str) -> str:
    """The statements with what they leave open: where the extension is, and the probabilities of percentiles."""
    filled = {
        "extension": extension,
        "hour": _array(rollup.PERCENTILES),
        "day": _array(rollup.DAY_PROBABILITIES),
        **{name: str(index) for name, index in DAY_GRID_INDEXES.items()},
    }
    for name, value in filled.items():
        text = text.replace("{" + name + "}", value)
    return text


def _array(numbers: tuple[float, ...]) -> str:
    return "ARRAY[" + ", ".join(repr(number) for number in numbers) + "]"


def _offered_extension(session: Session) -> tuple[str, str] | None:
    """The schema and version of TimescaleDB, made where it is installed and this user may; None where it cannot be had,
    is too old, or comes without the parts under its own licence, which aggregates and compression need."""
    if _extension(session) is None:
        # Where the server has not loaded its library, creating it would end the connection.
        if not _setting(session, "timescaledb.disable_load"):
            return None
        try:
            session.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        except (psycopg.ProgrammingError, psycopg.NotSupportedError):
            return None
    found = _extension(session)
    if found is None or _setting(session, "timescaledb.license") != "timescale":
        return None
    version = tuple(int(part) for part in found[1].split("-")[0].split(".")[:2])
    return found if version >= _TIMESCALE_MIN else None


def _extension(session: Session) -> tuple[str, str] | None:
    found = session.execute(_EXTENSION).fetchall()
    return (str(found[0][0]), str(found[0][1])) if found else None


def _setting(session: Session, name: str) -> str | None:
    ((value,),) = session.execute("SELECT current_setting(%s, true)", (name,)).fetchall()
    return None if value is None else str(value)


def _require_no_policies(session: Session) -> None:
    """Refuse refreshes of others: one at the same time as ours may leave buckets twice."""
    for (name,) in session.execute(statement("refresh_policies")).fetchall():
        raise BadConfig(
            f"telemetry.{name} has a refresh policy, and a refresh beside those of the worker may leave buckets twice;"
            f" run: SELECT remove_continuous_aggregate_policy('telemetry.{name}')"
        )
