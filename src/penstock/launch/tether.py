"""``python -m penstock.launch.tether FD FOLDER LINGER_S COMMAND...``: a ``penstock`` command on a tether.

FD is one end of a socket pair; whoever holds the other end is its keeper. It says ``pid N`` first, then what the
command prints on stdout (one JSON object), then ``ended CODE``. It is told ``end`` when it is to end.

Invariants: it is nobody's child, so that a keeper's own end (Ray kills the children of an actor with it) is not its;
when the keeper is gone it goes on for LINGER_S and marks FOLDER, so that the next keeper finds it and takes its place
at once, from shared memory; when no keeper comes it ends in order, so that no memory is held for nobody.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path

import msgspec

__all__ = ["Orphan", "mark_path", "put_away", "start_of"]

log = logging.getLogger(__name__)

_BEGIN_S, _LOOK_S = 30.0, 0.02  # for a command to begin to listen for signals, which takes a second of imports
_END_S = {signal.SIGKILL: 10.0, signal.SIGTERM: 60.0}  # how long an end by this signal is waited for


class Orphan(msgspec.Struct, frozen=True):
    """A process without a keeper. ``began``: its start, in the kernel's ticks: a pid alone may be somebody else's."""

    pid: int
    began: int


def mark_path(folder: Path) -> Path:
    """Return the file in which a process that serves ``folder`` says that its keeper is gone, or has told it to end."""
    return folder / "orphan.json"


def start_of(pid: int) -> int:
    """Return when a process began, in the kernel's ticks; 0 = there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[19])  # proc_pid_stat(5): field 22, the first two end with ")"


def put_away(folder: Path, by: signal.Signals = signal.SIGKILL) -> bool:
    """End the process that an earlier keeper left behind in ``folder``; whether there was one.

    With SIGKILL: what it holds is in shared memory and in its journal, where its successor finds it; to write it all
    down first would take as long as nobody serves. With SIGTERM, in order, if it is to have no successor.
    """
    mark = mark_path(folder)
    try:
        left = msgspec.json.decode(mark.read_bytes(), type=Orphan)
    except (OSError, msgspec.MsgspecError):
        return False
    try:
        there = os.pidfd_open(left.pid)
    except ProcessLookupError:
        mark.unlink(missing_ok=True)
        return False
    try:
        if start_of(left.pid) != left.began:
            return False
        signal.pidfd_send_signal(there, by)
        wait([there], _END_S[by])
    finally:
        os.close(there)
        mark.unlink(missing_ok=True)
    return True


def main(fd: int, folder: Path, linger_s: float, command: list[str]) -> None:
    """Run ``command`` as nobody's child, and end with its keeper."""
    if os.fork():
        os._exit(0)  # the keeper's child was this one: it is done
    os.setsid()
    os.set_inheritable(fd, False)
    tether = socket.socket(fileno=fd)
    os.dup2(fd, 1)
    tether.sendall(f"pid {os.getpid()}\n".encode())
    threading.Thread(target=_mind, args=(tether, folder, linger_s), name="tether", daemon=True).start()
    code = _run(command)
    mark_path(folder).unlink(missing_ok=True)
    _say(tether, f"ended {code}\n")
    sys.exit(code)


def _run(command: list[str]) -> int:
    from penstock.ops.cli import main as penstock

    sys.argv[:] = ["penstock", *command, "--json"]
    try:
        penstock()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _mind(tether: socket.socket, folder: Path, linger_s: float) -> None:
    """Wait for the keeper's word, or for its end; then see to ours."""
    try:
        told = tether.recv(16)
    except OSError:
        told = b""
    try:
        _mark(folder)  # also if told: the keeper may not live to see our end
    except OSError as failed:  # the disk is full, the folder has gone: this must end all the same
        log.warning("%s: no mark of process %d: %s", folder, os.getpid(), failed)
    if not told:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody hears what is printed from here on
        time.sleep(linger_s)
    _end()


def _mark(folder: Path) -> None:
    orphan = Orphan(os.getpid(), start_of(os.getpid()))
    fresh = mark_path(folder).with_suffix(f".{orphan.pid}")
    fresh.write_bytes(msgspec.json.encode(orphan))
    fresh.replace(mark_path(folder))


def _end() -> None:
    """Ask this process to end in order: once the command hears it, for before that SIGTERM would be a kill.

    A process that has just taken the place of a killed one holds what that had, and lets go of it only in order.
    """
    until = time.monotonic() + _BEGIN_S
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and time.monotonic() < until:
        time.sleep(_LOOK_S)  # nobody tells when a handler is set
    os.kill(os.getpid(), signal.SIGTERM)


def _say(tether: socket.socket, word: str) -> None:
    try:
        tether.sendall(word.encode())
    except OSError:
        return  # nobody is there to hear it


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
