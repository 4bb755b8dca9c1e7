"""The agent of the plane's own store: a child process that is started again whenever it ends, and ends with the plane.

Invariants: it is this process's alone: its standard input is held open here, so that it ends when the plane does,
however that does; it is no client of the plane: one that ends after its last client does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path

__all__ = ["FORGET", "Attendant"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0  # between its end and its next start
_SETTLED_S = 60.0  # one that has lived so long is started again without a pause
_END_S = 10.0  # for freeing what is to be forgotten, and its goodbye; it takes a fraction of this
FORGET = b"forget\n"  # the last word to an agent, of a plane whose rows end with it

log = logging.getLogger("penstock.server")


class Attendant:
    """See the module.

    Args:
        data_dir: the plane's.
        store: the URL.
        forgetful: the plane's rows end with its process, however it ends.

    Attributes:
        pids: of the agents that may live.
    """

    def __init__(self, data_dir: Path, store: str, *, forgetful: bool) -> None:
        # -P: the working directory's modules are the user's, not the plane's.
        self._command = [sys.executable, "-P", "-m", "penstock.host.store", "--data-dir", str(data_dir)]
        self._command += ["--store", store, "--until-eof", *(["--forgetful"] if forgetful else [])]
        self.pids: set[int] = set()
        self.starts = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._last_word = b""

    def start(self) -> None:
        """Begin; needs the plane's socket to be there."""
        self._task = asyncio.get_running_loop().create_task(self._attend(), name="store agent")

    async def stop(self, *, forget: bool = False) -> None:
        """End the agent, and wait until it has. ``forget``: the plane's rows end here; it frees them. Idempotent."""
        self._last_word = FORGET if forget else b""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _attend(self) -> None:
        pause = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            await self._live()
            pause = _FIRST_PAUSE_S if loop.time() - began > _SETTLED_S else min(2 * pause, _LONGEST_PAUSE_S)
            await self._rest(pause)

    async def _live(self) -> None:
        """One agent, from its start to its end or the plane's."""
        try:
            agent = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
            )
        except OSError as failed:
            log.error("the store's agent cannot be started: %s", failed)  # noqa: TRY400 - told whole
            return
        self.pids.add(agent.pid)
        self.starts += 1
        ended = asyncio.ensure_future(agent.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(agent)
            elif not self._stopping.is_set():
                log.warning("the store's agent (process %d) has ended with %s", agent.pid, agent.returncode)
        finally:
            stopping.cancel()
            await asyncio.gather(ended, stopping, return_exceptions=True)
            self.pids.discard(agent.pid)

    async def _end(self, agent: asyncio.subprocess.Process) -> None:
        """Say the last word, and hang up: that ends it."""
        assert agent.stdin is not None
        agent.stdin.write(self._last_word)
        agent.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await agent.wait()
        except TimeoutError:
            log.warning("the store's agent (process %d) does not end; it is killed", agent.pid)
            with contextlib.suppress(ProcessLookupError):
                agent.kill()

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def __repr__(self) -> str:
        return f"Attendant({self.starts} starts, processes {sorted(self.pids)})"
