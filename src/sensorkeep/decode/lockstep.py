"""JSON objects that are all of one form, read field by field, all of them at once.

A program writes its objects the same way each time: the same keys in the same order, the same separators, and of each
field always a text or always a bare value. Of a thousand such objects the first tells the form; then every field of
all of them is read with a few operations on whole arrays, where a JSON parser makes a Python object of each.

Nothing is taken on trust. Every byte is accounted for: keys and separators are compared, texts end at their first
quotation mark (there is no backslash and no control character anywhere), bare values are null or numbers of JSON's
grammar. Whatever is otherwise, the answer is None, and a parser has to read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sensorkeep.decode.arrow import ArrowArray

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_FIELDS_MAX = 64
_DIGITS_MAX = 19
"""Longer numbers are left to the parser."""
_BARE_WIDTHS = (8, 24)
"""Nulls and numbers of differing lengths are looked for in so many bytes, one after the other."""
_TEXT_WIDTHS = (16, 32, 128)
"""Texts of differing lengths are looked for in so many bytes, one after the other."""
_PADDING = bytes(2 * _TEXT_WIDTHS[-1])
_QUOTE, _COMMA, _MINUS, _DOT, _ZERO, _BRACE, _CLOSE = b'",-.0{}'
_IS_NUMBER_CHARACTER = np.isin(np.arange(256), list(b"0123456789-."))
_NULL = np.frombuffer(b"null", "<u4")[0]
_STYLES = ((b",", b":"), (b", ", b": "))
"""What stands between members and after keys: as compact encoders write, and as Python's json does by default."""
_constant = re.compile(rb"null|true|false|-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,15})?").fullmatch
_members_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Member:
    """A field of the form."""

    key: str
    prefix: bytes
    """All that stands before its value, the quotation mark of a text included."""
    is_text: bool
    first: bytes
    """Its value in the first object; a text without its quotation marks."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form that the first object has."""

    members: list[Member]
    comma: bytes
    """What stands between members, and between objects."""


