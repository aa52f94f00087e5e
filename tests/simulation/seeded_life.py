"""A seeded life of the product: clients that send until they are acknowledged, processes that fail and die, a clock.

All of it hangs on the seed: the same seed gives the same trace.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from expectation import Expectation
from letters import Letter, LetterWriter

from sensorkeep.catalog.base import Accounting, Receipt
from sensorkeep.clock import HOUR_US, MICROSECONDS, ManualClock
from sensorkeep.errors import Conflict, InvalidInput, NotFound, Unavailable
from sensorkeep.ingest.accept import Sender
from sensorkeep.model import Claim
from sensorkeep.testing.faulty import Crashed, Fault
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings, Process

START_US = 1_767_225_600 * MICROSECONDS  # 2026-01-01T00:00:00Z
STEPS = 40
ATTEMPTS_MAX = 400
RETENTION_DAYS = 3
PAYLOAD_DAYS = 1
BASE_RATES = {
    Fault.DELAY: 0.05,
    Fault.FAIL_BEFORE: 0.05,
    Fault.FAIL_AFTER: 0.04,
    Fault.CRASH_BEFORE: 0.01,
    Fault.CRASH_AFTER: 0.01,
    Fault.DUPLICATE: 0.05,
    Fault.REORDER: 0.3,
}


class Simulation:
    """One seed. `run` lets it happen, up to the rest at the end, when nothing fails any more and nothing waits.

    A seed decides its own kind: which faults there are and how often, one process or two gateways beside a worker,
    claims that come again, how much is handed over in memory.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self._random = chance = random.Random(seed)
        self.clock = ManualClock(START_US)
        gateways = chance.choice([1, 1, 2])
        rates = {fault: rate * chance.choice([0, 0.5, 1, 1, 2]) for fault, rate in BASE_RATES.items()}
        # Clients share their sensors only where claims come in one order.
        shared = gateways == 1 and chance.random() < 0.4
        if shared:
            rates[Fault.REORDER] = 0.0
        settings = PipelineSettings(
            raw_retention_days=RETENTION_DAYS,
            payload_retention_days=PAYLOAD_DAYS,
            handoff_bytes=chance.choice([0, 20_000, 1 << 26]),
            rates=rates,
            gateways=gateways,
            deaths_max=1_000_000,  # here no batch is to blame, however often one is in the middle of it
            redelivery=chance.choice([0.0, 0.1, 0.3]),
        )
        self.pipeline = Pipeline(directory, self.clock, seed, settings)
        self.pipeline.queue.on_publish = self._note_published
        self.pipeline.on_reopen = self._note_reopened
        self.letters = LetterWriter(chance, self.clock, shared=shared, backfills=chance.random() < 0.3)
        self.expectation = Expectation()
        self.bodies: dict[str, bytes] = {}
        """Bulk bodies, inflated, by the batches that the queue took."""
        self.acknowledged: list[str] = []
        self.deaths = 0
        self.trace: list[str] = []
        """What happened: the same for the same seed."""
        self._sending: Letter | None = None

    @property
    def digest(self) -> str:
        """The trace in short."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]

    def run(self, on_step: Callable[[], None] = lambda: None) -> None:
        """Everything; `on_step` is called after every step."""
        self.pipeline.let_faults_happen(True)
        for _ in range(STEPS):
            self._choose()()
            on_step()
        self._tell(f"resting after {self.deaths} deaths")
        self.pipeline.let_faults_happen(False)
        self.pipeline.queue.rate = 0.0
        self.rest(on_step)

    def rest(self, on_step: Callable[[], None] = lambda: None) -> None:
        """Rounds of the worker until nothing waits, and hours in which nothing happens."""
        for _ in range(ATTEMPTS_MAX):
            self._work()
            self.clock.advance(10)
            if not self.pipeline.queue.depth().claims:
                break
        on_step()
        for seconds in (10, 700, 7200, 10):
            self.clock.advance(seconds)
            self._work()
        on_step()

    def grow_old(self) -> None:
        """Days in which nothing happens, until the raw readings are past their retention."""
        for _ in range(2 * (RETENTION_DAYS + 2)):
            self.clock.advance(12 * 3600)
            self._work()
            self._work()

    def processes(self) -> list[Process]:
        """Those that run."""
        return list({id(process): process for process in (*self.pipeline.gateways, self.pipeline.working)}.values())

    def accounting(self) -> list[Accounting]:
        """What each process tells of the accounts: since its start, and of all time."""
        return [totals for process in self.processes() for totals in process.ledger.accounting()]

    # --- what happens ---

    def _choose(self) -> Callable[[], None]:
        actions: dict[Callable[[], None], float] = {
            self._send_bulk: 3,
            self._send_general: 2,
            self._send_single: 2,
            self._work: 5,
            self._wait: 3,
            self._replay: 1.5,
            self._receipt_comes_late: 0.5,
            self._restart: 0.3,
            self._everything_dies: 0.2,
            self._wait_for_a_day: 0.3,
            self._set_the_clock: 0.3,
        }
        return self._random.choices(list(actions), list(actions.values()))[0]

    def _send_bulk(self) -> None:
        letter = self.letters.bulk()
        cut = self._random.randrange(len(letter.body))
        chunks = [chunk for chunk in (letter.body[:cut], letter.body[cut:]) if chunk]
        self._send(letter, lambda gateway: gateway.bulk(iter(chunks), "gzip", letter.sender).claim.batch_id)

    def _send_general(self) -> None:
        letter = self.letters.general()
        self._send(letter, lambda gateway: gateway.readings(letter.body, letter.sender).claim.batch_id)

    def _send_single(self) -> None:
        letter = self.letters.singles()

        def send(gateway: object) -> str:
            acceptor = self.pipeline.acceptors[self._gateway]
            entries = self.letters.entries(letter, acceptor.options(letter.sender))
            return acceptor.gathered(entries, letter.sender)

        self._send(letter, send)

    def _send(self, letter: Letter, send: Callable[..., str]) -> None:
        """As a client does: the same again until the answer is a success, or says that it never will be."""
        self._sending = letter
        for _ in range(ATTEMPTS_MAX):
            self._gateway = self._random.randrange(len(self.pipeline.acceptors))
            try:
                batch_id = send(self.pipeline.acceptors[self._gateway])
            except Unavailable as error:
                self._tell(f"refused: {error.detail}")
                self.clock.advance(0.5)
                if self._random.random() < 0.5:
                    self._work()
            except InvalidInput as error:
                self._tell(f"unusable: {error.code}")
                return
            except Crashed as crash:
                self._gateway_dies(crash)
            else:
                self._tell(f"acknowledged {batch_id}: {letter.kind} of {len(letter.said)}")
                self.acknowledged.append(batch_id)
                self._check_visible(letter)
                return
        raise AssertionError("never acknowledged")

    def _check_visible(self, letter: Letter) -> None:
        """A look-up at the gateway that answered sees a reading at once."""
        fate = self.expectation.usable(self.acknowledged[-1])
        newest = self.pipeline.gateways[self._gateway].latest.find(sorted({reading.sensor for reading in fate}))[0]
        if letter.kind != "single":  # theirs are seen as records
            for reading in fate:
                assert newest[reading.sensor].time_us >= (reading.time_us or 0)

    def _work(self) -> None:
        try:
            self._tell(f"worked on {self.pipeline.worker.round()} claims")
        except Unavailable as error:
            self._tell(f"worker waits: {error.detail}")
        except Crashed as crash:
            self._worker_dies(crash)

    def _wait(self) -> None:
        self.clock.advance(self._random.choice([0.3, 6.0, 600.0, 4000.0]))

    def _wait_for_a_day(self) -> None:
        self.clock.advance(self._random.choice([9, 20, 26]) * 3600)
        self._tell("a day passes")

    def _set_the_clock(self) -> None:
        self.clock.set_wall(self.clock.now_us() + self._random.randint(-HOUR_US // 2, HOUR_US // 2))
        self._tell("the clock is set")

    def _replay(self) -> None:
        """Somebody asks for a replay of a batch with quarantined readings."""
        ledger = self.pipeline.gateways[0].ledger
        candidates = sorted({item.batch_id for item in ledger.quarantine(None, None, 1000)})
        if not candidates:
            return
        batch_id = self._random.choice(candidates)
        sender = Sender(self.expectation.claim(batch_id).credential, urgent=True)
        number = self._random.randrange(len(self.pipeline.acceptors))
        self._gateway, self._sending = number, None
        try:
            replay_id = self.pipeline.acceptors[number].replay(batch_id, sender)
        except (Unavailable, Conflict, InvalidInput, NotFound) as error:
            self._tell(f"replay refused: {error.detail}")
        except Crashed as crash:
            self._gateway_dies(crash)
        else:
            self._tell(f"replay {replay_id} of {batch_id}")

    def _receipt_comes_late(self) -> None:
        """A gateway's receipt that was on its way for a while, or comes twice."""
        since_us = self.clock.now_us() - HOUR_US
        claims = [c for c in self.expectation.claims if c.received_us >= since_us and c.replay_of is None]
        if claims:
            claim = self._random.choice(claims)
            self._random.choice(self.pipeline.gateways).ledger.receive([Receipt(claim, 10)])
            self._tell(f"late receipt of {claim.batch_id}")

    def _restart(self) -> None:
        self._tell("everything is stopped and started")
        self.pipeline.restart()

    def _everything_dies(self) -> None:
        self._tell("everything dies")
        self.deaths += 1
        self.pipeline.crash()

    def _gateway_dies(self, crash: Crashed) -> None:
        self._tell(f"gateway {self._gateway} died: {crash}")
        self.deaths += 1
        if self.pipeline.is_one_process:
            self.pipeline.crash()
        else:
            self.pipeline.crash_gateway(self._gateway)

    def _worker_dies(self, crash: Crashed) -> None:
        self._tell(f"worker died: {crash}")
        self.deaths += 1
        if self.pipeline.is_one_process:
            self.pipeline.crash()
        else:
            self.pipeline.crash_worker()

    # --- what is noted ---

    def _note_published(self, claims: Sequence[Claim]) -> None:
        letter = self._sending
        self.expectation.published(claims, letter.said if letter is not None else [])
        for claim in claims:
            if letter is not None and letter.kind == "bulk":
                self.bodies[claim.batch_id] = letter.content

    def _note_reopened(self, batch_id: str, replay_id: str) -> None:
        key = self.expectation.claim(batch_id).object_key
        kept = key is None or any(stored.key == key for stored in self.pipeline.objects.list(key))
        self.expectation.began_replay(replay_id, has_payload=kept)

    def _tell(self, what: str) -> None:
        self.trace.append(f"{self.clock.now_us() - START_US:>15,} {what}")
