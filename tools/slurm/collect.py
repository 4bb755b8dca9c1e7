"""Writes down what a node is (``machine``), or where the processes of a ring stand (``stacks``). Run once on each node.

Invariant: it asks only processes of this ring, known by their environment, and only those that listen: SIGUSR1 would
end the others. Of those it notes what the kernel knows.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_DUMP_S = 2.0  # for processes to write their stacks
_TOOL_S = 20.0
_TOOLS = [
    ["git", "log", "-1", "--oneline"],
    ["git", "status", "--short"],
    ["uname", "-a"],
    ["nproc"],
    ["free", "-h"],
    ["df", "-h", "/dev/shm", "/tmp"],  # noqa: S108 - looked at, not written to
    ["ip", "-brief", "address"],
    ["nvidia-smi"],
    ["ibv_devinfo"],
    ["ucx_info", "-d"],
    [".venv/bin/pip", "freeze"],
]


def machine(out: Path) -> None:
    """Write what this node is made of; a tool that is missing is said to be."""
    with (out / f"machine-{socket.gethostname()}.txt").open("w") as file:
        for argv in _TOOLS:
            file.write(f"$ {' '.join(argv)}\n{_said(argv)}\n\n")


def _said(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as failed:
        return f"({failed})"
    return (done.stdout + done.stderr).strip()


def stacks(out: Path) -> None:
    """Ask all processes of this ring for their stacks, and write what the kernel says of each."""
    wanted = f"PENSTOCK_STACKS={out / 'stacks'}".encode()
    with (out / f"processes-{socket.gethostname()}.txt").open("a") as file:
        for pid in _of_ring(wanted):
            listens = _listens(pid)
            file.write(_described(pid, listens=listens))
            if listens:
                os.kill(pid, signal.SIGUSR1)
    time.sleep(_DUMP_S)


def _of_ring(wanted: bytes) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid != os.getpid() and wanted in _read(pid, "environ").split(b"\0"):
            yield pid


def _listens(pid: int) -> bool:
    caught = [line for line in _read(pid, "status").splitlines() if line.startswith(b"SigCgt:")]
    is_python = b"python" in _read(pid, "cmdline").split(b"\0")[0]
    return is_python and bool(caught) and bool(int(caught[0].split()[1], 16) & (1 << (signal.SIGUSR1 - 1)))


def _described(pid: int, *, listens: bool) -> str:
    command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    state = [
        line.decode() for line in _read(pid, "status").splitlines() if line.startswith((b"State", b"VmRSS", b"Threads"))
    ]
    waits = _read(pid, "wchan").decode(errors="replace")
    return f"{pid} {command}\n    {', '.join(state)}, in {waits}{'' if listens else ', writes no stacks'}\n"


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty when it is gone or somebody else's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    what, folder = sys.argv[1:]
    {"machine": machine, "stacks": stacks}[what](Path(folder))
