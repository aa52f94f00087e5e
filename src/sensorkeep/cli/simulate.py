"""`sensorkeep simulate`: a made-up fleet that sends to a running server as deployed clients do.

The readings come from `fleet`, the client from `home_assistant`; here they are paced, counted and told about.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import typer

from sensorkeep.cli import options as common
from sensorkeep.cli.client import DEFAULT_URL
from sensorkeep.cli.exporting import parse_moment
from sensorkeep.cli.fleet import FleetBatch, FleetOptions, fleet_batches
from sensorkeep.cli.fleet_forms import FleetForm
from sensorkeep.cli.home_assistant import (
    BULK,
    READINGS,
    TEMPERATURE,
    Faults,
    HomeAssistantClient,
    Route,
    SendOutcome,
)
from sensorkeep.cli.output import ExitCode, Output
from sensorkeep.clock import MICROSECONDS, Clock, SystemClock
from sensorkeep.errors import InvalidInput

__all__ = ["HomeAssistantClient", "Pace", "SimulationSummary", "plan_pace", "simulate", "simulate_command"]

SimulatedForm = Literal["esm", "temperature", "readings"]
_FLEET_FORMS: dict[SimulatedForm, FleetForm] = {"esm": "verbose", "temperature": "temperature", "readings": "readings"}
_ROUTES: dict[SimulatedForm, Route] = {"esm": BULK, "temperature": TEMPERATURE, "readings": READINGS}
DRAIN_FAILURES_MAX = 20
"""Failed requests in a row after which the end of a simulation gives up on its queue."""
_DRAIN_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Pace:
    """When batches are sent. `batches` None: until it is stopped."""

    batches: int | None
    step_seconds: float
    """Between two batches; 0: without a pause."""
    start_us: int
    """When the fleet's first round begins, so that its last one ends about now."""


@dataclass(slots=True)
class SimulationSummary:
    """What was sent and what the server answered."""

    batches: int = 0
    readings: int = 0
    """Made by the fleet, copies included."""
    fresh: int = 0
    late: int = 0
    corrected: int = 0
    resent: int = 0
    requests: int = 0
    accepted: int = 0
    """Readings in the answers of 200 and 201."""
    quarantined: int = 0
    unsent: int = 0
    """Objects still queued at the end."""
    answers: Counter[str] = field(default_factory=Counter)
    """Requests by status, or by the reason that there was none."""
    faults: Counter[str] = field(default_factory=Counter)
    """Faults made on purpose."""
    seconds: float = 0.0

    def add_batch(self, batch: FleetBatch) -> None:
        """Count what the fleet made."""
        self.batches += 1
        self.readings += batch.readings
        self.fresh += batch.fresh
        self.late += batch.late
        self.corrected += batch.corrected
        self.resent += batch.resent

    def add_outcome(self, outcome: SendOutcome) -> None:
        """Count a request."""
        self.requests += 1
        self.answers["no answer" if outcome.status is None else str(outcome.status)] += 1
        if outcome.fault is not None:
            self.faults[outcome.fault] += 1
        if outcome.success:
            # An answer to a single reading does not count: it is one.
            self.accepted += int(outcome.answer.get("readings", outcome.objects))
            self.quarantined += int(outcome.answer.get("quarantined", 0))


def plan_pace(
    *,
    now_us: int,
    sensors: int,
    interval_seconds: float,
    batches: int | None = None,
    duration_seconds: float | None = None,
    speed: float = 1.0,
    rate: float | None = None,
    start_us: int | None = None,
) -> Pace:
    """When to send, from what the options say. Raises InvalidInput (`bad_parameter`).

    A batch is one round. `rate`, in readings per second, wins over `speed` (simulated seconds per second; 0 sends
    without a pause). Faster than time it needs an end, so that it can start in the past and not run into the future.
    """
    step = sensors / rate if rate else (interval_seconds / speed if speed else 0.0)
    if duration_seconds is not None:
        within = max(int(duration_seconds / step), 1) if step else None
        batches = within if batches is None else min(batches, within or batches)
    if batches is None and step < interval_seconds and start_us is None:
        detail = "faster than time it needs an end: give --batches (or --duration), or --start"
        raise InvalidInput(detail, code="bad_parameter")
    if start_us is None:
        count = batches or 1
        simulated_ahead = (count - 1) * step - count * interval_seconds
        start_us = now_us + round(simulated_ahead * MICROSECONDS)
    return Pace(batches, step, start_us)


def simulate(
    fleet: FleetOptions,
    pace: Pace,
    client: HomeAssistantClient,
    output: Output,
    *,
    clock: Clock,
    sleep: Callable[[float], None] = time.sleep,
    duration_seconds: float | None = None,
) -> SimulationSummary:
    """Send the fleet's batches at their pace, then what is still queued. Ctrl-C ends it early, with the summary.

    Raises what the first login is refused with, and Unavailable where the server is not there at the start.
    """
    client.login()
    summary = SimulationSummary()
    began = clock.monotonic()
    with output.progress("simulating", pace.batches) as report:
        try:
            for batch in fleet_batches(fleet, pace.batches):
                _pause(began + batch.number * pace.step_seconds, clock, sleep)
                if duration_seconds is not None and clock.monotonic() - began > duration_seconds:
                    break
                summary.add_batch(batch)
                client.enqueue(batch.objects)
                _send_queue(client, summary)
                accepted = f"{summary.accepted:,} readings accepted, {client.queued:,} objects queued"
                report.update(summary.batches, f"batch {summary.batches}: {accepted}")
            _drain(client, summary, sleep)
        except KeyboardInterrupt:
            output.note("stopped")
    summary.seconds = clock.monotonic() - began
    summary.unsent = client.queued
    return summary


