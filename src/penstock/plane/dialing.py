"""How a client reaches its data directory's plane: connect, and start one if none runs and that is allowed.

Invariants: nothing here blocks; a directory that was once served by ``penstock serve`` is never auto-started; a started
plane is in its own process session (the terminal's Ctrl-C does not reach it) and inherits no descriptor but the one on
which it says that it is ready.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Protocol

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import BadArgument, DataPlaneUnavailable, RefusedType
from penstock.wire import paths

__all__ = ["Awaited", "Dialer", "Dialling", "LocalDialer", "NotAdmitted", "Starting", "connected"]

_STARTER = "plane.starting"
_COURTESY_S = 3.0  # a plane is up in a fraction of this
_DYING_S = 2.0  # a process that was killed, or has said that it cannot start, is gone long before
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: struct ucred of unix(7)
_MAX_LINE = 4096  # bytes of a plane's word on its start
_children: list[subprocess.Popen[bytes]] = []  # planes this process started; reaped when they have ended
_children_lock = threading.Lock()


def _disown() -> None:
    """This is a forked child: the planes are its parent's, and the lock may have been held."""
    global _children_lock  # noqa: PLW0603 - a lock that another process's thread holds cannot be freed
    _children_lock = threading.Lock()
    _children.clear()


os.register_at_fork(after_in_child=_disown)


class NotAdmitted(DataPlaneUnavailable):
    """Whoever is there does not take this client, and asking again will not change that."""


class Awaited(Protocol):
    """Something on its way. ``fileno`` is ready for the selector's ``events`` when there is something to ``poll``."""

    @property
    def events(self) -> int: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Starting(Awaited, Protocol):
    """A plane on its way."""

    def poll(self) -> str | None:
        """Return its word once it has spoken ("ready", "taken", "error: ..."), None before."""


class Dialling(Awaited, Protocol):
    """A connection on its way. Closing lets go of it, unless it has been given out. Idempotent."""

    @property
    def patience_s(self) -> float:
        """Seconds after which it is to be polled, whether it is ready or not."""

    def poll(self) -> socket.socket | None:
        """Go on; return a connected, non-blocking socket once it stands, None before.

        Raises:
            DataPlaneUnavailable: it failed; says why and what to do. ``NotAdmitted``: it always will.
        """

    def drop(self) -> None:
        """This is a forked child, and the connection its parent's: let go of the socket, whatever the parent does."""


class Dialer(Protocol):
    """How a link reaches its plane."""

    @property
    def address(self) -> str: ...

    def dial(self) -> socket.socket | Dialling:
        """Return, at once, a connected, non-blocking socket, or one that is on its way.

        Raises:
            DataPlaneUnavailable: nobody answers; says what was tried.
        """

    def start(self) -> Starting | None:
        """Start a plane, if one may be started; None = that is the operator's business.

        Raises:
            DataPlaneUnavailable: it cannot be started.
        """

    def tidy(self, *, parted: bool) -> None:
        """The client has closed. ``parted``: its plane has read the goodbye."""


