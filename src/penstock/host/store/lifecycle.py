"""The life of a store's agent: the store, the plane, enlisting, work; anew when the store was restarted; a clean end.

Invariants: "ready" is said once the plane has taken the store in, "error: ..." if that will never be; a store that does
not answer, and a plane that is away, are waited for; whoever started the agent ends it, by a signal or by closing its
standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from penstock.errors import BadArgument, DataPlaneError, DataPlaneTimeout, DataPlaneUnavailable, MissingExtra
from penstock.host.events import Enlisting, Ordered
from penstock.host.line import Line
from penstock.host.reporting import Reporting, enlist
from penstock.host.store.agent import BATCH, CALL_S, StoreAgent
from penstock.host.store.duties import Duties
from penstock.host.store.identity import life_number, store_id
from penstock.host.store.options import StoreOptions
from penstock.ledger.events import Event
from penstock.parts import HostPlace
from penstock.payload.stores.contract import BlockStore, Ok
from penstock.plane.courier import Identity
from penstock.plane.dialing import Dialer
from penstock.plane.link import Link
from penstock.plane.stores import Opening, OpenStore, address_of, block_key, open_by_url
from penstock.points import reached
from penstock.requests import Status, StatusReport
from penstock.retry import Deadline, reconnect_delays
from penstock.server.attendant import FORGET
from penstock.server.startup import Starter, refuse

__all__ = ["StoreOptions", "serve", "serving"]

EX_UNAVAILABLE = 69  # sysexits.h: the plane will not have this store
_ASK_S = 5.0
_GOODBYE_S = 2.0
_FORGET_S = 5.0  # for freeing what a plane leaves that takes its rows with it
_OPEN_AGAIN_S = 3600.0  # of tries at a store that is not there, before its agent says so and ends
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

log = logging.getLogger("penstock.host.store")

T = TypeVar("T")


def serve(options: StoreOptions, *, opened: OpenStore = open_by_url) -> int:
    """Serve as a store's agent until it ends; return the process's exit code."""
    starter = Starter(options.ready_fd)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True, stream=sys.stderr
    )
    try:
        return asyncio.run(serving(options, starter, opened))
    except (DataPlaneError, OSError) as error:
        return refuse(starter, error)


async def serving(options: StoreOptions, starter: Starter, opened: OpenStore) -> int:
    """The same, on a loop of somebody's: a test's, for one."""
    dialer = options.dialer()
    if "://" not in options.store:
        raise BadArgument(f"a store's URL is like mooncake://HOST:PORT?metadata=URL, got {options.store!r}")
    life = _Life(options, starter, opened)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(life.ended_from_outside())
        return await life.live(dialer)


class _Belonging:
    """Of which plane the blocks are (``host.reporting.Belongs``): remembered as long as the agent lives."""

    def __init__(self, plane: int) -> None:
        self.plane = plane

    def is_of(self, plane: int) -> None:
        self.plane = plane


class _Life:
    """One agent's: what is begun in order ends in reverse."""

    def __init__(self, options: StoreOptions, starter: Starter, opened: OpenStore) -> None:
        self._options = options
        self._starter = starter
        self._opened = opened
        self._name = options.name or address_of(options.store).partition("://")[2]
        self._duties = Duties()
        self._host_id = 0
        self._stop = asyncio.Event()
        self._why = ""
        self._code = 0
        self._forget = False  # the plane's rows have ended with it

    @contextlib.contextmanager
    def ended_from_outside(self) -> Any:
        """Signals end the agent, and the end of its standard input if whoever started it holds that."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if _is_main_thread() else ()
        for number in numbers:
            loop.add_signal_handler(number, self.stop, signal.Signals(number).name)
        if self._options.until_eof:
            loop.add_reader(0, self._read_stdin)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
            if self._options.until_eof:
                loop.remove_reader(0)

    def _read_stdin(self) -> None:
        said = os.read(0, 4096)
        self._forget |= FORGET in said
        if not said:
            asyncio.get_running_loop().remove_reader(0)
            self._forget |= self._options.forgetful
            self.stop("its plane's process has ended")

    def stop(self, why: str) -> None:
        self._why = self._why or why
        self._stop.set()

    async def live(self, dialer: Dialer) -> int:
        """From the first look at the store to the end."""
        store = await self._unless_stopped(self._open())
        if store is None:
            return 0
        line = Line(Link(_identity(self._name), dialer))
        try:
            await self._unless_stopped(self._serve(store, line))
        finally:
            await line.close(_GOODBYE_S)
            if self._forget:
                await asyncio.to_thread(self._free_all, store)
            await asyncio.to_thread(store.close)
        log.info("ended: %s", self._why)
        return self._code

    def _free_all(self, store: BlockStore) -> None:
        """No row will ever need what is left."""
        deadline = Deadline(_FORGET_S)
        keys = [block_key(self._host_id, block) for block in self._duties.known()]
        left = len(keys)
        why: object = ""
        try:
            for start in range(0, len(keys), BATCH):
                outcomes = store.remove_many(keys[start : start + BATCH], deadline)
                kept = [outcome for outcome in outcomes if not isinstance(outcome, Ok)]
                left -= len(outcomes) - len(kept)
                why = kept[0] if kept else why
        except DataPlaneError as failed:
            why = failed
        if left:
            log.error("%d blocks of a plane that has ended may stay in the store: %s", left, why)

    async def _open(self) -> BlockStore:
        """Open the store; one that is not there yet is waited for."""
        for pause in self._pauses():
            try:
                opening = Opening(self._opened, self._options.store, lambda: not self._stop.is_set())
                return await asyncio.wrap_future(opening.outcome)
            except MissingExtra:
                raise
            except (DataPlaneUnavailable, DataPlaneTimeout) as failed:
                log.warning("waiting for the store %s: %s", address_of(self._options.store), failed)
            await self._pause(pause)
        raise DataPlaneUnavailable(f"the store {address_of(self._options.store)} was not there for an hour")

    async def _serve(self, store: BlockStore, line: Line) -> None:
        """Enlist and work; anew, in a new life, when the store was restarted."""
        status = await self._status(line)
        host_id = store_id(status.plane or status.incarnation, self._options.store)
        self._host_id = host_id
        known = next((host.place.life for host in status.hosts if host.place.host_id == host_id), 0)
        name = await self._life_of(store)
        belonging = _Belonging(0)
        while not self._stop.is_set():
            known = life_number(known, name)
            place = HostPlace(host_id, known, self._name, socket.gethostname(), [], store=self._options.store)
            enlisted = await enlist(line, place, belonging.plane)
            belonging.is_of(enlisted.plane)
            self._duties.enlisted([lying.block_id for lying in enlisted.live], enlisted.after)
            log.info(
                "store %s is host %x, life %d: rows need %d blocks there", self._name, host_id, known,
                len(enlisted.live),
            )  # fmt: skip
            name = await self._work(store, line, place, name, belonging)
            log.error("the store %s was restarted: what it held is looked for", self._name)

    async def _work(self, store: BlockStore, line: Line, place: HostPlace, life: str, belonging: _Belonging) -> str:
        """Be the store's agent in one life of it; return the name of the next."""
        reporting = Reporting(line, place, belonging, self._duties, lambda told: self._told(told, agent), self._refused)
        agent = StoreAgent(store, place.host_id, life, self._duties, reporting.look)
        working = asyncio.ensure_future(agent.run())
        saying = asyncio.ensure_future(reporting.run())
        try:
            reached("store.enlisted")
            self._starter.say(f"ready {place.host_id} {place.name}")
            await asyncio.wait({working, saying}, return_when=asyncio.FIRST_COMPLETED)
            if saying.done():
                saying.result()  # raises: it never ends by itself
            return working.result()
        finally:
            for task in (working, saying):
                task.cancel()
            await asyncio.gather(working, saying, return_exceptions=True)
            agent.close()

    def _told(self, event: Event, agent: StoreAgent) -> None:
        if isinstance(event, Ordered):
            self._duties.ordered(event.orders, event.said)
        elif isinstance(event, Enlisting):
            self._duties.enlisted([place.block_id for place in event.live], event.after)
        agent.look()

    def _refused(self, why: str) -> None:
        self._code = EX_UNAVAILABLE
        self.stop(f"the plane refuses this store: {why}")

    async def _status(self, line: Line) -> StatusReport:
        """Ask the plane what it is called, however long it is away."""
        for pause in self._pauses():
            try:
                return await line.ask(Status(), StatusReport, _ASK_S)
            except DataPlaneTimeout as nobody:
                log.warning("waiting for the plane: %s", nobody)
            await self._pause(pause)
        raise DataPlaneUnavailable("no plane answered for an hour")

    async def _life_of(self, store: BlockStore) -> str:
        """Ask the store what its life is called, however long it is away."""
        for pause in self._pauses():
            try:
                return await asyncio.to_thread(lambda: store.life(Deadline(CALL_S)))
            except (DataPlaneUnavailable, DataPlaneTimeout) as failed:
                log.warning("waiting for the store %s: %s", self._name, failed)
            await self._pause(pause)
        raise DataPlaneUnavailable(f"the store {self._name} did not answer for an hour")

    def _pauses(self) -> Any:
        deadline = Deadline(_OPEN_AGAIN_S)
        return reconnect_delays(deadline, random.Random(), base_s=_FIRST_PAUSE_S, ceiling_s=_LONGEST_PAUSE_S)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do it until it is done or the agent is told to end."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for one in (task, stop):
                one.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _identity(name: str) -> Identity:
    return Identity(secrets.randbits(63), f"agent of store {name}", "store", socket.gethostname(), os.getpid())
