"""`serve`: the whole system in one process."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensorkeep import __version__
from sensorkeep.auth.administration import Actor
from sensorkeep.cli.output import Output
from sensorkeep.clock import MICROSECONDS
from sensorkeep.config import DISTRIBUTED_VARIABLES, Config, load_config
from sensorkeep.errors import BadConfig
from sensorkeep.limits import FIRST_KEY_SECONDS, HTTP_HEADER_SECONDS_MAX, SHUTDOWN_SECONDS_MAX

if TYPE_CHECKING:
    from sensorkeep.app.application import Application

LOCAL_ACTOR = Actor("cli", "local")


def serve_command(
    config_file: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory of the embedded stores.")] = None,
    demo: Annotated[bool | None, typer.Option("--demo", help="Allow well-known passwords and short keys.")] = None,
) -> None:
    """Run the whole system: HTTP, worker and stores in one process. Settings: docs/CONFIGURATION.md."""
    with Output().reporting_errors():
        config = load_config(file=config_file, host=host, port=port, data_dir=data_dir, demo=demo)
        ignored = [name for name in DISTRIBUTED_VARIABLES if os.environ.get(name)]
        if ignored:
            Output().note(f"note: {', '.join(ignored)} set but not used: this version runs on its embedded stores")
        serve(config)


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in flight and close. Raises what the start can raise."""
    import uvicorn

    from sensorkeep.app.application import Application
    from sensorkeep.live.protocol import uvicorn_settings
    from sensorkeep.web.logs import configure_logging
    from sensorkeep.web.protocol import ExpressHttpProtocol

    access_log = configure_logging(config.log_level, access_log=config.access_log)
    for kind in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises what it caught once more when it is done
        signal.signal(kind, lambda *_: None)
    listener = _listen(config.host, config.port)
    application = Application(config)
    try:
        password = application.first_start()
        application.start()
        server = uvicorn.Server(
            uvicorn.Config(
                application.asgi(access_log if config.access_log else None),
                http=ExpressHttpProtocol,
                loop="uvloop",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # the application does it, inside its middleware
                date_header=True,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS_MAX,
                timeout_keep_alive=HTTP_HEADER_SECONDS_MAX,
                **uvicorn_settings(),
            )
        )
        _greet(application, listener.getsockname()[1], password)
        server.run(sockets=[listener])
    finally:
        application.close()
        listener.close()
        access_log.flush()


def _listen(host: str, port: int) -> socket.socket:
    """Bind early, so that a taken port is told before the stores are opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise BadConfig(
            f"cannot listen on {host}:{port}: {reason}; choose another with SENSORKEEP_HOST and SENSORKEEP_PORT"
        ) from None
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def _greet(application: Application, port: int, password: str | None) -> None:
    """What a person needs to begin: the address, the data, and after the first start the password and a first call."""
    config = application.config
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host  # noqa: S104 - only compared
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    output = Output()
    output.line(f"Sensorkeep {__version__} is running")
    output.line(f"  address:  {address}  (interactive documentation: {address}/docs)")
    output.line(f"  data:     {application.data_dir.path}")
    if password is None:
        output.line(f"  try it:   curl {address}/api/v1/health")
        return
    now_us = application.clock.now_us()
    issued = application.auth.administration.issue_key(
        "first steps", ["ingest", "read"], LOCAL_ACTOR, expires_us=now_us + FIRST_KEY_SECONDS * MICROSECONDS
    )
    change = f"{sys.argv[0]} user password admin --data-dir {application.data_dir.path}"
    output.line(f"  user:     admin, password {password}  (shown only now; change it with: {change})")
    output.line("  send a reading and read it back (this key ends in 24 hours):")
    output.line(
        f"    curl -X POST {address}/api/v1/temperature_reading -H 'X-API-Key: {issued.secret}'"
        """ -H 'Content-Type: application/json' -d '{"temperature": 21.5, "sensor_id": "kitchen"}'"""
    )
    output.line(f"    curl {address}/api/v1/sensor/kitchen/latest -H 'X-API-Key: {issued.secret}'")
