"""A file system of a few MiB that a test can fill up, free, and make read-only."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness import Server

MIB = 1 << 20


class SmallDisk:
    """A tmpfs. `place` is where the program sees it; `launcher` starts the program so that it does.

    As root it is mounted for everybody; else in a namespace of its own, which an unprivileged user may make on most
    systems, and is reached from here through /proc.
    """

    def __init__(self, place: Path, launcher: list[str], view: Path) -> None:
        self.place = place
        self.launcher = launcher
        self._view = view
        """The same place as this process sees it."""

    def fill(self) -> None:
        """Leave no room, not for one page."""
        with (self._view / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))

    def free(self) -> None:
        """Give the room back."""
        (self._view / "ballast").unlink()

    def make_read_only(self) -> None:
        """Let nobody write, root neither."""
        remount = ["mount", "-o", "remount,ro", str(self.place)]
        subprocess.run([*self.launcher, *remount], check=True, capture_output=True)

    def server(self, data_dir: Path | None = None, **settings: object) -> Server:
        """A server that sees the disk; its data directory is the disk itself where none is named."""
        server = Server(data_dir or self.place, **settings)
        server.launcher = self.launcher
        return server


@contextmanager
def small_disk(size_bytes: int) -> Iterator[SmallDisk]:
    """An empty disk of this size for the time of the block. Skips the test where none can be made."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "disk"
        place.mkdir()
        options = f"size={size_bytes},mode=0700"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            try:
                yield SmallDisk(place, [], place)
            finally:
                subprocess.run(["umount", "--lazy", str(place)], check=True)
            return
        script = f"mount -t tmpfs -o {options} tmpfs '{place}' && echo ready && exec sleep infinity"
        with subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        ) as holder:
            try:
                assert holder.stdout is not None
                if holder.stdout.readline() != "ready\n":
                    pytest.skip("neither root nor user namespaces: no small file system can be made here")
                enter = ["nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials"]
                yield SmallDisk(place, enter, Path(f"/proc/{holder.pid}/root{place}"))
            finally:
                holder.kill()
