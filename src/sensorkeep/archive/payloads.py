"""The raw payloads: copied as they are, each with its SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from sensorkeep.archive.files import Archive
from sensorkeep.archive.layout import PAYLOADS_FOLDER, PAYLOADS_INDEX, ArchiveFile
from sensorkeep.archive.progress import Progress
from sensorkeep.archive.writing import ArchiveWriter
from sensorkeep.errors import Conflict, NotFound
from sensorkeep.limits import MIB, OBJECT_CHUNK_BYTES
from sensorkeep.object_store.base import ObjectStore, is_key


def export_payloads(store: ObjectStore, writer: ArchiveWriter, progress: Progress) -> int:
    """Copy every payload; their bytes together."""
    total = 0
    with progress("payloads", None) as report, writer.lines(PAYLOADS_INDEX) as index:
        for listed in store.list():
            try:
                chunks = store.get(listed.key)
            except NotFound:  # deleted since it was listed
                continue
            with writer.file(f"{PAYLOADS_FOLDER}/{listed.key}", listed=False) as file:
                for chunk in chunks:
                    file.write(chunk)
            index.write({"key": listed.key, "bytes": file.length, "sha256": file.sha256})
            total += file.length
            report.update(index.rows, f"{index.rows:,} payloads, {total / MIB:,.0f} MiB")
    return total


def import_payloads(store: ObjectStore, archive: Archive, progress: Progress) -> None:
    """Copy every payload into the store; those that an earlier try brought in stay.

    Raises Corrupt where one is not as it was exported: then nothing of it is in the store.
    """
    index = archive.manifest.file(PAYLOADS_INDEX)
    if index is None:
        return
    with progress("payloads", float(index.rows)) as report:
        for number, row in enumerate(archive.lines(index), start=1):
            file = _entry(row, index, archive)
            try:
                store.put(file.path.removeprefix(f"{PAYLOADS_FOLDER}/"), _verified(archive, file))
            except Conflict as error:
                if error.code != "already_exists":
                    raise
            report.update(number, f"{number:,} payloads")


def _entry(row: dict[str, object], index: ArchiveFile, archive: Archive) -> ArchiveFile:
    key, length, sha256 = (row.get(name) for name in ("key", "bytes", "sha256"))
    if not (isinstance(key, str) and is_key(key) and isinstance(length, int) and isinstance(sha256, str)):
        raise archive.damaged(index, "a row does not name a payload")
    return ArchiveFile(path=f"{PAYLOADS_FOLDER}/{key}", bytes=length, rows=0, sha256=sha256)


def _verified(archive: Archive, file: ArchiveFile) -> Iterator[bytes]:
    """The bytes of the payload; raises at the end where they are not what was exported."""
    digest, length = hashlib.sha256(), 0
    try:
        with archive.path(file).open("rb") as stream:
            while chunk := stream.read(OBJECT_CHUNK_BYTES):
                digest.update(chunk)
                length += len(chunk)
                yield chunk
    except OSError as error:
        raise archive.damaged(file, f"it cannot be read ({error.strerror})") from error
    if (length, digest.hexdigest()) != (file.bytes, file.sha256):
        raise archive.damaged(file, "its SHA-256 is not that of the list of payloads")
