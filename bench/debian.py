"""Programs of Debian packages, unpacked without being installed: nothing outside a cache folder changes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path


class Missing(Exception):
    """A contender that cannot be had here, and why."""


def program(package: str, binary: str) -> tuple[Path, str]:
    """(path, version) of a program: that of the PATH, else unpacked from the Debian package into the cache.

    The cache is `$XDG_CACHE_HOME/sensorkeep-bench`. Raises Missing.
    """
    if installed := shutil.which(binary):
        return Path(installed), _version_of_installed(package)
    folder = _cache() / package
    found = _unpacked(folder, binary)
    if found is None:
        _download(package, folder)
        found = _unpacked(folder, binary)
    if found is None:
        raise Missing(f"the Debian package {package} has no program {binary}")
    return found, _version_of_file(folder)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sensorkeep-bench"


def _unpacked(folder: Path, binary: str) -> Path | None:
    return next((file for file in folder.glob(f"root/usr/bin/{binary}") if os.access(file, os.X_OK)), None)


def _download(package: str, folder: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Missing(f"{package} is not on the PATH, and there is no {tool} to get its Debian package with")
    folder.mkdir(parents=True, exist_ok=True)
    _run(package, ["apt-get", "download", package], folder)
    file = next(iter(folder.glob("*.deb")), None)
    if file is None:
        raise Missing(f"apt-get download {package} left no file")
    _run(package, ["dpkg-deb", "-x", str(file), str(folder / "root")], folder)


def _run(package: str, command: list[str], folder: Path) -> None:
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{package}: {command[0]}: {error}") from error
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["no reason given"]
        raise Missing(f"{package}: {command[0]}: {lines[-1]}")


def _version_of_file(folder: Path) -> str:
    names = [file.name.split("_") for file in folder.glob("*.deb")]
    return re.split(r"[+~-]", names[0][1])[0] if names and len(names[0]) > 1 else ""


def _version_of_installed(package: str) -> str:
    if shutil.which("dpkg-query") is None:
        return ""
    command = ["dpkg-query", "-W", "-f", "${Version}", package]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
