"""The data directory of the embedded stores: made, locked against a second process, and named where it is wrong."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sensorkeep.errors import BadConfig, DataDirInUse


class DataDir:
    """The opened data directory; holding it keeps other processes out.

    Raises DataDirInUse where another process has it, BadConfig where it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadConfig(f"SENSORKEEP_DATA_DIR: {self.path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 20).decode("ascii", "replace").strip()
            os.close(self._lock)
            raise DataDirInUse(
                f"the data directory {self.path} is open in process {holder or 'unknown'}; stop it first, or choose"
                " another with SENSORKEEP_DATA_DIR"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def close(self) -> None:
        """Let others in. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
