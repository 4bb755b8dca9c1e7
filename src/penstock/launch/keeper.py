"""Keeps one serving process alive: starts it on a tether, hears what it says, starts it again when it ends.

Invariants: one process at a time; what an earlier keeper left behind in the same folder is put away before the first
one starts; a process that ended is started again after a wait that grows while they do not last, whatever it ended of:
what stands against it is told by ``standing``; after ``close`` there is no thread, and no process unless it was left to
linger.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import msgspec

from penstock.errors import DataPlaneError
from penstock.launch.tether import put_away
from penstock.retry.backoff import RandomSource, full_jitter
from penstock.wire.paths import log_path

__all__ = ["LINGER_S", "Keeper", "Standing", "State"]

LINGER_S = 30.0  # Ray restarts an actor within 2 s on a quiet machine, and after a look at the node's memory on others
BASE_S, CAP_S = 0.1, 5.0  # waits between processes that do not last
LASTED_S = 10.0  # a process that served for so long was no failure of its start
_POLL_S = 1.0  # a limit only: every end wakes the thread

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "ending", "ended"]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a keeper and its process stand.

    Attributes:
        state: "ready" once the process serves; "ended" when it has ended because it was to.
        lives: processes begun so far, by this keeper.
        pid: of the process, 0 when there is none; ``keeper``: of this process.
        said: what the process said of itself when it served, as ``penstock ... --json`` prints it.
        why: what the last process ended of, or what keeps the next one from starting; "" = nothing.
        code: the exit code of the last one that ended; minus the signal's number; None = none has.
    """

    state: State = "starting"
    lives: int = 0
    pid: int = 0
    keeper: int = 0
    said: dict[str, Any] = {}
    why: str = ""
    code: int | None = None


