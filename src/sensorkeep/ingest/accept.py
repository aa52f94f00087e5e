"""Makes one request durable: check, decode, put the payload, publish the claim, enter the receipt.

Every way in (HTTP, imports, later MQTT) calls this and answers only after it returned. All of it blocks; it runs on
the threads of its caller.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import structlog
from isal import isal_zlib

from sensorkeep import limits
from sensorkeep.catalog.base import BatchLedger, LatestReadings, Receipt
from sensorkeep.clock import DAY_US, MICROSECONDS, Clock, IdSource
from sensorkeep.decode.esm import EsmBulkDecoder
from sensorkeep.decode.gathered import Entry, encode_gathered, gather, newest_of
from sensorkeep.decode.handoff import Handed, Handoff
from sensorkeep.decode.inflate import make_inflater
from sensorkeep.decode.newest import with_newest
from sensorkeep.decode.options import DecodeOptions, time_range
from sensorkeep.decode.readings import decode_readings
from sensorkeep.errors import Conflict, InvalidInput, LimitExceeded, SensorkeepError, Unavailable, Uncertain
from sensorkeep.ingest.announce import Announcer
from sensorkeep.metrics import Metrics
from sensorkeep.model import Claim, DecodedBatch, WireFormat
from sensorkeep.object_store.base import ObjectStore
from sensorkeep.queue.base import ClaimQueue

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """The settings of ingest; see docs/CONFIGURATION.md. Sizes in bytes; 0 days keeps for ever."""

    naive_timezone: str = "UTC"
    raw_retention_days: int = limits.RAW_RETENTION_DAYS
    max_wire_bytes: int = limits.BODY_WIRE_BYTES_MAX
    max_inflated_bytes: int = limits.BODY_INFLATED_BYTES_MAX
    max_inflate_ratio: int = limits.INFLATE_RATIO_MAX
    max_equipment: int = limits.EQUIPMENT_OBJECTS_MAX
    max_readings: int = limits.READINGS_PER_REQUEST_MAX


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends, and how it asked to be served."""

    credential: str
    urgent: bool = False
    """`Prefer: wait`: do not gather."""
    backfill: bool = False
    """`Prefer: backfill`: readings older than the raw retention are welcome."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that is durable."""

    claim: Claim
    batch: DecodedBatch


