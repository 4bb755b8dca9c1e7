"""What a plane on Ray is to be, and where a process of the cluster reaches it: plain records, which Ray carries.

Invariants: no secret is in a record that Ray keeps (arguments of actors lie in its head node's memory, and are logged);
everything on a node lies below one folder, which its address names, so that a node that comes back finds its own.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import socket
from pathlib import Path
from typing import Any

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.wire.address import Address

__all__ = ["Access", "HostOrders", "PlaneOrders", "actor_name", "free_port", "options_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_PORTS = range(20_000, 32_768)  # above Ray's workers (10002 to 19999), below what Linux gives to outgoing connections


class HostOrders(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the agents are to be, all alike; see ``penstock host --help``.

    Attributes:
        max_bytes: of each agent's arena.
        listeners, ucx_listeners: payload listeners of each.
        tls_ca, tls_cert, tls_key: PEM files, at these paths on every node, each with its own certificate.
        options: other options of ``PlaneConfig`` for an agent.
    """

    max_bytes: int = PlaneConfig().max_bytes
    listeners: int = 2
    ucx_listeners: int = 0
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    options: dict[str, Any] = {}


class PlaneOrders(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is launched.

    Attributes:
        name: of this plane among those of the cluster.
        namespace: Ray's, in which its actors are named.
        node: the address of the node on which the plane lives, and its journal.
        data_dir: on every node, on a disk that survives: the plane's journal lies below it, and what agents leave.
        port: of the plane; 0 = a free one, chosen once and kept.
        tls_cert, tls_key: PEM files on the plane's node.
        linger_s: how long a process goes on whose actor is gone.
        plane: options of ``PlaneConfig`` that are not the defaults.
        hosts: the agents.
    """

    name: str
    namespace: str
    node: str
    data_dir: str
    port: int = 0
    tls_cert: str | None = None
    tls_key: str | None = None
    linger_s: float = 30.0
    plane: dict[str, Any] = {}
    hosts: HostOrders = HostOrders()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadArgument(f"name must be letters, digits, '.', '_' or '-', at most 64 of them; got {self.name!r}")
        if not Path(self.data_dir).is_absolute():
            raise BadArgument(f"data_dir must be absolute: it is one path on every node; got {self.data_dir!r}")
        if not 0 <= self.port < 1 << 16:
            raise BadArgument(f"port must lie in 0 to 65535, got {self.port!r}")
        if (self.tls_cert is None) != (self.hosts.tls_ca is None):
            raise BadArgument("TLS is for the plane and the hosts, or for neither: tls_cert, hosts.tls_ca")

    @property
    def plane_dir(self) -> Path:
        """The plane's directory, on its node."""
        return Path(self.data_dir) / "plane"

    def host_dir(self, node: str) -> Path:
        """The directory of the agent of ``node``, on that node."""
        return Path(self.data_dir) / "hosts" / node.replace(":", "-")

    def serve(self, port: int) -> list[str]:
        """Return the arguments of ``penstock`` that serve the plane at ``port``."""
        words = ["serve", "--data-dir", str(self.plane_dir), "--listen", str(Address(self.node, port))]
        words += options_of(self.plane)
        return words + _given(("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key))

    def host(self, node: str, url: str, token_file: Path) -> list[str]:
        """Return the arguments of ``penstock`` that serve ``node``'s host."""
        hosts, folder = self.hosts, str(self.host_dir(node))
        words = ["host", "--plane", url, "--token-file", str(token_file), "--dir", folder]
        words += ["--address", node, "--name", node, "--listeners", str(hosts.listeners)]
        words += ["--ucx-listeners", str(hosts.ucx_listeners), "--max-bytes", str(hosts.max_bytes)]
        words += options_of(hosts.options)
        tls = ("--tls-ca", hosts.tls_ca), ("--tls-cert", hosts.tls_cert), ("--tls-key", hosts.tls_key)
        return words + _given(*tls)


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How a process on one node reaches the plane: the arguments of ``penstock.connect``.

    Attributes:
        url: ``penstock://HOST:PORT``; the same for as long as its data directory.
        token_file, host_dir: on this node.
        tls_ca: who signs the certificates; None = nothing is encrypted.
    """

    url: str
    token_file: str
    host_dir: str
    tls_ca: str | None = None


def actor_name(name: str, node: str | None = None) -> str:
    """Return the name of a plane's actor, or that of its agent on ``node``."""
    return f"penstock/{name}/plane" if node is None else f"penstock/{name}/host/{node}"


def options_of(options: dict[str, Any]) -> list[str]:
    """Return options of ``PlaneConfig`` as ``penstock`` takes them."""
    own = ("--durability", str(options["durability"])) if "durability" in options else ()
    others = [f"{name}={_text(value)}" for name, value in options.items() if name != "durability"]
    return [*own, *(word for other in others for word in ("--set", other))]


def free_port(host: str, rng: random.Random) -> int:
    """Return a port of ``host`` at which nobody listens, and which no outgoing connection is given.

    Raises:
        DataPlaneUnavailable: there is none, or ``host`` is not this machine.
    """
    family = socket.AF_INET6 if _is_six(host) else socket.AF_INET
    for port in rng.sample(_PORTS, 64):
        with socket.socket(family) as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                asked.bind((host, port))
            except OSError as taken:
                last = taken
            else:
                return port
    raise DataPlaneUnavailable(f"no port of {host} can be had: {os.strerror(last.errno or 0)}")


def _is_six(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _given(*options: tuple[str, str | None]) -> list[str]:
    return [word for name, value in options if value is not None for word in (name, value)]
