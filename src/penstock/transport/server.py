"""Serves the blocks of one arena to other hosts: N listeners, each with a thread, an event loop and a port of its own.

Invariants: a port is advertised once it is bound, and as it was bound; one listener's end is not another's; stopping is
bounded: no new reader, idle ones go at once, reads under way within a limit, and every thread is joined.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

from penstock.endpoint.connection import Wire
from penstock.errors import BadArgument, TransportError
from penstock.transport.serving import Counts, ReadServing, ServerLimits
from penstock.transport.slot_owner import SlotOwner

__all__ = ["PayloadServer", "PayloadServerStatistics", "ServerLimits"]

_log = logging.getLogger("penstock.transport")
_BIND_S = 10.0  # for all listeners to be bound; UCX contexts take a second each
_CLOSE_S = 5.0  # for a listener to end what it had not ended by then

WireFactory = Callable[[], Wire]  # called once in each listener's thread


@dataclass(frozen=True, slots=True)
class PayloadServerStatistics:
    """The server at a glance.

    Attributes:
        ports: of the listeners that serve now.
        died: listeners that ended by themselves.
        counts: summed over all listeners; see ``serving.Counts``.
    """

    ports: tuple[int, ...]
    died: int
    counts: Counts


class PayloadServer:
    """Serves what ``owner`` lets it read, to whoever the wire lets in.

    Args:
        owner: of the slots; used from every listener's loop.
        make_wire: called once in each listener's thread.
        host: the address to bind.
        listeners: how many.
        ports: one for each listener; empty = any free ones.
        may_consume: whether readers may consume blocks; never where rows refer to them.
    """

    def __init__(
        self,
        owner: SlotOwner,
        make_wire: WireFactory,
        *,
        host: str = "127.0.0.1",
        listeners: int = 2,
        ports: Sequence[int] = (),
        may_consume: bool = False,
        limits: ServerLimits | None = None,
    ) -> None:
        if listeners < 1 or len(ports) not in (0, listeners):
            raise BadArgument(f"{listeners} listeners with the ports {list(ports)} make no sense")
        chosen = limits if limits is not None else ServerLimits()
        self._listeners = [
            _ListenerThread(number, make_wire, host, port, ReadServing(owner, chosen, may_consume=may_consume), chosen)
            for number, port in enumerate(ports or [0] * listeners)
        ]
        self._stopping = threading.Lock()
        self._started = False

    def __repr__(self) -> str:
        return f"<PayloadServer {self.statistics()}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> list[int]:
        """Bind, and serve from now on; return the ports, in order of the listeners.

        Raises:
            TransportError: a listener could not be bound; none is left.
        """
        if self._started:
            raise BadArgument("a payload server is started once")
        self._started = True
        try:
            for listener in self._listeners:
                listener.start()
            return [listener.bound() for listener in self._listeners]
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, within the limits' ``drain_s`` and a few seconds. Idempotent. Blocks: not for an event loop."""
        with self._stopping:
            for listener in self._listeners:
                listener.ask_to_stop()
            for listener in self._listeners:
                listener.join()

    def statistics(self) -> PayloadServerStatistics:
        """Return what has happened so far; from any thread."""
        alive = tuple(port for listener in self._listeners if (port := listener.port))
        total = Counts()
        for item in fields(Counts):
            setattr(total, item.name, sum(getattr(each.serving.counts, item.name) for each in self._listeners))
        return PayloadServerStatistics(alive, sum(listener.died for listener in self._listeners), total)


class _ListenerThread:
    """One listener: its thread, its loop, its wire."""

    def __init__(
        self, number: int, make_wire: WireFactory, host: str, port: int, serving: ReadServing, limits: ServerLimits
    ) -> None:
        self.serving = serving
        self.died = False
        self._make_wire = make_wire
        self._address = (host, port)
        self._limits = limits
        self._bound: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._asked_to_stop = False
        self._wake: Callable[[], object] = lambda: None
        self._lock = threading.Lock()  # between asking to stop and the loop's coming and going
        self._thread = threading.Thread(target=self._run, name=f"penstock-payload-{number}", daemon=True)

    @property
    def port(self) -> int:
        """Where it serves now; 0 = it does not."""
        bound = self._bound.done() and self._bound.exception() is None and self._thread.is_alive()
        return self._bound.result() if bound else 0

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as none_left:
            raise TransportError(f"no listener at {self._address}: {none_left}", code="refused") from none_left

    def bound(self) -> int:
        """Wait until it serves; return the port."""
        try:
            return self._bound.result(_BIND_S)
        except concurrent.futures.TimeoutError:
            raise TransportError(f"no listener at {self._address} within {_BIND_S:g} s", code="timeout") from None

    def ask_to_stop(self) -> None:
        """Never blocks; from any thread."""
        with self._lock:
            self._asked_to_stop = True
            self._wake()

    def join(self) -> None:
        """Wait for the thread's end, which ``ask_to_stop`` has begun."""
        if self._thread.ident is None:
            return
        self._thread.join(self._limits.drain_s + 2 * _CLOSE_S)
        if self._thread.is_alive():
            _log.error("the payload listener %s does not end", self._thread.name)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  # top frame of the thread: whoever waits is told
            if self._bound.done():
                self.died = True
                _log.exception("the payload listener at port %d has died", self._bound.result())
            else:
                self._bound.set_exception(error)

    async def _main(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        serving = loop.create_task(self._serve_until(stop))

        def end() -> None:
            stop.set()
            if not self._bound.done():
                serving.cancel()

        with self._lock:
            if self._asked_to_stop:
                end()
            self._wake = lambda: loop.call_soon_threadsafe(end)
        try:
            await serving
        except asyncio.CancelledError:
            raise TransportError("stopped before it was bound", code="closed") from None
        finally:
            with self._lock:
                self._wake = lambda: None

    async def _serve_until(self, stop: asyncio.Event) -> None:
        host, port = self._address
        wire = self._make_wire()
        listener = await wire.listen(host, port, self.serving.serve, max_connections=self._limits.max_connections)
        try:
            self._bound.set_result(listener.address.port)
            await stop.wait()
            await self.serving.drain()
        finally:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await listener.close()
            except TimeoutError:
                _log.warning("the listener at port %d was not closed within %g s", listener.address.port, _CLOSE_S)