class Acceptor:
    """The path of every request. Thread-safe."""

    def __init__(
        self,
        *,
        object_store: ObjectStore,
        queue: ClaimQueue,
        ledger: BatchLedger,
        latest: LatestReadings,
        announcer: Announcer,
        handoff: Handoff,
        clock: Clock,
        ids: IdSource,
        metrics: Metrics,
        settings: IngestSettings,
        decoders: int = 1,
    ) -> None:
        self._object_store = object_store
        self._queue = queue
        self._ledger = ledger
        self._latest = latest
        self._announcer = announcer
        self._handoff = handoff
        self._clock = clock
        self._ids = ids
        self._metrics = metrics
        self.settings = settings
        self._decoding = threading.BoundedSemaphore(decoders)

    def bulk(
        self, chunks: Iterable[bytes], encoding: str, sender: Sender, digest: hashlib._Hash | None = None
    ) -> Accepted:
        """Accept the bulk form from `chunks` of the body as sent, with `encoding` its Content-Encoding. `digest` is
        fed with the body's content.

        Raises InvalidInput and LimitExceeded as SPEC section 3 says, Unavailable where it cannot be made durable;
        nothing is kept then, unless it is Uncertain: then the payload is, and the batch may be stored after all.
        """
        options = self.options(sender)
        batch_id = self._ids.new()
        key = object_key(options.received_us, batch_id)
        body = _BulkBody(chunks, encoding, options, self.settings, self._decoding, digest)
        self._object_store.put(key, body.stored())
        batch = body.batch
        claim = self._claim(batch_id, WireFormat.ESM_BULK, batch, options, sender, object_key=key)
        return self._accept(claim, batch, body.wire_bytes)

    def readings(self, body: bytes, sender: Sender) -> Accepted:
        """Accept the body of POST /readings (inflated JSON). Raises as `bulk` does."""
        options = self.options(sender)
        batch = decode_readings(body, options)
        _require_usable(batch)
        batch_id = self._ids.new()
        key = None
        if len(body) > limits.SMALL_BODY_BYTES_MAX:
            key = object_key(options.received_us, batch_id)
            self._object_store.put(key, iter([isal_zlib.compress(body, 1, wbits=31)]))
        payload = body if key is None else None
        claim = self._claim(batch_id, WireFormat.READINGS, batch, options, sender, object_key=key, payload=payload)
        return self._accept(claim, batch, len(body))

    def read(self, chunks: Iterable[bytes], encoding: str, digest: hashlib._Hash) -> None:
        """Feed `digest` as `bulk` does, and store nothing. The same content gives the same, however it is packed: the
        header of gzip alone has a time in it (RFC 1952 section 2.3). Raises as `bulk` does, for encodings and sizes."""
        inflater = make_inflater(encoding, self.options(Sender("")))
        for chunk in _within(chunks, self.settings.max_wire_bytes):
            with self._decoding:
                for piece in inflater.feed(chunk):
                    digest.update(piece)
        with self._decoding:
            for piece in inflater.finish():
                digest.update(piece)

    def gathered(self, entries: tuple[Entry, ...], sender: Sender) -> str:
        """Accept single readings, checked and parsed; see ingest/gather.py. Returns the batch id."""
        now_us = self._clock.now_us()
        payload = encode_gathered(entries)
        times = [entry.time_us for entry in entries]
        claim = Claim(
            batch_id=self._ids.new(),
            wire_format=WireFormat.GATHERED,
            received_us=now_us,
            readings=sum(entry.readings for entry in entries),
            payload=payload,
            naive_timezone=self.settings.naive_timezone,
            oldest_us=min(times),
            newest_us=max(times),
            urgent=sender.urgent,
        )
        self._publish(claim, entries)
        self._latest.offer(*newest_of(entries), batch_ids=(claim.batch_id,))
        self._tell(claim, len(payload), lambda: gather(entries, self.options(sender)))
        return claim.batch_id

    def options(self, sender: Sender) -> DecodeOptions:
        """How a body received now is decoded."""
        now_us = self._clock.now_us()
        return DecodeOptions(
            received_us=now_us,
            naive_timezone=self.settings.naive_timezone,
            oldest_allowed_us=None if sender.backfill else self._oldest_allowed_us(now_us),
            max_objects=self.settings.max_equipment,
            max_readings=self.settings.max_readings,
            max_inflated_bytes=self.settings.max_inflated_bytes,
            max_inflate_ratio=self.settings.max_inflate_ratio,
        )

    def replay(self, batch_id: str, sender: Sender) -> str:
        """Ask the worker to try the quarantined readings of a batch again; returns the replay's id.

        Raises NotFound, Conflict where nothing is quarantined or the batch has not ended, Unavailable.
        """
        batch = self._ledger.batch(batch_id)
        if batch.state == "accepted":  # the worker would have to pass such a replay over, and nobody would learn of it
            raise Conflict("the batch is not settled yet, or a replay of it is running; ask again when it is done")
        if not batch.quarantined:
            raise Conflict("no reading of this batch is quarantined")
        now_us = self._clock.now_us()
        claim = Claim(
            batch_id=self._ids.new(),
            wire_format=WireFormat(batch.wire_format),
            received_us=now_us,
            readings=0,
            credential=sender.credential,
            naive_timezone=self.settings.naive_timezone,
            oldest_allowed_us=None if sender.backfill else self._oldest_allowed_us(now_us),
            newest_allowed_us=now_us + limits.FUTURE_TOLERANCE_SECONDS * MICROSECONDS,
            urgent=True,
            replay_of=batch_id,
        )
        self._queue.publish([claim])
        self._announcer.hurry()
        return claim.batch_id

    def _accept(self, claim: Claim, batch: DecodedBatch, wire_bytes: int) -> Accepted:
        batch = with_newest(batch)
        self._publish(claim, batch, patient=claim.readings >= limits.HANDOFF_PATIENT_READINGS_MIN)
        self._latest.offer(batch.newest or (), batch.records, batch_ids=(claim.batch_id,))
        self._tell(claim, wire_bytes, lambda: batch)
        return Accepted(claim, batch)

    def _publish(self, claim: Claim, handed: Handed, *, patient: bool = False) -> None:
        """Make the claim durable. Raises Unavailable; nothing is kept then, unless it is Uncertain."""
        self._handoff.offer(claim.batch_id, handed, patient=patient)
        try:
            with self._metrics.commit_seconds.time():
                self._queue.publish([claim])
        except BaseException as error:
            self._handoff.withdraw(claim.batch_id)
            # Where the claim may be published after all, the worker needs its payload; else retention removes it.
            certain = isinstance(error, SensorkeepError) and not isinstance(error, Uncertain)
            if certain and claim.object_key is not None:
                self._object_store.delete(claim.object_key)
            raise

    def _tell(self, claim: Claim, wire_bytes: int, batch: Callable[[], DecodedBatch]) -> None:
        """Tell who listens of a durable claim and enter its receipt.

        Nothing of that may fail the request: a device that is told to send again stamps its reading anew, and it
        would be there twice. A receipt that is lost is entered when the batch is settled.
        """
        self._metrics.readings_received.inc(claim.readings)
        self._metrics.ingest_bytes.inc(wire_bytes)
        try:
            self._announcer.announce(batch)
        except Exception:
            log.exception("announcement_failed", batch_id=claim.batch_id)
        try:
            self._ledger.receive([Receipt(claim, wire_bytes)])
        except Unavailable as error:
            log.warning("receipt_waits", batch_id=claim.batch_id, code=error.code, detail=error.detail)
        except Exception:
            log.exception("receipt_failed", batch_id=claim.batch_id)
        if claim.urgent:
            self._announcer.hurry()

    def _oldest_allowed_us(self, now_us: int) -> int | None:
        days = self.settings.raw_retention_days
        return now_us - days * DAY_US if days else None

    def _claim(
        self,
        batch_id: str,
        wire_format: WireFormat,
        batch: DecodedBatch,
        options: DecodeOptions,
        sender: Sender,
        *,
        object_key: str | None = None,
        payload: bytes | None = None,
    ) -> Claim:
        oldest_us, newest_us = time_range(batch) or (None, None)
        return Claim(
            batch_id=batch_id,
            wire_format=wire_format,
            received_us=options.received_us,
            readings=batch.received,
            quarantined=len(batch.rejections),
            credential=sender.credential,
            object_key=object_key,
            payload=payload,
            naive_timezone=options.naive_timezone,
            oldest_allowed_us=options.oldest_allowed_us,
            oldest_us=oldest_us,
            newest_us=newest_us,
            urgent=sender.urgent,
        )