def _pause(due: float, clock: Clock, sleep: Callable[[float], None]) -> None:
    wait = due - clock.monotonic()
    if wait > 0:
        sleep(wait)


def _send_queue(client: HomeAssistantClient, summary: SimulationSummary) -> bool:
    """Send until the queue is empty or a request fails; what failed waits for the next batch, as deployed."""
    while client.queued:
        outcome = client.send()
        summary.add_outcome(outcome)
        if not outcome.success:
            return False
    return True


def _drain(client: HomeAssistantClient, summary: SimulationSummary, sleep: Callable[[float], None]) -> None:
    """Send what is queued at the end, however often it fails within reason."""
    failures = 0
    while client.queued and failures < DRAIN_FAILURES_MAX:
        queued = client.queued
        if _send_queue(client, summary):
            return
        failures = 1 if client.queued < queued else failures + 1
        sleep(_DRAIN_PAUSE_SECONDS)


def print_summary(summary: SimulationSummary, client: HomeAssistantClient, output: Output) -> None:
    """The summary as lines."""
    seconds = max(summary.seconds, 1e-9)
    output.line(
        f"made: {summary.readings} readings in {summary.batches} batches ({summary.fresh} fresh, {summary.late} late, "
        f"{summary.corrected} corrections, {summary.resent} copies)"
    )
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(summary.answers.items()))
    output.line(f"sent: {summary.requests} requests ({answers or 'none'})")
    if summary.faults:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.faults.items()))
        output.line(f"faults made on purpose: {faults}")
    output.line(
        f"server: {summary.accepted} readings accepted, {summary.quarantined} quarantined; "
        f"{client.logins} logins, {client.refreshes} refreshes"
    )
    output.line(f"time: {seconds:.1f} s, {summary.accepted / seconds:.0f} readings/s; {summary.unsent} objects unsent")


def simulate_command(
    url: common.Url = DEFAULT_URL,
    api_key: common.ApiKey = None,
    username: common.Username = None,
    password: common.Password = None,
    equipment: Annotated[int, typer.Option(min=1, help="Equipments.")] = 10,
    sensors: Annotated[int, typer.Option(min=1, help="Sensors of all equipments together.")] = 40,
    interval: Annotated[float, typer.Option(min=0.001, help="Seconds between two readings of a sensor.")] = 60.0,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Readings per second, instead of --speed.")] = None,
    speed: Annotated[float, typer.Option(min=0, help="Simulated seconds per second; 0: without a pause.")] = 1.0,
    duration: Annotated[float | None, typer.Option(min=0, help="Seconds to run.")] = None,
    batches: Annotated[int | None, typer.Option(min=1, help="Batches to send; one is a reading of all.")] = None,
    late: Annotated[float, typer.Option(min=0, max=1, help="Fraction sent hours to three days late.")] = 0.0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Fraction sent again as exact copies.")] = 0.0,
    corrections: Annotated[float, typer.Option(min=0, max=1, help="Fraction sent again with another value.")] = 0.0,
    unavailable: Annotated[float, typer.Option(min=0, max=1, help="Fraction that says unavailable (esm).")] = 0.01,
    binary: Annotated[float, typer.Option(min=0, max=1, help="Fraction of sensors that say on or off (esm).")] = 0.1,
    faults: Annotated[
        float,
        typer.Option(min=0, max=1, help="Fraction of requests that break: cut off, truncated gzip, answer unheard."),
    ] = 0.0,
    form: Annotated[SimulatedForm, typer.Option(help="What is sent.")] = "esm",
    timezone: Annotated[
        str, typer.Option(help="Zone of the times, which esm sends without it: that of the server's setting.")
    ] = "UTC",
    start: Annotated[str | None, typer.Option(help="First moment (default: so that it ends now).")] = None,
    seed: Annotated[int, typer.Option(help="Same seed and --start, same readings.")] = 0,
) -> None:
    """Send made-up readings as deployed clients do: a queue that is kept until the server answers 200 or 201.

    Exit codes: 0 all was accepted, 1 something was quarantined or is unsent, 2 wrong usage, 3 the server cannot be
    reached.
    """
    output, clock = Output(), SystemClock()
    with output.reporting_errors():
        pace = plan_pace(
            now_us=clock.now_us(),
            sensors=sensors,
            interval_seconds=interval,
            batches=batches,
            duration_seconds=duration,
            speed=speed,
            rate=rate,
            start_us=None if start is None else parse_moment("--start", start, 0),
        )
        fleet = FleetOptions(
            start_us=pace.start_us,
            seed=seed,
            equipment=equipment,
            sensors=sensors,
            interval_seconds=interval,
            late=late,
            resent=duplicates,
            corrections=corrections,
            unavailable=unavailable,
            binary=binary,
            form=_FLEET_FORMS[form],
            timezone=timezone,
        )
        breaking = Faults(faults, random.Random(f"{seed}/faults"))  # noqa: S311  (a seeded simulation)
        client = HomeAssistantClient(
            url, common.credential(api_key, username, password), route=_ROUTES[form], faults=breaking
        )
        summary = simulate(fleet, pace, client, output, clock=clock, duration_seconds=duration)
        client.close()
        print_summary(summary, client, output)
    raise typer.Exit(ExitCode.SOME_REFUSED if summary.quarantined or summary.unsent else ExitCode.OK)
