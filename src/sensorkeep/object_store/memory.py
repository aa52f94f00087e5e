"""Objects in memory, for tests."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Iterator

from sensorkeep.clock import Clock
from sensorkeep.errors import Conflict, NotFound
from sensorkeep.limits import OBJECT_CHUNK_BYTES
from sensorkeep.object_store.base import StoredObject, check_key


class MemoryObjectStore:
    """An ObjectStore whose objects live as long as it does; `close` does not forget them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, int]] = {}
        self._keys: list[str] = []
        """The keys of `_objects`, sorted."""

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        check_key(key)
        content = b"".join(chunks)
        with self._lock:
            self._check_free(key)
            self._objects[key] = (content, self._clock.now_us())
            bisect.insort(self._keys, key)
        return len(content)

    def _check_free(self, key: str) -> None:
        """Raises Conflict where a file system could not keep the key beside the others."""
        if key in self._objects:
            raise Conflict(f"the object {key} exists already", code="already_exists")
        following = bisect.bisect_left(self._keys, key + "/")
        if following < len(self._keys) and self._keys[following].startswith(key + "/"):
            raise Conflict(f"{key} is the folder of other objects")
        parts = key.split("/")
        if any("/".join(parts[:length]) in self._objects for length in range(1, len(parts))):
            raise Conflict(f"a part of {key} is an object, not a folder")

    def get(self, key: str) -> Iterator[bytes]:
        check_key(key)
        with self._lock:
            if key not in self._objects:
                raise NotFound(f"there is no object {key}")
            content, _ = self._objects[key]
        return (content[i : i + OBJECT_CHUNK_BYTES] for i in range(0, len(content), OBJECT_CHUNK_BYTES))

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[StoredObject]:
        with self._lock:
            found = [
                StoredObject(key, len(self._objects[key][0]), self._objects[key][1])
                for key in self._keys[bisect.bisect_right(self._keys, start_after) :]
                if key.startswith(prefix)
            ]
        return iter(found)

    def delete(self, *keys: str) -> None:
        for key in keys:
            check_key(key)
        with self._lock:
            for key in keys:
                if self._objects.pop(key, None) is not None:
                    del self._keys[bisect.bisect_left(self._keys, key)]

    def check(self) -> None:
        """Memory takes whatever it is given."""

    def close(self) -> None:
        """Nothing is held but the objects."""
