"""The run's processes: started, heard, told, killed and ended from here.

Invariants: a slot ("worker-0") has one process at a time, each life of it its own peer name ("worker-0.3"); what a life
said is heard in order, before the news that it left and before its slot's next life begins; processes are started and
reaped by the launcher's main thread alone (a child asks the kernel to end it with the thread that made it); closing
leaves no process and no thread. Spare processes, which have their imports behind them, become the next lives of the
first slots that need one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from penstock.demo.messages import LAUNCHER, Become, letter
from penstock.demo.spec import RunFiles
from penstock.testing.director import Director
from penstock.testing.injection import Seat

__all__ = [
    "SPARES",
    "Child",
    "Ended",
    "Life",
    "Processes",
    "Spawn",
    "kind_of",
    "role_command",
    "role_environment",
    "slot_of",
]

SPARES = ("spare-0", "spare-1")  # two, for two may be killed at once
FROM_SPARE = frozenset({"worker", "trainer", "scorer"})
MUTE = frozenset({"plane", "host"})  # hear and say nothing
BY_SIGNAL = MUTE | {"controller"}  # are asked to end by SIGTERM, the others by the end of their letters
MOUTH_S = 1.0  # a process that has not read for so long is not waited for when it is to end
_POLL_S = 0.02


def kind_of(name: str) -> str:
    """Return the role of a slot or peer: "worker" of "worker-0.3"."""
    return slot_of(name).partition("-")[0]


def slot_of(peer: str) -> str:
    """Return the slot of a peer: "worker-0" of "worker-0.3"."""
    return peer.partition(".")[0]


def role_command(root: Path, peer: str) -> list[str]:
    """Return the command line of a role; it ends with the process that calls this."""
    return [sys.executable, "-m", "penstock.demo.role", kind_of(peer), str(root), peer, str(os.getpid())]


def role_environment(root: Path) -> dict[str, str]:
    """Return the environment of a role."""
    cache = str(root / "torch")  # else importing torch leaves a folder in /tmp
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}


class Child(Protocol):
    """A process that was started: ``subprocess.Popen``, or something elsewhere that is dealt with like one."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> IO[bytes] | Any | None: ...
    @property
    def stdout(self) -> IO[bytes] | Any | None: ...
    @property
    def returncode(self) -> int | Any: ...
    def poll(self) -> int | None: ...
    def send_signal(self, sig: int) -> None: ...


Spawn = Callable[[str, Path], Child]  # peer and log -> its process


@dataclass
class Life:
    """One process of a slot.

    Attributes:
        ready_at: when it first said something, monotonic seconds; None until then. A plane says nothing.
    """

    peer: str
    process: Child
    started_at: float
    ready_at: float | None = None
    seat: Seat | None = None
    ear: threading.Thread | None = None
    mouth: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Ended:
    """A life that is over. ``status``: an exit code, or minus the signal that ended it."""

    peer: str
    pid: int
    status: int


