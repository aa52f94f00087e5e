"""Durable means synced: the order of the calls in the process, the system calls as strace sees them, and kill -9."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sensorkeep.clock import SystemClock
from sensorkeep.errors import Conflict
from sensorkeep.model import Claim, WireFormat
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.queue.sqlite import SqliteClaimQueue

SEED = 20261122
KILLS = 3
FOLLOW_SECONDS = 60


def claim(name: str) -> Claim:
    payload = name.encode() * 50
    return Claim(batch_id=name, wire_format=WireFormat.READINGS, received_us=1, readings=1, payload=payload)


# --- the order of the calls ---


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the process asks of the file system, in order: (call, path)."""
    made: list[tuple[str, str]] = []
    paths: dict[int, str] = {}
    real_open, real_fsync = os.open, os.fsync

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        made.append(("sync", paths[descriptor] if is_folder else "content"))

    def opened(path: Any, *arguments: Any, **keywords: Any) -> int:
        descriptor = real_open(path, *arguments, **keywords)
        paths[descriptor] = str(path)
        return descriptor

    def recorded(name: str, real: Callable[..., None], position: int) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            real(*arguments)
            made.append((name, str(arguments[position])))

        return call

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", recorded("link", os.link, 1))
    monkeypatch.setattr(os, "mkdir", recorded("mkdir", os.mkdir, 0))
    return made


