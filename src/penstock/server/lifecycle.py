"""The life of a plane's process: lock, recovery, serving, a clean end; or a loud one.

Invariants: "ready" is said once the socket listens and "error: ..." if it never will; the served marker is written
before an auto-started plane is asked to end, so that no client starts another in between; the lock is let go last. A
bug of ours or a journal that cannot be written ends the process at once: what comes back is what the journal says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import BadArgument, DataPlaneError, DataPlaneWriteError
from penstock.ledger.events import BlocksLost, SessionGone
from penstock.points import reached
from penstock.server import lock as locks
from penstock.server.attendant import Attendant
from penstock.server.connections import Connection
from penstock.server.doorway import Doorway, bind, token_of
from penstock.server.ending import leave
from penstock.server.housekeeping import Housekeeping, freeze_collector, quiet_collector
from penstock.server.moving import Mover
from penstock.server.plane import EX_IOERR, Plane
from penstock.server.reception import Reception
from penstock.server.recovery import Recovered, recover
from penstock.server.startup import (
    Starter,
    configure_log,
    guarded,
    listen_locally,
    refuse,
    unexpected,
    unlink_socket,
    within_descriptors,
)
from penstock.wire import paths
from penstock.wire.address import Address
from penstock.wire.tls import server_context

__all__ = ["Options", "serve"]

_BACKLOG = 1024
_SPARSE_SHARE = 4  # sparse blocks may waste a quarter of ``warm_bytes`` before they are compacted unasked

log = logging.getLogger("penstock.server")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a plane is started.

    Attributes:
        auto: by a client, not by hand: it ends after its last client.
        ephemeral: a clean end removes the data directory.
        repair: start on a damaged journal with what is valid in it.
        ready_fd: where to say "ready", "taken" or "error: ...".
        listen: where clients of other machines, and the agents of hosts, come in; None = nowhere.
        token_file: what they must know; None = ``token`` in the data directory, made if it is not there.
        tls_cert, tls_key: PEM files with which the plane shows who it is, and encrypts; None = in the clear.
    """

    data_dir: Path
    auto: bool = False
    ephemeral: bool = False
    repair: bool = False
    ready_fd: int | None = None
    config: PlaneConfig = PlaneConfig()
    listen: Address | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


def serve(options: Options) -> int:
    """Serve the plane of a data directory until it ends; return the process's exit code."""
    starter = Starter(options.ready_fd)
    try:
        options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if paths.host_file(options.data_dir).exists():  # its blocks would be nobody's, and unlinked
            raise BadArgument(f"{options.data_dir} is the directory of a host's agent: a plane needs one of its own")
        lock = _lock(options)
    except (DataPlaneError, OSError) as error:
        return refuse(starter, error)
    if lock is None:
        starter.say("taken")
        return 0
    try:
        options = _prepare(options, lock)
        code = asyncio.run(_live(options, starter, lock))
        if code == 0 and options.ephemeral and lock.stands:
            shutil.rmtree(options.data_dir, ignore_errors=True)
    except (DataPlaneError, OSError) as error:
        log.critical("ending: %s", error)
        return refuse(starter, error)
    else:
        return code
    finally:
        lock.release()


def _lock(options: Options) -> locks.Lock | None:
    """Take the directory's lock; None if it is not for this plane to take."""
    served = paths.served_path(options.data_dir)
    if options.auto:
        lock = locks.take(options.data_dir)
        if lock is not None and served.exists():
            lock.release()
            return None
        return lock
    marked = served.exists()
    served.touch(mode=0o600)
    try:
        return locks.take_over(options.data_dir, _say_waiting)
    except BaseException:  # an interrupt too: a directory that is not served must not be marked for ever
        holder = locks.holder_of(options.data_dir)
        if not marked and (holder is None or holder.auto):  # else whoever serves it has marked it
            served.unlink(missing_ok=True)
        raise


def _say_waiting(holder: locks.LockHolder) -> None:
    print(f"penstock: waiting for the auto-started plane (process {holder.pid}) to end", file=sys.stderr)  # noqa: T201


def _prepare(options: Options, lock: locks.Lock) -> Options:
    """Make the process fit to serve; return the options that it can keep."""
    _look_at_secrets(options)
    lock.describe(locks.LockHolder(os.getpid(), options.auto))
    configure_log(paths.log_path(options.data_dir))
    quiet_collector()
    return msgspec.structs.replace(options, config=within_descriptors(options.config))


