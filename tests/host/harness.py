"""A real plane, real agents and raw clients: a put and a read on a host, call by call, every step the test's own.

Clients know nothing of retries: ``HostClient`` has a connection to the plane and one to its machine's agent.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from penstock.parts import BlockPlace, HostPlace
from penstock.payload.block import Bytes
from penstock.reports import HostStatus
from penstock.requests import (
    Commit,
    Done,
    Failed,
    Goodbye,
    Grant,
    Granted,
    Heartbeat,
    Hold,
    Locate,
    Located,
    Reserve,
    Seal,
    Sealed,
)
from penstock.wire import paths
from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES, Dialler, read_token
from tests.sealed import SealedLine
from tests.server.harness import (
    DEADLINE_S,
    ClientProcess,
    PlaneProcess,
    RawClient,
    arena_file,
    batch_of,
    eventually,
    grant_of,
    padded_rows,
)

MIB = 1024 * 1024
AGENT = "from penstock.ops.cli import main; main()"


class TcpPlane(PlaneProcess):
    """A plane that listens on TCP too."""

    def __init__(self, data_dir: Path, port: int = 0, flags: tuple[str, ...] = (), **config: Any) -> None:
        data_dir.mkdir(exist_ok=True)
        self.token_file = data_dir / "token"
        self.encrypted = flags[1] if "--tls-cert" in flags[:1] else ""
        super().__init__(data_dir, "--listen", f"127.0.0.1:{port}", *flags, **config)
        self.url = f"penstock://{self.word.partition(' ')[2]}"
        self.agents: set[str] = set()  # that were started for it, by the names of their shared memory

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for agent in self.agents:
            for path in paths.SHM_DIR.glob(f"penstock-{agent}-*"):
                path.unlink(missing_ok=True)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def again(self, **config: Any) -> TcpPlane:
        """The same plane in its next life, at the same port."""
        return TcpPlane(self.data_dir, self.port, (), **config)


class AgentProcess:
    """An agent started as users start it. ``with`` kills it; what it left goes with the plane."""

    def __init__(
        self,
        data_dir: Path,
        plane: TcpPlane,
        *flags: str,
        prelude: str = "",
        fds: tuple[int, ...] = (),
        wait: bool = True,
    ) -> None:
        self.data_dir = data_dir
        data_dir.mkdir(exist_ok=True, mode=0o700)
        self.plane_id = paths.plane_id(data_dir)
        plane.agents.add(self.plane_id)
        command = [sys.executable, "-c", prelude + AGENT, "host", "--plane", plane.url]
        command += ["--token-file", str(plane.token_file), "--dir", str(data_dir), "--max-bytes", str(16 * MIB)]
        self.process = subprocess.Popen(
            [*command, "--name", data_dir.name, "--json", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            start_new_session=True,
        )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.strip(), self.stderr()
        self.said = msgspec.json.decode(line)
        self.host_id = self.said["host_id"]

    def wait_until_ready_while(self, turn: Callable[[], None]) -> None:
        """The same, for an agent that stops at points until somebody lets it go on."""
        assert self.process.stdout is not None
        while not select.select([self.process.stdout], [], [], 0)[0]:
            turn()
        self.wait_until_ready()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def stderr(self) -> str:
        """All it said on stderr; it must have ended, or be about to."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def log(self) -> str:
        return paths.log_path(self.data_dir).read_text()

    def log_so_far(self) -> str:
        path = paths.log_path(self.data_dir)
        return path.read_text() if path.exists() else ""

    def segments(self) -> list[str]:
        """Its shared memory."""
        return sorted(p.name for p in paths.SHM_DIR.glob(f"penstock-{self.plane_id}-*"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class TcpClient(RawClient):
    """One connection to a plane over TCP: its kernel knows nothing of this process."""

    def __init__(self, plane_dir: Path, url: str, client_id: int = 1) -> None:
        super().__init__(plane_dir, client_id)
        self.sock.close()
        host, _, port = url.removeprefix("penstock://").rpartition(":")
        self.sock = socket.create_connection((host, int(port)), DEADLINE_S)
        us = Dialler(read_token(plane_dir / "token"), "plane")
        self.sock.sendall(us.respond(self._exactly(CHALLENGE_BYTES)))
        us.check(self._exactly(PROOF_BYTES))
        self.sock = SealedLine(self.sock, us.seals())

    def _exactly(self, nbytes: int) -> bytes:
        data = self.sock.recv(nbytes, socket.MSG_WAITALL)
        assert len(data) == nbytes, "the plane closed the connection"
        return data


class HostClient:
    """A client on the host whose agent's directory is ``agent_dir``; ``client_id`` names it at both."""

    def __init__(self, plane_dir: Path, url: str, agent_dir: Path, client_id: int = 1) -> None:
        self.plane = (TcpClient(plane_dir, url, client_id) if url else RawClient(plane_dir, client_id)).open()
        self.agent = RawClient(agent_dir, client_id).open()
        self.agent_dir = agent_dir
        self.host_id = self.agent.status().hosts[0].place.host_id

    @classmethod
    def of(cls, plane: TcpPlane, agent: AgentProcess, client_id: int = 1) -> Self:
        return cls(plane.data_dir, "" if plane.encrypted else plane.url, agent.data_dir, client_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.plane.close()
        self.agent.close()

    def grant(self, keys: list[str], *, replicas: int = 1, at_least: int = 1, row_bytes: int = 64) -> Granted:
        asked = msgspec.structs.replace(
            grant_of(keys, "p", row_bytes), host=self.host_id, replicas=replicas, at_least=at_least
        )
        assert isinstance(asked, Grant)
        return self.plane.expect(Granted, asked)

    @staticmethod
    def reserving(granted: Granted) -> Reserve:
        return Reserve(granted.grant, granted.place.nbytes, granted.life)

    def reserve(self, granted: Granted) -> Granted:
        return self.agent.expect(Granted, self.reserving(granted))

    def write(self, reserved: Granted, rows: int, fill: int = 7, row_bytes: int = 64) -> int:
        """Copy a block into its place; return its content hash."""
        data = batch_of(rows, row_bytes, fill)
        out: Bytes = np.empty(data.nbytes, np.uint8)
        content = data.write_into(out, reserved.grant)
        with arena_file(self.agent_dir, reserved.arena, os.O_RDWR) as fd:
            assert os.pwrite(fd, out.tobytes(), reserved.place.offset) == len(out)
        return content

    @staticmethod
    def sealing(granted: Granted, content: int) -> Seal:
        return Seal(granted.grant, content, granted.replica)

    def seal(self, grant: int, content: int, replica: HostPlace | None = None) -> Sealed:
        return self.agent.expect(Sealed, Seal(grant, content, replica))

    def commit(self, grant: int, content: int, places: list[BlockPlace]) -> object:
        return self.plane.call(Commit(grant, content, places))

    def put(self, keys: list[str], fill: int = 7, *, replicas: int = 1, row_bytes: int = 64) -> Granted:
        """All steps."""
        granted = self.grant(keys, replicas=replicas, at_least=replicas, row_bytes=row_bytes)
        content = self.write(self.reserve(granted), len(keys), fill, row_bytes)
        sealed = self.seal(granted.grant, content, granted.replica)
        assert len(sealed.places) == replicas, sealed
        done = self.commit(granted.grant, content, sealed.places)
        assert isinstance(done, Done), done
        return granted

    def locate(self, keys: list[str]) -> Located:
        return self.plane.expect(Located, Locate("p", keys, ["x"]))

    def hold(self, blocks: list[int]) -> Located:
        return self.agent.expect(Located, Hold(blocks))

    def read(self, keys: list[str], row_bytes: int = 64) -> list[int]:
        """The first byte of each row, read from the own host's arena."""
        located = self.locate(keys)
        assert not located.issues, located.issues
        held = self.hold([place.block_id for place in located.blocks])
        assert not held.issues, held.issues
        arenas = {arena.arena_id: arena for arena in held.arenas}
        (source,) = located.sources
        values = []
        for block, index in zip(source.block, source.index, strict=True):
            place = held.blocks[block]
            body = place.offset + place.nbytes - padded_rows(place, row_bytes)
            with arena_file(self.agent_dir, arenas[place.arena_id], os.O_RDONLY) as fd:
                values.append(os.pread(fd, 1, body + index * row_bytes)[0])
        self.agent.expect(Done, Heartbeat(0, max(p.pin for p in held.blocks), self.granted_here(), []))
        return values

    def granted_here(self) -> list[int]:
        """Grants that the client says it still holds; none."""
        return []

    def let_go(self, grant: int) -> None:
        """A heartbeat that does not list the grant."""
        self.agent.heartbeat([], [], grant_high=grant)

    def goodbye(self) -> None:
        self.agent.expect(Done, Goodbye())

    def hosts(self) -> dict[int, HostStatus]:
        return {status.place.host_id: status for status in self.plane.status().hosts}


class Writer(ClientProcess):
    """A client in a process of its own on a host: ``script`` finds it as ``c``, and ``say`` to speak with the test."""

    def __init__(self, plane: TcpPlane, agent: AgentProcess, script: str, client_id: int = 77) -> None:
        here = f"Path({str(plane.data_dir)!r}), {plane.url!r}, Path({str(agent.data_dir)!r}), {client_id}"
        prelude = f"from tests.host.harness import *\nclient.close()\nc = HostClient({here})\n"
        super().__init__(plane.data_dir, prelude + script, client_id)

    def go_on(self) -> None:
        """Let its ``sys.stdin.readline()`` return."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def used_bytes(client: RawClient) -> int:
    """Bytes in slots of an agent's arena."""
    return client.status().counters["arena.used_bytes"]


def blocks_of(client: RawClient) -> dict[str, int]:
    """How many blocks an agent has in which state."""
    counters = client.status().counters
    return {k.removeprefix("blocks.now_"): n for k, n in counters.items() if k.startswith("blocks.now_")}


@contextmanager
def site(tmp_path: Path, **config: Any) -> Iterator[tuple[TcpPlane, AgentProcess]]:
    """A plane and one agent, with the partition "p"."""
    with TcpPlane(tmp_path / "plane", **config) as plane:
        with RawClient(plane.data_dir, 999).open() as operator:
            operator.register()
        with AgentProcess(tmp_path / "alpha", plane) as agent:
            yield plane, agent


__all__ = [
    "AgentProcess",
    "Failed",
    "HostClient",
    "TcpClient",
    "TcpPlane",
    "Writer",
    "blocks_of",
    "eventually",
    "site",
    "used_bytes",
]