class _BulkBody:
    """A bulk body on its way through: counted, inflated, decoded, and handed on as gzip for storage.

    `decoding` bounds how many bodies are decoded at the same time; it is not held while the body's next chunk is
    awaited, so slow senders hold up nobody.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        encoding: str,
        options: DecodeOptions,
        settings: IngestSettings,
        decoding: threading.BoundedSemaphore,
        digest: hashlib._Hash | None,
    ) -> None:
        self._chunks = _within(chunks, settings.max_wire_bytes)
        self._decoding = decoding
        self._inflater = make_inflater(encoding, options)
        self._decoder = EsmBulkDecoder(options)
        self._digest = digest
        self._compressor = None if encoding in ("gzip", "x-gzip") else isal_zlib.compressobj(1, wbits=31)
        self.wire_bytes = 0
        self.batch: DecodedBatch

    def stored(self) -> Iterator[bytes]:
        """The bytes to store. Raises where the body is not usable, so that nothing is stored."""
        for chunk in self._chunks:
            self.wire_bytes += len(chunk)
            with self._decoding:
                compressed = self._decode(self._inflater.feed(chunk))
            yield compressed if self._compressor is not None else chunk
        with self._decoding:
            compressed = self._decode(self._inflater.finish())
            self.batch = self._decoder.finish()
        _require_usable(self.batch)
        if self._compressor is not None:
            yield compressed + self._compressor.flush()

    def _decode(self, pieces: Iterable[bytes]) -> bytes:
        compressed = b""
        for piece in pieces:
            self._decoder.feed(piece)
            if self._digest is not None:
                self._digest.update(piece)
            if self._compressor is not None:
                compressed += self._compressor.compress(piece)
        return compressed


def _within(chunks: Iterable[bytes], size_max: int) -> Iterator[bytes]:
    """The chunks. Raises LimitExceeded at the first with which they are more than `size_max` bytes."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > size_max:
            raise LimitExceeded(f"the body is larger than {size_max} bytes (SENSORKEEP_MAX_WIRE_BYTES)")
        yield chunk


def reading_errors(batch: DecodedBatch) -> list[dict[str, object]]:
    """The first rejected readings, as answers list them."""
    first = [batch.rejections[i] for i in range(min(len(batch.rejections), limits.ERRORS_REPORTED_MAX))]
    return [{"equipment": item.equipment, "sensor": item.sensor, "reason": item.reason.value} for item in first]


def object_key(received_us: int, batch_id: str) -> str:
    """The key of a batch's payload: telemetry/YYYY-MM-DD-HH-MM-SS/<batch id>.json.gz."""
    moment = datetime.fromtimestamp(received_us // MICROSECONDS, UTC)
    return f"telemetry/{moment:%Y-%m-%d-%H-%M-%S}/{batch_id}.json.gz"


def _require_usable(batch: DecodedBatch) -> None:
    if batch.readings.num_rows:
        return
    errors = reading_errors(batch)
    what = f"all {len(batch.rejections)} readings are unusable" if errors else "there is no reading in it"
    raise InvalidInput(f"nothing was stored: {what}", code="no_usable_reading", extra={"errors": errors})


def answer_body(accepted: Accepted) -> dict[str, object]:
    """The 201 answer of the bulk and general forms (SPEC section 3), as a JSON object."""
    claim, batch = accepted.claim, accepted.batch
    usable = claim.readings - claim.quarantined
    body: dict[str, object] = {
        "status": "accepted",
        "received": batch.objects,
        "readings": claim.readings,
        "quarantined": claim.quarantined,
        "batch_id": claim.batch_id,
        "claim_check": claim.object_key or f"inline/{claim.batch_id}",
        "message": f"{usable} of {claim.readings} readings are durable and will be stored",
        "errors": reading_errors(batch),
    }
    return body


def encode(body: object) -> bytes:
    """JSON bytes."""
    return msgspec.json.encode(body)
