"""Starts all four services by hand, prints the settings that use them, and stops them on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

from services import Services, make_database, settings


def main() -> None:
    """Run until told to stop."""
    with tempfile.TemporaryDirectory(prefix="sensorkeep-services-") as folder, Services(Path(folder)) as services:
        addresses = services.addresses()
        for name, value in (settings(addresses, make_database(services.postgresql.url)) | addresses).items():
            print(f"{name}={value}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
