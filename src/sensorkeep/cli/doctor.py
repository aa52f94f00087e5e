"""`doctor`: looks for what could keep the system from working, and says what to do."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from sensorkeep import __version__
from sensorkeep.cli.output import ExitCode, Output
from sensorkeep.config import Config, load_config
from sensorkeep.decode import scan
from sensorkeep.errors import DataDirInUse, SensorkeepError
from sensorkeep.limits import DISK_FREE_BYTES_MIN

Finding = tuple[str, str, str]
"""(what was looked at, ok|warning|error, what was found and what to do)"""


def doctor_command(
    config_file: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Data directory to look at.")] = None,
) -> None:
    """Check settings, disk, clock, stores and the server; exits with 1 where something is wrong."""
    output = Output()
    with output.reporting_errors():
        config = load_config(file=config_file, data_dir=data_dir)
        findings = list(examine(config))
        output.table(("check", "state", "finding"), findings)
        if any(state == "error" for _, state, _ in findings):
            raise typer.Exit(ExitCode.SOME_REFUSED)


def examine(config: Config) -> Iterator[Finding]:
    """All findings, one check after the other."""
    yield "version", "ok", __version__
    yield "settings", "ok", "valid"
    yield _clock()
    yield _disk(config.data_dir)
    yield _decoder()
    running = _is_served(config.host, config.port)
    yield "server", "ok", f"{'answers' if running else 'nothing listens'} on {config.host}:{config.port}"
    yield from _stores(config)


def _clock() -> Finding:
    if time.time() < 1_735_689_600:  # 2025-01-01: readings would be refused as in_future
        return "clock", "error", "the clock is far in the past; set it (timedatectl set-ntp true)"
    return "clock", "ok", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _disk(path: Path) -> Finding:
    existing = next(parent for parent in [path.resolve(), *path.resolve().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / 2**30:.1f} GiB free at {existing}"
    if free < DISK_FREE_BYTES_MIN:
        return "disk", "error", text + "; free some, or shorten SENSORKEEP_RAW_RETENTION_DAYS"
    return "disk", "ok", text


def _decoder() -> Finding:
    if scan.SCANNER is None:
        return "decoder", "ok", "in Python; the compiled one takes less of the processor: scripts/build_native.sh"
    return "decoder", "ok", "compiled"


def _is_served(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _stores(config: Config) -> Iterator[Finding]:
    """Open every store and ask it to prove itself; where a server has them open, it is asked by /health instead."""
    from sensorkeep.app.application import Application
    from sensorkeep.app.backends import is_shared

    shared = is_shared(config)
    if not shared and not config.data_dir.exists():
        yield "data", "ok", f"{config.data_dir} does not exist yet; the first start makes it"
        return
    try:
        # As a gateway it takes no part in the work: no worker loses a partition to it.
        application = Application(config, role="gateway" if shared else "serve")
    except DataDirInUse as error:
        yield "data", "ok", f"{error.detail.split(';')[0]}: see its /api/v1/health/detailed"
        return
    except SensorkeepError as error:
        yield "data", "error", error.detail
        return
    try:
        for name, check in application.checks.by_name().items():
            yield _store(name, check)
        _, all_time = application.system.ledger.accounting()
        known = all_time.stored + all_time.updated + all_time.duplicate + all_time.quarantined + all_time.pending
        state = "ok" if all_time.received == known else "error"
        yield "accounting", state, f"{all_time.received} received, {known} accounted for, {all_time.pending} pending"
    finally:
        application.close()


def _store(name: str, check: Callable[[], object]) -> Finding:
    try:
        check()
    except SensorkeepError as error:
        return name, "error", error.detail
    return name, "ok", "works"
