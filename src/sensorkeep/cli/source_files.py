"""Reads the rows of a CSV, JSON or JSONL file, plain or gzip, in bounded memory and from any row on.

A row that cannot be read is a row too, with its problem; reading goes on after it. Positions are bytes of the inflated
file, so that an interrupted import can go on where it was.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import msgspec

from sensorkeep.cli.gzip_reader import GzipReader, problem_of
from sensorkeep.cli.json_values import ValueEnd
from sensorkeep.errors import InvalidInput
from sensorkeep.limits import EXCERPT_CHARS_MAX, OBJECT_BUFFER_BYTES, SOURCE_LINE_BYTES_MAX, SOURCE_READ_BYTES

FileFormat = Literal["csv", "json", "jsonl"]
_FORMATS: dict[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_DELIMITERS = ",;\t|"
_GZIP_MAGIC = b"\x1f\x8b"


class Place(NamedTuple):
    """Between two rows: `offset` inflated bytes and `line` whole lines are before it."""

    offset: int = 0
    line: int = 0


class SourceRow(NamedTuple):
    """One row. Exactly one of `fields` and `problem` is set."""

    line: int
    """Line it begins on, from 1."""
    end: Place
    """Where the next row begins."""
    fields: dict[str, Any] | None
    problem: str | None = None
    text: str = ""
    """What a bad row said, cut."""


def _bad(line: int, end: Place, problem: str, text: bytes | str) -> SourceRow:
    shown = text[: 4 * EXCERPT_CHARS_MAX].decode("utf-8", "replace") if isinstance(text, bytes) else text
    return SourceRow(line, end, None, problem, shown[:EXCERPT_CHARS_MAX])


class SourceFile:
    """A file of rows. Use as a context manager; `rows` may be called once. Not thread-safe.

    The format is told by the name (.csv .tsv .txt, .json, .jsonl .ndjson, each also with .gz) unless it is given.
    Raises InvalidInput (`bad_parameter`) where the file cannot be opened or its format is unknown.
    """

    def __init__(
        self,
        path: Path,
        file_format: FileFormat | None = None,
        *,
        encoding: str = "utf-8",
        delimiter: str | None = None,
    ) -> None:
        self.path = path
        self.format = file_format or format_of(path)
        self._encoding = _line_encoding(encoding)
        self._delimiter = delimiter
        self._raw = _open(path)
        self.size = path.stat().st_size
        compressed = self._raw.read(2) == _GZIP_MAGIC
        self._raw.seek(0)
        self._stream = io.BufferedReader(GzipReader(self._raw), SOURCE_READ_BYTES) if compressed else self._raw

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._raw.close()

    @property
    def bytes_read(self) -> int:
        """Bytes of the file as stored that were read so far, for progress."""
        return self._raw.tell()

    def rows(self, start: Place = Place()) -> Iterator[SourceRow]:
        """The rows from `start` (a `SourceRow.end`) on. Never raises for what the file holds."""
        if self.format == "csv":
            return _CsvRows(self._stream, self._encoding, self._delimiter).rows(start)
        if self.format == "jsonl":
            return _jsonl_rows(self._stream, start)
        return _json_rows(self._stream, start)


def format_of(path: Path) -> FileFormat:
    """The format that the name tells. Raises InvalidInput (`bad_parameter`)."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in _FORMATS:
        raise InvalidInput(
            f"{path}: the name does not tell the format; say --format csv|json|jsonl", code="bad_parameter"
        )
    return _FORMATS[suffix]


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=SOURCE_READ_BYTES)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", code="bad_parameter") from error


def _line_encoding(encoding: str) -> str:
    """`encoding`, checked to be one whose lines end with the byte 10. Raises InvalidInput (`bad_parameter`)."""
    try:
        usable = codecs.lookup(encoding).name != "utf-8-sig" and "\n;".encode(encoding) == b"\n;"
    except LookupError:
        usable = False
    if not usable:
        raise InvalidInput(f"encoding {encoding!r} cannot be read; convert the file to UTF-8", code="bad_parameter")
    return encoding


class _Line(NamedTuple):
    number: int
    end: Place
    content: bytes
    problem: str | None = None


