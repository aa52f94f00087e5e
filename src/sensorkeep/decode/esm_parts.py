"""An equipment object too long for the window, read member by member and its readings part by part."""

from __future__ import annotations

import msgspec

from sensorkeep.decode.esm_columns import EsmColumns
from sensorkeep.decode.esm_fields import (
    EQUIPMENT_FIELDS,
    OTHER,
    EsmEquipment,
    EsmReading,
    decode_readings,
    read_readings,
    read_scalar,
)
from sensorkeep.decode.json_window import JsonWindow, malformed
from sensorkeep.limits import OBJECT_BUFFER_BYTES, OBJECT_PART_BYTES

_decode_key = msgspec.json.Decoder(str).decode
_QUOTE, _COLON, _COMMA, _OPEN_BRACKET, _CLOSE_BRACKET, _CLOSE_BRACE = b'":,[]}'


class EquipmentInParts:
    """Reads one equipment object into `columns`, which has it open. The window stands at its opening brace.

    Where a key occurs twice the last one counts, as everywhere in JSON.
    """

    def __init__(self, columns: EsmColumns, position: int) -> None:
        self._columns = columns
        self._position = position
        self._step = self._open_brace
        self._one_by_one_until = 0  # byte offset
        self.fields = EsmEquipment()
        self.readings = 0
        """Readings met so far, void ones too."""
        self.finished = False

    def step(self, window: JsonWindow) -> bool:
        """Go on; False where more data is needed. Raises as EsmBulkDecoder does."""
        return self._step(window)

    def _open_brace(self, window: JsonWindow) -> bool:
        window.pos += 1
        self._step = self._first_member
        return True

    def _first_member(self, window: JsonWindow) -> bool:
        if window.peek() == _CLOSE_BRACE:
            return self._close_brace(window)
        self._step = self._member
        return True

    def _member(self, window: JsonWindow) -> bool:
        """A key, a colon, and the value, of which a list of readings is only begun."""
        byte = window.peek()
        if byte < 0:
            return window.want_more()
        if byte != _QUOTE:
            raise malformed("a field name is expected", window.base + window.pos)
        colon = window.value_end()
        if colon is None:
            return window.want_more()
        if window.data[colon] != _COLON:
            raise malformed("expected ':'", window.base + colon)
        start = window.space_end(colon + 1)
        if start >= len(window.data):
            return window.want_more()
        key = _decode_key(bytes(window.data[window.pos : colon]))
        if key == "sensor" and window.data[start] == _OPEN_BRACKET:
            self._void_readings()
            window.pos = start + 1
            self._step = self._first_reading
            return True
        end = window.value_end(start)
        if end is None:
            return window.want_more()
        if end - start > OBJECT_BUFFER_BYTES:
            raise window.too_long()
        self._enter(key, bytes(window.data[start:end]))
        window.pos = end
        self._step = self._after_member
        return True

    def _enter(self, key: str, value: bytes) -> None:
        field = EQUIPMENT_FIELDS.get(key)
        if field == "readings":
            self._void_readings()
            self._add(*read_readings(value))
        elif field is not None:
            scalar = read_scalar(value)
            setattr(self.fields, field, None if scalar is OTHER else scalar)

    def _void_readings(self) -> None:
        """An earlier list under the same key does not count."""
        self._columns.restart()

    def _after_member(self, window: JsonWindow) -> bool:
        byte = window.peek()
        if byte < 0:
            return window.want_more()
        if byte == _CLOSE_BRACE:
            return self._close_brace(window)
        if byte != _COMMA:
            raise malformed("expected ',' or '}'", window.base + window.pos)
        window.pos += 1
        self._step = self._member
        return True

    def _close_brace(self, window: JsonWindow) -> bool:
        window.pos += 1
        self.finished = True
        return True

    def _first_reading(self, window: JsonWindow) -> bool:
        byte = window.peek()
        if byte < 0:
            return window.want_more()
        if byte == _CLOSE_BRACKET:
            return self._close_bracket(window)
        self._step = self._some_readings
        return True

    def _some_readings(self, window: JsonWindow) -> bool:
        """As many readings as fit in a part; one where their end cannot be guessed."""
        byte = window.peek()
        if byte < 0:
            return window.want_more()
        if window.base + window.pos >= self._one_by_one_until and self._part(window):
            self._step = self._after_reading
            return True
        end = window.value_end()
        if end is None:
            return window.want_more()
        if end - window.pos > OBJECT_BUFFER_BYTES:
            raise window.too_long()
        self._add(*read_readings(b"[" + window.data[window.pos : end] + b"]"))
        window.pos = end
        self._step = self._after_reading
        return True

    def _part(self, window: JsonWindow) -> bool:
        """Take the readings up to the last `},` of the part, if that is where one ends.

        What comes before it, closed with a bracket, is a JSON list then and only then. A wrong guess costs one part:
        its readings are then taken one by one.
        """
        cut = window.data.rfind(b"},", window.pos, window.pos + OBJECT_PART_BYTES)
        if cut < 0:
            return False
        content = b"[" + window.data[window.pos : cut + 1] + b"]"
        bad: dict[int, bytes] = {}
        try:
            readings = decode_readings(content)
        except msgspec.ValidationError:
            try:
                readings, bad = read_readings(content)
            except (msgspec.DecodeError, RecursionError):
                readings = []
        except (msgspec.DecodeError, RecursionError):
            readings = []
        if not readings:
            self._one_by_one_until = window.base + cut + 1
            return False
        self._add(readings, bad)
        window.pos = cut + 1
        return True

    def _add(self, readings: list[EsmReading], bad: dict[int, bytes]) -> None:
        self.readings += len(readings)
        self._columns.add_part(self._position, readings, bad)

    def _after_reading(self, window: JsonWindow) -> bool:
        byte = window.peek()
        if byte < 0:
            return window.want_more()
        if byte == _CLOSE_BRACKET:
            return self._close_bracket(window)
        if byte != _COMMA:
            raise malformed("expected ',' or ']'", window.base + window.pos)
        window.pos += 1
        self._step = self._some_readings
        return True

    def _close_bracket(self, window: JsonWindow) -> bool:
        window.pos += 1
        self._step = self._after_member
        return True
