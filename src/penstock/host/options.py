"""How an agent is started, and what it must know for that: read before anything is begun.

Invariants: hosts are both ends of connections, so that TLS is for both or for neither; a secret is read from a file
that only its owner can read, and is kept nowhere else.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import BadArgument
from penstock.transport.wires.tcp import TcpWire
from penstock.transport.wires.ucx import UcxWire
from penstock.wire.auth import read_token
from penstock.wire.tls import client_context, server_context

__all__ = ["PAYLOAD", "HostOptions", "Secrets"]

PAYLOAD = "payload"  # what the payload listeners' proofs are good for


class HostOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is started.

    Attributes:
        plane: ``penstock://HOST:PORT``.
        token_file: what the plane, its hosts and its clients know.
        data_dir: the agent's own; None = one for this plane under ``/tmp``.
        address: under which other hosts reach this one; None = the one from which the plane is reached.
        bind: the address that its listeners bind; None = ``address``.
        name: of this machine, for people; "" = its host name.
        listeners: payload listeners, each with a thread and a port of its own.
        ucx_listeners: the same over UCX, for fabrics; 0 = none.
        tls_ca: who signs the certificates of plane and hosts; None = nothing is encrypted.
        tls_cert, tls_key: what this host shows to others; with ``tls_ca``, and only with it.
        ready_fd: where to say "ready" or "error: ...".
        config: limits; those of rows are the plane's.
    """

    plane: str
    token_file: Path
    data_dir: Path | None = None
    address: str | None = None
    bind: str | None = None
    name: str = ""
    listeners: int = 2
    ucx_listeners: int = 0
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ready_fd: int | None = None
    config: PlaneConfig = PlaneConfig()


@dataclass(frozen=True)
class Secrets:
    """Read before anything is begun."""

    token: bytes
    client: ssl.SSLContext | None
    server: ssl.SSLContext | None

    @classmethod
    def of(cls, options: HostOptions) -> Secrets:
        """Raises ``BadArgument`` for what cannot be used."""
        if (options.tls_ca is None) != (options.tls_cert is None):
            raise BadArgument(
                "hosts are both ends of connections: with TLS an agent needs --tls-ca, --tls-cert and --tls-key"
            )
        server = None if options.tls_cert is None else server_context(options.tls_cert, options.tls_key)
        client = None if options.tls_ca is None else client_context(options.tls_ca)
        return cls(read_token(options.token_file), client, server)

    def wire(self, purpose: str) -> TcpWire:
        return TcpWire(self.token, purpose, tls_server=self.server, tls_client=self.client)

    def ucx_wire(self) -> UcxWire:
        """Raises ``MissingExtra``."""
        return UcxWire(self.token, PAYLOAD, tls_server=self.server, tls_client=self.client)
