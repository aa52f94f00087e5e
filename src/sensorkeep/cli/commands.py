"""All commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from sensorkeep import __version__
from sensorkeep.cli.doctor import doctor_command
from sensorkeep.cli.exporting import export_command
from sensorkeep.cli.importing import import_command
from sensorkeep.cli.manage import keys, users
from sensorkeep.cli.migrating import migrations
from sensorkeep.cli.replaying import replay_command
from sensorkeep.cli.serve import gateway_command, serve_command, worker_command
from sensorkeep.cli.simulate import simulate_command

app = typer.Typer(
    name="sensorkeep",
    help="Sensorkeep keeps every sensor reading.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sensorkeep {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Sensorkeep keeps every sensor reading."""


app.command("serve")(serve_command)
app.command("gateway")(gateway_command)
app.command("worker")(worker_command)
app.add_typer(migrations, name="migrate")
app.add_typer(users, name="user")
app.add_typer(keys, name="key")
app.command("import")(import_command)
app.command("export")(export_command)
app.command("replay")(replay_command)
app.command("simulate")(simulate_command)
app.command("doctor")(doctor_command)
