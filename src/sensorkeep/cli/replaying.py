"""`replay`: try quarantined readings again, on a running server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sensorkeep.cli.client import ApiClient
from sensorkeep.cli.options import ApiKey, Password, Url, Username, credential, open_client
from sensorkeep.cli.output import ExitCode, Output


def replay_command(
    batch_id: Annotated[list[str] | None, typer.Argument(help="Batches to replay.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every batch with quarantined readings.")] = False,
    backfill: Annotated[bool, typer.Option("--backfill", help="Take readings older than the retention too.")] = False,
    url: Url = "http://127.0.0.1:8000",
    api_key: ApiKey = None,
    username: Username = None,
    password: Password = None,
) -> None:
    """Try the quarantined readings of batches again, by the settings of now (scopes admin and read)."""
    output = Output()
    with output.reporting_errors(), open_client(url, credential(api_key, username, password), output) as client:
        batches = list(batch_id or [])
        if everything:
            batches += [item["batch_id"] for state in ("partial", "dead_letter") for item in _batches(client, state)]
        if not batches:
            output.note("nothing to replay: name batches, or use --all")
            raise typer.Exit(ExitCode.OK if everything else ExitCode.USAGE)
        replay(client, batches, backfill, output)


def replay(client: ApiClient, batches: list[str], backfill: bool, output: Output) -> None:
    """Ask for the replay of each batch. Raises what the server refuses."""
    headers = {"Prefer": "backfill"} if backfill else {}
    for batch in batches:
        client.request("POST", f"/telemetry/batches/{batch}/replay", headers=headers)
        output.line(f"replaying {batch}")


def _batches(client: ApiClient, state: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = client.get("/telemetry/batches", state=state, limit=1000, cursor=cursor)
        found += page["batches"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found
