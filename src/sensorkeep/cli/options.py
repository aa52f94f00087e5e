"""The options that every command has which talks to a running server."""

from __future__ import annotations

import random
from typing import Annotated

import typer

from sensorkeep.cli.client import ApiClient, Credential
from sensorkeep.cli.output import Output

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
