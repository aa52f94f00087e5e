"""The contract of an object store, written for the weakest real backend."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from sensorkeep.errors import InvalidInput
from sensorkeep.limits import OBJECT_KEY_CHARS_MAX, OBJECT_KEY_PART_CHARS_MAX

_PART = f"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{OBJECT_KEY_PART_CHARS_MAX - 1}}}"
_KEY = re.compile(f"{_PART}(?:/{_PART})*")


def is_key(text: str) -> bool:
    """Whether `text` is a key that every store accepts; see ObjectStore."""
    return len(text) <= OBJECT_KEY_CHARS_MAX and _KEY.fullmatch(text) is not None


def check_key(key: str) -> None:
    """Raises InvalidInput where `key` is not a key that every store accepts."""
    if not is_key(key):
        raise InvalidInput(
            f"{key[:100]!r} is not an object key: parts of letters, digits, '.', '_' and '-' joined by '/'"
        )


class StoredObject(NamedTuple):
    """A stored object as listed."""

    key: str
    size: int
    """Bytes."""
    modified_us: int


class ObjectStore(Protocol):
    """Payloads by key. Every method is blocking and thread-safe.

    Keys are relative paths of `[A-Za-z0-9._-]` parts separated by `/`, no part beginning with a dot, at most 1024
    characters and 255 a part; any other key raises InvalidInput. No key may be the folder of another (`a` and `a/b`),
    nor have been one (`a` after `a/b` was deleted): a store that cannot keep both raises Conflict (`conflict`).
    Objects are immutable: created whole, read, deleted. Errors of the backend raise Unavailable (code `disk_full`
    where no room is left, else `dependency_down`).
    """

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Create the object from `chunks` and return its size in bytes.

        Durable when it returns: it survives a crash or power loss. Until then it is not visible, and where `chunks`
        or the store raises, nothing of it remains; but where the answer of a store elsewhere was lost, the object may
        be there. The chunks are pulled one at a time, so memory stays bounded.
        Raises Conflict (`already_exists`) where the key exists; the first object stays as it was.
        """
        ...

    def get(self, key: str) -> Iterator[bytes]:
        """The object's bytes, in chunks. Raises NotFound at the call where there is none."""
        ...

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[StoredObject]:
        """Objects whose key starts with `prefix` and comes after `start_after`, in key order.

        `start_after` is empty, or a key that this listing gave before, whether it is still there or not: so a listing
        goes on. Keys are ordered by code points. A store that is a tree may put `/` before all other characters, so
        that `a/b` comes before `a-b`; keys whose parts are equally long have the same order either way.
        """
        ...

    def delete(self, *keys: str) -> None:
        """Remove the objects. Idempotent: no error where there is none. Some may be gone where it raises."""
        ...

    def check(self) -> None:
        """Prove that the store can write: raises Unavailable where it cannot."""
        ...

    def close(self) -> None:
        """Release what is held. Idempotent."""
        ...
