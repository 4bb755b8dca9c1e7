"""Runs processes by role and starts those again that a fault has ended: the stage of ``faults``.

Invariants: the crew's time is limited, and when it is up every process says where it stands before it is ended; after
``close`` none of the crew's processes is left. What happens to whom is the director's. Knows nothing of planes:
anyone's tests may use it.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.errors import BadArgument, DataPlaneError, DataPlaneTimeout
from penstock.testing.director import Director
from penstock.testing.faults import Fired, Sentence
from penstock.testing.injection import take_part

__all__ = ["Crew"]

_DUMP_S = 1.0  # for a process to write its stacks


def _act(stage: socket.socket, stacks: str, play: Callable[..., None], args: Sequence[Any]) -> None:
    with Path(stacks).open("a") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        take_part(stage)
        play(*args)
        faulthandler.unregister(signal.SIGUSR1)


@dataclass
class _Member:
    role: str
    play: Callable[..., None]
    args: tuple[Any, ...]
    process: multiprocessing.process.BaseProcess
    life: int = 1
    done: bool = False


class Crew:
    """Processes by role, and what is to happen to them.

    A process that a fault ended is started again, with its life number; one that ends by itself must end well.

    Args:
        sentences: the faults.
        folder: where the processes' stacks go when time is up.
        limit_s: for the whole play.
        others: processes that are not of the crew but may be hit, by name: who they are right now.
        preload: modules that the processes share, imported once.
        fired_flag: a file that is made when every fault has fired: processes may go on until then.
    """

    def __init__(
        self,
        sentences: Iterable[Sentence],
        folder: Path,
        *,
        limit_s: float,
        others: dict[str, Callable[[], int]] | None = None,
        preload: Sequence[str] = (),
        fired_flag: Path | None = None,
    ) -> None:
        self._director = Director(self._pid_of)
        self._director.arm(*sentences)
        self._fired_flag = fired_flag
        self._folder = folder
        self._limit_s = limit_s
        self._others = others or {}
        self._members: dict[str, _Member] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*preload, __name__])

    def start(self, role: str, play: Callable[..., None], *args: Any) -> None:
        """Run ``play(life, *args)`` as ``role``; ``life`` is 1 at first and grows with every restart."""
        if role in self._members or role in self._others:
            raise BadArgument(f"there is a {role!r} already")
        self._members[role] = self._begin(role, play, args, life=1)

    def _begin(self, role: str, play: Callable[..., None], args: tuple[Any, ...], life: int) -> _Member:
        seat = self._director.enrol(role)
        stacks = str(self._folder / f"stacks-{role}")
        process = self._context.Process(target=_act, name=role, args=(seat.child, stacks, play, (life, *args)))
        process.start()
        assert process.pid is not None
        seat.given_to(process.pid)
        return _Member(role, play, args, process, life)

    # -- the play ---------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Wait until every process has ended well, carrying the faults out on the way.

        Raises:
            DataPlaneTimeout: the time is up; the message holds the stacks of all processes.
            DataPlaneError: a process failed by itself, or a fault did not take effect.
        """
        end = time.monotonic() + self._limit_s
        while not all(m.done for m in self._members.values()) or self._director.busy:
            self._raise_flag()
            if time.monotonic() > end:
                raise DataPlaneTimeout(f"the crew is not done after {self._limit_s:g} s\n{self.stacks()}")
            self._turn(end)
            if self._director.missed:
                raise DataPlaneError(str(self._director.missed[0]))

    def _raise_flag(self) -> None:
        if self._fired_flag is not None and not self._director.pending and not self._director.busy:
            self._fired_flag.touch()

    def _turn(self, end: float) -> None:
        acting = [m for m in self._members.values() if not m.done]
        due = self._director.due()
        until = end if due is None else min(end, due)
        wait([self._director.fileno(), *(m.process.sentinel for m in acting)], max(0.0, until - time.monotonic()))
        self._director.turn()
        for member in acting:
            # Its end may have been noticed, and its successor started, while a fault looked for it.
            if self._members[member.role] is member and not member.process.is_alive():
                self._ended(member)

    def _ended(self, member: _Member) -> None:
        member.process.join()
        pid, code = member.process.pid, member.process.exitcode
        assert pid is not None
        if self._director.is_ending(pid):
            self._members[member.role] = self._begin(member.role, member.play, member.args, member.life + 1)
        elif code != 0:
            raise DataPlaneError(f"{member.role} (life {member.life}) failed with exit code {code}\n{self.stacks()}")
        else:
            member.done = True

    def _pid_of(self, victim: str) -> int | None:
        if victim in self._others:
            return self._others[victim]()
        member = self._members.get(victim)
        if member is not None and not member.done and not member.process.is_alive():
            self._ended(member)
            member = self._members[victim]
        return None if member is None or member.done else member.process.pid

    @property
    def fired(self) -> list[Fired]:
        """The faults that took effect."""
        return self._director.fired

    @property
    def unfired(self) -> list[Sentence]:
        """The faults whose moment never came."""
        return self._director.pending

    def shortfalls(self) -> list[str]:
        """Say of each of them how far it came."""
        return self._director.shortfalls()

    # -- the end ----------------------------------------------------------------------------------------------------

    def stacks(self) -> str:
        """Make every process write down where it stands, and return that. Others are asked only if they listen."""
        living = {m.role: m.process.pid for m in self._members.values() if m.process.is_alive()}
        self._director.go_on()
        for pid in [*living.values(), *self._other_pids()]:
            if pid is not None and _catches(pid, signal.SIGUSR1):
                os.kill(pid, signal.SIGUSR1)
        time.sleep(_DUMP_S)  # the only sign of a finished dump is the file
        told = [f"== {path.name}\n{path.read_text()}" for path in sorted(self._folder.glob("stacks-*"))]
        return "\n".join([f"alive: {living}, fired: {[str(f.sentence) for f in self.fired]}", *told])

    def _other_pids(self) -> list[int]:
        found = []
        for name, pid_of in self._others.items():
            try:
                found.append(pid_of())
            except DataPlaneError as gone:
                (self._folder / f"stacks-{name}").write_text(f"nobody there: {gone}\n")
        return found

    def close(self) -> None:
        """Continue what is stopped, kill what is left. Idempotent."""
        for member in self._members.values():
            if member.process.is_alive():
                member.process.kill()
            member.process.join()
            member.done = True
        self._director.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        alive = [m.role for m in self._members.values() if not m.done]
        return f"Crew({alive}, {self._director!r})"


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; without one it would die of it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & (1 << (number - 1)))
