"""First answers to idempotency keys in the catalog's database."""

from __future__ import annotations

from typing import NoReturn

import msgspec
import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningInsert

from sensorkeep.catalog.base import StoredAnswer
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.schema import idempotency_keys
from sensorkeep.clock import MICROSECONDS
from sensorkeep.errors import Conflict
from sensorkeep.limits import IDEMPOTENCY_CLAIM_SECONDS, IDEMPOTENCY_KEPT_SECONDS

_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_KEPT_US = IDEMPOTENCY_KEPT_SECONDS * MICROSECONDS
_CLAIM_US = IDEMPOTENCY_CLAIM_SECONDS * MICROSECONDS


class CatalogIdempotencyKeys:
    """The IdempotencyKeys of the catalog. A row without a status is a claim whose request still runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, credential: str, key: str, now_us: int) -> tuple[str, StoredAnswer] | None:
        with self._database.write() as connection:
            # One statement decides who runs: it changes a row only where there is none, or a spent one.
            if connection.execute(self._claim(credential, key, now_us)).first() is not None:
                return None
            row = connection.execute(sa.select(idempotency_keys).where(_is(credential, key))).one_or_none()
        if row is None or row.status is None:
            _still_running()
        answer = StoredAnswer(status=row.status, headers=_decode_headers(row.headers_json), body=row.body)
        return row.payload_sha256, answer

    def finish(self, credential: str, key: str, payload_sha256: str, answer: StoredAnswer) -> None:
        # Where the claim went stale and another request finished first, the answer given first stands.
        first = sa.update(idempotency_keys).where(_is(credential, key), idempotency_keys.c.status.is_(None))
        headers = msgspec.json.encode(answer.headers).decode()
        with self._database.write() as connection:
            connection.execute(
                first.values(
                    payload_sha256=payload_sha256, status=answer.status, headers_json=headers, body=answer.body
                )
            )

    def abandon(self, credential: str, key: str) -> None:
        running = sa.delete(idempotency_keys).where(_is(credential, key), idempotency_keys.c.status.is_(None))
        with self._database.write() as connection:
            connection.execute(running)

    def purge(self, now_us: int) -> None:
        """Forget the answers whose time is over at `now_us`."""
        expired = sa.delete(idempotency_keys).where(idempotency_keys.c.begun_us <= now_us - _KEPT_US)
        with self._database.write() as connection:
            connection.execute(expired)

    def _claim(self, credential: str, key: str, now_us: int) -> ReturningInsert[str]:
        """Returns a row where the key was claimed."""
        table = idempotency_keys.c
        expired = table.begun_us <= now_us - _KEPT_US
        died = sa.and_(table.status.is_(None), table.begun_us <= now_us - _CLAIM_US)
        fresh = {"payload_sha256": None, "status": None, "headers_json": None, "body": None}
        claim = self._database.insert(idempotency_keys).values(credential=credential, key=key, begun_us=now_us)
        return claim.on_conflict_do_update(
            index_elements=["credential", "key"],
            set_={"begun_us": claim.excluded.begun_us, **fresh},
            where=sa.or_(expired, died),
        ).returning(idempotency_keys.c.key)


def _is(credential: str, key: str) -> sa.ColumnElement[bool]:
    return sa.and_(idempotency_keys.c.credential == credential, idempotency_keys.c.key == key)


def _still_running() -> NoReturn:
    raise Conflict("the first request with this idempotency key is still running", code="idempotency_in_progress")
