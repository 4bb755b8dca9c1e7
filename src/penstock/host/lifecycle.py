"""The life of a host's agent: lock, listeners, enlisting, recovery, serving, a clean end; or a loud one.

Invariants: one agent of a directory; clients are served once it is known what lies here, and wait until then; "ready"
is said once they are served, "error: ..." if they never will be; the lock is let go last. A clean end leaves every
block that rows may need in files of the directory, so that the next life has them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from penstock.config import PlaneConfig
from penstock.endpoint.connection import Wire
from penstock.errors import BadArgument, DataPlaneError, DataPlaneUnavailable
from penstock.host.agent import Agent, Shelves
from penstock.host.events import Enlisting
from penstock.host.identity import Home, begin_life
from penstock.host.keeper import Who
from penstock.host.line import Line
from penstock.host.options import PAYLOAD, HostOptions, Secrets
from penstock.host.peers import PeerAgents
from penstock.host.recovery import leave, next_arena_id, recover
from penstock.host.replication import Replication
from penstock.host.reporting import Reporting, enlist
from penstock.hosting import Enlisted
from penstock.parts import HostPlace
from penstock.payload.files import fits_in_shm
from penstock.plane.courier import Identity
from penstock.plane.dialing import Dialer
from penstock.plane.link import Link
from penstock.plane.remote_dialing import RemoteDialer
from penstock.points import reached
from penstock.server import lock as locks
from penstock.server.connections import Connection
from penstock.server.housekeeping import Housekeeping, freeze_collector, quiet_collector
from penstock.server.plane import EX_IOERR, Plane
from penstock.server.reception import Reception
from penstock.server.recovery import make_arena
from penstock.server.startup import (
    Starter,
    configure_log,
    listen_locally,
    refuse,
    unexpected,
    unlink_socket,
    within_descriptors,
)
from penstock.server.storage import Storage
from penstock.transport.server import PayloadServer
from penstock.transport.slot_owner import LoopOwner
from penstock.wire import paths

__all__ = ["HostOptions", "serve"]

EX_UNAVAILABLE = 69  # sysexits.h: the plane will not have this host
_BACKLOG = 1024
_GOODBYE_S = 2.0

log = logging.getLogger("penstock.host")


def serve(options: HostOptions) -> int:
    """Serve as the agent of this machine's host until it ends; return the process's exit code."""
    starter = Starter(options.ready_fd)
    try:
        secret = Secrets.of(options)
        dialer = RemoteDialer(options.plane, secret.token, secret.client)
        data_dir = _directory(options, dialer.address)
        lock = _lock(data_dir)
    except (DataPlaneError, OSError) as error:
        return refuse(starter, error)
    try:
        lock.describe(locks.LockHolder(os.getpid(), auto=False))
        configure_log(paths.log_path(data_dir))
        quiet_collector()
        options = msgspec.structs.replace(options, data_dir=data_dir, config=_config(options.config))
        return asyncio.run(_Life(options, data_dir, secret, dialer, starter, lock).live())
    except (DataPlaneError, OSError) as error:
        log.critical("ending: %s", error)
        return refuse(starter, error)
    finally:
        lock.release()


def _directory(options: HostOptions, plane: str) -> Path:
    if options.data_dir is not None:
        options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if paths.served_path(options.data_dir).exists() or paths.journal_dir(options.data_dir).exists():
            raise BadArgument(f"{options.data_dir} is a plane's directory: an agent needs one of its own (--dir)")
        return options.data_dir
    folder = paths.host_dir(plane)
    paths.make_private(folder.parent)
    paths.make_private(folder)
    return folder


def _lock(data_dir: Path) -> locks.Lock:
    lock = locks.take(data_dir)
    if lock is None:
        holder = locks.holder_of(data_dir)
        who = "another process" if holder is None else f"process {holder.pid}"
        raise DataPlaneUnavailable(f"{data_dir} is served by {who} already; another host on this machine needs --dir")
    return lock


def _config(config: PlaneConfig) -> PlaneConfig:
    return within_descriptors(msgspec.structs.replace(config, durability="memory"))


@dataclass(frozen=True)
class _Copies:
    """Second copies, and the agents with which they are made."""

    replication: Replication
    peers: PeerAgents

    async def close(self) -> None:
        """Ask and answer nobody any more. Idempotent."""
        await self.replication.close()
        await self.peers.close()


class _Life:
    """One life of an agent: what is begun in order ends in reverse."""

    def __init__(
        self,
        options: HostOptions,
        data_dir: Path,
        secret: Secrets,
        dialer: Dialer,
        starter: Starter,
        lock: locks.Lock,
    ) -> None:
        self._options = options
        self._dir = data_dir
        self._secrets = secret
        self._dialer = dialer
        self._starter = starter
        self._lock = lock
        self._name = options.name or socket.gethostname()
        self._address = options.address or _own_address(dialer)
        self._bind = options.bind or self._address
        self._home = Home(data_dir, begin_life(data_dir, options.plane))
        self._shelves = Shelves()
        self._servers: list[PayloadServer] = []
        self._agent: Agent | None = None
        self._stop = asyncio.Event()
        self._why = ""

    async def live(self) -> int:
        """From the first listener to the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop, signal.Signals(number).name)
        owner = LoopOwner(self._shelves, loop, ended=self._read_ended)
        try:
            ports = await self._listen(owner, lambda: self._secrets.wire(PAYLOAD), self._options.listeners)
            ucx_ports = await self._listen(owner, self._secrets.ucx_wire, self._options.ucx_listeners)
            return await self._with_listeners(ports, ucx_ports)
        finally:
            await self._stop_serving()

    async def _listen(self, owner: LoopOwner, make_wire: Callable[[], Wire], listeners: int) -> list[int]:
        """Begin to serve payloads over a wire; return the ports."""
        if not listeners:
            return []
        server = PayloadServer(owner, make_wire, host=self._bind, listeners=listeners)
        self._servers.append(server)
        return await asyncio.to_thread(server.start)

    async def _stop_serving(self) -> None:
        """Begin no more reads, and end those under way. Idempotent."""
        self._shelves.close()
        for server in self._servers:
            await asyncio.to_thread(server.stop)

    async def _with_listeners(self, ports: list[int], ucx_ports: list[int]) -> int:
        identity = self._home.identity
        async with Replication(lambda: self._secrets.wire(PAYLOAD)) as replication:
            peers = PeerAgents(self._secrets.wire, self._address, replication.serve, bind=self._bind)
            try:
                place = HostPlace(
                    identity.host_id, identity.life, self._name, self._address, ports, ucx_ports, await peers.start()
                )
                return await self._enlisted(place, _Copies(replication, peers))
            finally:
                await peers.close()

    async def _enlisted(self, place: HostPlace, copies: _Copies) -> int:
        line = Line(Link(_identity(self._name), self._dialer))
        try:
            plane = self._home.plane if paths.arena_files(self._dir) else 0
            if plane:
                log.info("blocks of the plane that began life %d may lie in %s", plane, self._dir)
            enlisted = await self._unless_stopped(enlist(line, place, plane))
            if enlisted is None:
                return 0
            self._home.is_of(enlisted.plane)
            return await self._serve(place, line, enlisted, copies)
        finally:
            await line.close(_GOODBYE_S)

    async def _unless_stopped(self, enlisting: Coroutine[Any, Any, Enlisted]) -> Enlisted | None:
        """Wait for the plane, or for a signal: there is nothing yet that would have to be ended."""
        task = asyncio.ensure_future(enlisting)
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None
        return task.result()

    async def _serve(self, place: HostPlace, line: Line, enlisted: Enlisted, copies: _Copies) -> int:
        listener = listen_locally(self._dir)
        try:
            listener.listen(_BACKLOG)  # who comes now waits until it is known what lies here
            agent = self._recover(place, enlisted, copies)
            await self._in_service(place, line, agent, copies, listener)
        finally:
            self._agent = None
            listener.close()
            if self._lock.stands:  # else the socket that lies there is another agent's
                unlink_socket(self._dir)
        plane = agent.plane
        if plane.failed:
            plane.storage.close(unlink=self._lock.removed)
        else:
            reached("host.leaving")
            leave(plane, self._dir)
            reached("host.ended")
        log.info("ended: %s", plane.reason)
        return plane.exit_code

    def _recover(self, place: HostPlace, enlisted: Enlisted, copies: _Copies) -> Agent:
        config = self._options.config
        left = recover(self._dir, enlisted.live)
        arena_id = next_arena_id(self._dir, place.life)
        in_shm = fits_in_shm(config.max_bytes)
        arena, where = make_arena(self._dir, arena_id, config.max_bytes, config, in_shm, time.monotonic)
        try:
            storage = Storage(arena, where, left.old, host=place.host_id)
            who = Who(place.host_id, self._name, self._options.plane, arena.capacity)
            agent = Agent(who, place.life, config, storage, replicate=copies.replication.replicate)
            agent.take_over(left, Enlisting(enlisted.live, enlisted.after))
        except BaseException:
            arena.close(unlink=True)  # nothing was granted in it yet
            raise
        self._agent = agent
        self._shelves.open(storage)
        copies.replication.open(place, agent.plane, copies.peers)
        agent.plane.also_counted = lambda: self._counts(copies)
        freeze_collector()
        reached("host.recovered")
        log.info("host %x, life %d: rows need %d blocks here", place.host_id, place.life, len(enlisted.live))
        return agent

    def _counts(self, copies: _Copies) -> dict[str, int]:
        """What other threads, and other agents, had of this one."""
        reads: Counter[str] = Counter()
        for server in self._servers:
            found = server.statistics()
            reads.update({f"reads.{name}": count for name, count in asdict(found.counts).items()})
            reads["listeners.died"] += found.died
        return {
            **reads,
            "copies.made": copies.replication.made,
            "copies.pulled": copies.replication.pulled,
            "peers.endpoints": copies.peers.served,
            "peers.opened_here": copies.peers.opened,
        }

    async def _in_service(
        self, place: HostPlace, line: Line, agent: Agent, copies: _Copies, listener: socket.socket
    ) -> None:
        plane = agent.plane
        reception = Reception(plane, agent.mover)
        house = Housekeeping(plane, reception, linger_s=None, resumable_s=0.0, stands=lambda: self._lock.stands)
        reporting = Reporting(line, place, self._home, agent.keeper, plane.tell, lambda why: self._refused(plane, why))
        plane.after_settle = _both(plane.after_settle, reporting.look)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: unexpected(plane, context))
        server = await loop.create_unix_server(lambda: Connection(reception), sock=listener, backlog=_BACKLOG)
        house.start()
        agent.start("reporting", reporting.run())
        agent.start_moving()
        log.info("serving %s as host %s for %s", self._dir, self._name, self._options.plane)
        reached("host.listening")
        self._starter.say(f"ready {place.host_id} {self._dir}")
        if self._stop.is_set():
            plane.stop(self._why)
        await plane.stopped.wait()
        house.stop()
        server.close()
        await copies.close()
        await self._stop_serving()
        await agent.stop()
        plane.close()
        reception.close()
        if not (plane.failed or self._lock.stands):
            plane.fail(EX_IOERR, "its directory was removed, moved or replaced")

    def _asked_to_stop(self, why: str) -> None:
        self._why = why
        self._stop.set()
        if self._agent is not None:
            self._agent.plane.stop(why)

    def _refused(self, plane: Plane, why: str) -> None:
        """What is put here would be nobody's: better no agent than this one."""
        plane.stop(f"the plane refuses this host: {why}")
        plane.exit_code = EX_UNAVAILABLE

    def _read_ended(self) -> None:
        """A slot may have become free with the end of a read."""
        if self._agent is not None:
            self._agent.plane.settle_soon()


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        second()

    return both


def _identity(name: str) -> Identity:
    return Identity(secrets.randbits(63), f"agent of host {name}", "host", name, os.getpid())


def _own_address(dialer: Dialer) -> str:
    """Return this machine's address on its way to the plane.

    Raises:
        DataPlaneUnavailable: there is none; says what to do.
    """
    if not isinstance(dialer, RemoteDialer):
        return "127.0.0.1"
    try:
        family, kind, _, _, where = socket.getaddrinfo(*dialer.where, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # sends nothing: it chooses a route
            return str(probe.getsockname()[0])
    except OSError as failed:
        raise DataPlaneUnavailable(
            f"no way from here to {dialer.address} ({failed.strerror or failed}): pass --address"
        ) from failed
