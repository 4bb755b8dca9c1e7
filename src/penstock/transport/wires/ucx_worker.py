"""UCX on an asyncio loop: one worker, moved on by the loop itself whenever its file descriptor says so; no threads.

So there is no progress thread to race with, an idle worker costs nothing, and closing an endpoint waits for nobody: the
three things that hurt in the bindings' own thread mode.

Invariants: used on the loop that made it; a request's future is done only when UCX has let go of its buffer, and holds
the error or None; a message matches a receive only if connection, order and length agree; a worker's numbers of
connections are never used twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import struct
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from penstock.errors import TransportError
from penstock.transport.wires.ucx_library import defaults, library

__all__ = ["BROKEN", "CLOSED", "CLOSING", "MAX_PIECE_BYTES", "Outcome", "Party", "UcxWorker"]

log = logging.getLogger("penstock.transport")

MAX_PIECE_BYTES = 1 << 30  # of one message; longer parts go in several
CLOSING, CLOSED, BROKEN = 1, 2, 3  # notices: no more will come (answered by CLOSED); answer; it is over

Outcome: TypeAlias = "asyncio.Future[Exception | None]"

# All that has to agree is in the tag: 28 bits number of the connection, 4 bits order, 31 bits length, 1 bit kind.
_NUMBER_BITS, _ORDER_BITS, _LENGTH_BITS = 28, 4, 31
_NOTICE_TAG = 1
_NUMBER_MASK = ((1 << _NUMBER_BITS) - 1) << (_ORDER_BITS + _LENGTH_BITS + 1) | 1
_KIND_MASK = 1
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1

_NOTICE = struct.Struct("!II")  # to which number, what
_TRIES_PER_STEP = 512  # then others on the loop have their turn; a few milliseconds
_STREAM = 16  # fruitful tries in a row that make a stream
_YIELDS = 2  # to the peer's process, for it to go on with the stream: ten times as fast as sleep and wake-up
_HASTE_STEPS = 3  # without anything to do, before it yields: what is small is there by then
_FRUITLESS_STEPS = 100  # in a row, after which it naps instead of asking again at once
_NAP_S = 0.001


class Party(Protocol):
    """Who is told of the notices for a number."""

    def noticed(self, notice: int) -> None:
        """The other end has said this."""


class UcxWorker:
    """A worker of UCX on the running loop.

    Args:
        settings: of UCX, as its ``UCX_...`` variables without that prefix; None = see ``ucx_library``.

    Raises:
        MissingExtra: ucxx is not installed. TransportError: UCX cannot start; says why.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._ucx = library()
        from ucxx._lib.arr import Array

        self._array = Array
        self._error_of_ucx: type[Exception] = self._ucx.UCXError
        self._loop = asyncio.get_running_loop()
        self._pending: dict[Any, Outcome] = {}
        self._parties: weakref.WeakValueDictionary[int, Party] = weakref.WeakValueDictionary()
        self._numbers = itertools.count(1)
        self._next: asyncio.Handle | None = None
        self._fruitless = 0
        self._ended: list[Callable[[], None]] = []  # who has to be told that an endpoint has
        self._closed = False
        self._context, self._worker = self._started(defaults() if settings is None else settings)
        self._notice = bytearray(_NOTICE.size)
        self._notices = self._hear()
        self._fd = int(self._worker.epoll_file_descriptor)
        self._loop.add_reader(self._fd, self._step)
        self._wake()

    @property
    def address(self) -> bytes:
        """What a peer makes its endpoint to this worker from."""
        return bytes(self._worker.address.tobytes())

    @property
    def settings(self) -> dict[str, str]:
        """What UCX is set to, by the names that it gives."""
        return dict(self._context.config)

    def enrol(self, party: Party) -> int:
        """Return a number that nobody has had: ``party`` is told the notices for it, and receives what is sent to it.

        Raises:
            TransportError: there are no more.
        """
        number = next(self._numbers)
        if number >> _NUMBER_BITS:
            raise TransportError("this UCX worker has had all the connections that it can name", code="refused")
        self._parties[number] = party
        return number

    def dismiss(self, number: int) -> None:
        """Forget ``number``, and throw away what has come for it and was not taken."""
        self._parties.pop(number, None)
        while not self._closed and (found := self._found(number, remove=True)).matched:
            self._start(self._worker.tag_recv_with_handle(self._array(bytearray(found.length)), found))

    def endpoint(self, address: bytes, lost: Callable[[], None]) -> Any:
        """Return an endpoint to the worker of ``address``; ``lost`` is called, on the loop, when it has ended.

        Raises:
            UCXError: it cannot be made.
        """
        where = self._ucx.UCXAddress.create_from_buffer(address)
        endpoint = self._ucx.UCXEndpoint.create_from_worker_address(self._worker, where, True)  # with error handling
        endpoint.set_close_callback(lambda: self._ended.append(lost))
        self._wake()
        return endpoint

    def send(self, endpoint: Any, view: memoryview, number: int, order: int) -> Outcome:
        """Send ``view`` as the ``order``-th message to the peer's ``number``."""
        return self._start(endpoint.tag_send(self._array(view), self._tag(number, order, view.nbytes)))

    def receive(self, endpoint: Any, view: memoryview, number: int, order: int) -> Outcome:
        """Receive the ``order``-th message to our ``number`` into ``view``; it has to be as long."""
        return self._start(endpoint.tag_recv(self._array(view), self._tag(number, order, view.nbytes)))

    def take(self, view: memoryview, number: int, order: int) -> Outcome | None:
        """As ``receive``, of a message that has come already, though its endpoint may have ended; None: it has not."""
        found = self._worker.tag_probe(self._tag(number, order, view.nbytes), remove=True)
        if not found.matched:
            return None
        return self._start(self._worker.tag_recv_with_handle(self._array(view), found))

    def waiting(self, number: int) -> int | None:
        """How long the next message is that has come for ``number`` and was not received; None: there is none."""
        found = self._found(number, remove=False)
        return int(found.length) if found.matched else None

    def notify(self, endpoint: Any, number: int, notice: int) -> Outcome:
        """Tell the peer's ``number`` something."""
        message = self._array(bytearray(_NOTICE.pack(number, notice)))
        return self._start(endpoint.tag_send(message, self._ucx.UCXXTag(_NOTICE_TAG)))

    def release(self, endpoint: Any) -> None:
        """End ``endpoint``; what was posted on it completes, with an error unless it was done."""
        endpoint.close_blocking()  # not on a thread of its own, and with error handling: it waits for nobody
        self._wake()

    def catch_up(self) -> None:
        """Take what has come by now, and tell of it."""
        if not self._closed:
            self._step()

    def close(self) -> None:
        """End everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._worker.cancel_inflight_requests()
        self._worker.progress()
        self._settle()
        self._loop.remove_reader(self._fd)
        if self._next is not None:
            self._next.cancel()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._parties)} connections, {len(self._pending)} requests"
        return f"<UCX worker, {state}>"

    def _started(self, settings: Mapping[str, str]) -> tuple[Any, Any]:
        ucx = self._ucx
        try:
            context = ucx.UCXContext(dict(settings), feature_flags=(ucx.Feature.TAG, ucx.Feature.WAKEUP))
            worker = ucx.UCXWorker(context, enable_delayed_submission=False, enable_python_future=False)
            worker.init_blocking_progress_mode()
        except ucx.UCXError as failed:
            raise TransportError(f"UCX cannot start: {failed}", code="refused") from failed
        return context, worker

    def _tag(self, number: int, order: int, nbytes: int) -> Any:
        order &= (1 << _ORDER_BITS) - 1
        return self._ucx.UCXXTag(((number << _ORDER_BITS | order) << _LENGTH_BITS | nbytes) << 1)

    def _found(self, number: int, *, remove: bool) -> Any:
        mask = self._ucx.UCXXTagMask(_NUMBER_MASK)
        return self._worker.tag_probe(self._tag(number, 0, 0), mask, remove=remove)

    def _start(self, request: Any) -> Outcome:
        outcome: Outcome = self._loop.create_future()
        self._wake()
        if request.completed:
            outcome.set_result(self._error(request))
        else:
            self._pending[request] = outcome
        return outcome

    def _error(self, request: Any) -> Exception | None:
        try:
            request.check_error()
        except self._error_of_ucx as failed:
            return failed
        return None

    def _hear(self) -> Any:
        """Ask for the next notice, of any connection."""
        tag, mask = self._ucx.UCXXTag(_NOTICE_TAG), self._ucx.UCXXTagMask(_KIND_MASK)
        return self._worker.tag_recv(self._array(self._notice), tag, mask)

    def _heard(self) -> None:
        """Take the notice that has come, and ask for the next."""
        failed = self._error(self._notices)
        number, what = _NOTICE.unpack(self._notice)
        self._notices = self._hear()
        if failed is not None:
            log.warning("a notice over UCX could not be read: %s", failed)
            return
        party = self._parties.get(number)
        if party is not None:  # else: it has ended here meanwhile
            party.noticed(what)

    def _wake(self) -> None:
        """Move on soon: what was just posted may need it, and an armed descriptor does not tell."""
        if self._next is None and not self._closed:
            self._next = self._loop.call_soon(self._again)

    def _again(self) -> None:
        self._next = None
        self._step()

    def _step(self) -> None:
        """Move UCX on; then wait for its descriptor, or, if it cannot be waited for, come again."""
        tries = self._tried()
        self._settle()
        if tries < _TRIES_PER_STEP and self._worker.arm():
            self._fruitless = 0
            return
        self._fruitless = 0 if tries else self._fruitless + 1
        if self._fruitless <= _FRUITLESS_STEPS:
            if self._fruitless > _HASTE_STEPS:
                os.sched_yield()  # the peer has to take something first
            self._wake()
        elif self._next is None:  # and does not: no reason to burn a core
            self._next = self._loop.call_later(_NAP_S, self._again)

    def _tried(self) -> int:
        """Move UCX on until there is nothing to do, or it is the others' turn; return how often it did something."""
        tries = yields = 0
        while tries < _TRIES_PER_STEP:
            if self._worker.progress_once():
                tries, yields = tries + 1, 0
            elif tries < _STREAM or yields == _YIELDS:
                break
            else:
                os.sched_yield()
                yields += 1
        return tries

    def _settle(self) -> None:
        """Tell what has happened, in this order: a message, and then the notice or the end that came after it."""
        for request in [request for request in self._pending if request.completed]:
            outcome = self._pending.pop(request)
            if not outcome.done():
                outcome.set_result(self._error(request))
        while not self._closed and self._notices.completed:
            self._heard()
        ended, self._ended = self._ended, []
        for lost in ended:
            lost()
