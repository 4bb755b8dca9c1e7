"""``penstock serve``: a plane in the foreground. Told from the command line; the life is the server's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.markup import escape

from penstock.config import PlaneConfig, config_from
from penstock.errors import BadArgument
from penstock.ops.announcing import announcing
from penstock.ops.connecting import is_listening
from penstock.ops.report import ExitCode, Report
from penstock.payload.stores.opening import url_of
from penstock.wire.address import Address
from penstock.wire.paths import socket_path

__all__ = ["Orders", "plane_config", "serve_plane"]


def plane_config(durability: str, assignments: list[str], store: str | None = None) -> PlaneConfig:
    """Build a plane's options from ``--durability``, ``--store`` and ``--set NAME=VALUE``.

    Raises:
        BadArgument: an assignment is malformed, its name unknown or its value of the wrong type; no such store.
    """
    options: dict[str, Any] = {"durability": durability}
    if store is not None:
        options["store"] = url_of(store)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadArgument(f"--set takes NAME=VALUE, got {assignment!r}")
        options[name] = _value(text)
    return config_from(PlaneConfig, options)


def _value(text: str) -> object:
    """Return a number, true, false or null as such, whole floats as integers (``4e9``), anything else as text."""
    try:
        value: object = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Orders:
    """What the command line says."""

    data_dir: Path | None
    durability: str
    assignments: list[str]
    repair: bool = False
    listen: str | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    store: str | None = None


def serve_plane(report: Report, orders: Orders) -> None:
    """Run the plane of a directory until SIGTERM or Ctrl-C; say where it listens once it does.

    Raises:
        BadArgument: no directory, options that are not the plane's, or secrets that cannot be used.
        typer.Exit: it did not end well; the code is the plane's own, ``UNAVAILABLE`` when it never began.
    """
    if orders.data_dir is None:
        raise BadArgument("where? Pass --data-dir DIR or set PENSTOCK_DATA_DIR; it is made if it does not exist")
    config = plane_config(orders.durability, orders.assignments, orders.store)
    from penstock.server.lifecycle import Options, serve

    data_dir = orders.data_dir.absolute()
    if is_listening(data_dir):
        report.progress(
            f"a plane runs at {data_dir}: if a client started it, it is asked to end; that may take a minute"
        )
    listen = None if orders.listen is None else Address.parse(orders.listen)
    token_file = None if listen is None else (orders.token_file or data_dir / "token").absolute()
    with announcing(lambda word: _announce(report, word, data_dir, config, token_file)) as ready_fd:
        options = Options(
            data_dir=data_dir,
            repair=orders.repair,
            ready_fd=ready_fd,
            config=config,
            listen=listen,
            token_file=orders.token_file,
            tls_cert=orders.tls_cert,
            tls_key=orders.tls_key,
        )
        code = serve(options)
    if code:
        raise typer.Exit(ExitCode.UNAVAILABLE if code == 1 else code)


def _announce(report: Report, word: str, data_dir: Path, config: PlaneConfig, token_file: Path | None) -> None:
    ready, _, address = word.partition(" ")
    if ready == "ready":
        where = {
            "data_dir": str(data_dir),
            "socket": str(socket_path(data_dir)),
            "pid": os.getpid(),
            "durability": config.durability,
        }
        lines = f"serving {data_dir} (durability {config.durability}, process {os.getpid()})\n"
        if address:
            where |= {"url": f"penstock://{address}", "token_file": str(token_file)}
            lines += f"on each machine: penstock host --plane penstock://{address} --token-file {token_file}\n"
            lines += f'clients there: penstock.connect("penstock://{address}", token_file=...)\n'
        lines += f'clients here: penstock.connect("local", data_dir={str(data_dir)!r}); Ctrl-C ends it'
        report.answer(where, escape(lines))
    elif word and report.as_json:  # for people the plane has said it itself
        report.failed("DataPlaneUnavailable", word.removeprefix("error: "))
