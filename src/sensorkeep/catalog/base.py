"""The contracts of the catalog: one small Protocol for each thing it keeps.

Every method is blocking and thread-safe, and each call is one transaction. Errors of the database raise Unavailable
(code `disk_full` where no room is left, else `dependency_down`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import msgspec

from sensorkeep.model import Claim, Counts, Equipment, LatestReading, LatestRecord, Rejections, Sensor

BatchState = Literal["accepted", "stored", "partial", "dead_letter"]


class Inventory(Protocol):
    """Equipment and sensors, by uuid."""

    def describe(self, equipment: Iterable[Equipment], sensors: Iterable[Sensor]) -> None:
        """Add or update descriptions; a None field keeps what was known. Cheap where nothing is new (cached)."""
        ...

    def equipment(self, identifier: str) -> Equipment:
        """By uuid or external id. Raises NotFound."""
        ...

    def sensor(self, identifier: str) -> Sensor:
        """By uuid or external id. Raises NotFound."""
        ...

    def sensors_of(self, equipment_uuid: str, sensor_type: str | None = None) -> list[Sensor]:
        """The sensors of an equipment, by name then uuid; only those of one type where it is given."""
        ...

    def sensors_of_each(self, equipment_uuids: Sequence[str]) -> dict[str, list[Sensor]]:
        """`sensors_of` for several equipment at once, by equipment uuid; those that have sensors."""
        ...

    def list_equipment(self, limit: int, after_uuid: str = "") -> list[Equipment]:
        """Equipment by uuid, those after `after_uuid`."""
        ...


class LatestReadings(Protocol):
    """Newest values, backed by the catalog's database. `offer` never raises: what was accepted stays accepted."""

    @property
    def in_memory(self) -> bool:
        """Whether look-ups read memory alone, so that the event loop may make them."""
        ...

    def offer(
        self,
        readings: Iterable[LatestReading],
        records: Iterable[LatestRecord] = (),
        *,
        batch_ids: Collection[str] = (),
        again: bool = False,
    ) -> None:
        """Take those that are not older than what is known (same time replaces: a correction). They are of the batches
        `batch_ids`.

        `again`: they were offered when they were accepted, and a worker has come to them. Where one worker comes to
        everything in the order of acceptance, that decides between equal times, and nobody sees an accepted correction
        undone while the worker is at what came before it; where several do, only the first offer decides.
        """
        ...

    def reading(self, sensor_uuid: str) -> LatestReading | None:
        """The newest reading of the sensor. Raises as `find` does."""
        ...

    def record(self, equipment_uuid: str) -> LatestRecord | None:
        """The newest record of the equipment. Raises as `find` does."""
        ...

    def find(
        self, sensor_uuids: Sequence[str], equipment_uuids: Sequence[str] = ()
    ) -> tuple[dict[str, LatestReading], dict[str, LatestRecord]]:
        """The newest readings of the sensors and the newest records of the equipment, by uuid; those there are.
        Raises Unavailable where that cannot be told (never where `in_memory`)."""
        ...

    def save(self) -> None:
        """Make what changed since the last save durable. Raises Unavailable."""
        ...


class Receipt(NamedTuple):
    """An accepted batch: its claim and how many bytes arrived."""

    claim: Claim
    wire_bytes: int


class Settlement(NamedTuple):
    """The end of a batch: counts of the usable readings, and the readings set aside."""

    claim: Claim
    counts: Counts
    rejections: Rejections
    dead_letter: str | None = None
    """Why the whole batch was set aside; then all its readings count as quarantined."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as its ledger entry tells it. `errors`: the first rejected readings."""

    batch_id: str
    state: BatchState
    received_us: int
    stored_us: int | None
    readings: int
    stored: int
    updated: int
    duplicate: int
    quarantined: int
    object_key: str | None
    wire_format: str
    detail: str | None = None
    """Why it is a dead letter."""


class QuarantinedReading(msgspec.Struct, frozen=True, kw_only=True):
    """A reading set aside."""

    id: int
    batch_id: str
    equipment: int
    sensor: int
    reason: str
    excerpt: str | None
    quarantined_us: int


