"""The parent's end of a worker: start it, give it orders under a deadline, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable

__all__ = ["Worker"]

_SHOWN_LOG = 2000  # characters of a dead worker's stderr


class Worker:
    """A peer's process, in a process group of its own.

    Args:
        peer: a name of ``peers.PEERS``.
        python: the interpreter that has the peer's packages.
        source: the directory that holds this package, for interpreters that do not have it installed.
        module: what is run there; takes the peer's name and the descriptor for answers.
    """

    end_s = 20.0  # for a peer to end by itself

    def __init__(self, peer: str, python: Path, source: Path, module: str = "penstock.ops.bench.worker") -> None:
        self.peer = peer
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        answers, given = os.pipe()
        self._process = subprocess.Popen(
            [python, "-m", module, peer, str(given)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[given],
            env={**os.environ, "PYTHONPATH": str(source)},
            start_new_session=True,
        )
        os.close(given)
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._unread = b""

    def ask(self, order: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Give an order and return its answer.

        Raises:
            DataPlaneTimeout: no answer in time; the worker is of no use any more.
            DataPlaneUnavailable: the peer failed, or its process died; says why.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise DataPlaneUnavailable(f"{self.peer} died: {self._last_words()}") from None
        answer: dict[str, Any] = json.loads(self._line(timeout_s))
        if "error" in answer:
            raise DataPlaneUnavailable(f"{self.peer}: {answer['error']}")
        return answer

    def _line(self, timeout_s: float) -> bytes:
        end = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise DataPlaneTimeout(f"{self.peer} did not answer within {timeout_s:.0f} s")
            piece = self._answers.read(1 << 16)
            if not piece:
                raise DataPlaneUnavailable(f"{self.peer} died: {self._last_words()}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), _SHOWN_LOG, max(0, size - _SHOWN_LOG)).decode(errors="replace").strip()

    def dismiss(self) -> None:
        """Give no more orders: the worker ends when it is done with the last one."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def close(self) -> None:
        """Let the worker end; whatever of its group is left after that is killed. Idempotent."""
        self.dismiss()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.end_s)
        finally:
            self._end_group()
            self._answers.close()
            self._log.close()

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
