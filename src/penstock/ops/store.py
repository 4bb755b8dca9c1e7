"""``penstock store``: the agent of a store in the foreground. Told from the command line; the life is the agent's."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.markup import escape

from penstock.errors import BadArgument
from penstock.ops.announcing import announcing
from penstock.ops.report import ExitCode, Report
from penstock.payload.stores.opening import url_of
from penstock.plane.remote_dialing import parse_url
from penstock.plane.stores import address_of
from penstock.wire.auth import read_token

__all__ = ["StoreOrders", "serve_store"]


@dataclass(frozen=True)
class StoreOrders:
    """What the command line says."""

    store: str | None
    data_dir: Path | None
    plane: str | None
    token_file: Path | None
    tls_ca: Path | None
    name: str


def serve_store(report: Report, orders: StoreOrders) -> None:
    """Run the agent of a store until SIGTERM or Ctrl-C; say so once its plane has taken the store in.

    Raises:
        BadArgument: no store, no plane, or no token.
        typer.Exit: it did not end well; the code is the agent's own, ``UNAVAILABLE`` when it never began.
    """
    if orders.store is None:
        raise BadArgument("which store? Pass --store URL, e.g. mooncake://HOST:PORT; --store mooncake: this machine's")
    orders = replace(orders, store=url_of(orders.store))
    if orders.plane is None and orders.data_dir is None:
        raise BadArgument("of which plane? Pass --data-dir DIR, or --plane penstock://HOST:PORT")
    if orders.plane is not None:
        parse_url(orders.plane)
        if orders.token_file is None:
            raise BadArgument("pass --token-file: a copy of the plane's, chmod 600")
        read_token(orders.token_file)  # the agent reads it too; what is the caller's mistake ends as one
    from penstock.host.store.lifecycle import StoreOptions, serve

    with announcing(lambda word: _announce(report, orders, word)) as ready_fd:
        code = serve(
            StoreOptions(
                store=str(orders.store),
                plane=orders.plane,
                data_dir=None if orders.data_dir is None or orders.plane else orders.data_dir.absolute(),
                token_file=orders.token_file,
                tls_ca=orders.tls_ca,
                name=orders.name,
                ready_fd=ready_fd,
            )
        )
    if code:
        raise typer.Exit(ExitCode.UNAVAILABLE if code == 1 else code)


def _announce(report: Report, orders: StoreOrders, word: str) -> None:
    ready, _, rest = word.partition(" ")
    if ready == "ready":
        host_id, _, name = rest.partition(" ")
        plane = orders.plane or str(orders.data_dir)
        kind = str(orders.store).partition("://")[0]
        where = {"host_id": int(host_id), "name": name, "store": orders.store, "pid": os.getpid(), "plane": plane}
        lines = f"store {address_of(str(orders.store))} of {plane} (process {os.getpid()})\n"
        lines += f'clients: penstock.connect(..., store="{kind}"); Ctrl-C ends it, and no row with it'
        report.answer(where, escape(lines))
    elif word and report.as_json:  # for people the agent has said it itself
        report.failed("DataPlaneUnavailable", word.removeprefix("error: "))
