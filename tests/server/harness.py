"""A real plane in its own process, and a client that speaks frames: what the server's tests are made of.

The client knows nothing of retries or sessions: tests say every call, sequence and connection themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import numpy as np

from penstock.payload.block import Bytes
from penstock.payload.columns import Batch, Column
from penstock.requests import (
    MUTATIONS,
    WIRE_VERSION,
    ArenaPlace,
    Audit,
    AuditReport,
    BlockPlace,
    Call,
    Claim,
    Claimed,
    Commit,
    Done,
    Failed,
    Grant,
    Granted,
    Heartbeat,
    Locate,
    Located,
    OpenSession,
    RegisterPartition,
    Reply,
    ReplyBody,
    Request,
    ResumeSession,
    Status,
    StatusReport,
    TagColumn,
    Welcome,
)
from penstock.wire import FrameReader, decode_reply, encode_call, paths

DEADLINE_S = 30.0  # of anything a test waits for; far above what it takes
T = TypeVar("T")


class PlaneProcess:
    """A plane started as users start it. ``with`` kills it and removes its shared memory."""

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        wait: bool = True,
        python: tuple[str, ...] = ("-m", "penstock.server"),
        **config: object,
    ) -> None:
        self.data_dir = data_dir
        data_dir.mkdir(exist_ok=True)
        config = {"max_bytes": 32 * 1024 * 1024, **config}  # a container's /dev/shm has 64 MiB
        self.plane_id = paths.plane_id(data_dir)
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, *python, "--data-dir", str(data_dir), *flags),
                *("--config", msgspec.json.encode(config).decode(), "--ready-fd", str(writing)),
            ],
            pass_fds=[writing],
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(writing)
        self._ready = reading
        self.word = self.wait_for_word() if wait else ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for_word(self) -> str:
        """What it says on its ready descriptor."""
        with os.fdopen(self._ready) as pipe:
            return pipe.readline().strip()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def stderr(self) -> str:
        """All it said on stderr; it must have ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def log(self) -> str:
        return paths.log_path(self.data_dir).read_text()

    def segments(self) -> list[str]:
        """Its shared memory."""
        return sorted(p.name for p in paths.SHM_DIR.glob(f"penstock-{self.plane_id}-*"))

    def resident(self) -> int:
        """Bytes of its shared memory that are in use."""
        return sum(p.stat().st_blocks * 512 for p in paths.SHM_DIR.glob(f"penstock-{self.plane_id}-*"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        if self.process.stderr is not None:
            self.process.stderr.close()
        for name in self.segments():
            (paths.SHM_DIR / name).unlink(missing_ok=True)


class RawClient:
    """One connection. ``seq`` counts this session's mutations unless a call says its own."""

    def __init__(self, data_dir: Path, client_id: int = 1, sock: socket.socket | None = None) -> None:
        self.data_dir = data_dir
        self.client_id = client_id
        self.sock = sock or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        if sock is None:
            self.sock.connect(str(paths.socket_path(data_dir)))
        self.reader = FrameReader(1 << 30)
        self.replies: list[Reply] = []
        self.session_id = 0
        self.secret = ""
        self.seq = 0
        self.next_id = 0
        self.incarnation = 0

    # -- calls ----------------------------------------------------------------------------------------------------

    def send(
        self,
        body: Request,
        *,
        seq: int | None = None,
        deadline_s: float = DEADLINE_S,
        unpins: list[int] | None = None,
        done_below: int = 0,
    ) -> int:
        """Send a call; return its id."""
        self.next_id += 1
        if seq is None:
            seq = 0
            if isinstance(body, MUTATIONS):
                self.seq += 1
                seq = self.seq
        self.sock.sendall(
            encode_call(
                Call(
                    id=self.next_id,
                    seq=seq,
                    done_below=done_below,
                    deadline_s=deadline_s,
                    abandoned=[],
                    unpins=unpins or [],
                    body=body,
                )
            )
        )
        return self.next_id

    def receive(self, call_id: int) -> ReplyBody:
        """The reply to a call; those to others are kept."""
        while True:
            for reply in self.replies:
                if reply.id == call_id:
                    self.replies.remove(reply)
                    self.incarnation = reply.incarnation
                    return reply.body
            data = self.sock.recv(1 << 20)
            if not data:
                raise ConnectionError("the plane closed the connection")
            self.replies.extend(decode_reply(frame) for frame in self.reader.feed(data))

    def call(
        self, body: Request, *, seq: int | None = None, deadline_s: float = DEADLINE_S, done_below: int = 0
    ) -> ReplyBody:
        return self.receive(self.send(body, seq=seq, deadline_s=deadline_s, done_below=done_below))

    def expect(
        self,
        kind: type[T],
        body: Request,
        *,
        seq: int | None = None,
        deadline_s: float = DEADLINE_S,
        done_below: int = 0,
    ) -> T:
        """Call, and insist on the kind of the reply."""
        reply = self.call(body, seq=seq, deadline_s=deadline_s, done_below=done_below)
        assert isinstance(reply, kind), reply
        return reply

    def is_closed(self) -> bool:
        """Whether the plane has ended the connection (waits for it)."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- sessions -------------------------------------------------------------------------------------------------

    def open(self) -> Self:
        welcome = self.expect(Welcome, OpenSession(WIRE_VERSION, self.client_id, "test", "client", "host", os.getpid()))
        self.session_id, self.secret = welcome.session_id, welcome.secret
        return self

    def resumed_as(self, other: RawClient) -> ReplyBody:
        """Come back to the session of ``other`` on this connection."""
        reply = self.call(ResumeSession(WIRE_VERSION, other.client_id, other.session_id, other.secret))
        self.session_id, self.secret, self.seq = other.session_id, other.secret, other.seq
        return reply

    # -- rows -----------------------------------------------------------------------------------------------------

    def register(self, partition: str = "p", tasks: tuple[str, ...] = ("train",)) -> None:
        self.expect(Done, RegisterPartition(partition, ["x"], 8, list(tasks)))

    def grant(
        self, keys: list[str], partition: str = "p", row_bytes: int = 64, deadline_s: float = DEADLINE_S
    ) -> ReplyBody:
        return self.call(grant_of(keys, partition, row_bytes), deadline_s=deadline_s)

    def write(self, granted: Granted, rows: int, row_bytes: int = 64, fill: int | list[int] = 7) -> int:
        """Copy a block of rows of ``fill`` (one value, or one per row) into its place; return its content hash."""
        data = batch_of(rows, row_bytes, fill)
        out: Bytes = np.empty(data.nbytes, np.uint8)
        content = data.write_into(out, granted.grant)
        with arena_file(self.data_dir, granted.arena, os.O_RDWR) as fd:
            assert os.pwrite(fd, out.tobytes(), granted.place.offset) == len(out)
        return content

    def put(self, keys: list[str], partition: str = "p", row_bytes: int = 64, fill: int = 7) -> Granted:
        granted = self.grant(keys, partition, row_bytes)
        assert isinstance(granted, Granted), granted
        content = self.write(granted, len(keys), row_bytes, fill)
        self.expect(Done, Commit(granted.grant, content))
        return granted

    def locate(self, keys: list[str], partition: str = "p") -> Located:
        return self.expect(Located, Locate(partition, keys, ["x"]))

    def read(self, keys: list[str], partition: str = "p", row_bytes: int = 64) -> list[int]:
        """The first byte of each row, where the plane says it lies; asked again if that file has gone meanwhile."""
        for _ in range(10):
            with contextlib.suppress(FileNotFoundError):
                return self._read_at(self.locate(keys, partition), row_bytes)
        raise AssertionError(f"{keys} lie in files that are not there")

    def _read_at(self, located: Located, row_bytes: int) -> list[int]:
        assert not located.issues, located.issues
        (source,) = located.sources
        arenas = {arena.arena_id: arena for arena in located.arenas}
        values = []
        for block, index in zip(source.block, source.index, strict=True):
            place = located.blocks[block]
            body = place.offset + place.nbytes - padded_rows(place, row_bytes)
            with arena_file(self.data_dir, arenas[place.arena_id], os.O_RDONLY) as fd:
                values.append(os.pread(fd, 1, body + index * row_bytes)[0])
        return values

    def claim(
        self, batch: int, *, blocking: bool = False, deadline_s: float = DEADLINE_S, min_rows: int = 1
    ) -> Claimed:
        body = Claim(partition="p", task="train", required=["x"], batch=batch, min_rows=min_rows, blocking=blocking)
        return self.expect(Claimed, body, deadline_s=deadline_s)

    def send_claim(self, batch: int, *, min_rows: int = 1, deadline_s: float = DEADLINE_S) -> int:
        """Send a blocking claim and do not wait for it."""
        body = Claim(partition="p", task="train", required=["x"], batch=batch, min_rows=min_rows)
        return self.send(body, deadline_s=deadline_s)

    def receive_claimed(self, call_id: int) -> Claimed:
        reply = self.receive(call_id)
        assert isinstance(reply, Claimed), reply
        return reply

    def heartbeat(self, grants: list[int], pins: list[int], grant_high: int = 0, pin_high: int = 0) -> None:
        self.expect(Done, Heartbeat(grant_high, pin_high, grants, pins))

    def status(self) -> StatusReport:
        return self.expect(StatusReport, Status())

    def audit(self) -> AuditReport:
        return self.expect(AuditReport, Audit())


def padded_rows(place: BlockPlace, row_bytes: int) -> int:
    """Bytes of the rows at the end of a block of one dense column; rows are multiples of the alignment in tests."""
    header = batch_of(1, row_bytes, 0).nbytes - row_bytes
    return place.nbytes - header


def batch_of(rows: int, row_bytes: int, fill: int | list[int]) -> Batch:
    """One dense column "x" of uint8 rows, of one value each: the same, or one per row."""

    def copy_into(out: Bytes) -> Iterator[int]:
        out[:] = fill if isinstance(fill, int) else np.repeat(np.asarray(fill, np.uint8), row_bytes)
        yield len(out)

    return Batch(rows, [Column("x", "dense", "uint8", 1, (row_bytes,), None, rows * row_bytes, copy_into)])


def grant_of(keys: list[str], partition: str = "p", row_bytes: int = 64, tags: list[TagColumn] | None = None) -> Grant:
    batch = batch_of(len(keys), row_bytes, 0)
    return Grant(partition, keys, batch.specs, tags or [], batch.nbytes, batch.row_bytes, None)


@contextlib.contextmanager
def arena_file(data_dir: Path, arena: ArenaPlace, flags: int) -> Iterator[int]:
    fd = os.open(paths.arena_path(data_dir, arena), flags)
    try:
        yield fd
    finally:
        os.close(fd)


def eventually(what: str, check: object, deadline_s: float = DEADLINE_S) -> None:
    """Wait until ``check()`` is true: for what happens in another process and is not announced."""
    assert callable(check)
    until = time.monotonic() + deadline_s
    while not check():
        assert time.monotonic() < until, f"{what}: not within {deadline_s} s"
        time.sleep(0.02)


def refused(reply: object, code: str) -> Failed:
    assert isinstance(reply, Failed), reply
    assert reply.code == code, reply
    return reply


class ClientProcess:
    """A client in a process of its own, running ``script`` with ``client`` (not opened) and ``say`` at hand."""

    def __init__(self, data_dir: Path, script: str, client_id: int = 77) -> None:
        prelude = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from penstock.requests import *\n"
            "from tests.server.harness import *\n"
            "say = lambda *words: print(*words, flush=True)\n"
            f"client = RawClient(Path({str(data_dir)!r}), {client_id})\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )

    def line(self) -> str:
        """The next thing it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