class _Lines:
    """Lines with their places; lines may be given back. A line over the bound, or a broken stream, is a problem."""

    def __init__(self, stream: BinaryIO, start: Place, bytes_max: int) -> None:
        self._stream = stream
        self._bytes_max = bytes_max
        self._place = start
        self._given_back: deque[_Line] = deque()
        self._problem_told = False

    def give_back(self, lines: list[_Line]) -> None:
        """These lines come next again."""
        self._given_back.extendleft(reversed(lines))

    def next(self) -> _Line | None:
        """The next line with its ending, None at the end of the file."""
        if self._given_back:
            return self._given_back.popleft()
        number = self._place.line + 1
        content = self._stream.readline(self._bytes_max + 1)
        length = len(content)
        tail = content
        while length > self._bytes_max and tail and not tail.endswith(b"\n"):
            tail = self._stream.readline(SOURCE_READ_BYTES)
            length += len(tail)
        # What is left of a line at the place where a file is cut off may look like a row, and be another one.
        problem = None if tail.endswith(b"\n") else problem_of(self._stream)
        if not length and (problem is None or self._problem_told):
            return None
        self._problem_told = problem is not None
        if length > self._bytes_max:
            problem = f"the line is longer than {self._bytes_max} bytes"
        self._place = Place(self._place.offset + length, number)
        return _Line(number, self._place, content, problem)


class _CsvRows:
    """CSV by RFC 4180, with a header; the delimiter is found from the header unless given."""

    def __init__(self, stream: BinaryIO, encoding: str, delimiter: str | None) -> None:
        self._stream = stream
        self._encoding = encoding
        self._delimiter = delimiter
        self._taken: list[_Line] = []
        self._long: _Line | None = None

    def rows(self, start: Place) -> Iterator[SourceRow]:
        lines = _Lines(self._stream, Place(), SOURCE_LINE_BYTES_MAX)
        header = self._header(lines)
        if isinstance(header, SourceRow):
            yield header
            return
        first = self._taken[-1].end if self._taken else Place()
        if start.offset > first.offset:
            self._stream.seek(start.offset)
            lines = _Lines(self._stream, start, SOURCE_LINE_BYTES_MAX)
        yield from self._records(lines, header)

    def _header(self, lines: _Lines) -> list[str] | SourceRow:
        line = lines.next()
        while line is not None and line.problem is None and not line.content.removeprefix(codecs.BOM_UTF8).strip():
            line = lines.next()
        if line is None:
            return _bad(1, Place(), "the file is empty: there is no header", "")
        if line.problem is not None:
            return _bad(line.number, line.end, line.problem, line.content)
        text = line.content.removeprefix(codecs.BOM_UTF8).decode(self._encoding, "replace")
        if self._delimiter is None:
            self._delimiter = max(_DELIMITERS, key=text.count)
        self._taken = [line]
        try:
            names = [name.strip() for name in next(csv.reader([text], delimiter=self._delimiter))]
        except csv.Error as error:
            return _bad(line.number, line.end, f"the header is not CSV: {error}", line.content)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            return _bad(line.number, line.end, f"the header names {twice[0]!r} twice", line.content)
        return names

    def _records(self, lines: _Lines, header: list[str]) -> Iterator[SourceRow]:
        assert self._delimiter is not None
        while True:
            self._taken, self._long = [], None
            # One reader for each run of good rows: after an error the lines it had taken are read again by a new one.
            reader = csv.reader(self._decoded(lines), delimiter=self._delimiter, strict=True)
            try:
                for cells in reader:
                    taken, self._taken = self._taken, []
                    if cells:
                        yield self._row(header, cells, taken)
            except csv.Error as error:
                # An unbalanced quote takes many lines with it: only the first of them is at fault.
                first, *rest = self._taken
                lines.give_back(rest if self._long is None else [*rest, self._long])
                yield _bad(first.number, first.end, f"not a CSV row: {error}", first.content)
                continue
            if self._long is None:
                return
            yield _bad(self._long.number, self._long.end, self._long.problem or "", self._long.content)

    def _decoded(self, lines: _Lines) -> Iterator[str]:
        while (line := lines.next()) is not None:
            if line.problem is not None:
                self._long = line
                return
            self._taken.append(line)
            # A byte that is no text becomes a lone surrogate, which the row's check finds.
            yield line.content.decode(self._encoding, "surrogateescape")

    def _row(self, header: list[str], cells: list[str], taken: list[_Line]) -> SourceRow:
        line, end = taken[0].number, taken[-1].end
        content = b"".join(part.content for part in taken)
        if len(cells) != len(header):
            return _bad(line, end, f"{len(cells)} columns where the header has {len(header)}", content)
        if not content.isascii() and any(not _is_text(cell) for cell in cells):
            return _bad(line, end, f"not {self._encoding} text", content)
        return SourceRow(line, end, dict(zip(header, cells, strict=True)))


