"""A payload server in a process of its own, which deals itself a signal in the middle of a batch if it is told to.

    python -m tests.transport.payload_process WIRE PORT BLOCKS SIGNAL AFTER

Prints its port; serves the blocks 0..BLOCKS-1 of ``hosts.a_block``; at its AFTER-th read it sends itself SIGNAL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from penstock.endpoint.connection import Wire
from penstock.errors import StaleSlotError
from penstock.parts import HostPlace
from penstock.payload.arena import Reading
from penstock.payload.slots import Mode
from penstock.transport.server import PayloadServer
from penstock.transport.wires.ucx import UcxWire
from tests.transport.hosts import FIRST_GENERATION, a_block
from tests.transport.station import PURPOSE, TOKEN, a_wire

ROOT = Path(__file__).parents[2]
WIRES: dict[str, Callable[[], Wire]] = {"tcp": a_wire, "ucx": lambda: UcxWire(TOKEN, PURPOSE)}


class Shelf:
    """Blocks, and the read at which the process deals itself a signal."""

    def __init__(self, blocks: int, number: int = 0, after: int = 0) -> None:
        self._blocks = {block_id: a_block(block_id).data for block_id in range(blocks)}
        self._number, self._after = number, after
        self._lock = threading.Lock()

    async def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        with self._lock:
            self._after -= 1
            if self._after == 0:
                os.kill(os.getpid(), self._number)
        if block_id not in self._blocks or generation != FIRST_GENERATION:
            raise StaleSlotError(f"there is no block {block_id} here")
        return Reading(block_id, generation, 1, self._blocks[block_id])

    def end_read(self, reading: Reading, *, consumed: bool) -> None:
        pass


class Process:
    """One server process. ``fired``: the signal has struck."""

    def __init__(self, blocks: int, wire: str = "tcp", *, port: int = 0, number: int = 0, after: int = 0) -> None:
        arguments = [str(n) for n in (port, blocks, number, after)]
        self.wire = wire
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.transport.payload_process", wire, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    @property
    def fired(self) -> bool:
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] in "TZ"

    def kill(self) -> None:
        """And wait until it is gone."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def processes(blocks: int, *plans: tuple[int, int], wire: str = "tcp") -> Iterator[list[Process]]:
    """A process for each of ``plans``: (signal, after); (0, 0) for one that just serves."""
    with ExitStack() as stack:
        started = []
        for number, after in plans:
            started.append(Process(blocks, wire, number=number, after=after))
            stack.callback(started[-1].kill)
        yield started


def host_of(*processes: Process, life: int = 1) -> HostPlace:
    """One host, whose listeners are ``processes``."""
    ports = {wire: [process.port for process in processes if process.wire == wire] for wire in WIRES}
    return HostPlace(1, life, "h1", "127.0.0.1", ports["tcp"], ports["ucx"])


def main(wire: str, port: int, blocks: int, number: int, after: int) -> None:
    server = PayloadServer(Shelf(blocks, number, after), WIRES[wire], listeners=1, ports=[port] if port else [])
    with server, contextlib.suppress(KeyboardInterrupt):
        print(server.statistics().ports[0], flush=True)
        sys.stdin.read()  # until whoever started this is gone


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    main(sys.argv[1], *map(int, sys.argv[2:]))
