"""What a test session may not leave behind: processes, shared memory, sockets, private directories.

Invariants: only what this session made is held against it (its processes carry a stamp in their environment, its
temporary files have a folder of their own); what nobody uses counts only where ``alone`` says that nobody else works on
this machine, what a stranger uses never does; a leak names the first test after which it was seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

STAMP = "PENSTOCK_TEST_SESSION"
SHM = Path("/dev/shm")
SHORT_SOCKETS = Path(f"/tmp/penstock-{os.getuid()}")
_HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")  # live as long as this process


@dataclass(frozen=True)
class Trace:
    """Something that can outlive its maker."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Watch:
    """Looks now and then, remembers when it first saw what, and tells at the end what is still there."""

    def __init__(self, stamp: str, folder: Path, *, alone: bool) -> None:
        self._stamp = stamp
        self._folder = folder
        self._alone = alone
        self._before = set(_shared())
        self._elders = frozenset(descendants(os.getpid()))  # of whoever watches already, as a session's own servers are
        self._first_seen: dict[Trace, str] = {}
        self._mine: set[Trace] = set()

    def look(self, after: str) -> None:
        """Note what is there that was not there before; ``after`` is the test that has just ended."""
        for trace in [*self._processes(), *self._private(), *self._new_shared()]:
            if trace not in self._first_seen:
                self._first_seen[trace] = after

    def leaks(self, grace_s: float) -> list[str]:
        """Return what does not go away within ``grace_s``: planes linger for a second after their last client."""
        until = time.monotonic() + grace_s
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(0.05)
        return sorted(f"{trace}, first seen after {self._first_seen.get(trace, 'the last test')}" for trace in left)

    def end_processes(self) -> None:
        """Kill what this session left running."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[Trace]:
        shared = self._new_shared()
        foreign = self._foreign(shared) if self._alone else set(shared)
        held = [trace for trace in shared if trace in self._mine or trace not in foreign]
        return [*self._processes(), *self._private(), *held]

    def _foreign(self, shared: list[Trace]) -> set[Trace]:
        """Return those that a process of somebody else maps or listens at."""
        ours = {os.getpid(), *self._pids()}
        pids = {int(folder.name) for folder in Path("/proc").glob("[0-9]*")} - ours if shared else set()
        used = b"".join(_read(pid, "maps") for pid in pids) + Path("/proc/net/unix").read_bytes()
        return {trace for trace in shared if os.fsencode(trace.name) in used}

    def _pids(self) -> set[int]:
        found = (set(descendants(os.getpid())) | set(stamped(self._stamp))) - self._elders
        return {
            pid for pid in found if _is_alive(pid) and not any(helper in _read(pid, "cmdline") for helper in _HELPERS)
        }

    def _processes(self) -> list[Trace]:
        return [Trace("process", f"{pid} ({_command(pid)})") for pid in sorted(self._pids())]

    def _private(self) -> list[Trace]:
        return [Trace("directory", str(path)) for path in self._folder.glob("penstock-*")]

    def _new_shared(self) -> list[Trace]:
        new = [trace for trace in _shared() if trace not in self._before]
        unknown = [trace for trace in new if trace not in self._first_seen]
        if unknown:
            maps = b"".join(_read(pid, "maps") for pid in {os.getpid(), *self._pids()})
            self._mine.update(trace for trace in unknown if os.fsencode(trace.name) in maps)
        return new


def _shared() -> Iterator[Trace]:
    """What lies where all sessions of this machine share one folder."""
    yield from (Trace("segment", str(path)) for path in SHM.glob("penstock*"))
    yield from (Trace("socket", str(path)) for path in SHORT_SOCKETS.glob("*.sock"))


def descendants(pid: int) -> Iterator[int]:
    """Children, their children and so on."""
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def stamped(stamp: str) -> Iterator[int]:
    """Processes started under ``stamp``, whoever their parent is now."""
    wanted = f"{STAMP}={stamp}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        if wanted in _read(int(folder.name), "environ").split(b"\0"):
            yield int(folder.name)


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty when it is gone or somebody else's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _is_alive(pid: int) -> bool:
    state = _read(pid, "stat").rpartition(b")")[2].split()
    return bool(state) and state[0] != b"Z"


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()[:120]


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for what another process does; for tests of this module."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(0.01)