class Keeper:
    """Keeps the process of one directory.

    Args:
        folder: the directory that it serves; made if it is not there.
        command: arguments of ``penstock``, asked for before each start; what it raises counts as a failed start.
        served: told, in the keeper's thread, what the process said each time it serves.
        linger_s: how long a process goes on when its keeper is gone.
        rng: draws the waits between starts.
    """

    def __init__(
        self,
        folder: Path,
        command: Callable[[], Sequence[str]],
        served: Callable[[dict[str, Any]], None] = lambda _said: None,
        *,
        linger_s: float = LINGER_S,
        rng: RandomSource | None = None,
    ) -> None:
        self._folder = folder
        self._command = command
        self._served = served
        self._linger_s = linger_s
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._now = Standing(keeper=os.getpid())
        self._tether: socket.socket | None = None
        self._told_to_end = threading.Event()
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {folder}", daemon=True)

    def begin(self) -> None:
        """Start the process, and keep it."""
        self._thread.start()

    def standing(self) -> Standing:
        """Return how it stands at this moment."""
        with self._lock:
            return self._now

    def end(self) -> None:
        """Have the process end in order; ``standing`` says when it has. Idempotent."""
        with self._lock:
            if not self.over.is_set():
                self._now = msgspec.structs.replace(self._now, state="ending")
            self._told_to_end.set()
            if self._tether is not None:
                with suppress(OSError):  # it has just ended
                    self._tether.sendall(b"end\n")

    def kill(self) -> None:
        """End the process with SIGKILL; the next one starts. For tests and for demonstrations of it."""
        pid = self.standing().pid
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self, timeout_s: float = 60.0) -> bool:
        """End it and wait so long for that; whether it has ended. Idempotent."""
        self.end()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def __repr__(self) -> str:
        now = self.standing()
        return f"Keeper({self._folder}, {now.state}, process {now.pid}, {now.lives} so far)"

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        failed = 0
        while not self._told_to_end.is_set():
            began = time.monotonic()
            why, code = self._live()
            failed = 0 if time.monotonic() - began > LASTED_S else failed + 1
            self._note(pid=0, why=why, code=code, said={}, state="ending" if self._told_to_end.is_set() else "starting")
            if not self._told_to_end.is_set():
                log.warning("%s: %s", self._folder, why)
                self._told_to_end.wait(full_jitter(failed, BASE_S, CAP_S, self._rng))
        put_away(self._folder, signal.SIGTERM)  # told to end before it came to take over what it found
        self.over.set()
        self._note(state="ended")

    def _live(self) -> tuple[str, int | None]:
        """Have one process from start to end; return what it ended of, and its exit code, if it could say it."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if put_away(self._folder):
                log.warning("%s: an earlier keeper's process was put away", self._folder)
            command = self._command()
            life = _Life(self._folder, self._linger_s, command)
        except (DataPlaneError, OSError) as failed:
            return f"it cannot be started: {failed}", None
        try:
            with self._lock:
                self._tether = life.tether
                self._now = msgspec.structs.replace(self._now, lives=self._now.lives + 1)
            if self._told_to_end.is_set():
                life.tether.sendall(b"end\n")
            for said in life.words():
                self._heed(said, life)
        except OSError as failed:
            return f"it cannot be heard: {failed}", None
        finally:
            with self._lock:
                self._tether = None
            life.close()
        return life.last_words(), life.code

    def _heed(self, said: dict[str, Any], life: _Life) -> None:
        if "pid" in said and "error" not in said:
            self._note(pid=life.pid)
        if "socket" in said:
            self._served(said)
            with self._lock:
                state: State = "ending" if self._told_to_end.is_set() else "ready"
                self._now = msgspec.structs.replace(self._now, said=said, state=state)

    def _note(self, **changes: Any) -> None:
        with self._lock:
            self._now = msgspec.structs.replace(self._now, **changes)


class _Life:
    """One process. ``code``: how it ended, None = without a word (SIGKILL)."""

    def __init__(self, folder: Path, linger_s: float, command: Sequence[str]) -> None:
        self.pid = 0
        self.code: int | None = None
        self._error = ""
        self._log = log_path(folder)
        self.tether, theirs = socket.socketpair()
        argv = [sys.executable, "-m", "penstock.launch.tether", str(theirs.fileno()), str(folder), str(linger_s)]
        with theirs, self._log.open("ab") as log_file:
            starter = subprocess.Popen(
                [*argv, *command],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=[theirs.fileno()],
            )
        starter.wait()  # it hands over to a process that is nobody's child
        self._process: int | None = None

    def words(self) -> Iterator[dict[str, Any]]:
        """Yield what it says, as JSON objects, until it has ended."""
        rest = b""
        while True:
            waited: list[Any] = [self.tether] if self._process is None else [self.tether, self._process]
            ready = wait(waited, _POLL_S)
            if self.tether in ready:
                came = self._hear()
                if not came:
                    return
                *lines, rest = (rest + came).split(b"\n")
                yield from (said for said in map(self._understood, lines) if said)
            elif self._process in ready:
                return  # somebody else holds its end of the tether open: a child of its

    def _hear(self) -> bytes:
        try:
            return self.tether.recv(65536)
        except ConnectionError:  # it died before it read what it was told
            return b""

    def _understood(self, line: bytes) -> dict[str, Any]:
        word, _, number = line.partition(b" ")
        if word == b"pid" and number.isdigit():
            self.pid = int(number)
            with suppress(OSError):  # it has ended already, which the tether will say
                self._process = os.pidfd_open(self.pid)
            return {"pid": self.pid}
        if word == b"ended" and number.isdigit():
            self.code = int(number)
            return {}
        try:
            said = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError:
            return {}  # something else that was printed
        self._error = said["error"]["message"] if "error" in said else ""
        return said

    def last_words(self) -> str:
        """Return what it ended of."""
        how = "without a word, as by kill -9" if self.code is None else f"with exit code {self.code}"
        return f"process {self.pid} ended {how}" + (f": {self._error}" if self._error else f"; see {self._log}")

    def close(self) -> None:
        self.tether.close()
        if self._process is not None:
            os.close(self._process)
            self._process = None
