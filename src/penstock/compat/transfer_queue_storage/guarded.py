"""A program that ends with who started it, however that ends: ``mooncake_master``, or a plane.

Invariants: a shell of its own process group stands between; it ends the program when our end of a pipe closes, which
the kernel does even when we are killed, then removes the program's folder; the program's own end is noticed; nothing
that we did not start is touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from penstock.errors import DataPlaneUnavailable

__all__ = ["Guarded"]

_LOOK_S = 0.05
_GUARD_LOOK_S = 0.2  # as in the shell's own loop
_AFTER_KILL_S = 5.0
_LOG_TAIL = 800
_GUARD = """
exec 3<&0
folder=$1 grace=$2; shift 2
"$@" </dev/null 3<&- & child=$!
(
  read -r word <&3
  kill -TERM $child
  looks=0
  while kill -0 $child && [ $looks -lt $grace ]; do sleep 0.2; looks=$((looks + 1)); done
  kill -KILL $child
) >/dev/null 2>&1 & watch=$!
wait $child; code=$?
kill $watch 2>/dev/null
rm -rf -- "$folder"
exit $code
"""


class Guarded:
    """Runs ``argv``; its output and whatever it keeps lie in ``folder``, which ends with it.

    Args:
        folder: a private one, that exists.
        ready: whether the program serves; asked until it does.
        what: its name, for messages.
        grace_s: how long it may take to end before it is killed.

    Raises:
        DataPlaneUnavailable: it ended, or did not serve within ``timeout_s``; has the end of its output.
    """

    def __init__(
        self,
        argv: Sequence[str],
        folder: Path,
        ready: Callable[[], bool],
        *,
        what: str,
        timeout_s: float,
        grace_s: float = 10.0,
    ) -> None:
        self._log = folder / "log"
        with self._log.open("ab") as log:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(folder), str(round(grace_s / _GUARD_LOOK_S)), *argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self._end = weakref.finalize(self, _end, self._guard, grace_s + _AFTER_KILL_S)
        with self._log.open("rb") as tail:  # readable after its folder is gone
            try:
                self._wait(ready, what, timeout_s, tail)
            except BaseException:
                self.close()
                raise

    def __repr__(self) -> str:
        return f"<Guarded {'ended' if self._guard.poll() is not None else 'running'}, log {self._log}>"

    def close(self) -> None:
        """End the program and wait for it. Idempotent."""
        self._end()

    def _wait(self, ready: Callable[[], bool], what: str, timeout_s: float, log: BinaryIO) -> None:
        until = time.monotonic() + timeout_s
        while not ready():
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._guard.wait(_LOOK_S)
                raise DataPlaneUnavailable(f"{what} ended with {code} as it started: {_tail(log)}")
            if time.monotonic() > until:
                raise DataPlaneUnavailable(f"{what} did not serve within {timeout_s:g} s: {_tail(log)}")


def _tail(log: BinaryIO) -> str:
    return log.read()[-_LOG_TAIL:].decode(errors="replace").strip() or "it said nothing"


def _end(guard: subprocess.Popen[bytes], timeout_s: float) -> None:
    if guard.stdin is not None:
        guard.stdin.close()
    try:
        guard.wait(timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()