class Accounting(msgspec.Struct, frozen=True):
    """Readings: received == stored + updated + duplicate + quarantined + pending, always (SPEC section 1.3)."""

    received: int = 0
    stored: int = 0
    updated: int = 0
    duplicate: int = 0
    quarantined: int = 0
    pending: int = 0


class BatchLedger(Protocol):
    """Every accepted batch, the readings set aside, and the totals, changed together."""

    def receive(self, receipts: Sequence[Receipt]) -> None:
        """Enter accepted batches. Idempotent by batch id. It need not survive power loss: the claim does, and
        `settle` enters a batch whose receipt was lost."""
        ...

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Enter the ends of batches; durable when it returns. Idempotent by batch id (the first end stands).

        State: `stored`; `partial` where some readings were set aside; `dead_letter`. A claim with `replay_of`
        settles the readings that `reopen` took out of that batch's quarantine: counts are added to it, readings
        rejected again go back to its quarantine.
        """
        ...

    def reopen(self, batch_id: str, replay_id: str) -> tuple[Claim, list[tuple[int, int]]]:
        """Begin the replay `replay_id` (the batch id of the replay's own claim): move the batch's quarantined
        readings to pending and return its claim and their (equipment, sensor) positions; an empty list for a dead
        letter: all of it. The worker calls it when it takes the replay's claim, so it is idempotent by `replay_id`:
        called again before that replay settled, it changes nothing and returns the same. Raises NotFound, or
        Conflict where nothing is quarantined, another replay runs, or this one has settled."""
        ...

    def ended(self, batch_ids: Sequence[str]) -> set[str]:
        """Those of the batches that have ended, so that a claim of one which is delivered again is done. A running
        replay changes nothing of that."""
        ...

    def batch(self, batch_id: str) -> Batch:
        """One batch. Raises NotFound."""
        ...

    def batches(self, state: BatchState | None, limit: int, before: tuple[int, str] | None = None) -> list[Batch]:
        """Newest first; `before` = (received_us, batch_id) of the last one seen continues."""
        ...

    def quarantine(
        self,
        batch_id: str | None,
        reason: str | None,
        limit: int,
        before_id: int | None = None,
        *,
        oldest_first: bool = False,
    ) -> list[QuarantinedReading]:
        """Readings set aside, newest first; `before_id` continues. `oldest_first` gives the first ones instead."""
        ...

    def accounting(self) -> tuple[Accounting, Accounting]:
        """(since this process started, all time), of one moment. Batches that were pending at the start count as
        received since the start. Both are of the whole installation, whichever of its processes did it."""
        ...

    def oldest_pending_us(self) -> int | None:
        """Earliest reading time of the batches not settled; None where all are settled."""
        ...

    def purge(self, before_us: int) -> None:
        """Forget settled batches, and their quarantined readings, received before `before_us`. Totals stay.
        In several short transactions, so that receipts get their turn."""
        ...


class Attempts(Protocol):
    """Attempts to write batches, noted before and crossed out after, so that one which ends its process is known.

    What is noted outlives the process, but need not outlive a power cut.
    """

    def begin(self, batch_ids: Sequence[str]) -> None:
        """Note one more attempt of each batch."""
        ...

    def end(self, batch_ids: Sequence[str]) -> None:
        """Forget all attempts of these batches: their process has outlived them, or they are given up."""
        ...

    def unfinished(self, batch_ids: Sequence[str]) -> dict[str, int]:
        """How many attempts of each batch were begun and never ended; batches without one are left out."""
        ...


@dataclass(frozen=True, slots=True)
class User:
    """A person. `password_hash` is argon2id in PHC form."""

    username: str
    password_hash: str
    scopes: frozenset[str]
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key for programs. Only the SHA-256 of its secret is kept."""

    id: str
    name: str
    secret_sha256: str
    scopes: frozenset[str]
    created_us: int
    expires_us: int | None = None
    max_ws_connections: int | None = None
    last_used_us: int | None = None


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token that was issued. `token_id` is its jti; a family is one login and all its refreshes."""

    token_id: str
    family: str
    username: str
    expires_us: int


class Accounts(Protocol):
    """Users, keys and refresh tokens."""

    def put_user(self, user: User) -> None:
        """Add or replace a user."""
        ...

    def add_user(self, user: User) -> None:
        """Add a user. Raises Conflict where there is one of that name."""
        ...

    def change_user(
        self,
        username: str,
        *,
        password_hash: str | None = None,
        scopes: frozenset[str] | None = None,
        disabled: bool | None = None,
        keeping: str | None = None,
    ) -> User:
        """Change what is given and nothing else, and answer what the user is now. Atomic: another password, or being
        disabled, ends every family of the user. Raises NotFound, and Conflict where this user alone, of those that are
        not disabled, has the scope `keeping`, and would lose it."""
        ...

    def replace_password_hash(self, username: str, known: str, renewed: str) -> bool:
        """Keep the same password under another hash; False, and nothing is done, where it is not `known` any more."""
        ...

    def user(self, username: str) -> User | None:
        """One user."""
        ...

    def users(self) -> list[User]:
        """All users, by name."""
        ...

    def delete_user(self, username: str, *, keeping: str | None = None) -> None:
        """Remove a user and its refresh tokens. Raises what `change_user` does."""
        ...

    def put_key(self, key: ApiKey) -> None:
        """Add a key, or replace the one with its id."""
        ...

    def key_by_secret(self, secret_sha256: str) -> ApiKey | None:
        """The key with this secret's hash."""
        ...

    def keys(self) -> list[ApiKey]:
        """All keys, newest first."""
        ...

    def touch_key(self, key_id: str, used_us: int) -> None:
        """Note that a key was used. Nothing where the key is gone (`put_key` would bring a revoked one back)."""
        ...

    def delete_key(self, key_id: str) -> None:
        """Revoke a key. Raises NotFound."""
        ...

    def put_refresh_token(self, token: RefreshToken, holder: User | None = None) -> bool:
        """Remember an issued refresh token, and answer True. With `holder`, the user as it was read before: False, and
        nothing is done, where that one is gone, disabled or has another password by now."""
        ...

    def use_refresh_token(self, token_id: str, successor: RefreshToken | None = None) -> RefreshToken | None:
        """Spend a token: returned once, and its `successor` is remembered then. A token that was spent before kills its
        whole family and answers None; an unknown one answers None. Atomic: of two at the same time one wins, and where
        it fails the token is as good as before."""
        ...


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The first answer to an idempotency key."""

    status: int
    headers: dict[str, str]
    body: bytes


class IdempotencyKeys(Protocol):
    """First answers by (credential, key), kept IDEMPOTENCY_KEPT_SECONDS."""

    def begin(self, credential: str, key: str, now_us: int) -> tuple[str, StoredAnswer] | None:
        """Claim the key: None means go on. Else (SHA-256 of the content, first answer) of the finished request.
        Raises Conflict (`idempotency_in_progress`) while the first one runs. A claim of a process that died ends
        after ten minutes."""
        ...

    def finish(self, credential: str, key: str, payload_sha256: str, answer: StoredAnswer) -> None:
        """Keep the answer."""
        ...

    def abandon(self, credential: str, key: str) -> None:
        """Give the key up: the request failed and may be sent again."""
        ...


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One administrative act."""

    at_us: int
    actor: str
    action: str
    subject: str
    client_ip: str


class Registry(Protocol):
    """Small facts of the installation."""

    def reserve_ids(self, count: int) -> int:
        """Reserve `count` consecutive record ids and return the first; never handed out again. Below 2**53."""
        ...

    def audit(self, entry: AuditEntry) -> None:
        """Append to the audit log. Durable when it returns."""
        ...

    def audit_log(self, limit: int, before_us: int | None = None) -> list[AuditEntry]:
        """Newest first."""
        ...

    def secret(self, name: str, default: str) -> str:
        """The installation's secret `name`, set to `default` where there is none yet (one winner)."""
        ...
