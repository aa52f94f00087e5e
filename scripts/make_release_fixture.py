"""Make tests/data/previous-release: a data directory written by the program of an earlier revision.

Run it when a release is made, with the revision of that release:

    .venv/bin/python scripts/make_release_fixture.py v0.1.0

The program of the revision runs on the packages that are installed now.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "blackbox"), str(ROOT / "tests")]

from harness import Server  # noqa: E402
from release import SETTINGS, answers, fill, leave_waiting, pack  # noqa: E402


def main(revision: str) -> None:
    """Export the revision, let its server fill a directory, and pack that."""
    with tempfile.TemporaryDirectory() as folder:
        source, data_dir = Path(folder) / "source", Path(folder) / "data"
        source.mkdir()
        exported = subprocess.run(["git", "archive", revision, "src"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(source)], input=exported.stdout, check=True)
        os.environ["PYTHONPATH"] = str(source / "src")
        # The first releases know no setting of workers.
        server = Server(data_dir, **SETTINGS, SENSORKEEP_WORKER_PORT=None).start()
        key = fill(server)
        expected = {"revision": revision, "key": key, "answers": answers(server), "accounting": server.settled()}
        server.stop()
        server.settings["SENSORKEEP_GATHER_SECONDS"] = "60"
        server.start()
        expected["waiting"] = leave_waiting(server)
        server.kill()
        pack(data_dir, expected)


if __name__ == "__main__":
    main(sys.argv[1])
