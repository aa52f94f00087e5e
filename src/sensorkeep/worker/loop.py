"""The worker: fetch claims, load their readings, write them once, record the outcome, acknowledge.

Every step may be repeated: a claim is acknowledged last, the store answers a batch it knows with its first counts,
and the ledger keeps the first end of a batch. So a crash between any two steps loses nothing and counts nothing twice.
A batch whose write ends the process is known by that and set aside; see worker/attempts.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile, takewhile
from typing import NamedTuple

import msgspec
import structlog

from sensorkeep import limits
from sensorkeep.catalog.base import BatchLedger, Inventory, LatestReadings, Settlement
from sensorkeep.clock import MICROSECONDS, Clock
from sensorkeep.errors import Corrupt, SensorkeepError, Unavailable
from sensorkeep.metrics import Metrics
from sensorkeep.model import Counts, DecodedBatch, Rejections
from sensorkeep.pubsub.base import HURRY_CHANNEL, SETTLED_CHANNEL, PubSub
from sensorkeep.queue.base import ClaimQueue, Delivery
from sensorkeep.tsdb.base import TimeSeriesStore, Write
from sensorkeep.worker.attempts import AttemptKeeper
from sensorkeep.worker.load import Loader, Skip

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Pace of the worker, in seconds, and when it gives a batch up."""

    gather_seconds: float = limits.GATHER_SECONDS
    settle_seconds: float = limits.SETTLE_SECONDS
    maintain_seconds: float = limits.MAINTAIN_SECONDS
    deaths_max: int = limits.CLAIM_DEATHS_MAX
    """Processes that may end while they write a batch."""


@dataclass(slots=True)
class _Held:
    """A batch that is written; its claim is acknowledged once it is settled and recorded."""

    deliveries: list[Delivery]
    rejections: Rejections


class _Dead(NamedTuple):
    """A batch that is given up; its claim is acknowledged once that is recorded."""

    deliveries: list[Delivery]
    why: str
    deaths: int = 0


class _TooManyFailed(Exception):
    """So many batches are given up that we are at fault rather than they: not one more."""


