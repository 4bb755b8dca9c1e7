"""One connection over UCX: parts are tagged messages, straight from and into the callers' buffers.

Invariants: a call returns only when UCX has let go of its buffers, cancelled and timed out calls too: ending the
endpoint is what makes it let go. Whatever ends a connection here is told to the other end, and noticed there; what was
sent before ``close`` can be received after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from penstock.endpoint.connection import Buffer
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.transport.wires.buffers import readable, writable
from penstock.transport.wires.errors import timed_out
from penstock.transport.wires.stream import StreamConnection
from penstock.transport.wires.ucx_library import library, ucx_error
from penstock.transport.wires.ucx_params import packed, unpacked
from penstock.transport.wires.ucx_worker import BROKEN, CLOSED, CLOSING, MAX_PIECE_BYTES, Outcome, UcxWorker

__all__ = ["UcxConnection"]

log = logging.getLogger("penstock.transport")

_CLOSE_S = 1.0  # for the peer to answer that it has heard of the end
_LAST_WORD_S = 0.1  # for the notice of an abrupt end to leave; then the endpoint goes, and the peer's deadlines must do
_RELEASE_S = 2.0  # for UCX to let go of buffers once their endpoint has ended: it takes microseconds
_AT_ONCE = 8  # messages under way in one call; fewer than there are numbers for their order


class UcxConnection:
    """A ``Connection`` on ``worker``; of use once it is bound to a peer's."""

    def __init__(self, worker: UcxWorker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._number = worker.enrol(self)
        self._peer = "an unbound UCX peer"
        self._peers_number = 0
        self._endpoint: Any = None
        self._open = True
        self._why = ("closed", "the connection is closed")
        self._peer_left = False
        self._answered = asyncio.Event()
        self._busy: set[str] = set()
        self._under_way: set[Outcome] = set()
        self._sent = self._received = 0
        self._lifeline: StreamConnection | None = None

    @property
    def params(self) -> bytes:
        """What the peer must know to ``bind`` to this."""
        return packed(self._number, self._worker.address)

    def bind(self, params: bytes, peer: str, deadline: Deadline) -> None:
        """Bind to the connection whose ``params`` these are. Does not wait for the peer.

        Raises:
            TransportError: UCX cannot reach it, or they are damaged.
        """
        self._peers_number, address = unpacked(params)
        self._peer = peer
        try:
            self._endpoint = self._worker.endpoint(address, self.lost)
        except library().UCXError as failed:
            raise ucx_error(f"binding to {peer}", failed, deadline) from failed

    def hang_on(self, lifeline: StreamConnection) -> None:
        """End when ``lifeline`` does: the kernel tells of a peer's death at once. It is let go of with this."""
        self._lifeline = lifeline
        lifeline.watch(self._hung_up)

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def broken(self) -> bool:
        return not self._open

    async def send(self, *parts: Buffer, deadline: Deadline) -> None:
        pieces = [piece for part in parts for piece in _pieces(readable(part))]
        for at in range(0, max(1, len(pieces)), _AT_ONCE):
            await self._call("sending to", partial(self._post_sends, pieces[at : at + _AT_ONCE]), deadline)

    async def recv_into(self, buffer: Buffer, deadline: Deadline) -> None:
        view = writable(buffer)
        for piece in _pieces(view) or [view]:
            await self._call("receiving from", partial(self._post_receive, piece), deadline)

    def abort(self) -> None:
        self._end("closed", "the connection was closed here")

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            if self._endpoint is not None and not self._peer_left:
                self._worker.notify(self._endpoint, self._peers_number, CLOSING)
                async with asyncio.timeout(_CLOSE_S):
                    await self._answered.wait()
        except TimeoutError:
            pass  # it does not answer: it ends all the same
        finally:
            self._shut()

    def noticed(self, notice: int) -> None:
        """The other end has said this."""
        if notice == CLOSING:
            self._peer_left = True
            if self._endpoint is not None:
                self._after(self._worker.notify(self._endpoint, self._peers_number, CLOSED))
        elif notice == CLOSED:
            self._answered.set()
        else:
            self._end("reset", "it has broken off the connection")

    def __repr__(self) -> str:
        return f"<UCX connection with {self._peer}, {'open' if self._open else 'gone'}>"

    async def _call(self, doing: str, post: Callable[[], list[Outcome]], deadline: Deadline) -> None:
        """Post messages, and wait until UCX is done with them, whatever happens."""
        what = f"{doing} {self._peer}"
        if not self._open:
            raise TransportError(f"{what}: {self._why[1]}", code="closed")
        assert doing not in self._busy, "two calls in one direction of one connection"
        self._busy.add(doing)
        late: asyncio.TimerHandle | None = None
        outcomes: list[Outcome] = []
        try:
            outcomes = post()
            if _unfinished(outcomes):
                self._under_way.update(outcomes)
                late = self._loop.call_later(deadline.remaining(), self._be_late)
                await self._finish(outcomes)
        finally:
            if late is not None:
                late.cancel()
            self._under_way.difference_update(outcomes)
            self._busy.discard(doing)
        for outcome in outcomes:
            if (error := outcome.result()) is not None:
                raise self._failed(what, error, deadline) from error

    async def _finish(self, outcomes: list[Outcome]) -> None:
        """Wait until UCX has let go of the buffers; who is cancelled waits for that too: it takes next to no time."""
        cancelled = False
        while waited_for := _unfinished(outcomes):
            try:
                await asyncio.shield(waited_for[0])
            except asyncio.CancelledError:
                cancelled = True
                self._end("closed", "a call on the connection was cancelled")
        if cancelled:
            raise asyncio.CancelledError

    def _post_sends(self, pieces: list[memoryview]) -> list[Outcome]:
        if self._endpoint is None or self._peer_left:
            raise self._missing("sending to")
        first, self._sent = self._sent + 1, self._sent + len(pieces)
        return [
            self._worker.send(self._endpoint, piece, self._peers_number, order)
            for order, piece in enumerate(pieces, start=first)
        ]

    def _post_receive(self, piece: memoryview) -> list[Outcome]:
        if not piece.nbytes:
            return []
        self._received += 1
        if self._endpoint is not None and not self._peer_left:
            return [self._worker.receive(self._endpoint, piece, self._number, self._received)]
        taken = self._worker.take(piece, self._number, self._received)
        if taken is None:
            raise self._missing("receiving from")
        return [taken]

    def _missing(self, doing: str) -> TransportError:
        """The peer has left, and what is asked for is not among what it left behind."""
        left = self._worker.waiting(self._number)
        words = f"{doing} {self._peer}: it has closed the connection"
        self._end("closed", "the connection is closed")
        if left is None:
            return TransportError(words, code="closed")
        return TransportError(
            f"{words}; its last message has {left} bytes, which is not what was awaited", code="truncated"
        )

    def _be_late(self) -> None:
        """The deadline has passed: end it; and if what came has another length, that is the reason."""
        other = self._worker.waiting(self._number)
        if other is None:
            self._end("timeout", "an earlier call was not done in time")
        else:
            self._end("truncated", f"a message of {other} bytes came, which is not what was awaited")

    def _failed(self, what: str, error: Exception, deadline: Deadline) -> TransportError:
        if self._open and self._peer_left:
            return self._missing(what.removesuffix(f" {self._peer}"))
        if self._open:
            mapped = ucx_error(what, error, deadline)
            self._end(mapped.code, mapped.message)
            return mapped
        code, why = self._why
        if code == "timeout":
            return timed_out(what, deadline)
        return TransportError(f"{what}: {why}", code=code, elapsed_s=deadline.elapsed())

    def _end(self, code: str, why: str, *, tell: bool = True) -> None:
        """End it: calls under way fail with this, and the other end is told if that can be done quickly."""
        if not self._open and self._endpoint is None:
            return
        if self._open:
            self._open, self._why = False, (code, why)
        if tell and self._endpoint is not None and not self._peer_left:
            self._after(self._worker.notify(self._endpoint, self._peers_number, BROKEN))
        else:
            self._shut()

    def _after(self, word: Outcome) -> None:
        """Let go of the endpoint once ``word`` has left, or has had its time."""
        if word.done():
            self._shut()
        else:
            word.add_done_callback(lambda _: self._shut())
            self._loop.call_later(_LAST_WORD_S, self._shut)

    def lost(self) -> None:
        """The other end is gone, as UCX or the kernel says."""
        if self._endpoint is None:
            return
        if self._peer_left:
            self._shut()
        else:
            self._end("reset", "its process has ended, or cannot be reached any more", tell=False)

    def _hung_up(self) -> None:
        """The lifeline has ended. What the peer said over UCX before that comes first."""
        self._worker.catch_up()
        self.lost()

    def _shut(self) -> None:
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            self._worker.release(endpoint)
        if self._under_way:
            self._loop.call_later(_RELEASE_S, self._write_off)
        self._answered.set()
        if self._open:
            return  # what the peer sent before it left can still be received
        self._worker.dismiss(self._number)
        if self._lifeline is not None:
            self._lifeline.abort()

    def _write_off(self) -> None:
        """UCX has not let go of buffers in time: nobody waits any longer, but they are not safe to use again."""
        for outcome in self._under_way:
            if not outcome.done():
                log.error("UCX still holds a buffer of %s; it must not be used again", self)
                outcome.set_result(TimeoutError("UCX does not let go of the buffer"))


def _unfinished(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.done()]


def _pieces(view: memoryview) -> list[memoryview]:
    """Cut ``view`` where one message ends; both ends cut alike. Nothing gives no piece."""
    return [view[at : at + MAX_PIECE_BYTES] for at in range(0, view.nbytes, MAX_PIECE_BYTES)]
