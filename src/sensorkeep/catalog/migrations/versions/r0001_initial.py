"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table."""
    _equipment_and_sensors()
    _latest_values()
    _batches()
    _quarantine_and_totals()
    _accounts()
    _idempotency_keys()
    _facts()


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _primary_key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def _index(table: str, *columns: str) -> None:
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))


def _equipment_and_sensors() -> None:
    op.create_table(
        "equipment",
        _text("uuid"),
        _text("external_id", nullable=True),
        _text("name", nullable=True),
        _text("location", nullable=True),
        _text("status", nullable=True),
        _number("interval_seconds", nullable=True),
        sa.Column("siren_active", sa.Boolean()),
        _number("siren_seconds", nullable=True),
        _primary_key("equipment", "uuid"),
    )
    _index("equipment", "external_id")
    described = ("external_id", "name", "type", "unit", "manufacturer", "model", "firmware", "hardware_id", "via_hub")
    op.create_table(
        "sensors",
        _text("uuid"),
        _text("equipment_uuid"),
        *(_text(name, nullable=True) for name in described),
        _primary_key("sensors", "uuid"),
        sa.ForeignKeyConstraint(["equipment_uuid"], ["equipment.uuid"], name=op.f("fk_sensors_equipment_uuid")),
    )
    _index("sensors", "equipment_uuid")
    _index("sensors", "external_id")


def _latest_values() -> None:
    op.create_table(
        "latest_readings",
        _text("sensor_uuid"),
        _number("time_us"),
        sa.Column("value", sa.Double()),
        _text("status", nullable=True),
        sa.Column("battery", sa.Double()),
        sa.Column("rssi", sa.Integer()),
        sa.Column("lqi", sa.Integer()),
        sa.Column("battery_voltage", sa.Double()),
        _primary_key("latest_readings", "sensor_uuid"),
    )
    op.create_table(
        "latest_records",
        _text("equipment_uuid"),
        _text("sensor_id"),
        _number("time_us"),
        _number("id"),
        _text("client_ip"),
        _text("values_json"),
        _primary_key("latest_records", "equipment_uuid"),
    )


def _batches() -> None:
    op.create_table(
        "batches",
        _text("batch_id"),
        _text("state"),
        _number("received_us"),
        _number("stored_us", nullable=True),
        _number("readings"),
        _number("stored"),
        _number("updated"),
        _number("duplicate"),
        _number("quarantined"),
        _number("pending"),
        _number("wire_bytes"),
        _number("oldest_us", nullable=True),
        _text("object_key", nullable=True),
        _text("wire_format"),
        _text("detail", nullable=True),
        _text("replay_id", nullable=True),
        sa.Column("claim", sa.LargeBinary()),
        _primary_key("batches", "batch_id"),
        sqlite_with_rowid=False,
    )
    _index("batches", "received_us", "batch_id")
    pending = sa.text("state = 'accepted'")
    op.create_index("ix_batches_pending", "batches", ["oldest_us"], sqlite_where=pending, postgresql_where=pending)
    set_aside = sa.text("state IN ('partial', 'dead_letter')")
    op.create_index(
        "ix_batches_set_aside",
        "batches",
        ["state", "received_us", "batch_id"],
        sqlite_where=set_aside,
        postgresql_where=set_aside,
    )


def _quarantine_and_totals() -> None:
    op.create_table(
        "quarantine",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        _text("batch_id"),
        _number("equipment"),
        _number("sensor"),
        _text("reason"),
        _text("excerpt", nullable=True),
        _number("quarantined_us"),
        sa.Column("replaying", sa.Boolean(), nullable=False),
        _primary_key("quarantine", "id"),
    )
    _index("quarantine", "batch_id", "id")
    _index("quarantine", "reason", "id")
    op.create_table(
        "replays",
        _text("batch_id"),
        _text("replay_of"),
        _number("settled_us"),
        _primary_key("replays", "batch_id"),
    )
    _index("replays", "replay_of")
    totals = ("received", "stored", "updated", "duplicate", "quarantined", "pending")
    op.create_table(
        "ledger",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        *(_number(name) for name in totals),
        _primary_key("ledger", "id"),
        sa.CheckConstraint("id = 1", name=op.f("ck_ledger_one_row")),
    )


def _accounts() -> None:
    op.create_table(
        "users",
        _text("username"),
        _text("password_hash"),
        _text("scopes"),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        _primary_key("users", "username"),
    )
    op.create_table(
        "api_keys",
        _text("id"),
        _text("name"),
        _text("secret_sha256"),
        _text("scopes"),
        _number("created_us"),
        _number("expires_us", nullable=True),
        sa.Column("max_ws_connections", sa.Integer()),
        _number("last_used_us", nullable=True),
        _primary_key("api_keys", "id"),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_api_keys_secret_sha256")),
    )
    op.create_table(
        "refresh_tokens",
        _text("token_id"),
        _text("family"),
        _text("username"),
        _number("expires_us"),
        _number("used_us", nullable=True),
        _number("revoked_us", nullable=True),
        _primary_key("refresh_tokens", "token_id"),
    )
    for column in ("family", "username", "expires_us"):
        _index("refresh_tokens", column)


def _idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        _text("credential"),
        _text("key"),
        _number("begun_us"),
        _text("payload_sha256", nullable=True),
        sa.Column("status", sa.Integer()),
        _text("headers_json", nullable=True),
        sa.Column("body", sa.LargeBinary()),
        _primary_key("idempotency_keys", "credential", "key"),
    )
    _index("idempotency_keys", "begun_us")


def _facts() -> None:
    op.create_table("counters", _text("name"), _number("value"), _primary_key("counters", "name"))
    op.create_table("secrets", _text("name"), _text("value"), _primary_key("secrets", "name"))
    op.create_table(
        "audit_log",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        _number("at_us"),
        _text("actor"),
        _text("action"),
        _text("subject"),
        _text("client_ip"),
        _primary_key("audit_log", "id"),
    )
    _index("audit_log", "at_us", "id")
