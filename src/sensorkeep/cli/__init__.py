"""The command line: `sensorkeep COMMAND`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Without(MetaPathFinder):
    """Refuses a module that libraries import wherever it is installed, and that nothing here uses."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse the module, know nothing of the rest."""
        if fullname == self._name:
            raise ModuleNotFoundError(f"Sensorkeep does without {fullname}", name=fullname)
        return None


@contextmanager
def without(name: str) -> Iterator[None]:
    """What is imported in the block for the first time does not find the module `name`."""
    finder = _Without(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def main() -> None:
    """The entry point of the `sensorkeep` script."""
    # Columns come and go with every batch: the C library's allocator took 10-20 % less CPU for it than Arrow's own,
    # and 40 MiB less memory (docs/decisions/0007).
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with without("rich"):  # for coloured tracebacks: 5 MiB
        import structlog  # noqa: F401
    with without("pandas"):  # pyarrow's and DuckDB's conversions: 0.4 s and 45 MiB
        from sensorkeep.cli.commands import app

        app()
