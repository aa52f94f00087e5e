"""SeaweedFS: an S3 service in one process."""

from __future__ import annotations

import sysconfig
from http.client import HTTPConnection
from pathlib import Path

from services.process import Service, free_ports

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-of-the-tests"


class SeaweedFS(Service):
    """Master, volume server, filer and S3 in one. SIGTERM takes it 15 s, so it is always killed."""

    name = "seaweedfs"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._master, self._volume, self._filer, self._s3 = free_ports(4)

    @property
    def endpoint(self) -> str:
        """Where S3 is served."""
        return f"http://127.0.0.1:{self._s3}"

    def prepare(self) -> None:
        """Its data directory."""
        (self.folder / "data").mkdir(exist_ok=True)

    def command(self) -> list[str]:
        """Only what S3 needs, on loopback."""
        weed = Path(sysconfig.get_path("scripts")) / "weed"
        return [
            str(weed), "-logtostderr=true", "mini",
            f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={self._master}", f"-volume.port={self._volume}", f"-filer.port={self._filer}",
            f"-s3.port={self._s3}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
            "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-volume.max=1000",
            "-master.volumeSizeLimitMB=256",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """The keys it knows."""
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

    def is_ready(self) -> bool:
        """Whether S3 answers, and the filer can give out room for a file."""
        return self._status(self._s3, "/healthz") == 200 and self._status(self._master, "/dir/assign") == 200

    def stop(self) -> None:
        """As a power cut would. Idempotent."""
        self.kill()

    def kill(self) -> None:
        """As any service. Idempotent."""
        super().kill()
        # Killed, it leaves its sockets behind, whose place cannot be chosen.
        for port in (self._master, self._volume, self._filer, self._s3):
            for number in (port, port + 10_000):
                for socket in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    socket.unlink(missing_ok=True)

    def _status(self, port: int, path: str) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()
