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
    characters and 255 a part; any other key raises InvalidInput. No key may be the folder of another (`a` and `a/b`):
    a store that cannot keep both raises Conflict (`conflict`).
    Objects are immutable: created whole, read, deleted. Errors of the backend raise Unavailable (code `disk_full`
    where no room is left, else `dependency_down`).
    """

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Create the object from `chunks` and return its size in bytes.

        Durable when it returns: it survives a crash or power loss. Until then it is not visible, and where `chunks`
        or the store raises, nothing of it remains. The chunks are pulled one at a time, so memory stays bounded.
        Raises Conflict (`already_exists`) where the key exists; the first object stays as it was.
        """
        ...

    def get(self, key: str) -> Iterator[bytes]:
        """The object's bytes, in chunks. Raises NotFound at the call where there is none."""
        ...

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[StoredObject]:
        """Objects whose key starts with `prefix` and is greater than `start_after`, in key order (code points)."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object. Idempotent: no error where there is none."""
        ...

    def check(self) -> None:
        """Prove that the store can write: raises Unavailable where it cannot."""
        ...

    def close(self) -> None:
        """Release what is held. Idempotent."""
        ...