def test_a_put_syncs_content_then_links_then_syncs_the_folder(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    root = tmp_path / "data" / "objects"
    store = FilesystemObjectStore(root)
    assert calls[:4] == [
        ("mkdir", f"{tmp_path}/data"),
        ("sync", f"{tmp_path}"),
        ("mkdir", f"{root}"),
        ("sync", f"{tmp_path}/data"),
    ]
    calls.clear()
    store.put("a/b/key", [b"content"])
    assert calls == [
        ("sync", "content"),
        ("mkdir", f"{root}/a"),
        ("sync", f"{root}"),
        ("mkdir", f"{root}/a/b"),
        ("sync", f"{root}/a"),
        ("link", f"{root}/a/b/key"),
        ("sync", f"{root}/a/b"),
    ]
    calls.clear()
    store.put("a/b/other", [b"content"])
    assert calls == [("sync", "content"), ("link", f"{root}/a/b/other"), ("sync", f"{root}/a/b")]


def test_a_folder_of_an_earlier_process_is_synced_before_the_first_put_counts(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    store = FilesystemObjectStore(tmp_path)
    (tmp_path / "a").mkdir()
    calls.clear()
    store.put("a/key", [b"content"])
    assert calls == [
        ("sync", "content"),
        ("sync", f"{tmp_path}"),
        ("link", f"{tmp_path}/a/key"),
        ("sync", f"{tmp_path}/a"),
    ]


def test_who_is_told_that_the_object_exists_can_take_it_for_durable(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    store = FilesystemObjectStore(tmp_path)
    store.put("a/key", [b"content"])
    calls.clear()
    with pytest.raises(Conflict):
        store.put("a/key", [b"content"])
    assert calls == [("sync", "content"), ("sync", f"{tmp_path}/a")]


def test_every_publish_and_acknowledgement_commits_with_full_synchronization(tmp_path: Path) -> None:
    queue = SqliteClaimQueue(tmp_path / "queue.db", SystemClock())
    level, commits, current = "FULL", [], ""
    assert queue._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert queue._reader.execute("PRAGMA synchronous").fetchone() == (2,)
    assert queue._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def trace(statement: str) -> None:
        nonlocal level
        if found := re.fullmatch(r"PRAGMA synchronous = (\w+)", statement):
            level = found[1]
        elif statement == "COMMIT":
            commits.append((current, level))

    queue._writer.set_trace_callback(trace)
    for _ in range(2):
        current = "publish"
        queue.publish([claim("1"), claim("2")])
        assert queue._writer.execute("PRAGMA synchronous").fetchone() == (2,)
        current = "fetch"
        deliveries = queue.fetch(10, 10, 0.0)
        current = "ack"
        queue.ack(deliveries)
        assert queue._writer.execute("PRAGMA synchronous").fetchone() == (2,)
        current = "check"
        queue.check()
    assert commits == [("publish", "FULL"), ("fetch", "NORMAL"), ("ack", "FULL"), ("check", "FULL")] * 2
    queue.close()


# --- what strace sees ---

TRACED = """
import os, sys
from pathlib import Path
from sensorkeep.clock import SystemClock
from sensorkeep.model import Claim, WireFormat
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.queue.sqlite import SqliteClaimQueue

folder = Path(sys.argv[1])
store = FilesystemObjectStore(folder / "objects")
queue = SqliteClaimQueue(folder / "queue.db", SystemClock())
claim = Claim(batch_id="1", wire_format=WireFormat.READINGS, received_us=1, readings=1, payload=b"x" * 500)

def step(name, act):
    os.write(1, f"begin {name}\\n".encode())
    answer = act()
    os.write(1, f"done {name}\\n".encode())
    return answer

step("put", lambda: store.put("a/b/key", [b"content"]))
step("publish", lambda: queue.publish([claim]))
step("second publish", lambda: queue.publish([claim]))
deliveries = step("fetch", lambda: queue.fetch(10, 10, 0.0))
step("ack", lambda: queue.ack(deliveries))
"""


def traced_steps(folder: Path) -> dict[str, list[str]]:
    """The system calls of each step of TRACED, as lines of `call path` in order."""
    log = folder / "strace.log"
    calls = "trace=fsync,fdatasync,write,pwrite64,writev,pwritev,link,linkat,mkdir,mkdirat"
    command = [
        "strace",
        "-f",
        "-y",
        "-s",
        "100",
        "-e",
        calls,
        "-o",
        str(log),
        sys.executable,
        "-c",
        TRACED,
        str(folder),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=FOLLOW_SECONDS, check=False)
    if "PTRACE" in finished.stderr or "ptrace" in finished.stderr:
        pytest.skip(f"strace may not trace here: {finished.stderr[:200]}")
    assert finished.returncode == 0, finished.stderr
    steps: dict[str, list[str]] = {}
    current: list[str] = []
    for line in log.read_text().splitlines():
        if found := re.search(r'write\(1<[^>]*>, "(begin|done) ([^"\\]*)', line):
            current = steps.setdefault(found[2], []) if found[1] == "begin" else []
        elif found := re.search(r"(\w+)\(\d+<([^>]*)>.* = \d+$", line):
            current.append(f"{found[1]} {found[2]}")
        elif found := re.search(r'(link|linkat|mkdir|mkdirat)\(.*"([^"]*)"[^"]*\) = 0$', line):
            current.append(f"{found[1].removesuffix('at')} {found[2]}")
    return steps


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_right_files_are_synced_before_the_caller_learns_of_it(tmp_path: Path) -> None:
    steps = traced_steps(tmp_path)
    put = steps["put"]
    root = f"{tmp_path}/objects"
    content = next(i for i, line in enumerate(put) if re.fullmatch(rf"write {root}/\.tmp/\S+", line))
    wanted = [
        put[content].replace("write", "fsync"),
        f"mkdir {root}/a",
        f"fsync {root}",
        f"mkdir {root}/a/b",
        f"fsync {root}/a",
        f"link {root}/a/b/key",
        f"fsync {root}/a/b",
    ]
    assert put[content + 1 :] == wanted
    for name in ("publish", "second publish", "ack"):
        written = [i for i, line in enumerate(steps[name]) if line.startswith("pwrite64") and line.endswith("-wal")]
        synced = [i for i, line in enumerate(steps[name]) if re.match(r"f(data)?sync .*/queue\.db-wal$", line)]
        assert written, steps[name]
        assert synced, steps[name]
        assert max(written) < max(synced), steps[name]
    assert not any(line.startswith(("fsync", "fdatasync")) for line in steps["fetch"]), "a delivery count needs no sync"


# --- kill -9 ---

QUEUE_CHILD = """
import os, sys, threading
from pathlib import Path
from sensorkeep.clock import SystemClock
from sensorkeep.model import Claim, WireFormat
from sensorkeep.queue.sqlite import SqliteClaimQueue

queue = SqliteClaimQueue(Path(sys.argv[1]) / "queue.db", SystemClock())
say = lambda word, name: os.write(1, f"{word} {name}\\n".encode())

def publish(thread):
    number = 0
    while True:
        name = f"{sys.argv[2]}-{thread}-{number}"
        claim = Claim(batch_id=name, wire_format=WireFormat.READINGS, received_us=1, readings=1,
                      payload=name.encode() * 50)
        queue.publish([claim])
        say("stored", name)
        number += 1

def work():
    while True:
        deliveries = queue.fetch(5, 1_000, 1.0)
        queue.release(deliveries[3:])
        for delivery in deliveries[:3]:
            say("removing", delivery.claim.batch_id)
        queue.ack(deliveries[:3])
        for delivery in deliveries[:3]:
            say("removed", delivery.claim.batch_id)

for thread in range(4):
    threading.Thread(target=publish, args=(thread,)).start()
work()
"""

STORE_CHILD = """
import os, sys, threading
from pathlib import Path
from sensorkeep.object_store.filesystem import FilesystemObjectStore

store = FilesystemObjectStore(Path(sys.argv[1]) / "objects")
say = lambda word, name: os.write(1, f"{word} {name}\\n".encode())

def work(thread):
    number = 0
    while True:
        name = f"{sys.argv[2]}/{number // 7}/{thread}-{number}"
        store.put(name, [name.encode()] * 2_000)
        say("stored", name)
        if number % 3 == 0:
            say("removing", name)
            store.delete(name)
            say("removed", name)
        number += 1

for thread in range(4):
    threading.Thread(target=work, args=(thread,)).start()
"""


class Said:
    """What the killed children said, over all rounds."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self.removing: set[str] = set()
        self.removed: set[str] = set()

    def run_and_kill(self, code: str, folder: Path, number: int, lines: int) -> None:
        """Start the child, kill it once it has said so many lines, and keep all that it said."""
        command = [sys.executable, "-c", code, str(folder), f"round{number}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            heard = [child.stdout.readline() for _ in range(lines)]
            child.kill()
            heard += child.stdout.readlines()
        for line in heard:
            assert line.endswith(b"\n"), "the child ended by itself"
            word, name = line.decode().split()
            getattr(self, word).add(name)

    def check(self, present: list[str]) -> None:
        """Every stored one is there once, unless its removal was begun; a removed one is not."""
        assert len(present) == len(set(present))
        assert self.stored - self.removing <= set(present)
        assert not self.removed & set(present)
        assert len(self.stored) > 20


def test_after_kill_9_every_published_claim_is_there_whole_and_once(tmp_path: Path) -> None:
    source, said = random.Random(SEED), Said()
    for number in range(KILLS):
        lines = source.randrange(30, 1_000)
        sys.stdout.write(f"seed {SEED}, round {number}: killed after {lines} lines\n")
        said.run_and_kill(QUEUE_CHILD, tmp_path, number, lines)
        queue = SqliteClaimQueue(tmp_path / "queue.db", SystemClock())
        depth = queue.depth().claims
        deliveries = []
        while taken := queue.fetch(1_000, 1_000_000, 0.0):
            deliveries += taken
        queue.close()
        assert [delivery.claim for delivery in deliveries] == [claim(d.claim.batch_id) for d in deliveries]
        assert depth == len(deliveries)
        said.check([delivery.claim.batch_id for delivery in deliveries])


def test_after_kill_9_every_object_is_there_whole(tmp_path: Path) -> None:
    source, said = random.Random(SEED), Said()
    for number in range(KILLS):
        lines = source.randrange(30, 300)
        sys.stdout.write(f"seed {SEED}, round {number}: killed after {lines} lines\n")
        said.run_and_kill(STORE_CHILD, tmp_path, number, lines)
        store = FilesystemObjectStore(tmp_path / "objects")
        assert os.listdir(tmp_path / "objects" / ".tmp") == []
        present = [found.key for found in store.list()]
        for key in present:
            assert b"".join(store.get(key)) == key.encode() * 2_000
        said.check(present)


# --- a full disk ---

FULL_DISK_CHILD = """
import json, sys
from pathlib import Path
from sensorkeep.clock import SystemClock
from sensorkeep.errors import Unavailable
from sensorkeep.model import Claim, WireFormat
from sensorkeep.object_store.filesystem import FilesystemObjectStore
from sensorkeep.queue.sqlite import SqliteClaimQueue

folder = Path(sys.argv[1])
store = FilesystemObjectStore(folder / "objects")
queue = SqliteClaimQueue(folder / "queue.db", SystemClock())

def claim(number):
    return Claim(batch_id=str(number), wire_format=WireFormat.READINGS, received_us=1, readings=1, payload=b"x" * 9_000)

def fill(act):
    done = 0
    while True:
        try:
            act(done)
        except Unavailable as error:
            return done, error.code
        done += 1

queue.publish([claim("first")])
objects, object_code = fill(lambda number: store.put(f"a/{number}", [bytes(100_000)]))
claims, claim_code = fill(lambda number: queue.publish([claim(number)]))
report = {"codes": [object_code, claim_code], "objects": len(list(store.list())) - objects,
          "claims": queue.depth().claims - claims - 1, "temporary": len(list((folder / "objects" / ".tmp").iterdir()))}
for check in (store.check, queue.check):
    try:
        check()
    except Unavailable as error:
        report["codes"].append(error.code)
for number in range(5):
    store.delete(f"a/{number}")
store.check()
queue.publish([claim("last")])
store.put("a/last", [bytes(100_000)])
names = [delivery.claim.batch_id for delivery in queue.fetch(10_000, 10_000, 0.0)]
report["names"] = names == ["first", *map(str, range(claims)), "last"]
print(json.dumps(report))
"""


def test_on_a_full_disk_nothing_is_half_written_and_room_brings_it_back(tmp_path: Path) -> None:
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own_mounts, "true"], check=False).returncode != 0:
        pytest.skip("no small file system can be mounted here")
    script = 'mount -t tmpfs -o size=4m none "$1" && exec "$2" -c "$3" "$1"'
    finished = subprocess.run(
        [*own_mounts, "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL_DISK_CHILD],
        capture_output=True, text=True, timeout=FOLLOW_SECONDS, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert set(report.pop("codes")) == {"disk_full"}
    assert report == {"objects": 0, "claims": 0, "temporary": 0, "names": True}
