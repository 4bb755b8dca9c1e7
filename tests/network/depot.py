"""A process that serves blocks whose content anybody can compute, and the test's handle on it.

``python -m tests.network.depot`` makes an arena at a path, fills it, serves it, says where, and ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from penstock.parts import HostPlace
from penstock.payload import block
from penstock.payload.arena import Arena, Reading
from penstock.payload.block import Bytes, ColumnHeader
from penstock.payload.files import SHM
from penstock.payload.slots import Mode
from penstock.testing.network import Host
from penstock.transport.server import PayloadServer
from penstock.transport.slot_owner import LoopOwner
from penstock.transport.wanted import Wanted
from penstock.transport.wires.tcp import TcpWire

TOKEN = b"the token of a test's depots"
PURPOSE = "payload"
READER = 7


def content(block_id: int, nbytes: int) -> Bytes:
    """The bytes of a block of one row of ``nbytes``, header and all."""
    column = ColumnHeader("x", "dense", "uint8", 1, (nbytes,), nbytes, bytes(8))
    planned = block.plan(1, [column], [])
    out = np.zeros(planned.nbytes, np.uint8)
    out[planned.body : planned.body + nbytes] = np.random.default_rng(block_id).integers(0, 256, nbytes, np.uint8)
    block.seal(out, block_id, planned, [block.column_checksum(out, planned.body, nbytes)])
    return out


class _Store:
    """The arena as a ``ReadStore``."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        return self._arena.begin_read(block_id, generation, mode, READER)

    def end_read(self, reading: Reading, *, consumed: bool) -> bool:
        return self._arena.mark_consumed(reading) if consumed else self._arena.release_reading(reading)


def fill(arena: Arena, blocks: int, nbytes: int) -> list[int]:
    """Put blocks 1 to ``blocks`` into it; return their generations."""
    generations = []
    for block_id in range(1, blocks + 1):
        made = content(block_id, nbytes)
        place = arena.grant(block_id, len(made), READER)
        assert place is not None
        arena.writer(place)[:] = made
        assert arena.fill(block_id)
        generations.append(place.generation)
    return generations


async def serve(path: Path, blocks: int, nbytes: int, listeners: int, ports: Sequence[int]) -> None:
    with Arena.create(path, 1, (blocks + 1) * (nbytes + 8192), 1 << 20) as arena:
        generations = fill(arena, blocks, nbytes)
        owner = LoopOwner(_Store(arena), asyncio.get_running_loop())
        server = PayloadServer(owner, lambda: TcpWire(TOKEN, PURPOSE), host="0.0.0.0", listeners=listeners, ports=ports)
        bound = await asyncio.to_thread(server.start)
        print(json.dumps({"ports": bound, "generations": generations}), flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)
        await asyncio.to_thread(server.stop)
        print(json.dumps({"tokens": arena.statistics().tokens, "counts": repr(server.statistics())}), flush=True)


@dataclass(frozen=True)
class Stock:
    """What a depot holds."""

    blocks: int = 8
    nbytes: int = 100_000
    listeners: int = 1

    def is_whole(self, block_id: int, data: Bytes) -> bool:
        """Whether ``data`` is the block, byte for byte."""
        return bool(np.array_equal(data, content(block_id, self.nbytes)))


class Depot:
    """The handle. Starting it again after a kill keeps its ports, as an agent with fixed ports does."""

    def __init__(self, stock: Stock, host: Host | None = None, *, address: str = "127.0.0.1", host_id: int = 1) -> None:
        self.stock = stock
        self.address = address if host is None else host.address
        self.ports: list[int] = []
        self.generations: list[int] = []
        self.life = 0
        self._host, self._host_id = host, host_id
        self._path = SHM / f"penstock-test{os.getpid()}-{uuid.uuid4().int >> 96}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        stock = self.stock
        numbers = [stock.blocks, stock.nbytes, stock.listeners, *self.ports]
        argv = [sys.executable, "-m", "tests.network.depot", str(self._path), *map(str, numbers)]
        if self._host is not None:
            argv = self._host.command(argv)
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        told = self._hear()
        self.ports, self.generations = told["ports"], told["generations"]
        self.life += 1
        return self

    def _hear(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def place(self, ports: Sequence[int] | None = None, address: str | None = None) -> HostPlace:
        """Where clients are told that it is: its own ports, or those of proxies before them."""
        return HostPlace(
            self._host_id, self.life, f"depot {self._host_id}", address or self.address, list(ports or self.ports)
        )

    def wanted(self, places: Sequence[HostPlace] | None = None, blocks: Sequence[int] = ()) -> list[Wanted]:
        nbytes = len(content(1, self.stock.nbytes))
        hosts = places or [self.place()]
        return [
            Wanted(block_id, nbytes, [(host, self.generations[block_id - 1]) for host in hosts])
            for block_id in blocks or range(1, self.stock.blocks + 1)
        ]

    def kill(self) -> None:
        """SIGKILL, and what an agent's next life would remove."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()
        self._path.unlink(missing_ok=True)

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> Any:
        """End it in good order; return what it says at the end, None if it was killed."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return None
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        process.stdin.close()
        told = process.stdout.readline()
        process.wait()
        watchdog.cancel()
        process.stdout.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        return json.loads(told)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    where, how_many, size, how_many_listeners, *at = sys.argv[1:]
    asyncio.run(serve(Path(where), int(how_many), int(size), int(how_many_listeners), [int(port) for port in at]))
