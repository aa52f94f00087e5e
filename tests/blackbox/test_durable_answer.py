"""The system calls of the real server: the answer of success leaves after the syncs it stands for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None,
    reason="strace is not installed; tests/unit/test_durability.py proves the order within the process",
)

CALL = re.compile(r"^\[?(?:pid )?\s*(\d+)\]?\s+(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$")


def finished_calls(trace: str) -> list[tuple[str, str]]:
    """(name, arguments) of each call, in the order in which they ended."""
    begun: dict[str, tuple[str, str]] = {}
    calls = []
    for line in trace.splitlines():
        found = CALL.match(line)
        if found is None:
            continue
        thread, name, arguments, resumed, _ = found.groups()
        if resumed:
            calls.append(begun.pop(thread, (resumed, "")))
        elif arguments.endswith("<unfinished ...>"):
            begun[thread] = (name, arguments)
        else:
            calls.append((name, arguments))
    return calls


def test_a_201_leaves_after_payload_folder_and_claim_are_synced(data_dir: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    server = Server(data_dir)
    server.launcher = ["strace", "-D", "-f", "-y", "-s", "60", "-o", str(trace), "-e",
                       "trace=fsync,fdatasync,write,writev,sendto,sendmsg"]  # fmt: skip
    server.start()
    try:
        server.bulk([esm_equipment(new_uuid(), [esm_reading(new_uuid(), 1.5, hours_ago(1))])])
        wait_until(lambda: "HTTP/1.1 201" in trace.read_text("utf-8", "replace"))
    finally:
        server.stop()
    calls = finished_calls(trace.read_text("utf-8", "replace"))
    answers = [at for at, (name, said) in enumerate(calls) if "sync" not in name and "HTTP/1.1 201" in said]
    assert len(answers) == 1
    synced = [said for name, said in calls[: answers[0]] if "sync" in name]
    payload = [at for at, path in enumerate(synced) if "/payloads/.tmp/" in path]
    folder = [at for at, path in enumerate(synced) if re.search(r"/payloads/telemetry/[0-9-]+>", path)]
    claim = [at for at, path in enumerate(synced) if "queue.sqlite" in path]
    assert payload, "the payload was not synced before the answer"
    assert folder, "its folder was not synced before the answer"
    assert claim[-1] > folder[-1] > payload[-1], "the claim is published after the payload it names"
