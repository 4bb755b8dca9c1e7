"""How much is being received at once from one host: so many reads and so many bytes, whoever asks.

Invariants: first come, first served, so that a large block is not overtaken for ever; one that is larger than the limit
goes alone; what was let in is counted out exactly once, however its read ended; each host has a gate of its own, so
that one that says nothing keeps nobody from the others.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Gate", "Gates"]

_MANY = 64  # gates; of more than that those where nobody is are let go of


class Gates:
    """One gate for each host. For the tasks of one event loop."""

    def __init__(self, max_reads: int, max_bytes: int) -> None:
        self._limits = max_reads, max_bytes
        self._gates: dict[int, Gate] = {}

    @property
    def reads(self) -> int:
        """Reads that are in, anywhere. From any thread."""
        return sum(gate.reads for gate in list(self._gates.values()))

    @property
    def bytes(self) -> int:
        """Their bytes. From any thread."""
        return sum(gate.bytes for gate in list(self._gates.values()))

    def of(self, host_id: int) -> Gate:
        """Return the host's gate; to be entered at once."""
        gate = self._gates.get(host_id)
        if gate is None:
            if len(self._gates) >= _MANY:
                self._gates = {host: gate for host, gate in self._gates.items() if not gate.idle}
            gate = self._gates[host_id] = Gate(*self._limits)
        return gate

    def __repr__(self) -> str:
        return f"Gates({self.reads} reads, {self.bytes} bytes, {len(self._gates)} hosts)"


class Gate:
    """For the tasks of one event loop."""

    def __init__(self, max_reads: int, max_bytes: int) -> None:
        self._max_reads, self._max_bytes = max_reads, max_bytes
        self._reads = self._bytes = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def reads(self) -> int:
        """Reads that are in."""
        return self._reads

    @property
    def bytes(self) -> int:
        """Their bytes."""
        return self._bytes

    @property
    def idle(self) -> bool:
        """Whether nobody is in, or waits."""
        return self._reads == 0 and not self._waiting

    def passing(self, nbytes: int) -> _Passing:
        """As a context: waits until ``nbytes`` more may be received; they are in for as long as it lasts."""
        return _Passing(self, nbytes)

    async def enter(self, nbytes: int) -> None:
        """Be let in; who is calls ``leave`` once."""
        if self._waiting or not self._fits(nbytes):
            await self._turn(nbytes)
        else:
            self._let_in(nbytes)

    def leave(self, nbytes: int) -> None:
        """Be counted out; the next come in."""
        self._reads -= 1
        self._bytes -= nbytes
        self._next()

    async def _turn(self, nbytes: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, nbytes))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((turn, nbytes))
                self._next()  # it may have been the first, and too large
            else:
                self.leave(nbytes)  # let in and called off at the same moment
            raise

    def _fits(self, nbytes: int) -> bool:
        return self._reads == 0 or (self._reads < self._max_reads and self._bytes + nbytes <= self._max_bytes)

    def _let_in(self, nbytes: int) -> None:
        self._reads += 1
        self._bytes += nbytes

    def _next(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            turn, nbytes = self._waiting[0]
            if turn.cancelled():
                return  # its task takes it out when it runs, and calls again
            self._waiting.popleft()
            self._let_in(nbytes)
            turn.set_result(None)

    def __repr__(self) -> str:
        return f"Gate({self._reads} reads, {self._bytes} bytes, {len(self._waiting)} waiting)"


class _Passing:
    """One read at the gate."""

    __slots__ = ("_gate", "_nbytes")

    def __init__(self, gate: Gate, nbytes: int) -> None:
        self._gate, self._nbytes = gate, nbytes

    async def __aenter__(self) -> None:
        await self._gate.enter(self._nbytes)

    async def __aexit__(self, *_: object) -> None:
        self._gate.leave(self._nbytes)
