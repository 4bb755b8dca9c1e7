"""What ``transfer_queue.init`` calls once per system, in the process that makes it: start what the backend needs.

Invariants: whatever was started here ends with the system (``transfer_queue.close``) or with this process, and nothing
else is ended or touched; the section that every process gets names one namespace, and carries ``plugin``, which makes
each of them import this package.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import DictConfig, OmegaConf

from penstock.compat.transfer_queue_storage.guarded import Guarded
from penstock.compat.transfer_queue_storage.options import MooncakeOptions, PlaneOptions, options_from
from penstock.errors import BadArgument, MissingExtra

__all__ = ["MOONCAKE", "PLANE", "Plugin", "start_mooncake", "start_plane"]

MOONCAKE = "PenstockMooncake"
PLANE = "PenstockPlane"
_READY_S = 30.0
_ASK_S = 1.0
_MASTER_FLAGS = (  # values are dropped by nobody but us, and a dead client's memory is given up after 10 s
    "--eviction_high_watermark_ratio=1.0",
    "--eviction_ratio=0",
    "--client_ttl=10",
    "--enable_http_metadata_server=true",
)


class Plugin(Enum):
    """The value of ``plugin`` in a section. To unpickle it is to import this package, which registers the backends."""

    MOONCAKE = MOONCAKE
    PLANE = PLANE


class System:
    """What belongs to one TransferQueue system; TransferQueue keeps it until its ``close``."""

    def __init__(self, process: Guarded | None) -> None:
        self._process = process

    def __repr__(self) -> str:
        return f"<System {self._process!r}>"

    def close(self) -> None:
        """End what was started for it. Idempotent; losing the last reference does the same."""
        if self._process is not None:
            self._process.close()


def start_mooncake(conf: DictConfig) -> System:
    """Prepare the section ``PenstockMooncake``; with ``auto_init`` start a master at the addresses that it names.

    A configuration without that section takes over the one of TransferQueue's own ``MooncakeStore``.

    Raises:
        BadArgument: an unknown or impossible option, or something listens at the master's address already.
        MissingExtra: no ``mooncake_master`` is installed.
        DataPlaneUnavailable: it did not start; the message has the end of its log.
    """
    section = _section(conf, MOONCAKE, conf.backend.get("MooncakeStore"))
    options = options_from(MooncakeOptions, section)
    process = None
    if options.auto_init:
        metrics = options.metrics_address or f"127.0.0.1:{_free_port()}"
        section.metrics_address = metrics
        process = _start_master(options, metrics)
    _complete(section, Plugin.MOONCAKE, options.namespace)
    return System(process)


def start_plane(conf: DictConfig) -> System:
    """Prepare the section ``PenstockPlane``; unless it names a plane, start one that ends with the system.

    Raises:
        BadArgument: an unknown or impossible option.
        DataPlaneUnavailable: the plane did not start; the message has the end of its log.
    """
    section = _section(conf, PLANE, None)
    options = options_from(PlaneOptions, section)
    process = None
    if not (options.url or options.data_dir):
        folder = Path(tempfile.mkdtemp(prefix="penstock-tq-"))
        process = _start_plane(folder, options.plane)
        section.data_dir, section.join, section.plane = str(folder / "plane"), True, {}
    _complete(section, Plugin.PLANE, options.namespace)
    return System(process)


def _section(conf: DictConfig, name: str, otherwise: Mapping[str, Any] | None) -> DictConfig:
    if conf.backend.get(name) is None:
        conf.backend[name] = OmegaConf.create(dict(otherwise or {}))
    return conf.backend[name]


def _complete(section: DictConfig, plugin: Plugin, namespace: str) -> None:
    section.plugin = plugin
    section.namespace = namespace or f"tq-{uuid.uuid4().hex[:12]}"


# -- a master ---------------------------------------------------------------------------------------------------------


def _start_master(options: MooncakeOptions, metrics: str) -> Guarded:
    rpc, metadata, metrics_at = (
        _address(text) for text in (options.master_server_address, options.metadata_server, metrics)
    )
    for host, port in (rpc, metadata, metrics_at):
        if _listens(host, port):
            raise BadArgument(f"something listens at {host}:{port} already; auto_init=False uses a master that runs")
    flags = [f"--rpc_address={rpc[0]}", f"--rpc_port={rpc[1]}", *_MASTER_FLAGS]
    flags += [f"--http_metadata_server_host={metadata[0]}", f"--http_metadata_server_port={metadata[1]}"]
    flags += [f"--metrics_host={metrics_at[0]}", f"--metrics_port={metrics_at[1]}"]
    folder = Path(tempfile.mkdtemp(prefix="penstock-tq-"))
    ready = _all_of(lambda: _is_healthy(*metrics_at), lambda: _listens(*rpc), lambda: _listens(*metadata))
    return Guarded([str(_binary()), *flags], folder, ready, what="mooncake_master", timeout_s=_READY_S)


def _binary() -> Path:
    try:
        import mooncake
    except ImportError as missing:
        raise MissingExtra(f"Mooncake is not installed ({missing}): pip install 'penstock[mooncake]'") from missing
    found = [Path(folder) / "mooncake_master" for folder in mooncake.__path__]
    if not found[0].exists():
        raise MissingExtra(f"there is no {found[0]}: pip install 'penstock[mooncake]'")
    return found[0]


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition("//")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdigit():
        raise BadArgument(f"auto_init needs an address as host:port, got {text!r}")
    return host.strip("[]"), int(port)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _ASK_S).close()
    except OSError:
        return False
    return True


def _is_healthy(host: str, port: int) -> bool:
    asked = http.client.HTTPConnection(host, port, timeout=_ASK_S)
    try:
        asked.request("GET", "/health")
        return asked.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


def _all_of(*conditions: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: all(condition() for condition in conditions)


# -- a plane ----------------------------------------------------------------------------------------------------------


def _start_plane(folder: Path, plane: Mapping[str, Any]) -> Guarded:
    from penstock.ops.connecting import is_listening

    data_dir = folder / "plane"
    options = {"durability": "memory"} | dict(plane)  # it ends with the system, for good
    assignments = [f"--set={name}={msgspec.json.encode(value).decode()}" for name, value in options.items()]
    argv = [sys.executable, "-m", "penstock", "serve", "--data-dir", str(data_dir), *assignments]
    with contextlib.suppress(FileNotFoundError):
        return Guarded(argv, folder, lambda: is_listening(data_dir), what="the plane", timeout_s=_READY_S)
    raise BadArgument(f"there is no Python at {sys.executable!r} to run a plane with")