def _look_at_secrets(options: Options) -> None:
    """What a listener needs is there, and of use: else nothing is begun."""
    if options.listen is not None:
        token_of(options.data_dir, options.token_file)
    if options.tls_cert is not None:
        server_context(options.tls_cert, options.tls_key)


async def _live(options: Options, starter: Starter, lock: locks.Lock) -> int:
    """From recovery to the end."""
    recovered = recover(options.data_dir, options.config, clock=time.monotonic, wall=time.time, repair=options.repair)
    freeze_collector()
    try:
        plane = _plane(options, recovered)
        entrance = None if options.listen is None else bind(options.listen)
        listener = listen_locally(options.data_dir)
    except BaseException:
        recovered.storage.arena.close(unlink=True)  # nothing was granted in it yet
        raise
    mover = Mover(plane, options.config.warm_bytes // _SPARSE_SHARE)
    reception = Reception(plane, mover)
    house = Housekeeping(
        plane,
        reception,
        linger_s=options.config.linger_s if options.auto else None,
        resumable_s=options.config.resume_grace_s if recovered.had_sessions else 0.0,
        stands=lambda: lock.stands,
    )
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: unexpected(plane, context))
    server = await loop.create_unix_server(lambda: Connection(reception), sock=listener, backlog=_BACKLOG)
    doorway = None if entrance is None else _open(entrance, options, plane, reception)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, plane.stop, signal.Signals(number).name)
    house.start()
    attendant = None if not options.config.store else _attended(options, reception)
    moving = loop.create_task(guarded(plane, mover))
    log.info("serving %s, life %d, process %d", options.data_dir, plane.ledger.incarnation, os.getpid())
    reached("server.listening")
    starter.say("ready" if entrance is None else f"ready {Address(*entrance.getsockname()[:2])}")
    await plane.stopped.wait()
    reached("server.stopping")
    house.stop()
    if attendant is not None:
        forgets = options.config.durability == "memory" or (options.ephemeral and not plane.failed)
        await attendant.stop(forget=forgets)
    server.close()
    if doorway is not None:
        doorway.close()
    if lock.stands:  # else the socket that lies there is another plane's
        unlink_socket(options.data_dir)
    await mover.stop()
    await moving
    plane.close()
    reception.close()
    _end(options, plane, lock)
    return plane.exit_code


def _attended(options: Options, reception: Reception) -> Attendant:
    """Start the agent of the plane's store; whoever starts the plane need not wait for it."""
    forgetful = options.config.durability == "memory"
    attendant = Attendant(options.data_dir, options.config.store, forgetful=forgetful)
    reception.own = attendant.pids
    attendant.start()
    return attendant


def _open(entrance: socket.socket, options: Options, plane: Plane, reception: Reception) -> Doorway:
    """Let clients of other machines in. Token and certificate were looked at before anything else."""
    token = token_of(options.data_dir, options.token_file)
    tls = None if options.tls_cert is None else server_context(options.tls_cert, options.tls_key)
    doorway = Doorway(token, lambda: Connection(reception), plane.warnings.warn)
    doorway.open(entrance, tls)
    return doorway


def _plane(options: Options, recovered: Recovered) -> Plane:
    plane = Plane(
        options.config,
        recovered.ledger,
        recovered.journal,
        recovered.storage,
        clock=time.monotonic,
        wall=time.time,
        served=not options.auto,
    )
    plane.take(recovered.effects)
    for session_id, pid in recovered.departed.items():  # others wait for what they hold: not for the whole grace
        plane.tell(SessionGone(session_id, f"process {pid} had ended before this life began"))
    for why, block_ids in recovered.lost.items():
        log.error("%d blocks are lost: %s", len(block_ids), why)
        plane.tell(BlocksLost(block_ids, why))
    plane.settle()
    if plane.failed:
        raise DataPlaneWriteError(plane.reason)
    reached("server.recovered")
    return plane


def _end(options: Options, plane: Plane, lock: locks.Lock) -> None:
    if not (plane.failed or lock.stands):
        plane.fail(EX_IOERR, "its data directory was removed, moved or replaced")
    if plane.failed:
        plane.storage.close(unlink=lock.removed)  # without its journal nobody can make sense of it
        print(f"penstock: {plane.reason}", file=sys.stderr)  # noqa: T201 - the last word of a process
        return
    reached("server.parted")
    leave(plane, options.data_dir, keep=options.config.durability != "memory" and not options.ephemeral)
    reached("server.ended")
    with contextlib.suppress(DataPlaneWriteError):  # said by ``leave``; everything that was acknowledged is written
        plane.journal.close()
    log.info("ended: %s", plane.reason)
