"""What the commands print: tables and progress bars on a terminal, plain lines elsewhere.

Results go to standard output; progress, notes and errors go to standard error.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

import typer

from sensorkeep.clock import Clock, SystemClock
from sensorkeep.errors import SensorkeepError

if TYPE_CHECKING:
    from rich import progress as rich_progress

# rich is imported where it draws: a server never does.

PLAIN_PROGRESS_SECONDS = 5.0
"""Time between two progress lines where there is no terminal."""


class ExitCode(enum.IntEnum):
    """How a command ends."""

    OK = 0
    SOME_REFUSED = 1
    """Something was refused: rows of a file, or the request itself (credential, scope, not found)."""
    USAGE = 2
    """The command was called wrongly; nothing was sent."""
    UNREACHABLE = 3
    """The server cannot be reached, or stayed unavailable through all tries. Calling again later is safe."""
    STOPPED_FOR_GOOD = 4
    """A worker set too much aside. Started again it would set more aside: look for the fault first."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C, as shells count it."""


_ADVICE = {
    "unreachable": "check --url, and that `sensorkeep serve` is running there",
    "unauthenticated": "give --api-key, or --username and --password (or their environment variables)",
    "forbidden": "use a credential with the scope that is named",
    "too_large": "send less at once with --batch",
    "rate_limited": "wait and call the same command again",
    "unavailable": "wait and call the same command again",
    "dependency_down": "wait and call the same command again; GET /health says what is down",
    "disk_full": "free disk space on the server, then call the same command again",
    "bad_parameter": "see --help",
    "already_exists": "choose another name, or give --force where the command has it",
}


def exit_code(error: SensorkeepError) -> ExitCode:
    """The exit code that tells of `error`."""
    if error.code == "bad_parameter":
        return ExitCode.USAGE
    return ExitCode.UNREACHABLE if error.status in (429, 502, 503, 504) else ExitCode.SOME_REFUSED


def printable(text: str) -> str:
    """`text` without control characters, so that foreign text cannot steer the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


class ProgressReport(Protocol):
    """Told how far a command is."""

    def update(self, completed: float, note: str = "") -> None:
        """`completed` of the total, in its unit; `note` says the same in words."""
        ...


class _TerminalReport:
    def __init__(self, bars: rich_progress.Progress, task: rich_progress.TaskID) -> None:
        self._bars = bars
        self._task = task

    def update(self, completed: float, note: str = "") -> None:
        self._bars.update(self._task, completed=completed, note=note)


class _PlainReport:
    def __init__(self, stream: TextIO, description: str, total: float | None, clock: Clock) -> None:
        self._stream = stream
        self._description = description
        self._total = total
        self._clock = clock
        self._next = clock.monotonic() + PLAIN_PROGRESS_SECONDS

    def update(self, completed: float, note: str = "") -> None:
        now = self._clock.monotonic()
        if now < self._next:
            return
        self._next = now + PLAIN_PROGRESS_SECONDS
        share = f" {min(completed / self._total, 1.0):.0%}" if self._total else ""
        self._stream.write(f"{self._description}:{share} {note}".rstrip() + "\n")
        self._stream.flush()


class Output:
    """Where a command prints. `terminal` says how; by default it is asked of standard error."""

    def __init__(
        self,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        terminal: bool | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self.terminal = self._stderr.isatty() if terminal is None else terminal
        self._clock = clock or SystemClock()
        self._bars: rich_progress.Progress | None = None

    def line(self, text: str) -> None:
        """One line of the result."""
        self._stdout.write(printable(text) + "\n")
        self._stdout.flush()

    def note(self, text: str) -> None:
        """One line for the person who watches, not part of the result."""
        if self._bars is not None:
            from rich.text import Text

            self._bars.console.print(Text(printable(text)))  # above the bar, which is drawn again below it
            return
        self._stderr.write(printable(text) + "\n")
        self._stderr.flush()

    def error(self, error: SensorkeepError) -> None:
        """`error: what (code)`, and what to do about it where that is known."""
        self.note(f"error: {error.detail} ({error.code})")
        advice = _ADVICE.get(error.code)
        if advice:
            self.note(f"  {advice}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
        """A table; tab-separated lines with a header where there is no terminal. None is an empty cell."""
        cells = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
        if not (self.terminal and self._stdout.isatty()):
            for row in [list(columns), *cells]:
                self._stdout.write("\t".join(row) + "\n")
            self._stdout.flush()
            return
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        table = Table(*(Column(name, overflow="fold") for name in columns), title=title)  # never cut: ids are copied
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=self._stdout).print(table)

    @contextmanager
    def progress(self, description: str, total: float | None) -> Iterator[ProgressReport]:
        """Shows how far the block is; `total` None: unknown."""
        if not self.terminal:
            yield _PlainReport(self._stderr, description, total, self._clock)
            return
        from rich import progress as rich_progress
        from rich.console import Console

        columns = (
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TextColumn("{task.fields[note]}", markup=False),
            rich_progress.TimeRemainingColumn(),
        )
        console = Console(file=self._stderr, force_terminal=True)
        with rich_progress.Progress(*columns, console=console, transient=True) as bars:
            self._bars = bars
            try:
                yield _TerminalReport(bars, bars.add_task(printable(description), total=total, note=""))
            finally:
                self._bars = None

    @contextmanager
    def reporting_errors(self) -> Iterator[None]:
        """Turns the errors of the block into a message and an exit code (raises typer.Exit)."""
        try:
            yield
        except SensorkeepError as error:
            self.error(error)
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt as error:
            self.note("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from error
