"""`--distributed` runs the tests of the distributed form, on services that the run starts and stops itself."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from sensorkeep.decode import scan
from services import TIMESCALE_URL, Services, has_timescale

pytest_plugins = ["server_fixtures", "services.fixtures"]

_STACK = ExitStack()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--distributed", action="store_true", help="run the tests marked distributed, and only those")


def pytest_configure(config: pytest.Config) -> None:
    """Start the services once, before the workers of a parallel run are, which inherit the addresses."""
    if not config.getoption("--distributed") or hasattr(config, "workerinput"):
        return
    folder = _STACK.enter_context(tempfile.TemporaryDirectory(prefix="sensorkeep-tests-"))
    services = _STACK.enter_context(Services(Path(folder)))
    os.environ.update(services.addresses())


def pytest_unconfigure(config: pytest.Config) -> None:
    _STACK.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that were asked for. The others are deselected and not skipped: they have a run of their own."""
    wanted = bool(config.getoption("--distributed"))
    kept = [
        item
        for item in items
        if (item.get_closest_marker("distributed") is not None) is wanted
        and (item.get_closest_marker("timescaledb") is None or has_timescale())
        and (item.get_closest_marker("compiled") is None or scan.SCANNER is not None)
    ]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--distributed"):
        said = "ran against it" if has_timescale() else f"did not run against it: {TIMESCALE_URL} is not set"
        terminalreporter.write_line(f"TimescaleDB: the tests {said}")
    elif scan.SCANNER is None:
        terminalreporter.write_line(
            "The compiled reader of bulk bodies was not tested: scripts/build_native.sh says why"
        )
