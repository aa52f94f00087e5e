"""What is particular to objects as files: left-overs, errors of the file system, folders."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sensorkeep.errors import Conflict, Unavailable
from sensorkeep.object_store import filesystem
from sensorkeep.object_store.filesystem import FilesystemObjectStore

if TYPE_CHECKING:
    from typing_extensions import Buffer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


def left(root: Path) -> list[str]:
    """All that is under the root, but for the folder of temporary files."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != ".tmp")


def test_left_over_temporary_files_are_removed_at_open(root: Path) -> None:
    store = FilesystemObjectStore(root)
    store.put("kept", [b"1"])
    (root / ".tmp" / "99-1").write_bytes(b"half an object")
    store = FilesystemObjectStore(root)
    assert left(root) == ["kept"]
    assert b"".join(store.get("kept")) == b"1"


def test_delete_removes_empty_folders_and_no_other(root: Path) -> None:
    store = FilesystemObjectStore(root)
    for key in ("a/b/c/1", "a/b/2", "a/3"):
        store.put(key, [b""])
    store.delete("a/b/c/1")
    assert left(root) == ["a", "a/3", "a/b", "a/b/2"]
    store.delete("a/b/2")
    store.delete("a/3")
    assert left(root) == []
    assert root.is_dir()


def test_files_that_are_no_objects_are_not_listed(root: Path) -> None:
    store = FilesystemObjectStore(root)
    store.put("a", [b"1"])
    (root / "lost+found").mkdir()
    (root / ".hidden").write_bytes(b"")
    (root / "link").symlink_to(root / "a")
    assert [found.key for found in store.list()] == ["a"]


def test_a_long_folder_is_listed_in_order_in_parts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "LISTED_NAMES_MAX", 3)
    store = FilesystemObjectStore(root)
    wanted = [*sorted(f"f{n % 3}/k{n:02}" for n in range(31)), "g", "h", "i"]
    for key in reversed(wanted):
        store.put(key, [b""])
    assert [found.key for found in store.list()] == wanted
    assert [found.key for found in store.list("f1/", "f1/k10")] == [key for key in wanted if "f1/k10" < key < "f2"]


def raising(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["fsync", "link", "mkdir"])
@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "dependency_down")],
)
def test_where_the_file_system_fails_nothing_remains_and_the_next_put_works(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: str
) -> None:
    store = FilesystemObjectStore(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, raising(number))
        with pytest.raises(Unavailable) as caught:
            store.put("a/b/c", [b"content"])
        assert caught.value.code == code
        if call == "fsync":
            with pytest.raises(Unavailable):
                store.check()
    assert left(root) == []
    assert os.listdir(root / ".tmp") == []
    assert store.put("a/b/c", [b"content"]) == 7


def test_where_only_the_folder_cannot_be_synced_the_object_does_not_stay(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FilesystemObjectStore(root)
    store.put("a/first", [b"1"])
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "_sync_folder", raising(errno.EIO))
        with pytest.raises(Unavailable):
            store.put("a/second", [b"2"])
    assert left(root) == ["a", "a/first"]


def test_a_refused_put_leaves_no_temporary_file_and_no_folder(root: Path) -> None:
    store = FilesystemObjectStore(root)
    store.put("a/b", [b"1"])
    for key in ("a/b", "a", "a/b/c/d"):
        with pytest.raises(Conflict):
            store.put(key, [b"2"])
    assert left(root) == ["a", "a/b"]
    assert os.listdir(root / ".tmp") == []


def test_a_writer_that_takes_less_than_it_was_given_is_asked_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowFile(FileIO):
        def write(self, content: Buffer) -> int:
            return super().write(memoryview(content)[:1000])

    store = FilesystemObjectStore(root)
    monkeypatch.setattr(filesystem, "FileIO", SlowFile)
    content = os.urandom(10_500)
    store.put("a", [content])
    assert b"".join(store.get("a")) == content


def test_a_put_into_a_folder_that_somebody_removed_is_made_again(root: Path) -> None:
    store = FilesystemObjectStore(root)
    store.put("a/b", [b"1"])
    (root / "a" / "b").unlink()
    (root / "a").rmdir()
    assert store.put("a/b", [b"2"]) == 1
    assert left(root) == ["a", "a/b"]


def test_the_memory_of_a_put_does_not_grow_with_the_object(root: Path) -> None:
    alive = 0

    class Chunk(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def chunks() -> Iterator[bytes]:
        nonlocal alive
        for _ in range(50):
            alive += 1
            assert alive <= 2
            yield Chunk(1000)

    assert FilesystemObjectStore(root).put("a", chunks()) == 50_000
