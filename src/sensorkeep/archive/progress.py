"""How moving an installation tells how far it is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Report(Protocol):
    """Told how far a step is."""

    def update(self, completed: float, note: str = "") -> None:
        """`completed` of the total, in its unit; `note` says the same in words."""
        ...


class Progress(Protocol):
    """Begins a step of known length (None: unknown)."""

    def __call__(self, description: str, total: float | None, /) -> AbstractContextManager[Report]: ...
