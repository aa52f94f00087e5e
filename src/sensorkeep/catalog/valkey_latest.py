"""The hashes of newest values in Valkey: what they hold, and how one is offered and read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from typing import Generic, TypeVar

import msgspec

from sensorkeep.limits import LATEST_LOOKED_UP_ROWS
from sensorkeep.model import LatestReading, LatestRecord
from sensorkeep.valkey import Client, Valkey

Latest = TypeVar("Latest", bound=LatestReading | LatestRecord)

_SCRIPT = resources.files("sensorkeep.catalog").joinpath("valkey_latest.lua").read_text("ascii")
_TIME_OFFSET_US = 3_000_000_000_000_000
"""Makes every time positive (from 1874 on), and keeps sums below 2**53, which Lua can compare exactly (to 2160)."""
_TIME_DIGITS = 16


class NewestHash(Generic[Latest]):
    """One hash: the newest values of one kind by the uuid that they are of.

    What is not there is not known to be new: Valkey may have lost it. So an offer leaves it out, and says so.
    """

    def __init__(self, valkey: Valkey, name: str, kind: type[Latest], uuid_field: str) -> None:
        self._valkey = valkey
        self._name = valkey.name("latest", name)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._uuid_field = uuid_field

    def uuid_of(self, value: Latest) -> str:
        """Whose newest value it is."""
        uuid: str = getattr(value, self._uuid_field)
        return uuid

    def offer(self, values: Iterable[Latest], *, fill: bool = False, correct: bool = True) -> list[Latest]:
        """Enter those that are newer than what is there, and with `correct` those of the same time.

        Returns those left out because nothing is there; with `fill` they are entered. Raises Unavailable.
        """
        left_out: list[Latest] = []
        for portion in _portions(values):
            arguments: list[str | bytes] = ["fill" if fill else "known", "correct" if correct else "keep"]
            for value in portion:
                arguments.append(self.uuid_of(value))
                arguments.append(b"%016d" % (value.time_us + _TIME_OFFSET_US) + self._encode(value))
            left_out += [portion[position] for position in self._valkey.run(partial(self._enter, arguments))]
        return left_out

    def find(self, uuids: Sequence[str]) -> dict[str, Latest]:
        """The values of these uuids, by uuid; those there are. Raises Unavailable."""
        found: dict[str, Latest] = {}
        for portion in _portions(uuids):
            for uuid, value in zip(portion, self._valkey.run(partial(self._look_up, portion)), strict=True):
                if value is not None and (latest := self._read(value)) is not None:
                    found[uuid] = latest
        return found

    def _enter(self, arguments: list[str | bytes], client: Client) -> list[int]:
        positions: list[int] = client.eval(_SCRIPT, 1, self._name, *arguments)
        return positions

    def _look_up(self, uuids: list[str], client: Client) -> list[bytes | None]:
        values: list[bytes | None] = client.hmget(self._name, uuids)
        return values

    def clear(self) -> None:
        """Forget everything. Raises Unavailable."""

        def unlink(client: Client) -> None:
            client.unlink(self._name)

        self._valkey.run(unlink)

    def _read(self, value: bytes) -> Latest | None:
        """None for what another version of Sensorkeep wrote in a form that is not known here."""
        try:
            return self._decode(value[_TIME_DIGITS:])
        except msgspec.DecodeError:
            return None


_Item = TypeVar("_Item")


def _portions(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    rest = iter(items)
    while portion := list(itertools.islice(rest, LATEST_LOOKED_UP_ROWS)):
        yield portion
