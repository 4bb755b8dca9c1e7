"""Moves a non-blocking socket forward: tries first, waits only if it must, and goes on in the loop's own callbacks.

A long transfer costs one future and one timer, not one per piece: the pieces are taken where the readiness is told.

Invariants: one motion in each direction at a time; a motion ends once: done, failed, timed out or cancelled; after
``stop`` nothing is under way and the loop does not know the socket.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from penstock.retry import Deadline

__all__ = ["Attempt", "Mover"]

Attempt = Callable[[], bool]  # True: done. False: more to do, but let others have their turn. Raises: would block

_READING, _WRITING = 1, 2


class _Motion:
    """One direction's work under way."""

    __slots__ = ("attempt", "blocked_by", "future", "natural")

    def __init__(self, attempt: Attempt, natural: int, future: asyncio.Future[None]) -> None:
        self.attempt = attempt
        self.natural = natural  # what a plain socket of this direction waits for
        self.blocked_by = 0  # what it waits for now; TLS may have to write in order to read
        self.future = future

    def expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(TimeoutError())

    def step(self) -> None:
        """Try. Afterwards it is done, or ``blocked_by`` says what it waits for (0: nothing but its next turn)."""
        try:
            done = self.attempt()
        except (BlockingIOError, InterruptedError):
            self.blocked_by = self.natural
        except ssl.SSLWantReadError:
            self.blocked_by = _READING
        except ssl.SSLWantWriteError:
            self.blocked_by = _WRITING
        except (OSError, RuntimeError, ValueError) as failed:  # told to who waits, whatever it is
            self.future.set_exception(failed)
        else:
            self.blocked_by = 0
            if done:
                self.future.set_result(None)


class Mover:
    """Runs the motions of ``sock``, which is non-blocking, on the running loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._motions: dict[int, _Motion] = {}
        self._registered = 0
        self._watcher: Callable[[], None] | None = None

    async def read(self, attempt: Attempt, deadline: Deadline) -> None:
        """Call ``attempt``, each time that there may be something to read, until it returns True.

        Raises:
            TimeoutError: the deadline passed. Or what ``attempt`` raised.
        """
        await self._run(_READING, attempt, deadline)

    async def write(self, attempt: Attempt, deadline: Deadline) -> None:
        """As ``read``, each time that something may be written."""
        await self._run(_WRITING, attempt, deadline)

    def watch(self, told: Callable[[], None]) -> None:
        """Call ``told`` once when there is something to read, or the end of it, and nobody is reading."""
        self._watcher = told
        self._register(_READING)

    def stop(self, failure: OSError) -> None:
        """Fail what is under way and forget the socket: it may be closed then, or moved anew. Idempotent."""
        self._unregister(_READING | _WRITING)
        self._watcher = None
        for motion in self._motions.values():
            if not motion.future.done():
                motion.future.set_exception(failure)
        self._motions.clear()

    async def _run(self, direction: int, attempt: Attempt, deadline: Deadline) -> None:
        assert direction not in self._motions, "two calls in one direction of one connection"
        motion = _Motion(attempt, direction, self._loop.create_future())
        self._motions[direction] = motion
        try:
            self._step(motion)
            if motion.future.done():
                motion.future.result()
            else:
                await self._wait(motion, deadline)
        finally:
            if self._motions.get(direction) is motion:
                del self._motions[direction]

    async def _wait(self, motion: _Motion, deadline: Deadline) -> None:
        timer = self._loop.call_later(deadline.remaining(), motion.expire)
        try:
            await motion.future
        finally:
            timer.cancel()
            if motion.future.done() and not motion.future.cancelled():
                motion.future.exception()  # seen, even if who waited was cancelled at the same moment

    def _step(self, motion: _Motion) -> None:
        if motion.future.done():
            return
        motion.step()
        if motion.future.done():
            return
        if motion.blocked_by:
            self._register(motion.blocked_by)
        else:
            self._loop.call_soon(self._step, motion)

    def _ready(self, for_what: int) -> None:
        waiting = [motion for motion in self._motions.values() if motion.blocked_by == for_what]
        for motion in waiting:
            self._step(motion)
        if not waiting:  # only now: a connection in use would register and unregister once per message
            self._unregister(for_what)
            if for_what == _READING and (watcher := self._watcher) is not None:
                self._watcher = None
                watcher()

    def _register(self, for_what: int) -> None:
        if self._registered & for_what:
            return
        self._registered |= for_what
        add = self._loop.add_reader if for_what == _READING else self._loop.add_writer
        add(self._sock, self._ready, for_what)

    def _unregister(self, for_what: int) -> None:
        gone = self._registered & for_what
        self._registered &= ~for_what
        if gone & _READING:
            self._loop.remove_reader(self._sock)
        if gone & _WRITING:
            self._loop.remove_writer(self._sock)
