"""Which ports of a host a read may use, in which order: the preferred wire's first.

Invariant: each read begins at the next port, so that a host's listeners have equal parts; ports of the other wires
follow, for when no preferred one is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from penstock.endpoint.connection import Address
from penstock.parts import HostPlace
from penstock.transport.pool import Port

__all__ = ["Ports"]


class Ports:
    """For the wires that are there, ``prefer`` first."""

    def __init__(self, wires: Collection[str], prefer: str) -> None:
        self._wires = sorted(wires, key=lambda wire: wire != prefer)
        self._turns: Counter[int] = Counter()  # host id -> reads so far; as many entries as there are hosts

    def of(self, host: HostPlace) -> list[Port]:
        """Return the ports of ``host`` for one call, best first; empty if it offers none of the wires."""
        turn = self._turns[host.host_id]
        self._turns[host.host_id] += 1
        found = []
        for wire in self._wires:
            numbers = host.ucx_ports if wire == "ucx" else host.ports
            first = turn % len(numbers) if numbers else 0
            turned = numbers[first:] + numbers[:first]
            found += [Port(wire, Address(host.address, number), host.life) for number in turned]
        return found
