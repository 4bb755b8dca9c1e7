"""The client of a plane of several hosts: metadata over TCP, payloads through its host's agent and from other hosts.

Invariants: what holds for every client of a plane (``client``), and: whoever needs no memory needs no agent; a client
that is closed, collected or forked away holds nothing of its host's memory.
"""

from __future__ import annotations

import os
import ssl
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from penstock import requests
from penstock.config import ClientConfig
from penstock.errors import RefusedType
from penstock.plane import checks
from penstock.plane.again import pause
from penstock.plane.client import CLOSE_S, PlaneClient, Putting, identity_of
from penstock.plane.link import Link
from penstock.plane.reads import Reads
from penstock.plane.remote_blocks import RemoteBlocks
from penstock.plane.remote_dialing import RemoteDialer
from penstock.plane.remote_host import OwnHost
from penstock.plane.remote_puts import PUT_AGAIN, RemotePuts
from penstock.plane.store_blocks import StoreBlocks
from penstock.plane.store_puts import STORE_AGAIN, StorePuts
from penstock.plane.stores import EXIT_S, Stores
from penstock.requests import Done
from penstock.retry import Deadline, Policy, Retrier
from penstock.transport.client import PayloadClient, TransportStatistics
from penstock.transport.config import TransportConfig
from penstock.transport.wires.tcp import TcpWire
from penstock.wire import paths

if TYPE_CHECKING:
    from penstock.transport.wires.ucx import UcxWire

__all__ = ["RemoteDataPlaneClient"]

PAYLOAD = "payload"  # what the payload listeners of hosts take connections for

# Hosts come back: what may still be had is waited for until the caller's deadline.
READ_AGAIN = Policy(
    max_attempts=100_000, base_s=0.05, cap_s=1.0, corrupt_attempts=2, bucket_tokens=0.0, quarantine_s=0.0
)


class RemoteDataPlaneClient(PlaneClient):
    """A session on the plane at ``url``.

    Args:
        url: ``penstock://HOST:PORT``, where ``penstock serve --listen`` listens.
        token: the plane's, see ``wire.auth.read_token``.
        host_dir: of this machine's agent; None = where ``penstock host`` puts it for this URL.
        tls: how to judge the certificates of plane and hosts; None = they serve in the clear.
        config: this client's behaviour.
        transport: limits of fetching from other hosts.
        wait: False = a plane that is not there now is not waited for: for looking, not for working.

    Raises:
        BadArgument: the URL is not one.
        MissingExtra: ``config.prefer`` is "ucx", which is not installed.
        DataPlaneUnavailable: no plane answers within ``config.timeout_s``, or it does not take this client; says why.
    """

    def __init__(
        self,
        url: str,
        token: bytes,
        *,
        host_dir: str | os.PathLike[str] | None = None,
        tls: ssl.SSLContext | None = None,
        config: ClientConfig | None = None,
        transport: TransportConfig | None = None,
        wait: bool = True,
    ) -> None:
        config = config or ClientConfig()
        dialer = RemoteDialer(url, token, tls)
        self.url = dialer.address
        self.host_dir = paths.host_dir(self.url) if host_dir is None else Path(os.path.abspath(host_dir))
        identity = identity_of(config)
        self._host = OwnHost(self.host_dir, self.url, identity, config.integrity)
        transport = transport or TransportConfig(prefer=config.prefer)
        self._payloads = PayloadClient(_wires(token, tls, transport.prefer), transport, config.integrity)
        link = Link(identity, dialer)
        weakref.finalize(self, link.end).atexit = False  # links have their own farewell
        weakref.finalize(self, self._host.ask_to_end).atexit = False
        self._stores = Stores(link, config.store)
        weakref.finalize(self, self._stores.close, EXIT_S)
        puts: Putting = RemotePuts(link, self._host, Retrier(PUT_AGAIN, sleep=pause), config)
        if config.store:
            puts = StorePuts(link, self._stores, Retrier(STORE_AGAIN, sleep=pause), config)
        blocks = StoreBlocks(RemoteBlocks(link, self._host, self._payloads), self._stores, config.integrity)
        super().__init__(config, link, puts, Reads(link, blocks, Retrier(READ_AGAIN, sleep=pause)))
        try:
            link.ask(requests.Ping(), Done, self._deadline(None), once=not wait, method="connect")
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = self._link.statistics()
        return (
            f"RemoteDataPlaneClient({self.url!r}, {state.phase}, life {state.incarnation}, "
            f"{state.pending} calls under way, {self._host!r})"
        )

    def __reduce__(self) -> NoReturn:
        raise RefusedType(f"a client is one process's and cannot be pickled; make another with {self.url!r}")

    def ping(self, timeout_s: float | None = None) -> None:
        deadline = self._deadline(timeout_s)
        self._link.ask(requests.Ping(), Done, deadline, once=True)
        agent = self._host.begin()
        if agent is not None:
            agent.ask(requests.Ping(), Done, deadline, once=True)

    def _claiming(self) -> None:
        self._host.begin()  # the kernel tells the agent of the end of this process, and the agent the plane

    def transport_statistics(self) -> TransportStatistics:
        """Return the counts of fetching from other hosts; asks nobody."""
        return self._payloads.statistics()

    def close(self, *, timeout_s: float | None = None) -> None:
        deadline = Deadline(checks.seconds(timeout_s, "timeout_s", CLOSE_S))
        self._stores.close(deadline.remaining())
        self._payloads.close(deadline.remaining())
        self._host.close(deadline.remaining())
        self._link.close(deadline.remaining())


def _wires(token: bytes, tls: ssl.SSLContext | None, prefer: str) -> dict[str, Callable[[], TcpWire | UcxWire]]:
    """Return what carries blocks from other hosts; TCP is always there, for hosts that offer nothing else.

    Raises:
        MissingExtra: what is preferred is not installed.
    """
    wires: dict[str, Callable[[], TcpWire | UcxWire]] = {"tcp": lambda: TcpWire(token, PAYLOAD, tls_client=tls)}
    if prefer == "ucx":
        from penstock.transport.wires.ucx import UcxWire

        UcxWire(token, PAYLOAD).close()  # says at once if it is not installed
        wires["ucx"] = lambda: UcxWire(token, PAYLOAD, tls_client=tls)
    return wires
