"""`serve`, `gateway` and `worker`: the commands that run until they are told to stop."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensorkeep import __version__
from sensorkeep.auth.administration import Actor
from sensorkeep.cli.output import ExitCode, Output
from sensorkeep.clock import MICROSECONDS
from sensorkeep.config import Config, load_config
from sensorkeep.errors import BadConfig
from sensorkeep.limits import FIRST_KEY_SECONDS, HTTP_HEADER_SECONDS_MAX, MALLOC_OPTIONS, SHUTDOWN_SECONDS_MAX

if TYPE_CHECKING:
    from uvicorn import Server

    from sensorkeep.app.application import Application
    from sensorkeep.app.backends import Role
    from sensorkeep.app.worker import WorkerThread
    from sensorkeep.web.logs import Access

LOCAL_ACTOR = Actor("cli", "local")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")]


def serve_command(
    config_file: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory of the embedded stores.")] = None,
    demo: Annotated[bool | None, typer.Option("--demo", help="Allow well-known passwords and short keys.")] = None,
) -> None:
    """Run the whole system: HTTP, worker and stores in one process. Settings: docs/CONFIGURATION.md."""
    with Output().reporting_errors():
        config = load_config(file=config_file, host=host, port=port, data_dir=data_dir, demo=demo)
        run(config, "serve", config.port)


def gateway_command(config_file: ConfigFile = None, host: Host = None, port: Port = None) -> None:
    """Run a gateway: answers HTTP and WebSockets beside others, on the services that the settings name."""
    with Output().reporting_errors():
        config = load_config(file=config_file, host=host, port=port)
        run(config, "gateway", config.port)


def worker_command(
    config_file: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="Where it would end with 4, stay instead, without work, until it is stopped.")
    ] = False,
) -> None:
    """Run a worker: turns accepted batches into rows beside others; its port serves health and metrics alone.

    Exit codes: 0 it was told to stop, 1 it ended by itself and may be started again, 4 too many batches failed, so that
    the fault is ours rather than theirs: started again it would set more of them aside. A supervisor that cannot tell 4
    from 1 needs --stay.
    """
    with Output().reporting_errors():
        config = load_config(file=config_file, host=host, worker_port=port)
        run(config, "worker", config.worker_port, stay=stay)


class _End:
    """Ends what runs now, or, where it is called before, the next thing. From any thread, or by a signal.

    A signal comes in the middle of anything, and may come twice: the second one must not call what the first one's
    main thread is in, for that may hold a lock.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._stop: Callable[[], None] = _nothing

    def __call__(self, *_: object) -> None:
        if not self.wanted:
            self.wanted = True
            self._stop()

    def by(self, stop: Callable[[], None]) -> None:
        """Call `stop`, which does not wait, to end what runs from now on; at once where the end is wanted already."""
        self._stop = stop
        if self.wanted:
            stop()


def _nothing() -> None:
    pass


def run(config: Config, role: Role, port: int, *, stay: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in flight and close. Raises what the start can raise.

    `stay`: whether a worker that stopped for good waits for the signal, too.
    """
    from sensorkeep.app.application import Application
    from sensorkeep.web.logs import configure_logging

    _keep_freed_memory()
    access_log = configure_logging(config.log_level, access_log=config.access_log)
    end = _End()
    for kind in (signal.SIGTERM, signal.SIGINT):  # until uvicorn listens to them, and once more when it is done
        signal.signal(kind, end)
    listener = _listen(config.host, port)
    application = Application(config, role=role)
    password = None
    try:
        password = application.first_start()
        worker = application.worker
        if role == "worker" and worker is not None:
            worker.on_end = _end_of_worker(application, worker, end, stay=stay)
        if worker is not None:
            end.by(worker.stop)  # the start may wait for it
        application.start()
        server = _server(application, access_log if config.access_log else None)
        end.by(partial(setattr, server, "should_exit", True))
        # What was made so far stays to the end. Passed over by the collector, it costs 20 % less CPU for each small
        # request with 256 connections.
        gc.collect()
        gc.freeze()
        if not end.wanted:
            _greet(application, listener.getsockname()[1], password)
            password = None
            server.run(sockets=[listener])
        if role == "worker" and worker is not None and worker.stopped_because is not None:
            Output().note(f"the worker stopped: {worker.stopped_because}; the log has the details")
            raise typer.Exit(ExitCode.STOPPED_FOR_GOOD if worker.stopped_for_good else ExitCode.SOME_REFUSED)
    finally:
        end.by(_nothing)
        if password is not None:  # it did not come to be served, and the next start would not know it
            _tell_password(application, password)
        gc.unfreeze()  # libraries complain of what is left at the end
        application.close()
        listener.close()
        access_log.flush()


def _keep_freed_memory() -> None:
    """Let the C library keep some of what is freed.

    The columns of each bulk body are some hundred KiB. To give them back to the system, and to have them again as pages
    to be cleared, costs bulk ingest 8 % more CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in MALLOC_OPTIONS.items():
            mallopt(option, size)


def _end_of_worker(application: Application, worker: WorkerThread, end: _End, *, stay: bool) -> Callable[[], None]:
    """What is done when the worker of a process has ended."""

    def ended() -> None:
        if stay and worker.stopped_for_good:
            application.system.backends.queue.close()  # so that what it had taken goes to others
        else:
            end()

    return ended


def _server(application: Application, access_log: Callable[[Access], None] | None) -> Server:
    import uvicorn

    from sensorkeep.live.protocol import uvicorn_settings
    from sensorkeep.web.protocol import ExpressHttpProtocol

    return uvicorn.Server(
        uvicorn.Config(
            application.asgi(access_log),
            http="auto" if application.role == "worker" else ExpressHttpProtocol,
            loop="uvloop",
            lifespan="off" if application.role == "worker" else "on",
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
            " (of a worker: SENSORKEEP_WORKER_PORT)"
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
    what = "Sensorkeep" if application.role == "serve" else f"Sensorkeep {application.role}"
    output.line(f"{what} {__version__} is running")
    documented = f"  (interactive documentation: {address}/docs)" if application.gateway is not None else ""
    output.line(f"  address:  {address}{documented}")
    for name, where in application.places():
        output.line(f"  {name + ':':<9} {where}")
    if password is None:
        output.line(f"  try it:   curl {address}/api/v1/health")
    else:
        _tell_password(application, password)
        _tell_first_steps(application, address)


def _tell_password(application: Application, password: str) -> None:
    change = f"{sys.argv[0]} user password admin"
    if application.data_dir is not None:
        change += f" --data-dir {application.data_dir}"
    Output().line(f"  user:     admin, password {password}  (shown only now; change it with: {change})")


def _tell_first_steps(application: Application, address: str) -> None:
    output = Output()
    now_us = application.system.clock.now_us()
    issued = application.system.auth.administration.issue_key(
        "first steps", ["ingest", "read"], LOCAL_ACTOR, expires_us=now_us + FIRST_KEY_SECONDS * MICROSECONDS
    )
    output.line("  send a reading and read it back (this key ends in 24 hours):")
    output.line(
        f"    curl -X POST {address}/api/v1/temperature_reading -H 'X-API-Key: {issued.secret}'"
        """ -H 'Content-Type: application/json' -d '{"temperature": 21.5, "sensor_id": "kitchen"}'"""
    )
    output.line(f"    curl {address}/api/v1/sensor/kitchen/latest -H 'X-API-Key: {issued.secret}'")
