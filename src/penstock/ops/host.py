"""``penstock host``: this machine's agent in the foreground. Told from the command line; the life is the agent's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.markup import escape

from penstock.errors import BadArgument
from penstock.ops.announcing import announcing
from penstock.ops.report import ExitCode, Report
from penstock.ops.serve import plane_config
from penstock.plane.remote_dialing import parse_url
from penstock.wire.auth import read_token
from penstock.wire.paths import socket_path

__all__ = ["HostOrders", "serve_host"]


@dataclass(frozen=True)
class HostOrders:
    """What the command line says."""

    plane: str | None
    token_file: Path | None
    data_dir: Path | None
    address: str | None
    bind: str | None
    name: str
    listeners: int
    ucx_listeners: int
    assignments: list[str]
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None


def serve_host(report: Report, orders: HostOrders) -> None:
    """Run the agent of this machine's host until SIGTERM or Ctrl-C; say so once its clients are served.

    Raises:
        BadArgument: no plane, no token, or options that are not an agent's.
        typer.Exit: it did not end well; the code is the agent's own, ``UNAVAILABLE`` when it never began.
    """
    if orders.plane is None:
        raise BadArgument("of which plane? Pass --plane penstock://HOST:PORT, as `penstock serve --listen` says it")
    if orders.token_file is None:
        raise BadArgument("pass --token-file: a copy of the plane's, chmod 600")
    parse_url(orders.plane)
    read_token(orders.token_file)  # the agent reads it too; what is the caller's mistake ends as one
    config = plane_config("memory", orders.assignments)
    from penstock.host.lifecycle import HostOptions, serve

    plane = orders.plane
    with announcing(lambda word: _announce(report, word, plane)) as ready_fd:
        options = HostOptions(
            plane=orders.plane,
            token_file=orders.token_file.absolute(),
            data_dir=None if orders.data_dir is None else orders.data_dir.absolute(),
            address=orders.address,
            bind=orders.bind,
            name=orders.name,
            listeners=orders.listeners,
            ucx_listeners=orders.ucx_listeners,
            tls_ca=orders.tls_ca,
            tls_cert=orders.tls_cert,
            tls_key=orders.tls_key,
            ready_fd=ready_fd,
            config=config,
        )
        code = serve(options)
    if code:
        raise typer.Exit(ExitCode.UNAVAILABLE if code == 1 else code)


def _announce(report: Report, word: str, plane: str) -> None:
    ready, _, rest = word.partition(" ")
    if ready == "ready":
        host_id, _, data_dir = rest.partition(" ")
        where = {
            "host_id": int(host_id),
            "data_dir": data_dir,
            "socket": str(socket_path(data_dir)),
            "pid": os.getpid(),
            "plane": plane,
        }
        lines = f"host {int(host_id):x} of {plane} in {data_dir} (process {os.getpid()})\n"
        lines += f'clients here: penstock.connect("{plane}", token_file=..., host_dir={data_dir!r}); Ctrl-C ends it'
        report.answer(where, escape(lines))
    elif word and report.as_json:  # for people the agent has said it itself
        report.failed("DataPlaneUnavailable", word.removeprefix("error: "))
