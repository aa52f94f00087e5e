"""The tables of the catalog. Times are `*_us` (microseconds since the epoch); sets and maps are text.

The revisions in `migrations/versions` build the same tables; a test compares the two.
"""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

RowNumber = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""An automatic row number: SQLite numbers rows only in a column declared INTEGER."""


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _text_or_null(name: str) -> sa.Column[str | None]:
    return sa.Column(name, sa.Text)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=True)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _number_or_null(name: str) -> sa.Column[int | None]:
    return sa.Column(name, sa.BigInteger)


def _row_number(name: str) -> sa.Column[int]:
    return sa.Column(name, RowNumber, primary_key=True, autoincrement=True)


# --- equipment and sensors ----------------------------------------------------------------------------------------
equipment = sa.Table(
    "equipment",
    METADATA,
    _key("uuid"),
    _text_or_null("external_id"),
    _text_or_null("name"),
    _text_or_null("location"),
    _text_or_null("status"),
    _number_or_null("interval_seconds"),
    sa.Column("siren_active", sa.Boolean),
    _number_or_null("siren_seconds"),
    sa.Index(None, "external_id"),
)

sensors = sa.Table(
    "sensors",
    METADATA,
    _key("uuid"),
    sa.Column("equipment_uuid", sa.Text, sa.ForeignKey("equipment.uuid"), nullable=False),
    _text_or_null("external_id"),
    _text_or_null("name"),
    _text_or_null("type"),
    _text_or_null("unit"),
    _text_or_null("manufacturer"),
    _text_or_null("model"),
    _text_or_null("firmware"),
    _text_or_null("hardware_id"),
    _text_or_null("via_hub"),
    sa.Index(None, "equipment_uuid"),
    sa.Index(None, "external_id"),
)

# --- latest values ------------------------------------------------------------------------------------------------
latest_readings = sa.Table(
    "latest_readings",
    METADATA,
    _key("sensor_uuid"),
    _number("time_us"),
    sa.Column("value", sa.Double),
    _text_or_null("status"),
    sa.Column("battery", sa.Double),
    sa.Column("rssi", sa.Integer),
    sa.Column("lqi", sa.Integer),
    sa.Column("battery_voltage", sa.Double),
)

latest_records = sa.Table(
    "latest_records",
    METADATA,
    _key("equipment_uuid"),
    _text("sensor_id"),
    _number("time_us"),
    _number("id"),
    _text("client_ip"),
    _text("values_json"),
)

# --- batches, quarantine and totals -------------------------------------------------------------------------------
PENDING = sa.text("state = 'accepted'")
SET_ASIDE = sa.text("state IN ('partial', 'dead_letter')")

batches = sa.Table(
    "batches",
    METADATA,
    _key("batch_id"),
    _text("state"),
    _number("received_us"),
    _number_or_null("stored_us"),
    _number("readings"),
    _number("stored"),
    _number("updated"),
    _number("duplicate"),
    _number("quarantined"),
    _number("pending"),
    _number("wire_bytes"),
    _number_or_null("oldest_us"),
    _text_or_null("object_key"),
    _text("wire_format"),
    _text_or_null("detail"),
    _text_or_null("replay_id"),
    sa.Column("claim", sa.LargeBinary),
    sa.Index(None, "received_us", "batch_id"),
    # Partial indexes stay as small as what waits or was set aside, however many batches are kept.
    sa.Index("ix_batches_pending", "oldest_us", sqlite_where=PENDING),
    sa.Index("ix_batches_set_aside", "state", "received_us", "batch_id", sqlite_where=SET_ASIDE),
    # Rows are short and found by key: the key's own tree holds them, so that one receipt writes one page less.
    sqlite_with_rowid=False,
)

quarantine = sa.Table(
    "quarantine",
    METADATA,
    _row_number("id"),
    _text("batch_id"),
    _number("equipment"),
    _number("sensor"),
    _text("reason"),
    _text_or_null("excerpt"),
    _number("quarantined_us"),
    # A replay of the reading is running: it counts as pending and is not listed.
    sa.Column("replaying", sa.Boolean, nullable=False),
    sa.Index(None, "batch_id", "id"),
    sa.Index(None, "reason", "id"),
)

replays = sa.Table(
    "replays",
    METADATA,
    _key("batch_id"),
    _text("replay_of"),
    _number("settled_us"),
    sa.Index(None, "replay_of"),
)

attempts = sa.Table(
    "attempts",
    METADATA,
    _key("batch_id"),
    _number("unfinished"),
    _number("begun_us"),
)

ledger = sa.Table(
    "ledger",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    _number("received"),
    _number("stored"),
    _number("updated"),
    _number("duplicate"),
    _number("quarantined"),
    _number("pending"),
    sa.CheckConstraint("id = 1", name="one_row"),
)

# --- accounts -----------------------------------------------------------------------------------------------------
users = sa.Table(
    "users",
    METADATA,
    _key("username"),
    _text("password_hash"),
    _text("scopes"),
    sa.Column("disabled", sa.Boolean, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    METADATA,
    _key("id"),
    _text("name"),
    _text("secret_sha256"),
    _text("scopes"),
    _number("created_us"),
    _number_or_null("expires_us"),
    sa.Column("max_ws_connections", sa.Integer),
    _number_or_null("last_used_us"),
    sa.UniqueConstraint("secret_sha256"),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    METADATA,
    _key("token_id"),
    _text("family"),
    _text("username"),
    _number("expires_us"),
    _number_or_null("used_us"),
    # Set on every token of a family that was ended; one such token keeps the whole family dead.
    _number_or_null("revoked_us"),
    sa.Index(None, "family"),
    sa.Index(None, "username"),
    sa.Index(None, "expires_us"),
)

# --- first answers to idempotency keys ----------------------------------------------------------------------------
idempotency_keys = sa.Table(
    "idempotency_keys",
    METADATA,
    _key("credential"),
    _key("key"),
    _number("begun_us"),
    _text_or_null("payload_sha256"),
    sa.Column("status", sa.Integer),
    _text_or_null("headers_json"),
    sa.Column("body", sa.LargeBinary),
    sa.Index(None, "begun_us"),
)

# --- facts of the installation ------------------------------------------------------------------------------------
counters = sa.Table("counters", METADATA, _key("name"), _number("value"))

secrets = sa.Table("secrets", METADATA, _key("name"), _text("value"))

audit_log = sa.Table(
    "audit_log",
    METADATA,
    _row_number("id"),
    _number("at_us"),
    _text("actor"),
    _text("action"),
    _text("subject"),
    _text("client_ip"),
    sa.Index(None, "at_us", "id"),
)


def make_indexes_partial_on_postgresql() -> None:
    """Tell PostgreSQL, too, of the indexes' conditions. Idempotent.

    SQLAlchemy imports its dialect as soon as it is named: 75 ms and 3 MiB that a start on SQLite need not pay.
    """
    for table in METADATA.tables.values():
        for index in table.indexes:
            if (condition := index.dialect_kwargs.get("sqlite_where")) is not None:
                index.dialect_kwargs["postgresql_where"] = condition
