"""Small facts of the installation in the catalog's database: record ids, the audit log, secrets."""

from __future__ import annotations

import sqlalchemy as sa
from msgspec.structs import asdict

from sensorkeep.catalog.base import AuditEntry
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.schema import audit_log, counters, secrets

_RECORD_IDS = "record_ids"


class CatalogRegistry:
    """The Registry of the catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reserve_ids(self, count: int) -> int:
        if count < 1:
            raise ValueError(f"cannot reserve {count} ids")
        first_use = self._database.insert(counters).values(name=_RECORD_IDS, value=count)
        reserve = first_use.on_conflict_do_update(
            index_elements=["name"], set_={"value": counters.c.value + first_use.excluded.value}
        ).returning(counters.c.value)
        with self._database.write() as connection:
            last: int = connection.execute(reserve).scalar_one()
        return last - count + 1

    def audit(self, entry: AuditEntry) -> None:
        with self._database.write() as connection:
            connection.execute(sa.insert(audit_log).values(asdict(entry)))

    def audit_log(self, limit: int, before_us: int | None = None) -> list[AuditEntry]:
        statement = sa.select(audit_log).order_by(audit_log.c.at_us.desc(), audit_log.c.id.desc()).limit(limit)
        if before_us is not None:
            statement = statement.where(audit_log.c.at_us < before_us)
        with self._database.read() as connection:
            return [
                AuditEntry(
                    at_us=row.at_us, actor=row.actor, action=row.action, subject=row.subject, client_ip=row.client_ip
                )
                for row in connection.execute(statement)
            ]

    def secret(self, name: str, default: str) -> str:
        offer = self._database.insert(secrets).values(name=name, value=default).on_conflict_do_nothing()
        with self._database.write() as connection:
            connection.execute(offer)
            value: str = connection.execute(sa.select(secrets.c.value).where(secrets.c.name == name)).scalar_one()
        return value
