"""What is installed is what was chosen: exact versions, each with its hashes; and none of known weaknesses.

The audit asks the advisory database on the internet, so it runs only where SENSORKEEP_TEST_AUDIT is set, and fails
there where the database cannot be reached.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("runtime", "dev")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]+\])?==(\S+)")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Pin(NamedTuple):
    """A version that is locked, for the Pythons and systems of its marker."""

    version: str
    hashes: list[str]


def locked(name: str) -> dict[str, list[Pin]]:
    """The versions of each package of a lock file; fails on a line that is no exact version."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found: dict[str, list[Pin]] = {}
    for entry in re.split(r"\n(?=\S)", lines):
        requirement, *hashes = entry.replace("\\\n", " ").split("--hash=")
        match = _REQUIREMENT.match(requirement.strip())
        assert match is not None, f"{name}.lock: {requirement!r} is not pinned"
        pin = Pin(match[2].rstrip(";"), [digest.strip() for digest in hashes])
        found.setdefault(canonical(match[1]), []).append(pin)
    return found


def declared() -> dict[str, list[str]]:
    """The names that pyproject.toml asks for, by lock file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {
        "runtime": project["project"]["dependencies"],
        "dev": project["project"]["dependencies"] + project["dependency-groups"]["dev"],
    }
    return {
        lock: [canonical(re.split(r"[\s\[<>=;!~]", requirement, maxsplit=1)[0]) for requirement in requirements]
        for lock, requirements in names.items()
    }


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_with_strong_hashes(name: str) -> None:
    packages = locked(name)
    assert len(packages) > 30
    for package, pins in packages.items():
        for pin in pins:
            assert pin.hashes, f"{package} has no hash"
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in pin.hashes), package


@pytest.mark.parametrize("name", LOCKS)
def test_everything_that_is_asked_for_is_locked(name: str) -> None:
    assert set(declared()[name]) <= locked(name).keys()


def test_the_tests_run_on_what_is_released() -> None:
    runtime, dev = locked("runtime"), locked("dev")
    assert {package: dev[package] for package in runtime} == runtime


def test_what_is_installed_is_what_is_locked() -> None:
    installed = {canonical(found.metadata["Name"]): found.version for found in distributions()}
    wrong = {
        name: installed[name]
        for name, pins in locked("dev").items()
        if name in installed and installed[name] not in {pin.version for pin in pins}
    }
    assert not wrong
    assert set(declared()["runtime"]) <= installed.keys()


def test_the_set_up_installs_by_hash_alone() -> None:
    script = (ROOT / "scripts" / "setup.sh").read_text()
    assert "--require-hashes" in script
    assert not re.search(r"--(extra-)?index-url|--trusted-host", script)


if os.environ.get("SENSORKEEP_TEST_AUDIT"):

    def test_no_locked_version_has_a_known_weakness() -> None:
        """pip-audit on what a user installs."""
        lock = ROOT / "requirements" / "runtime.lock"
        audit = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--disable-pip", "--require-hashes"]
        done = subprocess.run([*audit, "--format", "json"], capture_output=True, text=True, timeout=100, check=False)
        report = json.loads(done.stdout)
        weak = {found["name"]: found["vulns"] for found in report["dependencies"] if found.get("vulns")}
        assert not weak
        audited = [found["name"] for found in report["dependencies"] if "skip_reason" not in found]
        assert audited, "the advisory database could not be reached"
