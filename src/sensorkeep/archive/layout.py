"""What an archive consists of: its files, their columns, and the manifest that vouches for them.

    manifest.json                  written last: what is in it, with the length, rows and SHA-256 of every other file
    catalog/<table>.jsonl.gz       every table of the catalog, one row a line, bytes as base64
    rollups/hourly.parquet         buckets whose readings are gone, in the form that merges (tsdb/base.py)
    rollups/daily.parquet
    readings/<YYYY-MM-DD>.parquet  raw readings of one UTC day, by time; a row group is one page of an import
    payloads.jsonl.gz              key, length and SHA-256 of every payload
    payloads/<key>                 the payloads as they were stored

Everything but the manifest may change with FORMAT_VERSION.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa

from sensorkeep.catalog.base import Accounting
from sensorkeep.model import READINGS_SCHEMA
from sensorkeep.tsdb.base import Period

FORMAT = "sensorkeep-archive"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
CATALOG_FOLDER = "catalog"
READINGS_FOLDER = "readings"
ROLLUPS_FOLDER = "rollups"
PAYLOADS_FOLDER = "payloads"
PAYLOADS_INDEX = "payloads.jsonl.gz"

ROLLUP_FILES: dict[Period, str] = {
    "hour": f"{ROLLUPS_FOLDER}/hourly.parquet",
    "day": f"{ROLLUPS_FOLDER}/daily.parquet",
}

_TEXTS = pa.dictionary(pa.int32(), pa.string())
_READING_FIELDS: list[pa.Field[Any]] = [
    pa.field("sensor", _TEXTS, nullable=False),  # its uuid
    *(field for field in READINGS_SCHEMA if field.name != "series"),
]
READING_FILE_SCHEMA = pa.schema(_READING_FIELDS)
"""Columns of readings/*.parquet."""


class ArchiveFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file as the manifest vouches for it. `path` is relative, with slashes."""

    path: str
    bytes: int
    rows: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest."""

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    product_version: str
    made_at: str
    """RFC 3339."""
    catalog_revision: str
    """The revision of the catalog's tables."""
    accounting: Accounting
    """The totals of all time."""
    payload_bytes: int | None
    """Of all payloads together; None where they were left out."""
    files: tuple[ArchiveFile, ...]

    def file(self, path: str) -> ArchiveFile | None:
        """The entry of one file."""
        return next((file for file in self.files if file.path == path), None)

    def catalog_files(self) -> list[ArchiveFile]:
        """The files of the catalog's tables."""
        return [file for file in self.files if _is_in(CATALOG_FOLDER, file)]

    def reading_files(self) -> list[ArchiveFile]:
        """The files of raw readings, by day."""
        return sorted((file for file in self.files if _is_in(READINGS_FOLDER, file)), key=_path)

    @property
    def readings(self) -> int:
        """Raw readings."""
        return sum(file.rows for file in self.reading_files())

    def rollups(self, period: Period) -> int:
        """Buckets whose readings are gone."""
        file = self.file(ROLLUP_FILES[period])
        return 0 if file is None else file.rows

    @property
    def payloads(self) -> int:
        """Payloads."""
        index = self.file(PAYLOADS_INDEX)
        return 0 if index is None else index.rows


def table_path(table: str) -> str:
    """The file of a table of the catalog."""
    return f"{CATALOG_FOLDER}/{table}.jsonl.gz"


def _is_in(folder: str, file: ArchiveFile) -> bool:
    return file.path.startswith(f"{folder}/")


def _path(file: ArchiveFile) -> str:
    return file.path
