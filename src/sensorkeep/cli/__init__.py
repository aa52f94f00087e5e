"""The command line: `sensorkeep COMMAND`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _WithoutPandas(MetaPathFinder):
    """pyarrow imports pandas wherever it is installed: 0.4 s and 45 MiB that nothing here uses."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse pandas, know nothing of the rest."""
        if fullname == "pandas":
            raise ModuleNotFoundError("Sensorkeep does without pandas", name=fullname)
        return None


def main() -> None:
    """The entry point of the `sensorkeep` script."""
    sys.meta_path.insert(0, _WithoutPandas())
    # Columns come and go with every batch: the C library's allocator took 10-20 % less CPU for it than Arrow's own,
    # and 40 MiB less memory (docs/decisions/0007).
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from sensorkeep.cli.commands import app  # only now: what it imports looks for pandas

    app()
