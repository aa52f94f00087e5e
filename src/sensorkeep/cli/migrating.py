"""`migrate upgrade` and `migrate status`: the schemas of the stores that gateways and workers share."""

from __future__ import annotations

import typer

from sensorkeep.cli.output import ExitCode, Output
from sensorkeep.cli.serve import ConfigFile
from sensorkeep.config import load_config

migrations = typer.Typer(
    help="Bring the schemas in PostgreSQL to this version. The embedded stores do it themselves at the start.",
    no_args_is_help=True,
)


@migrations.command("upgrade")
def upgrade_command(config_file: ConfigFile = None) -> None:
    """Bring every schema to this version; the first time also make the user `admin`. May be repeated at any time."""
    from sensorkeep.app.migrating import first_start, schema_states, upgrade_schemas

    output = Output()
    with output.reporting_errors():
        config = load_config(file=config_file)
        before = {state.store: state.current for state in schema_states(config)}
        if not before:
            output.line("nothing to do: the embedded stores migrate themselves when they are opened")
            return
        upgrade_schemas(config)
        for state in schema_states(config):
            came_from = before[state.store]
            done = "is up to date" if came_from == state.current else f"migrated from {came_from or 'nothing'}"
            output.line(f"{state.store} at {state.place}: {done} (revision {state.current})")
        password = first_start(config)
        if password is not None:
            output.line(f"user admin, password {password}  (shown only now; change it with: sensorkeep user password)")


@migrations.command("status")
def status_command(config_file: ConfigFile = None) -> None:
    """Tell where every schema stands; ends with 1 where one is not at this version. Changes nothing."""
    from sensorkeep.app.migrating import schema_states

    output = Output()
    with output.reporting_errors():
        states = schema_states(load_config(file=config_file))
        if not states:
            output.line("the embedded stores migrate themselves when they are opened")
            return
        output.table(
            ("store", "place", "revision", "this version needs"),
            [(state.store, state.place, state.current or "none", state.head) for state in states],
        )
        if not all(state.up_to_date for state in states):
            output.note("run: sensorkeep migrate upgrade")
            raise typer.Exit(ExitCode.SOME_REFUSED)