def form_of(text: bytes) -> Form | None:
    """The form of an object, or None where it is none that is read here."""
    try:
        members = _members_of(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not 0 < len(members) <= _FIELDS_MAX:
        return None
    for comma, colon in _STYLES:
        written = comma.join(b'"%s"%s%s' % (key.encode(), colon, bytes(raw)) for key, raw in members.items())
        if b"{%s}" % written == text:  # so no key occurs twice, and none is written with an escape
            return _form(members, comma, colon)
    return None


def _form(members: dict[str, msgspec.Raw], comma: bytes, colon: bytes) -> Form | None:
    result: list[Member] = []
    for key, raw in members.items():
        value = bytes(raw)
        is_text = value[:1] == b'"'
        if not is_text and not _constant(value):
            return None
        before = comma if result else b"{"
        prefix = b'%s"%s"%s%s' % (before, key.encode(), colon, b'"' if is_text else b"")
        result.append(Member(key, prefix, is_text, value[1:-1] if is_text else value))
    return Form(result, comma)


class Texts:
    """The values of a text field."""

    def __init__(self, count: int, block: bytes, offsets: npt.NDArray[np.int32] | None, size: int) -> None:
        """`block` is all text one after the other; `offsets` None: each has `size` bytes."""
        self._count = count
        self._block = block
        self._offsets = offsets
        self._size = size

    def array(self) -> ArrowArray:
        """As an array of strings. The caller knows that the text is UTF-8."""
        if self._offsets is None:
            first = self._block[: self._size]
            if self._block == first * self._count:
                return pa.repeat(pa.scalar(first.decode(), pa.string()), self._count)
            offsets = np.arange(self._count + 1, dtype=np.int32) * self._size
        else:
            offsets = self._offsets
        buffers: list[Any] = [None, pa.py_buffer(offsets.data), pa.py_buffer(self._block)]
        return pa.Array.from_buffers(pa.string(), self._count, buffers)


class Reader:
    """Walks through all objects that stand one after the other in a text (a list without its brackets), the same field
    of all of them at the same time."""

    def __init__(self, text: bytes) -> None:
        self._size = len(text)
        self._text = text + _PADDING
        self._bytes: Bytes = np.frombuffer(self._text, np.uint8)
        self.starts: Integers = np.flatnonzero(self._bytes[: self._size] == _BRACE)
        self.count = len(self.starts)
        self._at = self.starts.copy()

    def is_plain(self) -> bool:
        """Whether there is no escape and no control character in the text, line ends included."""
        return self.count > 0 and b"\\" not in self._text and int(self._bytes[: self._size].min()) >= 0x20

    def ends(self, comma: bytes) -> bool:
        """Whether each object ends here, the next begins after `comma`, and the last ends where the text does."""
        between, at = b"}" + comma, self._at
        return (
            self._gathered(len(between), at[:-1]).tobytes() == between * (self.count - 1)
            and bool((at[:-1] + len(between) == self.starts[1:]).all())
            and int(at[-1]) == self._size - 1
            and self._text[self._size - 1] == _CLOSE
        )

    def step(self, prefix: bytes) -> bool:
        """Go past what stands before a value; False where something else stands in one of the objects."""
        if self._block(len(prefix)) != prefix * self.count:
            return False
        self._at += len(prefix)
        return True

    def texts(self, first: bytes) -> Texts | None:
        """Read a text each, and go past its quotation mark. `first` is that of the first object."""
        size, count = len(first), self.count
        block = self._block(size + 1)
        if block.count(b'"') == count and block[size :: size + 1] == b'"' * count:
            texts = Texts(count, self._block(size) if size else b"", None, size)
            self._at += size + 1
            return texts
        for width in _TEXT_WIDTHS:
            characters = self._characters(width)
            lengths = _lengths(characters == _QUOTE)
            if lengths is not None:
                self._at += lengths + 1
                offsets = np.zeros(count + 1, np.int32)
                np.cumsum(lengths, out=offsets[1:])
                return Texts(count, characters[np.arange(width) < lengths[:, None]].tobytes(), offsets, 0)
        return None

    def bare(self, first: bytes) -> ArrowArray | None:
        """Read a null or number each, as an array of float64; true and false only where all are the same."""
        if self._block(len(first)) == first * self.count and self._is_end_after(len(first)):
            self._at += len(first)
            return _repeated(first, self.count)
        for width in _BARE_WIDTHS:
            characters = self._characters(width)
            lengths = _lengths((characters == _COMMA) | (characters == _CLOSE))
            if lengths is not None:
                self._at += lengths
                return _numbers_and_nulls(characters, lengths)
        return None

    def _is_end_after(self, size: int) -> bool:
        following = self._bytes[self._at + size]
        return bool(((following == _COMMA) | (following == _CLOSE)).all())

    def _gathered(self, size: int, at: Integers) -> npt.NDArray[np.void]:
        """The `size` bytes from each of these places on."""
        places = (len(self._text) - size + 1,)
        view: npt.NDArray[np.void] = np.ndarray(places, np.dtype((np.void, size)), self._text, strides=(1,))
        return view[at]

    def _block(self, size: int) -> bytes:
        """The next `size` bytes of each, one after the other."""
        return self._gathered(size, self._at).tobytes()

    def _characters(self, width: int) -> Bytes:
        return self._gathered(width, self._at).view(np.uint8).reshape(self.count, width)


def _lengths(ends: Flags) -> Integers | None:
    """The place of the first true value in each row; None where a row has none."""
    lengths: Integers = ends.argmax(axis=1)
    return lengths if ends[np.arange(len(ends)), lengths].all() else None


def _numbers_and_nulls(characters: Bytes, lengths: Integers) -> ArrowArray | None:
    absent = lengths == 4
    if absent.any():
        absent &= np.ascontiguousarray(characters[:, :4]).view("<u4").ravel() == _NULL
    if not absent.any():
        values = _numbers(characters, lengths)
        return None if values is None else pa.array(values)
    present = np.flatnonzero(~absent)
    numbers = _numbers(characters[present], lengths[present])
    if numbers is None:
        return None
    values = np.zeros(len(lengths))
    values[present] = numbers
    return pa.array(values, mask=absent)


def _repeated(value: bytes, count: int) -> ArrowArray:
    if value in (b"null", b"true", b"false"):
        return pa.nulls(count, pa.float64())
    return pa.repeat(pa.scalar(float(value), pa.float64()), count)


def _numbers(characters: Bytes, lengths: Integers) -> Numbers | None:
    """The numbers that the first `lengths` of `characters` write; None where one is not of JSON's grammar, or so long
    or so odd that another parser might round it otherwise."""
    if not len(lengths):
        return np.empty(0)
    if int(lengths.min()) < 1 or int(lengths.max()) > _DIGITS_MAX:
        return None
    everyone = np.arange(len(lengths))
    text = characters[np.arange(characters.shape[1]) < lengths[:, None]]
    negative = (characters[:, 0] == _MINUS).astype(np.int64)
    leading, second = characters[everyone, negative], characters[everyone, negative + 1]
    zero = leading == _ZERO
    whole = lengths == negative + 1  # of one digit
    if not (
        _IS_NUMBER_CHARACTER[text].all()
        and _are_digits(leading)
        and _are_digits(characters[everyone, lengths - 1])
        and (~zero | whole | (second == _DOT)).all()
        and not (zero & whole & (negative == 1)).any()  # -0 is an integer to some
    ):
        return None
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers: list[Any] = [None, pa.py_buffer(offsets.data), pa.py_buffer(text.data)]
    try:
        numbers: Numbers = pa.Array.from_buffers(pa.string(), len(lengths), buffers).cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return numbers


def _are_digits(characters: Bytes) -> bool:
    return bool(((characters >= _ZERO) & (characters <= ord("9"))).all())
