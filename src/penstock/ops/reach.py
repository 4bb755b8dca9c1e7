"""What ``penstock doctor --plane`` looks at: whether a plane takes us, and which of its hosts can be read from here.

Invariant: it looks as a client would, with the same token and the same wire, and puts, reads and starts nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator

from penstock.config import ClientConfig
from penstock.endpoint.connection import Address
from penstock.errors import BadArgument, DataPlaneError, MissingExtra, TransportError
from penstock.ops.connecting import Where, far_client
from penstock.ops.finding import Finding
from penstock.parts import HostPlace
from penstock.plane.remote_host import HostDialer
from penstock.plane.stores import address_of, open_by_url
from penstock.reports import HostStatus, StatusReport
from penstock.retry import Deadline
from penstock.wire.auth import read_token
from penstock.wire.tls import client_context

__all__ = ["findings"]

_LOOK_S = 5.0  # at the plane
_KNOCK_S = 2.0  # at one port of a host


def findings(where: Where, url: str) -> Iterator[Finding]:
    """The plane, this machine's agent, and each host: known to the plane, and reachable from here."""
    try:
        with far_client(where, url, ClientConfig(timeout_s=_LOOK_S, owner="penstock", role="operator")) as client:
            report, host_dir = client.status(), client.host_dir
    except DataPlaneError as error:
        yield Finding("plane", "problem", error.message, "see there" if isinstance(error, BadArgument) else "")
        return
    yield Finding("plane", "ok", f"{url}: life {report.incarnation}, {len(report.sessions)} sessions")
    yield _agent(HostDialer(host_dir, url))
    yield from _hosts(where, report)


def _agent(dialer: HostDialer) -> Finding:
    try:
        dialer.dial().close()
    except DataPlaneError as none:
        return Finding("this host's agent", "note", none.message, "needed by whoever puts columns from here")
    return Finding("this host's agent", "ok", f"listens at {dialer.address}")


def _hosts(where: Where, report: StatusReport) -> Iterator[Finding]:
    if not report.hosts:
        yield Finding(
            "hosts", "warning", "no agent has ever enlisted", "run `penstock host --plane URL` on each machine"
        )
    assert where.token_file is not None, where
    token = read_token(where.token_file)
    tls = None if where.tls_ca is None else client_context(where.tls_ca)
    for host in report.hosts:
        yield _store(host) if host.place.store else _host(host, token, tls)


def _store(status: HostStatus) -> Finding:
    """What lies in a store is read from here without its agent, if the store can be reached from here."""
    name = f"store {address_of(status.place.store)}"
    try:
        with open_by_url(status.place.store) as store:
            store.life(Deadline(_KNOCK_S))
    except DataPlaneError as failed:
        remedy = "install what it says" if isinstance(failed, MissingExtra) else "can this machine reach it?"
        return Finding(name, "warning", f"not to be read from here: {failed}", remedy)
    if status.state != "up":
        found = f"answers; its agent is {status.state}, for {status.silent_s:.0f} s; {status.blocks} blocks"
        return Finding(name, "warning", found, "see that its agent (penstock store) runs and reaches the plane")
    return Finding(name, "ok", f"up; {status.blocks} blocks; the store answers")


def _host(host: HostStatus, token: bytes, tls: ssl.SSLContext | None) -> Finding:
    name = f"host {host.place.name or host.place.address}"
    if host.state != "up":
        found = f"{host.state}, for {host.silent_s:.0f} s; {host.blocks} blocks"
        return Finding(name, "warning", found, "see that its agent (penstock host) runs and reaches the plane")
    closed = asyncio.run(_closed_ports(host.place, token, tls))
    if closed:
        remedy = f"can this machine connect to {host.place.address}? If not, start that agent with another --address"
        return Finding(name, "warning", f"up, but not to be read from here: {'; '.join(closed)}", remedy)
    return Finding(name, "ok", f"up; {host.blocks} blocks; its ports {host.place.ports} answer")


async def _closed_ports(place: HostPlace, token: bytes, tls: ssl.SSLContext | None) -> list[str]:
    from penstock.plane.remote import PAYLOAD
    from penstock.transport.wires.tcp import TcpWire

    wire = TcpWire(token, PAYLOAD, tls_client=tls)
    closed = []
    for port in place.ports:
        try:
            connection = await wire.connect(Address(place.address, port), Deadline(_KNOCK_S))
        except TransportError as failed:
            closed.append(failed.message)
        else:
            await connection.close()
    return closed
