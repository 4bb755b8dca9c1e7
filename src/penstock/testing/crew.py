"""Runs processes by role and carries out what is to happen to them: the stage of ``faults``.

Invariants: a fault counts as fired only when the kernel says so (the process is gone, or stopped); a stopped process is
continued; the crew's time is limited, and when it is up every process says where it stands before it is ended; after
``close`` none of the crew's processes is left. Knows nothing of planes: anyone's tests may use it.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.errors import BadArgument, DataPlaneError, DataPlaneTimeout
from penstock.testing.faults import Fired, Kind, Sentence, take_part

__all__ = ["Crew"]

_SIGNALS: dict[Kind, signal.Signals] = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "terminate": signal.SIGTERM,
}
_EFFECT_S = 10.0  # by then the kernel has carried out a signal, on any machine that is not itself stopped
_DUMP_S = 1.0  # for a process to write its stacks


def _act(
    stage: Connection, points: frozenset[str], stacks: str, play: Callable[..., None], args: Sequence[Any]
) -> None:
    with Path(stacks).open("a") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        take_part(stage, points)
        play(*args)
        faulthandler.unregister(signal.SIGUSR1)


@dataclass
class _Member:
    role: str
    play: Callable[..., None]
    args: tuple[Any, ...]
    process: multiprocessing.process.BaseProcess
    stage: Connection
    life: int = 1
    done: bool = False


@dataclass(order=True)
class _Later:
    """Something to do at a moment."""

    due: float
    do: Callable[[], None] = field(compare=False)


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
        self.fired: list[Fired] = []
        self._pending = list(sentences)
        self._fired_flag = fired_flag
        self._folder = folder
        self._limit_s = limit_s
        self._others = others or {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._members: dict[str, _Member] = {}
        self._agenda: list[_Later] = []
        self._stopped: set[int] = set()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*preload, __name__])

    def start(self, role: str, play: Callable[..., None], *args: Any) -> None:
        """Run ``play(life, *args)`` as ``role``; ``life`` is 1 at first and grows with every restart."""
        if role in self._members or role in self._others:
            raise BadArgument(f"there is a {role!r} already")
        self._members[role] = self._begin(role, play, args, life=1)

    def _begin(self, role: str, play: Callable[..., None], args: tuple[Any, ...], life: int) -> _Member:
        ours, theirs = self._context.Pipe()
        points = frozenset(s.point for s in self._pending if s.role == role)
        stacks = str(self._folder / f"stacks-{role}")
        process = self._context.Process(target=_act, name=role, args=(theirs, points, stacks, play, (life, *args)))
        process.start()
        theirs.close()
        return _Member(role, play, args, process, ours, life)

    # -- the play ---------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Wait until every process has ended well, carrying the faults out on the way.

        Raises:
            DataPlaneTimeout: the time is up; the message holds the stacks of all processes.
            DataPlaneError: a process failed by itself, or a fault did not take effect.
        """
        end = time.monotonic() + self._limit_s
        while not all(m.done for m in self._members.values()) or self._agenda:
            self._raise_flag()
            if time.monotonic() > end:
                raise DataPlaneTimeout(f"the crew is not done after {self._limit_s:g} s\n{self.stacks()}")
            self._wait(end)
            self._keep_appointments()

    def _raise_flag(self) -> None:
        if self._fired_flag is not None and not self._pending and not self._agenda:
            self._fired_flag.touch()

    def _wait(self, end: float) -> None:
        acting = [m for m in self._members.values() if not m.done]
        due = min([end, *(later.due for later in self._agenda)])
        ready = wait([m.stage for m in acting] + [m.process.sentinel for m in acting], max(0.0, due - time.monotonic()))
        for member in acting:
            if self._members[member.role] is not member:
                continue  # its end was noticed, and its successor started, while a fault looked for it
            if member.stage in ready and not self._hear(member):
                ready.append(member.process.sentinel)
            if member.process.sentinel in ready and self._members[member.role] is member:
                self._ended(member)

    def _hear(self, member: _Member) -> bool:
        """Take a word from a process; False when it has hung up."""
        try:
            point = member.stage.recv_bytes().decode()
        except (EOFError, ConnectionResetError):
            return False
        self._counts[member.role, point] += 1
        count = self._counts[member.role, point]
        for sentence in [s for s in self._pending if (s.role, s.point, s.nth) == (member.role, point, count)]:
            self._pending.remove(sentence)
            if sentence.later_s:
                due = time.monotonic() + sentence.later_s
                self._agenda.append(_Later(due, lambda sentence=sentence: self._carry_out(sentence)))  # type: ignore[misc]
            else:
                self._carry_out(sentence)
        try:
            member.stage.send_bytes(b"go on")
        except BrokenPipeError:
            return False
        return True

    def _keep_appointments(self) -> None:
        now = time.monotonic()
        due = sorted(later for later in self._agenda if later.due <= now)
        self._agenda = [later for later in self._agenda if later.due > now]
        for later in due:
            later.do()

    def _ended(self, member: _Member) -> None:
        member.process.join()
        member.stage.close()
        pid, code = member.process.pid, member.process.exitcode
        if any(f.pid == pid and f.sentence.kind != "stop" for f in self.fired):
            self._members[member.role] = self._begin(member.role, member.play, member.args, member.life + 1)
        elif code != 0:
            raise DataPlaneError(f"{member.role} (life {member.life}) failed with exit code {code}\n{self.stacks()}")
        else:
            member.done = True

    # -- faults -----------------------------------------------------------------------------------------------------

    def _carry_out(self, sentence: Sentence) -> None:
        pid, process = self._find(sentence)
        try:
            if sentence.kind == "terminate" and pid in self._stopped:
                self._continue(pid)  # a stopped process takes no other signal than SIGKILL
            signal.pidfd_send_signal(process, _SIGNALS[sentence.kind])
            happened = _is_stopped(pid) if sentence.kind == "stop" else _is_gone(process)
        finally:
            os.close(process)
        if not happened:
            raise DataPlaneError(f"{sentence}: process {pid} shows no effect after {_EFFECT_S:g} s")
        self.fired.append(Fired(sentence, pid))
        if sentence.kind == "stop":
            self._stopped.add(pid)
            self._agenda.append(_Later(time.monotonic() + sentence.for_s, lambda: self._continue(pid)))

    def _find(self, sentence: Sentence) -> tuple[int, int]:
        """Return the victim's process, by id and descriptor; one that has just been killed has a successor soon."""
        end = time.monotonic() + _EFFECT_S
        while time.monotonic() < end:
            pid = self._pid_of(sentence.victim)
            if pid is None:
                break
            try:
                process = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            if not _is_gone(process, 0.0):
                return pid, process
            os.close(process)
        raise DataPlaneError(f"nobody to {sentence}")

    def _pid_of(self, victim: str) -> int | None:
        if victim in self._others:
            return self._others[victim]()
        member = self._members.get(victim)
        if member is not None and not member.done and not member.process.is_alive():
            self._ended(member)
            member = self._members[victim]
        return None if member is None or member.done else member.process.pid

    def _continue(self, pid: int) -> None:
        self._stopped.discard(pid)
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return  # killed while it was stopped

    @property
    def unfired(self) -> list[Sentence]:
        """The faults whose moment never came."""
        return list(self._pending)

    # -- the end ----------------------------------------------------------------------------------------------------

    def stacks(self) -> str:
        """Make every process write down where it stands, and return that. Others are asked only if they listen."""
        living = {m.role: m.process.pid for m in self._members.values() if m.process.is_alive()}
        for pid in [*living.values(), *self._stopped, *self._other_pids()]:
            if pid is not None:
                self._continue(pid)
                if _catches(pid, signal.SIGUSR1):
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
        for pid in list(self._stopped):
            self._continue(pid)
        for member in self._members.values():
            if member.process.is_alive():
                member.process.kill()
            member.process.join()
            member.stage.close()
            member.done = True
        self._agenda.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        alive = [m.role for m in self._members.values() if not m.done]
        return f"Crew({alive}, {len(self.fired)} fired, {len(self._pending)} pending)"


def _is_gone(process: int, within_s: float | None = None) -> bool:
    """Whether the process of a pidfd ends in time."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(1000 * (_EFFECT_S if within_s is None else within_s)))


def _is_stopped(pid: int) -> bool:
    """Whether all of ``pid`` is stopped in time. The kernel tells this to a parent only: others must look."""
    end = time.monotonic() + _EFFECT_S
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return True
        except OSError:
            return False
        time.sleep(0.001)
    return False


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; without one it would die of it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & (1 << (number - 1)))