class Processes:
    """The lives of all slots.

    Args:
        files: the run's directory; stderr of a slot goes to its log there, life after life.
        heard: called with each line that a peer says, from one thread per peer.
        left: called when a peer has said its last, from that thread.
        command: makes the command line of a peer, given the run's directory and the peer's name.
        director: hears of the points that the processes reach, each known by its slot and by its kind.
        from_spare: what a spare process can become.
        spawn: starts a peer's process; None = on this machine, with ``command`` and ``director``.
    """

    def __init__(
        self,
        files: RunFiles,
        heard: Callable[[str, bytes], None],
        left: Callable[[str], None],
        command: Callable[[Path, str], list[str]] | None = None,
        director: Director | None = None,
        from_spare: frozenset[str] = FROM_SPARE,
        spawn: Spawn | None = None,
    ) -> None:
        self._files = files
        self._from_spare = from_spare
        self._heard = heard
        self._left = left
        self._command = command or role_command
        self._director = director
        self._spawn_elsewhere = spawn
        self._lives: dict[str, Life] = {}  # slot -> its present life
        self._ears: list[threading.Thread] = []
        self._born = 0

    def start(self, slot: str) -> Life:
        """Begin a new life of ``slot``: a spare process, if there is one and it can be that, else a new one."""
        self._born += 1
        peer = f"{slot}.{self._born}"
        spares = [spare for spare in self._lives if spare in SPARES]  # the one that began first is first
        if spares and kind_of(slot) in self._from_spare:
            return self._become(peer, spares[0])
        life = self._lives[slot] = self._spawn(slot, peer)
        if life.process.stdout is not None:
            life.ear = threading.Thread(target=self._hear, args=(life,), name=f"ear of {peer}")
            self._ears.append(life.ear)
            life.ear.start()
        return life

    def _become(self, peer: str, spare: str) -> Life:
        life = self._lives[slot_of(peer)] = self._lives.pop(spare)
        life.peer, life.started_at = peer, time.monotonic()
        if self._director is not None and life.seat is not None:
            self._director.rename(life.seat, slot_of(peer), kind_of(peer))
        _write(life, letter(peer, LAUNCHER, Become(peer)))
        return life

    def _spawn(self, slot: str, peer: str) -> Life:
        if self._spawn_elsewhere is not None:
            return Life(peer, self._spawn_elsewhere(peer, self.log_path(slot)), time.monotonic())
        talks = kind_of(slot) not in MUTE
        pipe = subprocess.PIPE if talks else subprocess.DEVNULL
        seat = None if self._director is None else self._director.enrol(slot, kind_of(slot))
        stage = [] if seat is None else [seat.fd]
        with self.log_path(slot).open("ab") as log:
            process = subprocess.Popen(
                self._command(self._files.root, peer) + [str(fd) for fd in stage],
                stdin=pipe,
                stdout=pipe if talks else log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is the launcher's; it ends its children in order
                env=role_environment(self._files.root),
                pass_fds=stage,
            )
        if seat is not None:
            seat.given_to(process.pid)
        return Life(peer, process, time.monotonic(), seat=seat)

    def dismiss(self) -> None:
        """Whoever is started from now on takes no part in faults."""
        self._director = None

    def log_path(self, slot: str) -> Path:
        """Return where ``slot`` writes its stderr."""
        return self._files.logs / f"{slot}.log"

    def life(self, slot: str) -> Life | None:
        """Return the present life of ``slot``, None when it has none."""
        return self._lives.get(slot)

    def slots(self) -> list[str]:
        """Return the slots that have a process."""
        return list(self._lives)

    def tell(self, peer: str, line: bytes) -> None:
        """Send ``line`` to ``peer``; a peer that has died meanwhile is told nothing."""
        life = self._lives.get(slot_of(peer))
        if life is not None and life.peer == peer:
            _write(life, line)

    def kill(self, slot: str) -> int:
        """Kill -9 the present life of ``slot``; return its pid. That it died of it is for ``reap`` to see."""
        process = self._lives[slot].process
        process.send_signal(signal.SIGKILL)
        return process.pid

    def reap(self) -> list[Ended]:
        """Return the lives that have ended since the last call, and that have been heard out; their slots are free."""
        return self._reap(lambda life: life.ear is None or not life.ear.is_alive())

    def _reap(self, also: Callable[[Life], bool] = lambda _life: True) -> list[Ended]:
        over = [(slot, life) for slot, life in self._lives.items() if life.process.poll() is not None and also(life)]
        for slot, life in over:
            del self._lives[slot]
            _close_pipe(life)
        return [Ended(life.peer, life.process.pid, life.process.returncode) for _, life in over]

    def end(self, slots: list[str], grace_s: float, hurry: Callable[[], bool] = lambda: False) -> list[Ended]:
        """End ``slots``: ask, wait ``grace_s`` (or until ``hurry()``), kill what is left. Returns how they ended."""
        for slot in slots:
            if slot in self._lives:
                _ask_to_end(slot, self._lives[slot])
        ended: list[Ended] = []
        deadline = time.monotonic() + grace_s
        while any(slot in self._lives for slot in slots):
            if time.monotonic() >= deadline or hurry():
                for slot in slots:
                    if slot in self._lives:
                        self.kill(slot)
            ended += self._reap()
            time.sleep(_POLL_S)
        return ended

    def close(self) -> None:
        """Kill whatever still lives and join what listened to it. Idempotent."""
        self.end(self.slots(), 0.0)
        for ear in self._ears:
            ear.join()
        self._ears.clear()

    def _hear(self, life: Life) -> None:
        assert life.process.stdout is not None
        try:
            with life.process.stdout as voice:
                for line in voice:
                    if line.endswith(b"\n"):  # else its writer was killed in it
                        life.ready_at = life.ready_at or time.monotonic()
                        self._heard(life.peer, line)
        finally:
            self._left(life.peer)


def _ask_to_end(slot: str, life: Life) -> None:
    if kind_of(slot) in BY_SIGNAL:
        life.process.send_signal(signal.SIGTERM)
    else:
        _close_pipe(life)


def _write(life: Life, line: bytes) -> None:
    if life.process.stdin is None:
        return
    with life.mouth:
        try:
            life.process.stdin.write(line)
            life.process.stdin.flush()
        except (BrokenPipeError, ValueError):  # it died, or its pipe was closed: it is ending
            return


def _close_pipe(life: Life) -> None:
    if life.process.stdin is None:
        return
    if not life.mouth.acquire(timeout=MOUTH_S):  # somebody is stuck in telling it something
        life.process.send_signal(signal.SIGKILL)
        life.mouth.acquire()
    try:
        with suppress(BrokenPipeError):
            life.process.stdin.close()
    finally:
        life.mouth.release()