class Worker:
    """One worker on one thread: `run` blocks until `stop`."""

    def __init__(
        self,
        *,
        queue: ClaimQueue,
        store: TimeSeriesStore,
        loader: Loader,
        inventory: Inventory,
        latest: LatestReadings,
        ledger: BatchLedger,
        attempts: AttemptKeeper,
        pubsub: PubSub,
        clock: Clock,
        metrics: Metrics,
        housekeep: Callable[[], None],
        settings: WorkerSettings,
    ) -> None:
        self._queue = queue
        self._store = store
        self._loader = loader
        self._inventory = inventory
        self._latest = latest
        self._ledger = ledger
        self._attempts = attempts
        self._pubsub = pubsub
        self._clock = clock
        self._metrics = metrics
        self._housekeep = housekeep
        self._settings = settings
        self._taken: dict[str, list[Delivery]] = {}
        """The deliveries of this round by batch: a queue may deliver a claim twice."""
        self._held: dict[str, _Held] = {}
        """Batches that are written, in their order."""
        self._failures: dict[str, int] = {}
        self._settled: dict[str, Counts] = {}
        self._dead: list[_Dead] = []
        self._outcomes: deque[bool] = deque(maxlen=limits.WORKER_OUTCOMES_WATCHED)
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._settle_at = self._maintain_at = clock.monotonic()
        self.caught_up = threading.Event()
        """Set once the claims that waited at the start are settled, or `run` has ended."""
        self.stopped_because: str | None = None
        """Set where the worker stopped by itself: too many claims failed, or something that nobody foresaw did."""
        self.stopped_for_good = False
        """Whether it stopped because it set too much aside. Started again it would set more aside: first somebody must
        look for the fault."""
        self.maintenance_failed_because: str | None = None
        """Why the last maintenance of the store failed, where it did."""

    def run(self) -> None:
        """Work until `stop`, or until too many claims fail."""
        pause_seconds = 0.0
        with contextlib.ExitStack() as ending:
            ending.callback(self.caught_up.set)
            ending.callback(self._pubsub.subscribe(HURRY_CHANNEL, lambda _: self._hurry.set()))
            while not self._stopping.wait(pause_seconds) and self.stopped_because is None:
                try:
                    # The start waits for `caught_up`: with nothing to catch up on, it must not wait for claims.
                    self.round(wait_seconds=limits.WORKER_IDLE_SECONDS if self.caught_up.is_set() else 0.0)
                    pause_seconds = 0.0
                except Unavailable as error:
                    self._metrics.worker_failures.labels(error.code).inc()
                    pause_seconds = min(max(2 * pause_seconds, 0.1), limits.WORKER_PAUSE_SECONDS_MAX)
                    log.warning("worker_waits", code=error.code, detail=error.detail, retry_in_seconds=pause_seconds)
                except Exception as error:
                    self._metrics.worker_failures.labels("internal").inc()
                    self.stopped_because = f"{type(error).__name__}: {error}"
                    self.stopped_for_good = isinstance(error, Corrupt)
                    log.exception("worker_stopped")

    def stop(self) -> None:
        """End `run` after the round it is in."""
        self._stopping.set()
        self._hurry.set()
        self._queue.wake()

    def round(self, wait_seconds: float = 0.0) -> int:
        """One round: write what waits, settle and maintain what is due. Returns the claims taken.

        Raises Unavailable where a dependency failed; what was taken is given back then, and nothing is lost. Where too
        much is given up, all but that is given back, too, and `stopped_because` is set: no round must follow.
        """
        self._record()
        deliveries = self._gather(wait_seconds)
        if deliveries:
            try:
                self._write_watched(deliveries)
            except BaseException as error:
                kept = [held.deliveries for held in self._held.values()] + [dead.deliveries for dead in self._dead]
                tokens = {delivery.token for delivery in chain.from_iterable(kept)}
                self._queue.release([delivery for delivery in deliveries if delivery.token not in tokens])
                if not isinstance(error, _TooManyFailed):
                    raise
                self._stop_for_good(str(error))
        self._settle(idle=not deliveries, urgent=any(d.claim.urgent for d in deliveries))
        self._record()
        if not deliveries and not self._held:
            self.caught_up.set()
        self._maintain(idle=not deliveries)
        return len(deliveries)

    def _gather(self, wait_seconds: float) -> list[Delivery]:
        self._hurry.clear()
        taken = self._queue.fetch(limits.GATHER_CLAIMS_MAX, limits.GATHER_READINGS_MAX, wait_seconds)
        readings = sum(delivery.claim.readings for delivery in taken)
        room = limits.GATHER_READINGS_MAX - readings
        # Where another one like the last would not fit, it may well be waiting.
        enough = not taken or readings >= limits.GATHER_READINGS_ENOUGH or taken[-1].claim.readings > room
        patient = self.caught_up.is_set() and not any(delivery.claim.urgent for delivery in taken)
        if patient and not enough and self._settings.gather_seconds:
            self._hurry.wait(self._settings.gather_seconds)
            with contextlib.suppress(Unavailable):  # what is taken goes on; the next round meets the failure again
                taken += self._queue.fetch(limits.GATHER_CLAIMS_MAX, room, 0.0)
        return taken

    def _write_watched(self, deliveries: Sequence[Delivery]) -> None:
        """Write. Where a batch may have ended a process before, note the attempt; where one has, write it alone."""
        if self.caught_up.is_set() and all(delivery.attempts == 1 for delivery in deliveries):
            self._write(deliveries)
            return
        for portion in self._attempts.portions(deliveries):
            if portion.deaths < self._settings.deaths_max:
                with self._attempts.noted(portion):
                    self._write(portion.deliveries)
            else:
                why = f"{portion.deaths} processes ended while they wrote it"
                self._give_up(portion.deliveries, why, portion.deaths)
                _require_few_failures(self._outcomes)

    def _write(self, deliveries: Sequence[Delivery]) -> None:
        fresh = self._fresh(deliveries)
        gathered = self._loader.take_gathered(delivery.claim for delivery in fresh)
        loaded: list[tuple[Delivery, DecodedBatch]] = []
        skipped: list[Delivery] = []
        failed = 0
        expected = self._outcomes.copy()  # with what is loaded taken for written
        for delivery in fresh:
            try:
                batch = gathered.get(delivery.claim.batch_id) or self._loader.load(delivery.claim)
            except Skip:
                skipped += self._taken[delivery.claim.batch_id]
            except Unavailable:
                raise
            except SensorkeepError as error:
                self._give_up(self._taken[delivery.claim.batch_id], error.detail)
                expected.append(False)
            except Exception as error:  # noqa: BLE001 - whatever it is, one bad batch must not hold up the others
                failed = self._failed_alone(delivery, error)
                if failed:  # it is tried again, and what comes after it waits for it
                    break
                expected.append(False)
            else:
                loaded.append((delivery, batch))
                expected.append(True)
            _require_few_failures(expected)
        if loaded:
            self._loader.offer_newest({delivery.claim.batch_id: batch for delivery, batch in loaded})
            failed += self._write_isolating(loaded)
        if failed:
            raise Unavailable(f"{failed} batches could not be written; they are tried again")
        self._queue.ack(skipped)

    def _fresh(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The first delivery of each batch that is to be written. A queue may deliver a claim again: what is written
        is acknowledged with its batch, and what has ended at once."""
        ended = self._ledger.ended([delivery.claim.batch_id for delivery in deliveries])
        self._taken = {}
        done: list[Delivery] = []
        for delivery in deliveries:
            batch_id = delivery.claim.batch_id
            if batch_id in self._held:
                self._held[batch_id].deliveries.append(delivery)
            elif batch_id in ended:
                done.append(delivery)
            else:
                self._taken.setdefault(batch_id, []).append(delivery)
        self._queue.ack(done)
        return [same[0] for same in self._taken.values()]

    def _describe(self, batches: Sequence[DecodedBatch]) -> None:
        """Enter what the batches say of equipment and sensors; batches made in one go share it."""
        equipment = {id(batch.equipment): batch.equipment for batch in batches}
        sensors = {id(batch.sensors): batch.sensors for batch in batches}
        self._inventory.describe(chain.from_iterable(equipment.values()), chain.from_iterable(sensors.values()))

    def _write_isolating(self, loaded: list[tuple[Delivery, DecodedBatch]]) -> int:
        """Write the batches in one transaction; where that fails, in halves, until the one that fails is alone.

        Returns how many were not written and are to be tried again: that one, and all after it, so that of two
        readings of one identity the one accepted later still wins.
        """
        try:
            self._describe([batch for _, batch in loaded])
            with self._metrics.write_seconds.time():
                settled = self._store.write(
                    [Write(d.claim.batch_id, batch, d.claim.received_us) for d, batch in loaded]
                )
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, one bad batch must not hold up the others
            if len(loaded) == 1:
                failed = self._failed_alone(loaded[0][0], error)
                _require_few_failures(self._outcomes)
                return failed
            middle = len(loaded) // 2
            failed = self._write_isolating(loaded[:middle])
            return failed + len(loaded) - middle if failed else self._write_isolating(loaded[middle:])
        for delivery, batch in loaded:
            batch_id = delivery.claim.batch_id
            self._held[batch_id] = _Held(list(self._taken[batch_id]), batch.rejections)
        for delivery, _ in loaded:
            self._failures.pop(delivery.claim.batch_id, None)
        self._settled.update(dict(settled))
        self._outcomes.extend([True] * len(loaded))
        return 0

    def _failed_alone(self, delivery: Delivery, error: Exception) -> int:
        """A batch the store refuses by itself: try again some times, then set it aside."""
        batch_id = delivery.claim.batch_id
        # Counted here and not by delivery.attempts: an outage gives every claim back again and again.
        failures = self._failures[batch_id] = self._failures.get(batch_id, 0) + 1
        log.error("batch_failed", batch_id=batch_id, failures=failures, error=repr(error))
        if failures < limits.CLAIM_ATTEMPTS_MAX:
            return 1
        del self._failures[batch_id]
        self._give_up(self._taken[batch_id], f"the store refused it {failures} times: {type(error).__name__}")
        return 0

    def _give_up(self, deliveries: list[Delivery], why: str, deaths: int = 0) -> None:
        """Whoever calls it must then look whether there are few failures."""
        self._dead.append(_Dead(deliveries, why, deaths))
        self._outcomes.append(False)

    def _stop_for_good(self, why: str) -> None:
        self.stopped_because = why
        self.stopped_for_good = True
        log.critical("worker_stopped", reason=why)

    def _settle(self, *, idle: bool, urgent: bool) -> None:
        """Merge late readings when there is time, when somebody waits, and every few seconds under load."""
        staged = self._held.keys() - self._settled.keys()
        if staged and (idle or urgent or self._clock.monotonic() >= self._settle_at):
            try:
                with self._metrics.settle_seconds.time():
                    self._settled.update(dict(self._store.settle()))
            except BaseException:
                self._give_back()
                raise
            self._settle_at = self._clock.monotonic() + self._settings.settle_seconds

    def _give_back(self) -> None:
        """A merge whose answer was lost may have been done: written again, the batches are told with their counts.

        Those after the first of them come again with it, so that they stay in order.
        """
        unanswered = list(dropwhile(lambda batch_id: batch_id in self._settled, self._held))
        for batch_id in unanswered:
            self._settled.pop(batch_id, None)
        self._queue.release(list(chain.from_iterable(self._held.pop(batch_id).deliveries for batch_id in unanswered)))

    def _record(self) -> None:
        """Enter settled and dead batches into the ledger, then acknowledge their claims."""
        self._bury()
        ready = self._ready()
        if not ready:
            return
        self._latest.save()  # first: the claim of a replay that is settled is not loaded again
        self._ledger.settle([Settlement(held.deliveries[0].claim, counts, held.rejections) for held, counts in ready])
        self._queue.ack(list(chain.from_iterable(held.deliveries for held, _ in ready)))
        recorded = [held.deliveries[0].claim.batch_id for held, _ in ready]
        for batch_id, (held, counts) in zip(recorded, ready, strict=True):
            del self._held[batch_id], self._settled[batch_id]
            self._count(counts, held.rejections)
        self._pubsub.publish(SETTLED_CHANNEL, msgspec.msgpack.encode(recorded))

    def _ready(self) -> list[tuple[_Held, Counts]]:
        """The settled batches up to the first one that is not.

        After a crash what has not ended comes again: if a batch ended before an earlier one, the earlier one's value of
        a sensor would then stand for the newest, though the later batch had corrected it.
        """
        self._settled = {batch_id: counts for batch_id, counts in self._settled.items() if batch_id in self._held}
        settled = takewhile(lambda item: item[0] in self._settled, self._held.items())
        return [(held, self._settled[batch_id]) for batch_id, held in settled]

    def _bury(self) -> None:
        """Enter dead letters."""
        if not self._dead:
            return
        dead = [(deliveries[0].claim, why) for deliveries, why, _ in self._dead]
        self._ledger.settle([Settlement(claim, Counts(), Rejections(), dead_letter=why) for claim, why in dead])
        self._queue.ack(list(chain.from_iterable(deliveries for deliveries, *_ in self._dead)))
        for claim, why in dead:
            log.error("dead_letter", batch_id=claim.batch_id, detail=why)
            self._metrics.readings_quarantined.labels("dead_letter").inc(claim.readings)
        self._pubsub.publish(SETTLED_CHANNEL, msgspec.msgpack.encode([claim.batch_id for claim, _ in dead]))
        self._attempts.forget([dead.deliveries[0].claim.batch_id for dead in self._dead if dead.deaths])
        self._dead.clear()

    def _maintain(self, *, idle: bool) -> None:
        now = self._clock.monotonic()
        sooner = self._settings.maintain_seconds - limits.MAINTAIN_IDLE_SECONDS if idle else 0.0
        if now < self._maintain_at - sooner:
            return
        self._maintain_at = now + self._settings.maintain_seconds
        try:
            self._store.maintain(self._clock.now_us())
            self._housekeep()
            self.maintenance_failed_because = None
        except Exception as error:
            because = f"{type(error).__name__}: {error}"
            self._metrics.worker_failures.labels("maintenance").inc()
            if because != self.maintenance_failed_because:  # it is tried again every second or so
                log.error("maintenance_failed", because=because, exc_info=not isinstance(error, Unavailable))
                self.maintenance_failed_because = because
        depth = self._queue.depth()
        self._metrics.queue_depth.set(depth.claims)
        age_us = self._clock.now_us() - depth.oldest_us if depth.oldest_us is not None else 0
        self._metrics.queue_oldest_seconds.set(max(0, age_us) / MICROSECONDS)

    def _count(self, counts: Counts, rejections: Rejections) -> None:
        self._metrics.readings_stored.inc(counts.stored)
        self._metrics.readings_updated.inc(counts.updated)
        self._metrics.readings_duplicate.inc(counts.duplicate)
        for rejection in rejections:
            self._metrics.readings_quarantined.labels(rejection.reason.value).inc()


def _require_few_failures(outcomes: deque[bool]) -> None:
    """Raises _TooManyFailed where the last claims mostly failed."""
    failed = outcomes.count(False)
    if failed >= limits.WORKER_FAILURES_MAX and 2 * failed > len(outcomes):
        raise _TooManyFailed(f"{failed} of the last {len(outcomes)} claims failed")
