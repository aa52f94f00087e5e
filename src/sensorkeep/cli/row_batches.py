"""Rows of a file in batches, as they are read, sent and acknowledged together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sensorkeep.cli.source_files import Place, SourceRow
from sensorkeep.cli.source_rows import ColumnOptions, Converted, RowConverter, choose_converter
from sensorkeep.errors import InvalidInput


class GoodRow(NamedTuple):
    """A row and what it became."""

    row: SourceRow
    converted: Converted


@dataclass(slots=True)
class RowBatch:
    """Rows that are read, sent and acknowledged together, and the place after them."""

    end: Place
    rows: int = 0
    empty: int = 0
    good: list[GoodRow] = field(default_factory=list)
    bad: list[tuple[SourceRow, str]] = field(default_factory=list)


class RowReader:
    """Reads batches of rows; the first good row decides how rows are converted, and `on_form` is told."""

    def __init__(self, columns: ColumnOptions, on_form: Callable[[str], None]) -> None:
        self._columns = columns
        self._on_form = on_form
        self.converter: RowConverter | None = None

    def batches(self, source: Iterator[SourceRow], size: int) -> Iterator[RowBatch]:
        """The rows of `source`, `size` at a time. Raises InvalidInput (`bad_parameter`) where the options do not fit
        the file."""
        batch: RowBatch | None = None
        for row in source:
            if batch is None:
                batch = RowBatch(row.end)
            self._add(batch, row)
            if batch.rows == size:
                yield batch
                batch = None
        if batch is not None:
            yield batch

    def _add(self, batch: RowBatch, row: SourceRow) -> None:
        batch.end = row.end
        batch.rows += 1
        if row.fields is None:
            batch.bad.append((row, row.problem or "not a row"))
            return
        if self.converter is None:
            self.converter = choose_converter(row.fields, self._columns)
            self._on_form(self.converter.form)
        try:
            converted = self.converter.convert(row.fields)
        except InvalidInput as error:
            batch.bad.append((row, error.detail))
            return
        if converted is None:
            batch.empty += 1
        else:
            batch.good.append(GoodRow(row, converted))
