"""Objects as files. A put is on the disk, name and all, when it returns."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import heapq
import itertools
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from sensorkeep.errors import Conflict, NotFound, Unavailable
from sensorkeep.limits import FOLDERS_REMEMBERED_MAX, LISTED_NAMES_MAX, OBJECT_CHUNK_BYTES
from sensorkeep.object_store.base import StoredObject, check_key, is_key

_TEMPORARY = ".tmp"
"""No key begins with a dot, so no object can be in the way."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FilesystemObjectStore:
    """An ObjectStore in the folder `root`, which one process at a time owns.

    A put writes a temporary file and syncs it, links it to its name, and syncs the folder. The link is what makes it
    create-only: of two puts of one key one link fails. The name can be seen between link and sync, that is, before
    the put is durable; its content is durable by then.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root.absolute())
        self._temporary = os.path.join(self._root, _TEMPORARY)
        self._numbers = itertools.count(1)
        self._folders = threading.Lock()
        self._durable_folders: set[str] = set()
        with self._backend_errors():
            self._make_root()
            self._remove_leftovers()

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        check_key(key)
        temporary = os.path.join(self._temporary, f"{os.getpid()}-{next(self._numbers)}")
        try:
            size = self._write(temporary, chunks)
            with self._backend_errors():
                self._publish(temporary, key)
        finally:
            self._discard(temporary)
        return size

    def get(self, key: str) -> Iterator[bytes]:
        check_key(key)
        with self._backend_errors():
            try:
                file = FileIO(os.path.join(self._root, key))
            except _NO_SUCH_FILE:
                raise NotFound(f"there is no object {key}") from None
        return self._read(file)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[StoredObject]:
        folder, slash, _ = prefix.rpartition("/")
        if slash and not is_key(folder):
            return iter(())
        return self._walk(folder + slash, prefix, start_after)

    def delete(self, *keys: str) -> None:
        for key in keys:
            check_key(key)
        for key in keys:
            self._delete(key)

    def check(self) -> None:
        temporary = os.path.join(self._temporary, f"{os.getpid()}-{next(self._numbers)}")
        try:
            self._write(temporary, [b"\0" * 4096])
        finally:
            self._discard(temporary)

    def close(self) -> None:
        """Nothing is held between calls."""

    # --- writing ---

    def _write(self, path: str, chunks: Iterable[bytes]) -> int:
        """Write the chunks to the new file and sync it. Errors of `chunks` itself pass as they are."""
        size = 0
        with self._backend_errors():
            file = FileIO(path, "x")
        with file:
            for chunk in chunks:
                with self._backend_errors():
                    _write_whole(file, chunk)
                size += len(chunk)
            with self._backend_errors():
                _sync(file.fileno())
        return size

    def _publish(self, temporary: str, key: str) -> None:
        """Give the synced file its name, durably. Raises Conflict."""
        path = os.path.join(self._root, key)
        folder = os.path.dirname(path)
        linked = False
        try:
            with self._folders:
                try:
                    linked = self._link(temporary, key)
                except FileNotFoundError:  # somebody removed a folder by hand
                    self._durable_folders.clear()
                    linked = self._link(temporary, key)
            # Synced where the object was there already, too: who is told "it exists" takes that for durable.
            _sync_folder(folder)
        except BaseException:
            if linked:
                os.unlink(path)
            self._remove_empty(folder)
            raise
        if not linked:
            if os.path.isdir(path):
                raise Conflict(f"{key} is the folder of other objects")
            raise Conflict(f"the object {key} exists already", code="already_exists")

    def _link(self, temporary: str, key: str) -> bool:
        """Whether the name was free. The lock is held, so that `delete` cannot remove the folder before the link."""
        self._make_folder(key)
        try:
            os.link(temporary, os.path.join(self._root, key))
        except FileExistsError:
            return False
        return True

    def _make_folder(self, key: str) -> None:
        """Make the folder of `key` durable, its parents first. The lock is held: a folder that another put has just
        made counts only once its entry is synced."""
        parent = self._root
        for name in key.split("/")[:-1]:
            folder = os.path.join(parent, name)
            if folder not in self._durable_folders:
                try:
                    os.mkdir(folder)
                except FileExistsError:
                    if not os.path.isdir(folder):
                        raise Conflict(f"a part of {key} is an object, not a folder") from None
                _sync_folder(parent)
                if len(self._durable_folders) >= FOLDERS_REMEMBERED_MAX:
                    self._durable_folders.clear()
                self._durable_folders.add(folder)
            parent = folder

    def _make_root(self) -> None:
        missing = [self._root]
        while not os.path.isdir(os.path.dirname(missing[-1])):
            missing.append(os.path.dirname(missing[-1]))
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            _sync_folder(os.path.dirname(folder))
        os.makedirs(self._temporary, exist_ok=True)

    # --- removing ---

    def _delete(self, key: str) -> None:
        path = os.path.join(self._root, key)
        with self._backend_errors():
            try:
                os.unlink(path)
            except _NO_SUCH_FILE:
                return
            except PermissionError:  # what some systems say of a folder
                if not os.path.isdir(path):
                    raise
                return
        self._remove_empty(os.path.dirname(path))

    def _remove_leftovers(self) -> None:
        """Puts that a crash cut short were never answered; nobody knows their temporary files."""
        for name in os.listdir(self._temporary):
            os.unlink(os.path.join(self._temporary, name))

    def _discard(self, temporary: str) -> None:
        # What cannot be removed now is removed at the next start; the object itself is right.
        with contextlib.suppress(OSError):
            os.unlink(temporary)

    def _remove_empty(self, folder: str) -> None:
        """Remove `folder` and its parents as far as they are empty. Only tidiness, so no failure of it matters."""
        with self._folders, contextlib.suppress(OSError):
            while folder != self._root:
                os.rmdir(folder)
                self._durable_folders.discard(folder)
                folder = os.path.dirname(folder)

    # --- reading ---

    def _read(self, file: FileIO) -> Iterator[bytes]:
        with file:
            while True:
                with self._backend_errors():
                    chunk = file.read(OBJECT_CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[StoredObject]:
        """The objects under `folder` ("" or a key with a slash behind), in key order."""
        for name in self._names(folder, prefix, start_after):
            key = folder + name
            if name.endswith("/"):
                yield from self._walk(key, prefix, start_after)
                continue
            with self._backend_errors():
                try:
                    status = os.stat(os.path.join(self._root, key), follow_symlinks=False)
                except _NO_SUCH_FILE:  # deleted since
                    continue
            if stat.S_ISREG(status.st_mode):
                yield StoredObject(key, status.st_size, status.st_mtime_ns // 1000)

    def _names(self, folder: str, prefix: str, start_after: str) -> Iterator[str]:
        """Names in `folder` that can lead to a wanted key, in key order, LISTED_NAMES_MAX in memory at most.

        A folder has a slash behind its name: keys are ordered as whole strings, in which `a-b` < `a.b` < `a/b`.
        """
        last = ""
        while True:
            with self._backend_errors():
                wanted = (
                    name
                    for name in self._scan(folder)
                    if name > last and _may_match(folder + name, prefix, start_after)
                )
                names = heapq.nsmallest(LISTED_NAMES_MAX, wanted)
            yield from names
            if len(names) < LISTED_NAMES_MAX:
                return
            last = names[-1]

    def _scan(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                for entry in entries:
                    if is_key(entry.name):
                        yield entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
        except _NO_SUCH_FILE:  # deleted since, or never there
            return

    @contextlib.contextmanager
    def _backend_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise Unavailable(f"no room is left for objects in {self._root}", code="disk_full") from error
            raise Unavailable(f"the object store {self._root} failed: {error}", code="dependency_down") from error


def _may_match(path: str, prefix: str, start_after: str) -> bool:
    """Whether the key `path`, or a key under the folder `path` (it ends with a slash), is wanted."""
    if path.endswith("/"):
        return (path.startswith(prefix) or prefix.startswith(path)) and (
            path > start_after or start_after.startswith(path)
        )
    return path.startswith(prefix) and path > start_after


def _write_whole(file: FileIO, chunk: bytes) -> None:
    """A raw write may take less than it was given."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _sync(descriptor: int) -> None:
    """Force the file to the medium. Only F_FULLFSYNC does so on macOS, whose fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)