def _is_text(cell: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in cell)


def _jsonl_rows(stream: BinaryIO, start: Place) -> Iterator[SourceRow]:
    stream.seek(start.offset)
    lines = _Lines(stream, start, OBJECT_BUFFER_BYTES)
    while (line := lines.next()) is not None:
        if line.problem is not None:
            yield _bad(line.number, line.end, line.problem, line.content)
            continue
        content = line.content.removeprefix(codecs.BOM_UTF8) if line.number == 1 else line.content
        if content.strip():
            yield _json_row(line.number, line.end, content)


def _json_row(line: int, end: Place, content: bytes) -> SourceRow:
    try:
        value = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        return _bad(line, end, f"not JSON: {error}", content)
    if not isinstance(value, dict):
        return _bad(line, end, "not a JSON object", content)
    return SourceRow(line, end, value)


_BETWEEN = re.compile(rb"[\s,]*")


class _JsonBuffer:
    """The bytes read and not used yet, from `at` on, with their place."""

    def __init__(self, stream: BinaryIO, place: Place) -> None:
        self._stream = stream
        self.place = place
        self.bytes = b""
        self.at = 0
        self.ended = False
        self.problem: str | None = None

    def __len__(self) -> int:
        return len(self.bytes) - self.at

    def more(self) -> None:
        """Read on; `ended` is set at the end of the file, `problem` where it is broken."""
        chunk = self._stream.read(SOURCE_READ_BYTES)
        self.ended = not chunk
        self.problem = problem_of(self._stream) if self.ended else None
        self.bytes = self.bytes[self.at :] + chunk
        self.at = 0

    def take(self, count: int) -> bytes:
        """Use up `count` bytes."""
        taken = self.bytes[self.at : self.at + count]
        self.at += count
        self.place = Place(self.place.offset + count, self.place.line + taken.count(b"\n"))
        return taken

    def skip(self, pattern: re.Pattern[bytes]) -> bytes:
        """Use up what matches `pattern`, however long, and return the byte after it, b"" at the end of the file."""
        while True:
            if found := pattern.match(self.bytes, self.at):
                self.take(found.end() - self.at)
            if len(self) or self.ended:
                return self.bytes[self.at : self.at + 1]
            self.more()


def _json_rows(stream: BinaryIO, start: Place) -> Iterator[SourceRow]:
    """The elements of a JSON array; where the file does not begin with one, its values one after another."""
    head = _JsonBuffer(stream, Place())
    while len(head) < len(codecs.BOM_UTF8) and not head.ended:
        head.more()
    if head.bytes.startswith(codecs.BOM_UTF8, head.at):
        head.take(len(codecs.BOM_UTF8))
    in_array = head.skip(_BETWEEN) == b"["
    buffer = head
    if in_array:
        head.take(1)
    if start.offset > head.place.offset:
        stream.seek(start.offset)
        buffer = _JsonBuffer(stream, start)
    yield from _json_values(buffer, in_array)


def _json_values(buffer: _JsonBuffer, in_array: bool) -> Iterator[SourceRow]:
    while True:
        byte = buffer.skip(_BETWEEN)
        line = buffer.place.line + 1
        if in_array and byte == b"]":
            buffer.take(1)
            if buffer.skip(_BETWEEN):
                yield _bad(
                    line, buffer.place, "there is more after the end of the JSON array", buffer.bytes[buffer.at :]
                )
            return
        if not byte:
            if in_array or buffer.problem:
                yield _bad(line, buffer.place, buffer.problem or "the JSON array has no end: the file is cut off", "")
            return
        end = ValueEnd()
        while (length := end.find(buffer.bytes, buffer.at)) is None and not buffer.ended:
            if len(buffer) > OBJECT_BUFFER_BYTES:
                problem = f"a JSON value longer than {OBJECT_BUFFER_BYTES} bytes begins here; nothing after it was read"
                yield _bad(line, buffer.place, problem, buffer.bytes[buffer.at :])
                return
            buffer.more()
        if length is None and buffer.problem:
            yield _bad(line, buffer.place, buffer.problem, buffer.bytes[buffer.at :])
            return
        content = buffer.take(len(buffer) if length is None else length)
        yield _json_row(line, buffer.place, content)
