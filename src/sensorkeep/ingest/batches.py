"""What became of what was sent: batches, the quarantine, the accounting, and replays."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from sensorkeep.auth.credentials import Credential
from sensorkeep.auth.http import Requires
from sensorkeep.auth.scopes import Scope
from sensorkeep.catalog.base import Accounting, AuditEntry, Batch, BatchLedger, QuarantinedReading, Registry
from sensorkeep.clock import Clock, rfc3339
from sensorkeep.errors import InvalidInput
from sensorkeep.ingest.accept import Acceptor, Sender
from sensorkeep.ingest.http import parse_prefer
from sensorkeep.limits import ERRORS_REPORTED_MAX

_NUMBER = re.compile(r"\d{1,18}", re.ASCII).fullmatch
State = Literal["accepted", "stored", "partial", "dead_letter"]
Limit = Annotated[int, Query(ge=1, le=1000, description="Rows of one page.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]


class ReadingError(BaseModel):
    """A reading that was set aside, by its position in the request."""

    equipment: int
    sensor: int
    reason: str = Field(examples=["bad_timestamp"])


class BatchAnswer(BaseModel):
    """A batch. `readings` = stored + updated + duplicate + quarantined once its state is not `accepted`."""

    batch_id: str
    state: State
    received_at: str
    stored_at: str | None
    readings: int
    stored: int
    updated: int
    duplicate: int
    quarantined: int
    claim_check: str | None
    detail: str | None
    errors: list[ReadingError] = Field(description=f"The first {ERRORS_REPORTED_MAX}; all are in the quarantine.")


class BatchPage(BaseModel):
    """Batches, newest first."""

    batches: list[BatchAnswer]
    next_cursor: str | None


class QuarantinedAnswer(BaseModel):
    """A reading set aside."""

    id: int
    batch_id: str
    equipment: int
    sensor: int
    reason: str
    excerpt: str | None
    quarantined_at: str


class QuarantinePage(BaseModel):
    """Readings set aside, newest first."""

    readings: list[QuarantinedAnswer]
    next_cursor: str | None


class Totals(BaseModel):
    """received = stored + updated + duplicate + quarantined + pending, in readings."""

    received: int
    stored: int
    updated: int
    duplicate: int
    quarantined: int
    pending: int


class AccountingAnswer(BaseModel):
    """What became of every reading received."""

    since_start: Totals
    all_time: Totals


class ReplayAnswer(BaseModel):
    """A replay that was asked for."""

    status: Literal["accepted"]
    batch_id: str
    replay_id: str


def batches_router(
    *,
    ledger: BatchLedger,
    registry: Registry,
    acceptor: Acceptor,
    clock: Clock,
    requires: Requires,
) -> APIRouter:
    """The routes, relative to /api/v1; `requires(scope)` makes the dependency that asks for a scope."""
    router = APIRouter(tags=["batches"])
    reads = [Depends(requires(Scope.READ))]
    administrator = Depends(requires(Scope.ADMIN))

    @router.get("/telemetry/batches", dependencies=reads, summary="Batches, newest first")
    def list_batches(state: State | None = None, limit: Limit = 100, cursor: Cursor = None) -> BatchPage:
        found = ledger.batches(state, limit + 1, _batch_cursor(cursor))
        page, more = found[:limit], len(found) > limit
        following = _encode_cursor(f"{page[-1].received_us}/{page[-1].batch_id}") if more else None
        return BatchPage(batches=[_batch_answer(batch, ledger) for batch in page], next_cursor=following)

    @router.get("/telemetry/batches/{batch_id}", dependencies=reads, summary="One batch")
    def one_batch(batch_id: str) -> BatchAnswer:
        return _batch_answer(ledger.batch(batch_id), ledger)

    @router.get("/telemetry/quarantine", dependencies=reads, summary="Readings set aside, newest first")
    def list_quarantine(
        batch_id: str | None = None, reason: str | None = None, limit: Limit = 100, cursor: Cursor = None
    ) -> QuarantinePage:
        before_id = None if cursor is None else _number(_decode_cursor(cursor))
        found = ledger.quarantine(batch_id, reason, limit + 1, before_id)
        page, more = found[:limit], len(found) > limit
        following = _encode_cursor(str(page[-1].id)) if more else None
        return QuarantinePage(readings=[_quarantined_answer(item) for item in page], next_cursor=following)

    @router.get("/telemetry/accounting", dependencies=reads, summary="What became of every reading received")
    def accounting() -> AccountingAnswer:
        since_start, all_time = ledger.accounting()
        return AccountingAnswer(since_start=_totals(since_start), all_time=_totals(all_time))

    @router.post("/telemetry/batches/{batch_id}/replay", status_code=202, summary="Try quarantined readings again")
    def replay(
        batch_id: str,
        request: Request,
        response: Response,
        credential: Credential = administrator,
    ) -> ReplayAnswer:
        backfill = parse_prefer(request.headers.get("prefer", ""))[1]
        replay_id = acceptor.replay(batch_id, Sender(credential.id, urgent=True, backfill=backfill))
        client_ip = request.client.host if request.client else ""
        registry.audit(
            AuditEntry(
                at_us=clock.now_us(), actor=credential.id, action="replay", subject=batch_id, client_ip=client_ip
            )
        )
        response.headers["Location"] = f"/api/v1/telemetry/batches/{batch_id}"
        return ReplayAnswer(status="accepted", batch_id=batch_id, replay_id=replay_id)

    return router


def _batch_answer(batch: Batch, ledger: BatchLedger) -> BatchAnswer:
    errors = (
        ledger.quarantine(batch.batch_id, None, ERRORS_REPORTED_MAX, oldest_first=True) if batch.quarantined else []
    )
    return BatchAnswer(
        batch_id=batch.batch_id,
        state=batch.state,
        received_at=rfc3339(batch.received_us),
        stored_at=None if batch.stored_us is None else rfc3339(batch.stored_us),
        readings=batch.readings,
        stored=batch.stored,
        updated=batch.updated,
        duplicate=batch.duplicate,
        quarantined=batch.quarantined,
        claim_check=batch.object_key,
        detail=batch.detail,
        errors=[ReadingError(equipment=e.equipment, sensor=e.sensor, reason=e.reason) for e in errors],
    )


def _quarantined_answer(item: QuarantinedReading) -> QuarantinedAnswer:
    return QuarantinedAnswer(
        id=item.id,
        batch_id=item.batch_id,
        equipment=item.equipment,
        sensor=item.sensor,
        reason=item.reason,
        excerpt=item.excerpt,
        quarantined_at=rfc3339(item.quarantined_us),
    )


def _totals(accounting: Accounting) -> Totals:
    return Totals(
        received=accounting.received,
        stored=accounting.stored,
        updated=accounting.updated,
        duplicate=accounting.duplicate,
        quarantined=accounting.quarantined,
        pending=accounting.pending,
    )


def _encode_cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> str:
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError):
        raise InvalidInput("the cursor is not one this call gave", code="bad_parameter") from None


def _number(text: str) -> int:
    if not _NUMBER(text):
        raise InvalidInput("the cursor is not one this call gave", code="bad_parameter")
    return int(text)


def _batch_cursor(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    received, _, batch_id = _decode_cursor(cursor).partition("/")
    return _number(received), batch_id
