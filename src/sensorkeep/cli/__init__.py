"""The command line: `sensorkeep COMMAND`. Each command's imports wait until it runs, so that --help is quick."""

from __future__ import annotations


def main() -> None:
    """The entry point of the `sensorkeep` script."""
    from sensorkeep.cli.commands import app

    app()
