"""`user …` and `key …`: accounts, straight in the catalog.

Gateways that share Valkey are told of a change at once. Others, and all of them where Valkey is down, see it within 30
seconds (CREDENTIAL_CACHE_SECONDS); the WebSockets of what was revoked or changed end then, too.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sensorkeep.auth.administration import Actor, Administration
from sensorkeep.cli.output import Output
from sensorkeep.clock import DAY_US, SystemClock, rfc3339
from sensorkeep.config import load_config
from sensorkeep.errors import InvalidInput

users = typer.Typer(help="Manage users.", no_args_is_help=True)
keys = typer.Typer(help="Manage API keys.", no_args_is_help=True)

DataDirectory = Annotated[Path | None, typer.Option("--data-dir", help="Data directory of the server.")]
Username = Annotated[str, typer.Argument(help="Name of the user.")]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="ingest, read, live or admin; may be repeated.")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]
ACTOR = Actor("cli", "local")


@contextmanager
def _administration(data_dir: Path | None) -> Iterator[tuple[Administration, Output]]:
    import structlog

    from sensorkeep.app.accounts import open_administration

    # What a service that is down has the parts say is no result.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    output = Output()
    with output.reporting_errors(), open_administration(load_config(data_dir=data_dir)) as administration:
        yield administration, output


def _new_password(from_stdin: bool, output: Output) -> tuple[str, bool]:
    """(password, whether it was generated): from standard input, asked for on a terminal, else generated."""
    if from_stdin:
        password = typer.get_text_stream("stdin").readline().rstrip("\n")
        if not password:
            raise InvalidInput("standard input held no password", code="bad_parameter")
        return password, False
    if output.terminal:
        password = typer.prompt("New password (empty: generate one)", default="", hide_input=True, show_default=False)
        if password:
            return password, False
    return secrets.token_urlsafe(18), True


@users.command("add")
def add_user(
    username: Username, scope: Scopes = None, password_stdin: FromStdin = False, data_dir: DataDirectory = None
) -> None:
    """Add a user (scopes: read and live, where none is named)."""
    with _administration(data_dir) as (administration, output):
        password, generated = _new_password(password_stdin, output)
        user = administration.add_user(username, password, scope or ["read", "live"], ACTOR)
        output.line(f"added {user.username} with scopes {', '.join(sorted(user.scopes))}")
        if generated:
            output.line(f"password: {password}  (shown only now)")


@users.command("password")
def change_password(username: Username, password_stdin: FromStdin = False, data_dir: DataDirectory = None) -> None:
    """Give a user a new password; ends the user's sessions."""
    with _administration(data_dir) as (administration, output):
        password, generated = _new_password(password_stdin, output)
        administration.change_user(username, ACTOR, password=password)
        output.line(f"changed the password of {username}")
        if generated:
            output.line(f"password: {password}  (shown only now)")


@users.command("scopes")
def change_scopes(username: Username, scope: Scopes = None, data_dir: DataDirectory = None) -> None:
    """Replace a user's scopes."""
    with _administration(data_dir) as (administration, output):
        user = administration.change_user(username, ACTOR, scopes=scope or [])
        output.line(f"{user.username} has scopes {', '.join(sorted(user.scopes))}")


@users.command("list")
def list_users(data_dir: DataDirectory = None) -> None:
    """List the users."""
    with _administration(data_dir) as (administration, output):
        rows = [(u.username, " ".join(sorted(u.scopes)), "no" if u.disabled else "yes") for u in administration.users()]
        output.table(("username", "scopes", "enabled"), rows)


@users.command("remove")
def remove_user(username: Username, data_dir: DataDirectory = None) -> None:
    """Remove a user."""
    with _administration(data_dir) as (administration, output):
        administration.remove_user(username, ACTOR)
        output.line(f"removed {username}")


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Scopes = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it ends; no end where not given.")] = None,
    max_ws_connections: Annotated[int | None, typer.Option(min=1, help="Open WebSockets allowed.")] = None,
    data_dir: DataDirectory = None,
) -> None:
    """Issue an API key (scopes: ingest, where none is named). The secret is shown once."""
    with _administration(data_dir) as (administration, output):
        expires_us = None if days is None else SystemClock().now_us() + days * DAY_US
        issued = administration.issue_key(
            name, scope or ["ingest"], ACTOR, expires_us=expires_us, max_ws_connections=max_ws_connections
        )
        output.line(f"key id: {issued.key.id}  scopes: {', '.join(sorted(issued.key.scopes))}")
        output.line(f"secret: {issued.secret}  (shown only now)")


@keys.command("list")
def list_keys(data_dir: DataDirectory = None) -> None:
    """List the API keys (never their secrets)."""
    with _administration(data_dir) as (administration, output):
        known = administration.keys()
        when = [(_when(key.created_us), _when(key.expires_us), _when(key.last_used_us)) for key in known]
        rows = [
            (key.id, key.name, " ".join(sorted(key.scopes)), *times) for key, times in zip(known, when, strict=True)
        ]
        output.table(("id", "name", "scopes", "created", "ends", "last used"), rows)


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="Id of the key.")], data_dir: DataDirectory = None) -> None:
    """End an API key."""
    with _administration(data_dir) as (administration, output):
        administration.revoke_key(key_id, ACTOR)
        output.line(f"revoked {key_id}")


def _when(time_us: int | None) -> str | None:
    return None if time_us is None else rfc3339(time_us // 1_000_000 * 1_000_000)
