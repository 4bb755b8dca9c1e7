"""Agents of hosts for the ledger under test: their sessions, their reports, and puts through them in one line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.ledger.events import SessionGone
from penstock.requests import (
    BlockPlace,
    Commit,
    Done,
    Enlist,
    Enlisted,
    FieldSpec,
    Grant,
    Granted,
    HostPlace,
    HostReport,
    HostStatus,
    Locate,
    Orders,
    ReplyBody,
    Status,
    StatusReport,
    TagColumn,
)
from tests.ledger.office import Office

ROW_BYTES = 100
BLOCK_BYTES = 164


def host_place(host: int, life: int = 1) -> HostPlace:
    return HostPlace(host, life, f"m{host}", f"10.0.0.{host}", [7000 + host, 7100 + host], [], 7200 + host)


class Agents:
    """The agents of an office's hosts: host h's session is 1000 h and counts up with each that it opens."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.sessions: dict[int, int] = {}

    def up(self, host: int, life: int = 1) -> Enlisted:
        """Open a session for the host's agent, and enlist."""
        session = self.sessions[host] = self.sessions.get(host, 1000 * host) + 1
        self.office.open(session)
        return self.enlist(host, life)

    def enlist(self, host: int, life: int = 1) -> Enlisted:
        reply = self.office.ask(self.sessions[host], Enlist(host_place(host, life)))
        assert isinstance(reply, Enlisted), reply
        return reply

    def down(self, host: int, why: str = "silent for 10.0 s") -> None:
        """The agent's session ends."""
        self.office.event(SessionGone(self.sessions[host], why))

    def post(self, host: int, after: int = 0, timeout_s: float = 5.0, **said: Any) -> int:
        """Send a report; return its call."""
        return self.office.post(self.sessions[host], HostReport(after, **said), timeout_s=timeout_s)

    def orders(self, call: int) -> Orders | None:
        reply = self.office.reply(call)
        assert reply is None or isinstance(reply, Orders), reply
        return reply

    def told(self, host: int, after: int = 0, **said: Any) -> Orders:
        """Report; return the orders, which must be there at once."""
        orders = self.orders(self.post(host, after, **said))
        assert orders is not None, "the report waits"
        return orders

    def status(self, host: int) -> HostStatus:
        session = next(reversed(self.office.ledger.desk.state.sessions))
        report = self.office.ask(session, Status())
        assert isinstance(report, StatusReport)
        return next(status for status in report.hosts if status.place.host_id == host)


def host_grant(keys: Sequence[str], host: int = 1, replicas: int = 1, at_least: int = 1, **more: Any) -> Grant:
    tags: Sequence[TagColumn] = more.pop("tags", ())
    return Grant(
        more.pop("partition", "p"),
        list(keys),
        [FieldSpec("x", "int64", 1)],
        list(tags),
        ROW_BYTES * len(keys) + BLOCK_BYTES - ROW_BYTES,
        [ROW_BYTES] * len(keys),
        None,
        host,
        replicas,
        at_least,
    )


def granted(office: Office, session: int, keys: Sequence[str], **how: Any) -> Granted:
    """Be granted a put on hosts."""
    reply = office.ask(session, host_grant(keys, **how))
    assert isinstance(reply, Granted), reply
    return reply


def places_of(grant: Granted, arena_id: int = 1) -> list[BlockPlace]:
    """Where the agents of the granted hosts have sealed it."""
    hosts = [grant.place.host] + ([grant.replica.host_id] if grant.replica is not None else [])
    return [BlockPlace(grant.grant, arena_id, 4096 * host, grant.place.nbytes, 3, host=host) for host in hosts]


def commit(office: Office, session: int, grant: Granted, content: int = 7, **how: Any) -> ReplyBody:
    places = how.pop("places", None)
    return office.ask(session, Commit(grant.grant, content, places_of(grant) if places is None else places), **how)


def put(office: Office, session: int, keys: Sequence[str], **how: Any) -> int:
    """Put on hosts; return the block."""
    grant = granted(office, session, keys, **how)
    assert commit(office, session, grant, content=grant.grant) == Done()
    return grant.grant


def located(office: Office, session: int, keys: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """The hosts that a read is sent to: of the blocks, of their second places, and of the agents, each in order."""
    assert office.reply(office.post(session, Locate("p", list(keys), ["x"]))) is None
    resolved = office.resolved[-1]
    return (
        [place.host for place in resolved.blocks],
        [place.host for place in resolved.others],
        [place.host_id for place in resolved.hosts],
    )
