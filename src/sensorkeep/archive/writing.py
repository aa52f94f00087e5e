"""Makes an archive: files hashed while they are written, synced, and vouched for by the manifest at the end."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sensorkeep.archive.layout import (
    CATALOG_FOLDER,
    MANIFEST,
    PAYLOADS_FOLDER,
    PAYLOADS_INDEX,
    READINGS_FOLDER,
    ROLLUPS_FOLDER,
    ArchiveFile,
    Manifest,
)
from sensorkeep.errors import Conflict, InvalidInput, Unavailable

_GZIP_LEVEL = 6
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNFINISHED = ".unfinished"


class NewFile(io.RawIOBase):
    """A file of the archive while it is written; `rows` is set by who writes it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self.length = 0
        self.rows = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """All of `data`, whatever the system takes at once."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        self._hash.update(rest)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self.length += length
        return length

    def tell(self) -> int:
        return self.length

    def sync(self) -> None:
        """Force it to the medium."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._hash.hexdigest()


class ArchiveWriter:
    """An archive in the making; `new_archive` opens one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.files: list[ArchiveFile] = []
        """Those that are finished and listed, in the order written."""

    @contextmanager
    def file(self, path: str, *, listed: bool = True) -> Iterator[NewFile]:
        """A new file; durable and, where `listed`, in the manifest when the block ends well."""
        target = self._directory / path
        self._make_folder(target.parent)
        with NewFile(target) as file:
            yield file
            file.sync()
            if listed:
                self.files.append(ArchiveFile(path=path, bytes=file.length, rows=file.rows, sha256=file.sha256))

    @contextmanager
    def lines(self, path: str) -> Iterator[LineWriter]:
        """A new file of JSON lines, compressed."""
        with self.file(path) as file:
            # No name and no time in the header, so that the same rows give the same bytes.
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as compressed:
                writer = LineWriter(compressed)
                yield writer
            file.rows = writer.rows

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest: from now on the archive is whole."""
        for folder, _, _ in os.walk(self._directory):
            _sync_folder(Path(folder))
        path = self._directory / MANIFEST
        unfinished = self._directory / (MANIFEST + _UNFINISHED)
        with NewFile(unfinished) as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
            file.sync()
        os.replace(unfinished, path)
        _sync_folder(self._directory)

    def _make_folder(self, folder: Path) -> None:
        """Make the folder; each part of it for the owner alone, which `mkdir` of several parts does not do."""
        for part in reversed([folder, *folder.parents]):
            if not part.is_dir():
                part.mkdir(mode=0o700)

    def remove(self) -> None:
        """Take away what was written, the manifest first."""
        for name in (MANIFEST, MANIFEST + _UNFINISHED, PAYLOADS_INDEX):
            (self._directory / name).unlink(missing_ok=True)
        for name in (CATALOG_FOLDER, READINGS_FOLDER, ROLLUPS_FOLDER, PAYLOADS_FOLDER):
            shutil.rmtree(self._directory / name, ignore_errors=True)


class LineWriter:
    """Rows as JSON, one a line."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._encoder = msgspec.json.Encoder()
        self.rows = 0

    def write(self, row: dict[str, Any]) -> None:
        """One row; bytes become base64."""
        self._stream.write(self._encoder.encode(row) + b"\n")
        self.rows += 1


@contextmanager
def new_archive(directory: Path) -> Iterator[ArchiveWriter]:
    """An archive in `directory`, which is made, or empty. Where the block raises, nothing of it remains.

    Raises Conflict (`already_exists`) where there is something, InvalidInput (`bad_parameter`) where it cannot be
    made, Unavailable (`disk_full`).
    """
    made = _make_empty(directory)
    writer = ArchiveWriter(directory)
    try:
        with _meaning(directory):
            yield writer
    except BaseException:
        writer.remove()
        if made:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _make_empty(directory: Path) -> bool:
    """Make the directory; whether it was not there before."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not directory.is_dir():
            raise Conflict(f"{directory} exists and is not a directory", code="already_exists") from None
    except OSError as error:
        raise InvalidInput(f"{directory} cannot be made: {error.strerror}", code="bad_parameter") from error
    else:
        return True
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise InvalidInput(f"{directory} cannot be read: {error.strerror}", code="bad_parameter") from error
    if names:
        what = "holds an archive" if MANIFEST in names else f"is not empty (it holds {names[0]})"
        unfinished = "; an export that was cut off leaves files without a manifest, which can be removed"
        raise Conflict(
            f"{directory} {what}; name a new directory{'' if MANIFEST in names else unfinished}", code="already_exists"
        )
    return False


@contextmanager
def _meaning(directory: Path) -> Iterator[None]:
    """Errors of the file system as ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise Unavailable(f"no room is left for the archive {directory}", code="disk_full") from error
        raise InvalidInput(
            f"the archive {directory} cannot be written: {error.strerror or error}", code="bad_parameter"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
