"""Reads an archive: the manifest, and files that are what the manifest says."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from sensorkeep.archive.layout import FORMAT, FORMAT_VERSION, MANIFEST, ArchiveFile, Manifest
from sensorkeep.archive.progress import Progress
from sensorkeep.errors import Corrupt, InvalidInput, NotFound
from sensorkeep.limits import ARCHIVE_CHUNK_BYTES, ARCHIVE_MANIFEST_BYTES_MAX, MIB

_UNREADABLE = (pa.ArrowInvalid, EOFError, zlib.error, msgspec.DecodeError, gzip.BadGzipFile, FileNotFoundError)
_ADVICE = "copy the archive again, or export it again"


class _Version(msgspec.Struct):
    format: str
    format_version: int
    product_version: str = "?"


class Archive:
    """An archive that is there and whole as far as its manifest tells.

    Raises NotFound where `directory` holds no manifest (an export that was cut off leaves none), InvalidInput
    (`wrong_version`) where another version wrote it, Corrupt where the manifest does not read back.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        content = _read_manifest(directory)
        self.digest = hashlib.sha256(content).hexdigest()
        """What tells this archive from every other: SHA-256 of the manifest."""
        self.manifest = _parse_manifest(directory, content)

    def path(self, file: ArchiveFile) -> Path:
        """Where the file is."""
        return self.directory / file.path

    def verify(self, progress: Progress) -> None:
        """Read every listed file and compare it with the manifest. Raises Corrupt naming the first that differs."""
        total = sum(file.bytes for file in self.manifest.files)
        done = 0
        with progress("verifying", float(total)) as report:
            for file in self.manifest.files:
                for length in self._verify(file):
                    done += length
                    report.update(done, f"{done / MIB:,.0f} of {total / MIB:,.0f} MiB")

    def lines(self, file: ArchiveFile) -> Iterator[dict[str, Any]]:
        """The rows of a file of JSON lines. Raises Corrupt where they do not read back or are not as many."""
        rows = 0
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        with self._read_errors(file), gzip.open(self.path(file), "rb") as stream:
            for line in stream:
                yield decode(line)
                rows += 1
        if rows != file.rows:
            raise self.damaged(file, f"it holds {rows} rows, not {file.rows}")

    @contextlib.contextmanager
    def parquet(self, file: ArchiveFile, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
        """A Parquet file of that schema. Raises Corrupt where it is not one."""
        texts = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        with self._read_errors(file), pq.ParquetFile(self.path(file), read_dictionary=texts) as opened:
            if not opened.schema_arrow.equals(schema) or opened.metadata.num_rows != file.rows:
                raise self.damaged(file, "it has other columns or rows than the manifest says")
            yield opened

    def damaged(self, file: ArchiveFile, why: str) -> Corrupt:
        """The error that names the file."""
        return Corrupt(f"{self.path(file)} is damaged: {why}; {_ADVICE}")

    def _verify(self, file: ArchiveFile) -> Iterator[int]:
        """The lengths of the chunks read; raises at the end where they are not what was written."""
        digest, length = hashlib.sha256(), 0
        try:
            with self.path(file).open("rb") as stream:
                while chunk := stream.read(ARCHIVE_CHUNK_BYTES):
                    digest.update(chunk)
                    length += len(chunk)
                    yield len(chunk)
        except OSError as error:
            raise self.damaged(file, f"it cannot be read ({error.strerror})") from error
        if length != file.bytes:
            raise self.damaged(file, f"it has {length} bytes, not {file.bytes}")
        if digest.hexdigest() != file.sha256:
            raise self.damaged(file, "its SHA-256 is not that of the manifest")

    @contextlib.contextmanager
    def _read_errors(self, file: ArchiveFile) -> Iterator[None]:
        """What reading can raise, as Corrupt: the file was changed since it was verified."""
        try:
            yield
        except _UNREADABLE as error:
            raise self.damaged(file, f"it does not read back ({error})") from error


def _read_manifest(directory: Path) -> bytes:
    path = directory / MANIFEST
    try:
        with path.open("rb") as stream:
            content = stream.read(ARCHIVE_MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound(
            f"{directory} is no archive: it has no {MANIFEST}, which an export writes last; export again"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", code="bad_parameter") from error
    if len(content) > ARCHIVE_MANIFEST_BYTES_MAX:
        raise Corrupt(f"{path} is damaged: it is longer than {ARCHIVE_MANIFEST_BYTES_MAX} bytes; {_ADVICE}")
    return content


def _parse_manifest(directory: Path, content: bytes) -> Manifest:
    path = directory / MANIFEST
    try:
        version = msgspec.json.decode(content, type=_Version)
        if version.format != FORMAT:
            raise Corrupt(f"{path} is not the manifest of an archive of Sensorkeep")
        if version.format_version != FORMAT_VERSION:
            raise InvalidInput(
                f"{path}: the archive has format {version.format_version}, written by version"
                f" {version.product_version}; this version reads format {FORMAT_VERSION}: import it with the version"
                " that wrote it, then upgrade",
                code="wrong_version",
            )
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise Corrupt(f"{path} is damaged: {error}; {_ADVICE}") from error
