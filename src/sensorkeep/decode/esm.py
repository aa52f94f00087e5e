"""The Easy Smart Monitor bulk form: a JSON array of equipment objects (SPEC section 3, Ingest), decoded as it arrives.

Memory stays bounded whatever the body: one equipment object at a time is looked at, and one that is longer than
OBJECT_BUFFER_BYTES is read in parts. Time is linear: the end of an object is guessed once, and where the guess is
wrong it is found by the JSON decoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from functools import partial

import msgspec

from sensorkeep.decode import scan
from sensorkeep.decode.esm_columns import EsmColumns
from sensorkeep.decode.esm_descriptions import describe_equipment, describe_equipment_of
from sensorkeep.decode.esm_fields import (
    EquipmentFields,
    EsmMeasurement,
    MeasuredEquipment,
    SlimReading,
    as_list,
    decode_equipment,
    decode_last_readings,
    decode_measured_equipment,
    decode_slim_equipment,
    decode_spans,
    read_equipment,
)
from sensorkeep.decode.esm_parts import EquipmentInParts
from sensorkeep.decode.esm_rows import ReadLast, Stretch, last_of
from sensorkeep.decode.json_window import JsonWindow, malformed
from sensorkeep.decode.options import DecodeOptions
from sensorkeep.errors import InvalidInput, LimitExceeded
from sensorkeep.limits import (
    DECODE_BYTES_PER_CHUNK,
    DECODE_ROWS_PER_CHUNK,
    DECODE_SKIM_BYTES_MIN,
    OBJECT_BUFFER_BYTES,
    OBJECT_PART_BYTES,
    SCAN_BYTES_MIN,
    SCAN_READINGS_AN_UNUSUAL_MIN,
    SCAN_UNUSUAL_MAX,
)
from sensorkeep.model import DecodedBatch

_guess_end = re.compile(rb"\][ \t\r\n]{0,64}\}").search
_GUESS_OVERLAP = 66  # longest match of _guess_end, which may be cut by the window's end
_VALUE_STARTS = frozenset(b'{["-0123456789tfn')
_OPEN_BRACE, _OPEN_BRACKET, _CLOSE_BRACKET, _COMMA = b"{[],"


class EsmBulkDecoder:
    """Feed the inflated body in any pieces, then `finish`. Not thread-safe; of no use after an error.

    `only` keeps just the readings, usable or not, at these (equipment, sensor) positions.
    Errors of `feed` and `finish`: InvalidInput (`not_json`, `not_an_array`, `empty_body`), LimitExceeded.
    """

    def __init__(self, options: DecodeOptions, only: Set[tuple[int, int]] | None = None) -> None:
        self._options = options
        self._window = JsonWindow()
        self._columns = EsmColumns(options, only)
        self._step: Callable[[], bool] = self._begin
        self._slim = True  # as far as is known
        self._objects = 0
        self._readings = 0
        self._parts: EquipmentInParts | None = None
        self._scanned = 0  # readings that it read
        self._unusual = 0  # times that it came upon an object that it does not read
        self._incomplete_end = -1  # byte offset of the window's end within an object, where it came to it
        self._flushed_rows = 0  # readings and objects at the last conversion to columns
        self._flushed_at = 0  # byte offset then
        self._guess = 0  # byte offset after a `]}`
        self._searched = 0  # byte offset before which there is no further one

    def feed(self, inflated: bytes) -> None:
        """The next piece of the body."""
        window = self._window
        for start in range(0, len(inflated), OBJECT_PART_BYTES):
            # A slice of all of it is not a copy.
            if window.append(inflated[start : start + OBJECT_PART_BYTES]):
                self._run()

    def finish(self) -> DecodedBatch:
        """The end of the body: its readings."""
        self._window.close()
        self._run()
        if self._step == self._begin:
            raise InvalidInput("the body is empty: send a JSON array of equipment objects", code="empty_body")
        if self._step != self._after_end:
            raise malformed("it ends too early", self._window.base + len(self._window.data))
        return self._columns.finish(self._objects)

    def _run(self) -> None:
        self._window.relax()
        while self._step():
            pass

    # Each step consumes something and returns True, or returns False where it needs more data.

    def _begin(self) -> bool:
        window = self._window
        if window.base == 0 and window.pos == 0:
            window.skip_mark()
        byte = window.peek()
        if byte < 0:
            return False
        if byte != _OPEN_BRACKET:
            if byte in _VALUE_STARTS:
                raise self._not_an_array("the body is not a JSON array of equipment objects")
            raise malformed("a JSON array is expected", window.base + window.pos)
        window.pos += 1
        self._step = self._first_element
        return True

    def _first_element(self) -> bool:
        byte = self._window.peek()
        if byte == _CLOSE_BRACKET:
            raise InvalidInput("the array is empty: send at least one equipment object", code="empty_body")
        if byte >= 0:
            self._step = self._element
        return byte >= 0

    def _element(self) -> bool:
        window = self._window
        byte = window.peek()
        if byte < 0:
            return False
        if byte != _OPEN_BRACE:
            if byte in _VALUE_STARTS:
                raise self._not_an_array(f"element {self._objects} of the array is not an equipment object")
            raise malformed("an equipment object is expected", window.base + window.pos)
        return self._at_once() or self._whole_by_guess() or self._whole()

    def _after_element(self) -> bool:
        window = self._window
        byte = window.peek()
        if byte < 0:
            return False
        if byte not in (_COMMA, _CLOSE_BRACKET):
            raise malformed("expected ',' or ']'", window.base + window.pos)
        window.pos += 1
        self._step = self._element if byte == _COMMA else self._after_end
        return True

    def _after_end(self) -> bool:
        window = self._window
        if window.peek() >= 0:
            raise malformed("something follows the array", window.base + window.pos)
        return False

    def _in_parts(self) -> bool:
        parts = self._parts
        assert parts is not None
        before = parts.readings
        more = parts.step(self._window)
        self._count_readings(parts.readings - before)
        self._flush_if_due()
        if parts.finished:
            self._columns.close(self._objects - 1, self._columns.enter(describe_equipment(parts.fields)))
            self._parts = None
            self._step = self._after_element
        return more

    def _at_once(self) -> bool:
        """Take the objects of the window that are usual, by the compiled reader."""
        window = self._window
        end = window.base + len(window.data)
        if scan.SCANNER is None or window.available < SCAN_BYTES_MIN or end == self._incomplete_end:
            return False
        if self._unusual > SCAN_UNUSUAL_MAX + self._scanned // SCAN_READINGS_AN_UNUSUAL_MIN:
            return False
        data = window.data
        scanned = scan.SCANNER.scan(data, window.pos)
        self._unusual += scanned.unusual
        self._incomplete_end = end if scanned.incomplete else -1
        stretches: list[Stretch] = []
        first = 0
        for start, stop, list_start, count in scanned.objects:
            self._count_object()
            self._count_readings(count)
            equipment = self._columns.enter(describe_equipment_of(data[start:list_start]))
            spans = scanned.spans[first : first + count]
            stretches.append(
                Stretch(self._objects - 1, equipment, 0, count, partial(decode_spans, data, spans), scanned.describes)
            )
            first, window.pos = first + count, stop
        self._scanned += first
        if stretches:
            self._columns.add_scanned(stretches, scanned)
            self._flush_if_due()
            self._step = self._after_element
        return bool(stretches)

    def _whole_by_guess(self) -> bool:
        """Take the object if it ends at the next `]}`, as it does when `sensor` is a list and the last field."""
        window = self._window
        end = self._next_guess()
        if end < 0:
            return False
        data, start = window.data, window.pos
        with memoryview(data) as whole, whole[start:end] as content:
            if end - start >= DECODE_SKIM_BYTES_MIN and self._columns.sensors_repeat:
                measured = self._skim(content)
                if measured is not None:
                    self._take(end, measured, measured.readings, partial(decode_last_readings, data, start, end))
                    return True
            try:
                fields = decode_equipment(content)
            except (msgspec.DecodeError, RecursionError):
                return False
        readings = as_list(fields.readings)
        self._take(end, fields, readings, partial(last_of, readings))
        return True

    def _skim(self, content: memoryview) -> MeasuredEquipment | None:
        """The object without what describes its sensors, mostly the same as before; None where it has another form."""
        usual = (decode_slim_equipment, decode_measured_equipment)
        for decode in usual if self._slim else usual[1:]:
            try:
                return decode(content)
            except (msgspec.DecodeError, RecursionError):
                self._slim = False
        return None

    def _next_guess(self) -> int:
        """Index after the next `]}` within the longest object; -1 where there is none. No byte is searched twice."""
        window = self._window
        if self._guess <= window.base + window.pos:
            # To find the bracket alone takes a tenth of the time, and it is mostly the right one.
            bracket = window.data.find(b"]", max(window.pos, self._searched - window.base))
            match = _guess_end(window.data, bracket) if bracket >= 0 else None
            if match is None:
                self._searched = window.base + len(window.data) - _GUESS_OVERLAP
                return -1
            self._guess = self._searched = window.base + match.end()
        end = self._guess - window.base
        return end if end - window.pos <= OBJECT_BUFFER_BYTES else -1

    def _whole(self) -> bool:
        """Take the object wherever it ends, whatever the types of its fields."""
        window = self._window
        end = window.value_end()
        if end is None and window.available <= OBJECT_BUFFER_BYTES:
            return window.want_more()
        if end is None or end - window.pos > OBJECT_BUFFER_BYTES:
            self._count_object()
            self._columns.open()
            self._parts = EquipmentInParts(self._columns, self._objects - 1)
            self._step = self._in_parts
            return True
        bad: dict[int, bytes] = {}
        with memoryview(window.data) as whole, whole[window.pos : end] as content:
            try:
                fields = decode_equipment(content)
                readings = as_list(fields.readings)
            except msgspec.ValidationError:
                fields, readings, bad = read_equipment(bytes(content))
            except RecursionError:
                raise malformed("it is nested too deeply", window.base + window.pos) from None
        self._take(end, fields, readings, partial(last_of, readings), bad)
        return True

    def _take(
        self,
        end: int,
        fields: EquipmentFields,
        readings: Sequence[EsmMeasurement] | Sequence[SlimReading],
        read_last: ReadLast,
        bad: dict[int, bytes] | None = None,
    ) -> None:
        self._count_object()
        self._count_readings(len(readings))
        equipment = self._columns.enter(describe_equipment(fields))
        describes = not readings or type(readings[0]) is not SlimReading
        stretch = Stretch(self._objects - 1, equipment, 0, len(readings), read_last, describes, bad or {})
        self._columns.add(stretch, readings)
        self._window.pos = end
        self._flush_if_due()
        self._step = self._after_element

    def _flush_if_due(self) -> None:
        consumed = self._window.base + self._window.pos
        rows = self._readings + self._objects  # an object without readings takes memory too
        if rows - self._flushed_rows >= DECODE_ROWS_PER_CHUNK or consumed - self._flushed_at >= DECODE_BYTES_PER_CHUNK:
            self._columns.flush()
            self._flushed_rows, self._flushed_at = rows, consumed

    def _count_object(self) -> None:
        self._objects += 1
        if self._objects > self._options.max_objects:
            raise LimitExceeded(
                f"the body holds more than {self._options.max_objects} equipment objects (SENSORKEEP_MAX_EQUIPMENT)"
            )

    def _count_readings(self, count: int) -> None:
        self._readings += count
        if self._readings > self._options.max_readings:
            raise LimitExceeded(
                f"the body holds more than {self._options.max_readings} readings (SENSORKEEP_MAX_READINGS)"
            )

    def _not_an_array(self, what: str) -> InvalidInput:
        position = self._window.base + self._window.pos
        return InvalidInput(f"{what} (byte {position})", code="not_an_array", extra={"position": position})