class LocalDialer:
    """Reaches the plane of ``data_dir`` over its Unix socket.

    Args:
        data_dir: the plane's directory, made if it is not there; None = a private plane in a new temporary directory,
            which its last client's end removes.
        config: of a plane that is started; one that runs keeps its own.
        start: whether one may be started.
    """

    def __init__(self, data_dir: str | os.PathLike[str] | None, config: PlaneConfig, *, start: bool = True) -> None:
        self._start = start
        self.ephemeral = data_dir is None
        self.data_dir = _private_directory() if data_dir is None else _directory(data_dir)
        self.config = config
        self.address = str(paths.socket_path(self.data_dir))
        self._tries = 0
        self._reached = False  # somebody has answered here: others may know of this plane
        self._launched: list[subprocess.Popen[bytes]] = []  # those that may live
        self._denied_at = 0.0  # when another client was first found starting the plane

    def dial(self) -> socket.socket:
        self._tries += 1
        reap()
        try:
            sock = connected(self.address)
        except BlockingIOError as full:
            raise DataPlaneUnavailable(
                f"the plane at {self.address} does not take connections (is it stopped?)", attempts=self._tries
            ) from full
        except OSError as failed:
            raise DataPlaneUnavailable(self._nobody(failed), attempts=self._tries) from failed
        self._tries, self._reached, self._denied_at = 0, True, 0.0
        return sock

    def _nobody(self, failed: OSError) -> str:
        tried = f"no plane answers at {self.address} ({failed.strerror or failed}; {self._tries} tries)"
        if self._may_start():
            return tried
        why = "it is served by hand" if self._start else "none is to be started"
        return f"{tried}; {why}: start it with `penstock serve --data-dir {self.data_dir}`"

    def _may_start(self) -> bool:
        return self._start and not paths.served_path(self.data_dir).exists()

    def start(self) -> Starting | None:
        if not self._may_start():
            return None
        reap()
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            turn = self._turn_to_start()
            if turn is None:
                return None
            if self._is_answered():  # whoever had the turn before has started one since we dialled
                os.close(turn)
                return None
            return self._spawn(turn)
        except OSError as failed:
            raise DataPlaneUnavailable(f"no plane could be started on {self.data_dir}: {failed}") from failed

    def _turn_to_start(self) -> int | None:
        """Lock the directory's starter file: of a crowd of clients whose plane died one starts the next.

        The lock is a courtesy (the plane's own is the truth), so that a client that is stopped while it holds it holds
        up the others for ``_COURTESY_S`` only.
        """
        turn = os.open(self.data_dir / _STARTER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as denied:
            if not isinstance(denied, BlockingIOError):
                os.close(turn)
                raise
            self._denied_at = self._denied_at or time.monotonic()
            if time.monotonic() < self._denied_at + _COURTESY_S:
                os.close(turn)
                return None
        self._denied_at = 0.0
        return turn

    def _is_answered(self) -> bool:
        with contextlib.suppress(OSError, DataPlaneUnavailable):
            connected(self.address).close()
            return True
        return False

    def _spawn(self, turn: int) -> Starting:
        try:
            ready, child = self._launch()
            return _Starting(ready, turn, child.pid, paths.log_path(self.data_dir))
        except BaseException:
            os.close(turn)
            raise

    def _launch(self) -> tuple[int, subprocess.Popen[bytes]]:
        """Start a plane; return the descriptor on which it will speak, and its process."""
        if not sys.executable:
            raise DataPlaneUnavailable(
                f"this interpreter does not know its own path and cannot start a plane; "
                f"run `penstock serve --data-dir {self.data_dir}`"
            )
        ready, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with paths.log_path(self.data_dir).open("ab") as log:
                child = subprocess.Popen(
                    self._command(told),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(told,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(told)
        with _children_lock:
            _children.append(child)
        self._launched = [*(old for old in self._launched if old.poll() is None), child]
        return ready, child

    def _command(self, ready_fd: int) -> list[str]:
        # -P: the working directory's modules are the user's, not the plane's.
        command = [sys.executable, "-P", "-m", "penstock.server", "--data-dir", str(self.data_dir), "--auto"]
        if self.ephemeral:
            command.append("--ephemeral")
        return [*command, "--config", msgspec.json.encode(self.config).decode(), "--ready-fd", str(ready_fd)]

    def tidy(self, *, parted: bool) -> None:
        """Remove what a private plane that died left behind; one that lives removes it itself."""
        reap()
        if not self.ephemeral or parted or self._child_lives():
            return
        with contextlib.suppress(OSError):
            for path, _ in paths.arena_files(self.data_dir):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def _child_lives(self) -> bool:
        """Whether a plane that was started here outlives this client, which does not know it to have ended.

        The one that was started last need not be the one that lives: it may have found the directory taken.
        """
        until = time.monotonic() + _DYING_S
        if not self._reached:  # they have no client, and are never to have one
            for child in self._launched:
                child.terminate()
        try:
            for child in self._launched:
                child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return True
        return False

    def __repr__(self) -> str:
        return f"LocalDialer({self.address}, {'private' if self.ephemeral else 'shared'})"


class _Starting:
    """What a child says on its ready descriptor."""

    events = selectors.EVENT_READ

    def __init__(self, ready: int, turn: int, pid: int, log: Path) -> None:
        self._ready = ready
        self._turn = turn
        self._pid = pid
        self._log = log
        self._said = b""

    def fileno(self) -> int:
        return self._ready

    def poll(self) -> str | None:
        try:
            data = os.read(self._ready, _MAX_LINE)
        except BlockingIOError:
            return None
        self._said += data
        if data and b"\n" not in self._said and len(self._said) < _MAX_LINE:
            return None if self._said.strip() not in (b"ready", b"taken") else self._said.decode().strip()
        word = self._said.decode(errors="replace").strip()
        return word or f"error: it (pid {self._pid}) ended without a word; see {self._log}"

    def close(self) -> None:
        os.close(self._ready)
        os.close(self._turn)

    def __repr__(self) -> str:
        return f"a plane that is starting (pid {self._pid})"


def connected(address: str) -> socket.socket:
    """Return a non-blocking connection to the Unix socket ``address``, whose listener is this user's.

    Raises:
        OSError: there is none; ``BlockingIOError``: it does not take connections now.
        DataPlaneUnavailable: the listener is somebody else's.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(address)
        _require_own(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _require_own(sock: socket.socket, address: str) -> None:
    """Refuse a listener of another user: a plane and its clients share memory, so they are one user's."""
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if os.geteuid() not in (uid, 0):  # root may look at anybody's
        raise DataPlaneUnavailable(
            f"who listens at {address} is user {uid}, not {os.geteuid()}: a plane serves its own user only"
        )


def reap() -> None:
    """Take note of the planes that have ended, so that none stays a zombie."""
    with _children_lock:
        _children[:] = [child for child in _children if child.poll() is None]


def _directory(data_dir: str | os.PathLike[str]) -> Path:
    if not isinstance(data_dir, str | os.PathLike):
        raise RefusedType(f"data_dir must be a path, got {type(data_dir).__name__} {data_dir!r}")
    if not os.fspath(data_dir):
        raise BadArgument("data_dir is empty; None gives a private plane")
    try:
        path = Path(os.path.abspath(data_dir))
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError, TypeError) as bad:  # also NUL characters, and paths of bytes
        raise BadArgument(f"data_dir {data_dir!r} cannot be used: {bad}") from bad
    return path


def _private_directory() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="penstock-"))
    except OSError as bad:
        raise DataPlaneUnavailable(f"no temporary directory for a private plane: {bad}") from bad
