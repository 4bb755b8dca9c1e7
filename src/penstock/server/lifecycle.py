"""The life of a plane's process: lock, recovery, serving, a clean end; or a loud one.

Invariants: "ready" is said once the socket listens and "error: ..." if it never will; the served marker is written
before an auto-started plane is asked to end, so that no client starts another in between; the lock is let go last. A
bug of ours or a journal that cannot be written ends the process at once: what comes back is what the journal says.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import logging
import logging.handlers
import os
import resource
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneError, DataPlaneWriteError, JournalCorrupt
from penstock.ledger.events import BlocksLost, SessionGone
from penstock.points import reached
from penstock.server import lock as locks
from penstock.server.connections import Connection
from penstock.server.doorway import Doorway, bind, token_of
from penstock.server.ending import leave
from penstock.server.housekeeping import Housekeeping, freeze_collector, quiet_collector
from penstock.server.moving import Mover
from penstock.server.plane import EX_IOERR, EX_SOFTWARE, Plane
from penstock.server.reception import Reception
from penstock.server.recovery import Recovered, recover
from penstock.wire import paths
from penstock.wire.address import Address
from penstock.wire.tls import server_context

__all__ = ["Options", "serve"]

EX_DATAERR = 65  # sysexits.h: the journal is damaged
_BACKLOG = 1024
_DESCRIPTORS = 65536  # wanted; two for each client
_OWN_DESCRIPTORS = 64  # journal, arenas, log, loop
_LOG_BYTES = 16 * 1024 * 1024
_SPARSE_SHARE = 4  # sparse blocks may waste a quarter of ``warm_bytes`` before they are compacted unasked
_NO_MORE_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

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


class _Starter:
    """Whoever started this process, told one word, once."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def say(self, word: str) -> None:
        """Say it and hang up; nothing, if a word was said before."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):  # whoever it was has gone
                os.write(fd, word.replace("\n", " ").encode() + b"\n")
                os.close(fd)


def serve(options: Options) -> int:
    """Serve the plane of a data directory until it ends; return the process's exit code."""
    starter = _Starter(options.ready_fd)
    try:
        options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(options)
    except (DataPlaneError, OSError) as error:
        return _refuse(starter, error)
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
        return _refuse(starter, error)
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
    _configure_log(paths.log_path(options.data_dir))
    quiet_collector()
    return msgspec.structs.replace(options, config=_within_descriptors(options.config))


def _look_at_secrets(options: Options) -> None:
    """What a listener needs is there, and of use: else nothing is begun."""
    if options.listen is not None:
        token_of(options.data_dir, options.token_file)
    if options.tls_cert is not None:
        server_context(options.tls_cert, options.tls_key)


def _within_descriptors(config: PlaneConfig) -> PlaneConfig:
    """Raise the limit of open files; admit no more connections than leave some for the journal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    possible = (soft - _OWN_DESCRIPTORS) // 2  # its socket, and its process's pidfd
    if soft == resource.RLIM_INFINITY or config.max_connections <= possible:
        return config
    log.warning("%d open files allow %d connections, not %d (ulimit -n)", soft, possible, config.max_connections)
    return msgspec.structs.replace(config, max_connections=max(possible, 1))


async def _live(options: Options, starter: _Starter, lock: locks.Lock) -> int:
    """From recovery to the end."""
    recovered = recover(options.data_dir, options.config, clock=time.monotonic, wall=time.time, repair=options.repair)
    freeze_collector()
    try:
        plane = _plane(options, recovered)
        entrance = None if options.listen is None else bind(options.listen)
        listener = _listen(options.data_dir)
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
    loop.set_exception_handler(lambda _loop, context: _unexpected(plane, context))
    server = await loop.create_unix_server(lambda: Connection(reception), sock=listener, backlog=_BACKLOG)
    doorway = None if entrance is None else await _open(entrance, options, plane, reception)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, plane.stop, signal.Signals(number).name)
    house.start()
    moving = loop.create_task(_guarded(plane, mover))
    log.info("serving %s, life %d, process %d", options.data_dir, plane.ledger.incarnation, os.getpid())
    reached("server.listening")
    starter.say("ready" if entrance is None else f"ready {Address(*entrance.getsockname()[:2])}")
    await plane.stopped.wait()
    reached("server.stopping")
    house.stop()
    server.close()
    if doorway is not None:
        doorway.close()
    if lock.stands:  # else the socket that lies there is another plane's
        _unlink_socket(options.data_dir)
    await mover.stop()
    await moving
    plane.close()
    reception.close()
    _end(options, plane, lock)
    return plane.exit_code


async def _open(entrance: socket.socket, options: Options, plane: Plane, reception: Reception) -> Doorway:
    """Let clients of other machines in. Token and certificate were looked at before anything else."""
    token = token_of(options.data_dir, options.token_file)
    tls = None if options.tls_cert is None else server_context(options.tls_cert, options.tls_key)
    doorway = Doorway(token, lambda: Connection(reception), plane.warnings.warn)
    await doorway.open(entrance, tls)
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


async def _guarded(plane: Plane, mover: Mover) -> None:
    """The top frame of the mover: what it did not expect ends the plane."""
    try:
        await mover.run()
    except Exception:  # top frame of the mover
        log.exception("a bug of ours while moving blocks")
        plane.fail(EX_SOFTWARE, "a bug of ours while moving blocks")


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


def _unexpected(plane: Plane, context: dict[str, Any]) -> None:
    """Something raised in a callback of the loop: a bug of ours, unless there was no descriptor for a newcomer."""
    error = context.get("exception")
    accepting = "socket" in context  # asyncio says so of its listener, and tries again by itself
    if accepting and isinstance(error, OSError) and error.errno in _NO_MORE_DESCRIPTORS:
        plane.warnings.warn("accept_failed", f"{context.get('message')}: {error}")
        return
    log.critical("a bug of ours: %s", context.get("message"), exc_info=error)
    plane.fail(EX_SOFTWARE, f"a bug of ours: {context.get('message')}: {error!r}")


def _listen(data_dir: Path) -> socket.socket:
    """Bind the plane's socket, mode 0600 from its first moment."""
    paths.make_socket_dir(data_dir)
    path = paths.socket_path(data_dir)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def _unlink_socket(data_dir: Path) -> None:
    with contextlib.suppress(OSError):
        paths.socket_path(data_dir).unlink(missing_ok=True)


def _configure_log(path: Path) -> None:
    """Log to the plane's file, and to stderr unless that is the same file."""
    handlers: list[logging.Handler] = [logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1)]
    if not os.path.samestat(path.stat(), os.fstat(sys.stderr.fileno())):
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(
        level=logging.INFO, handlers=handlers, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # kill -USR1: where it is now, all threads, on stderr


def _refuse(starter: _Starter, error: Exception) -> int:
    print(f"penstock: {error}", file=sys.stderr)  # noqa: T201 - the last word of a process
    starter.say(f"error: {error}")
    if isinstance(error, JournalCorrupt):
        return EX_DATAERR
    return EX_IOERR if isinstance(error, DataPlaneWriteError) else 1
