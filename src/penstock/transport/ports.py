"""Which ports of a host a read may use, in which order: the preferred wire's first.

Invariant: each read begins at the next port, so that a host's listeners have equal parts; ports of the other wires
follow, for when no preferred one is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TypeAlias

from penstock.endpoint.connection import Address
from penstock.parts import HostPlace
from penstock.transport.pool import Port

__all__ = ["Ports"]

_Named: TypeAlias = tuple[str, Port]


class Ports:
    """For the wires that are there, ``prefer`` first."""

    def __init__(self, wires: Collection[str], prefer: str) -> None:
        self._wires = sorted(wires, key=lambda wire: wire != prefer)
        self._turns: Counter[int] = Counter()  # host id -> reads so far; as many entries as there are hosts
        self._known: dict[int, tuple[HostPlace, list[list[_Named]]]] = {}  # by host id, of its last life that was seen

    def of(self, host: HostPlace) -> dict[str, Port]:
        """Return the ports of ``host`` for one call, by name, best first; empty if it offers none of the wires."""
        turn = self._turns[host.host_id]
        self._turns[host.host_id] += 1
        return dict(named for ports in self._of_each_wire(host) for named in _turned(ports, turn))

    def _of_each_wire(self, host: HostPlace) -> list[list[_Named]]:
        known, ports = self._known.get(host.host_id, (None, []))
        if known != host:
            ports = [[(str(port), port) for port in _ports(wire, host)] for wire in self._wires]
            self._known[host.host_id] = host, ports
        return ports


def _ports(wire: str, host: HostPlace) -> list[Port]:
    numbers = host.ucx_ports if wire == "ucx" else host.ports
    return [Port(wire, Address(host.address, number), host.life) for number in numbers]


def _turned(ports: list[_Named], turn: int) -> list[_Named]:
    first = turn % len(ports) if ports else 0
    return ports[first:] + ports[:first]
