"""The options that several commands have: those that talk to a running server, or move a whole installation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from sensorkeep.cli.client import ApiClient, Credential
from sensorkeep.cli.output import Output
from sensorkeep.errors import InvalidInput

Url = Annotated[str, typer.Option("--url", envvar="SENSORKEEP_URL", help="Where the server is.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="SENSORKEEP_CLIENT_KEY", help="API key.", show_default=False)
]
Username = Annotated[
    str | None, typer.Option("--username", envvar="SENSORKEEP_USERNAME", help="User, instead of an API key.")
]
Password = Annotated[
    str | None,
    typer.Option(
        "--password", envvar="SENSORKEEP_PASSWORD", help="The user's password; asked for on a terminal where missing."
    ),
]

Everything = Annotated[
    bool, typer.Option("--everything", help="The whole installation, its stores opened here: stop its servers first.")
]
ArchiveConfig = Annotated[
    Path | None, typer.Option("--config", help="With --everything: TOML file with settings.", show_default=False)
]
ArchiveDataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="With --everything: directory of the embedded stores.", show_default=False),
]


def check_archive_options(
    everything: bool, without_payloads: bool, config_file: Path | None, data_dir: Path | None
) -> None:
    """Raises InvalidInput (`bad_parameter`) where an option of --everything is given without it."""
    given = {"--without-payloads": without_payloads, "--config": config_file, "--data-dir": data_dir}
    alone = [name for name, value in given.items() if value]
    if alone and not everything:
        raise InvalidInput(f"{alone[0]} belongs to --everything", code="bad_parameter")


def credential(api_key: str | None, username: str | None, password: str | None) -> Credential:
    """The credential of the options; asks for a missing password on a terminal."""
    if username and not api_key and password is None:
        password = typer.prompt(f"Password of {username}", hide_input=True, err=True)
    return Credential(api_key=api_key, username=username, password=password)


def open_client(url: str, credential: Credential, output: Output, source: random.Random | None = None) -> ApiClient:
    """A client that tells `output` when it has to wait."""

    def tell(reason: str, seconds: float) -> None:
        output.note(f"{reason}; trying again in {seconds:.1f} s")

    return ApiClient(url, credential, on_wait=tell, source=source)
