"""What an import keeps beside its input: how far it is, and the rows that were refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from sensorkeep.cli.source_files import Place
from sensorkeep.errors import InvalidInput


class Progress(msgspec.Struct, kw_only=True):
    """How far an import is, and the totals up to there. Saved after every batch that was acknowledged."""

    file_bytes: int
    file_modified_ns: int
    digest: str
    """Of everything that decides what is sent, so that another mapping starts again."""
    offset: int = 0
    line: int = 0
    rows: int = 0
    sent: int = 0
    """Readings in acknowledged batches."""
    quarantined: int = 0
    """Of those, the readings that the server set aside."""
    refused: int = 0
    """Rows not sent, or refused with their whole batch."""
    empty: int = 0
    """Rows without a value."""
    refused_file_bytes: int = 0

    @property
    def place(self) -> Place:
        """Where the next row to send begins."""
        return Place(self.offset, self.line)


class ProgressFile:
    """The state file of one input. Losing it costs time only: what was sent before is recognised as duplicate."""

    def __init__(self, source: Path, directory: Path | None, settings: object) -> None:
        self.path = (directory or source.parent) / f"{source.name}.import-state.json"
        status = source.stat()
        digest = hashlib.sha256(msgspec.json.encode([str(source.resolve()), settings], order="deterministic"))
        self._fresh = Progress(
            file_bytes=status.st_size, file_modified_ns=status.st_mtime_ns, digest=digest.hexdigest()
        )

    def load(self) -> Progress:
        """The saved progress where it is of this very file and mapping, else none."""
        fresh = self._fresh
        try:
            saved = msgspec.json.decode(self.path.read_bytes(), type=Progress)
        except (OSError, msgspec.DecodeError):
            return fresh
        known = (saved.file_bytes, saved.file_modified_ns, saved.digest)
        return saved if known == (fresh.file_bytes, fresh.file_modified_ns, fresh.digest) else fresh

    def save(self, progress: Progress) -> None:
        """Replace the state. Raises InvalidInput (`bad_parameter`) where the directory cannot be written."""
        partial = self.path.with_name(self.path.name + ".tmp")
        try:
            partial.write_bytes(msgspec.json.encode(progress))
            os.replace(partial, self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def remove(self) -> None:
        """The import is finished."""
        self.path.unlink(missing_ok=True)


class RefusedFile:
    """FILE.refused.jsonl: `{"line","reason","row"}` of every row that was refused. Made with the first of them."""

    def __init__(self, source: Path, directory: Path | None, kept_bytes: int) -> None:
        self.path = (directory or source.parent) / f"{source.name}.refused.jsonl"
        self._kept_bytes = kept_bytes
        self._stream: BinaryIO | None = None

    def add(self, line: int, reason: str, row: Any) -> None:
        """Append one. Raises InvalidInput (`bad_parameter`) where it cannot be written."""
        try:
            if self._stream is None:
                self._stream = self._open()
            self._stream.write(msgspec.json.encode({"line": line, "reason": reason, "row": row}) + b"\n")
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def flush(self) -> int:
        """Hand what was added to the system and return the file's length in bytes."""
        if self._stream is None:
            return self._kept_bytes
        self._stream.flush()
        return self._stream.tell()

    def close(self) -> None:
        """Close the file; one of an earlier import that refused nothing now is removed."""
        if self._stream is not None:
            self._stream.close()
        elif not self._kept_bytes:
            self.path.unlink(missing_ok=True)

    def _open(self) -> BinaryIO:
        stream = self.path.open("r+b" if self._kept_bytes and self.path.exists() else "wb")
        # What came after the last acknowledged batch is read, and refused, again.
        stream.truncate(self._kept_bytes)
        stream.seek(0, os.SEEK_END)
        return stream


def _cannot_write(path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(f"{path}: {error.strerror}; choose a directory with --state", code="bad_parameter")
