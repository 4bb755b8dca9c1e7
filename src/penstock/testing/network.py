"""Hosts on one machine: network namespaces on a switch, with cables that can be cut, in one direction too.

    with Network(folder) as network:
        a, b = network.host("a"), network.host("b")
        b.run(["penstock", "serve", "--listen", f"{b.address}:7000", ...])
        network.partition("a", "b")

A cut is silent, as a pulled cable is: what is sent goes to a card that nobody has, and is counted. Hosts share files
and ``/dev/shm``; each has a folder of its own.

Invariants: nothing is made outside of the namespaces, and each lives only as long as a process that ends with the one
that made it, however that ends: nothing can be left behind. Needs ``ip`` and root, or user namespaces: ``unavailable``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.errors import BadArgument, DataPlaneUnavailable

__all__ = ["Flaps", "Host", "Network", "unavailable"]

_SUBNET = "10.213.0"
_SWITCH = "switch0"
_SINK = "sink"
_NO_IPV6 = "cd /proc/sys/net/ipv6/conf/all || exit 0; echo 1 > disable_ipv6"  # it would announce itself to the sink
_NOBODY = "02:00:00:ff:ff:ff"  # the card that nobody has
_MAX_HOSTS = 200
_TOOL_S = 20.0
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # sched.h


def unavailable(*, threads: bool = False) -> str | None:
    """Why this machine lets us have no hosts; None = it does.

    Args:
        threads: whether threads of one process are to be on several hosts (``Host.entered``), which needs root.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder, Network(Path(folder)) as network:
            if network.host("a").with_users and threads:
                return "no network namespaces for threads here: we are not root, or not allowed"
    except DataPlaneUnavailable as missing:
        return str(missing)
    return None


@dataclass(frozen=True)
class Host:
    """A host: may be handed to other processes, which ``enter`` it.

    Attributes:
        address: its number in the network.
        folder: for its files; no other host's.
        pid: of the process that keeps it alive.
    """

    name: str
    address: str
    folder: Path
    pid: int
    with_users: bool

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return ``argv`` as it is run on this host, for ``subprocess``."""
        return [*_inside(self.pid, with_users=self.with_users), *argv]

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program here; its process is who is started, without a shell or parent between."""
        return subprocess.Popen(self.command(argv), **options)

    def enter(self) -> None:
        """Move this thread, and what it starts from now on, to this host; threads that run stay where they are.

        Raises:
            DataPlaneUnavailable: it may not; without root only a process of one thread may.
        """
        if self.with_users:
            _set_namespace(f"/proc/{self.pid}/ns/user", _CLONE_NEWUSER)
        _set_namespace(f"/proc/{self.pid}/ns/net", _CLONE_NEWNET)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be on this host for a while, with this thread and those that it starts meanwhile. Needs root."""
        if self.with_users:
            raise DataPlaneUnavailable("a thread that has no root cannot come back from another host")
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.enter()
            yield
        finally:
            _set_namespace(f"/proc/self/fd/{home}", _CLONE_NEWNET)
            os.close(home)


def _inside(pid: int, *, with_users: bool) -> list[str]:
    users = ["--user", "--preserve-credentials"] if with_users else []
    return ["nsenter", f"--target={pid}", "--net", *users, "--"]


def _set_namespace(path: str, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as gone:
        raise DataPlaneUnavailable(f"the host is gone: {path}: {gone.strerror}") from gone
    try:
        if libc.setns(fd, kind):
            raise DataPlaneUnavailable(f"setns {path}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)


class Flaps:
    """A connection between two hosts that is cut and mended in turn. ``count``: how often it has been cut so far."""

    def __init__(self, cut: Callable[[], None], mend: Callable[[], None], down_s: float, up_s: float) -> None:
        self.count = 0
        self._cut, self._mend, self._down_s, self._up_s = cut, mend, down_s, up_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flaps", daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            self._cut()
            self.count += 1
            self._over.wait(self._down_s)
            self._mend()
            self._over.wait(self._up_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


class Network:
    """Args: folder: for the hosts' folders.

    Raises:
        DataPlaneUnavailable: this machine lets us have none; says why.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts: dict[str, Host] = {}
        self._keepers: list[subprocess.Popen[bytes]] = []
        self._cut: set[tuple[str, str]] = set()
        self._with_users = False
        try:
            self._switch = self._first_keeper()
            self._make_switch()
        except DataPlaneUnavailable:
            self.close()
            raise

    # -- hosts --------------------------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """Return the host of this name; it is made when it is first asked for."""
        if name in self._hosts:
            return self._hosts[name]
        number = len(self._hosts) + 1
        if number > _MAX_HOSTS:
            raise BadArgument(f"{_MAX_HOSTS} hosts are enough")
        folder = self._folder / f"host-{name}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        host = Host(name, f"{_SUBNET}.{number}", folder, self._next_keeper(), self._with_users)
        self._connect(host, number)
        self._hosts[name] = host
        for other in self._hosts.values():
            if other is not host:
                self._direct(other, host, _card(number))
                self._direct(host, other, _card(self._number(other)))
        return host

    def _first_keeper(self) -> int:
        """Start a process with a network of its own, which ends when we do; return its pid."""
        if os.geteuid() == 0 and self._try_keeper(["unshare", "--net"]):
            return self._keepers[-1].pid
        self._with_users = True
        if self._try_keeper(["unshare", "--user", "--map-root-user", "--net"]):
            return self._keepers[-1].pid
        raise DataPlaneUnavailable(
            "no network namespaces here: we are not root, or not allowed, and no user namespaces"
        )

    def _next_keeper(self) -> int:
        """The same, for one more network beside the first."""
        if self._try_keeper([*_inside(self._switch, with_users=self._with_users), "unshare", "--net"]):
            return self._keepers[-1].pid
        raise DataPlaneUnavailable("no more network namespaces here")

    def _try_keeper(self, become: list[str]) -> bool:
        """``cat`` reads our pipe until we are gone; when it has given a byte back, it is where it should be."""
        try:
            keeper = subprocess.Popen(
                [*become, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as missing:
            raise DataPlaneUnavailable(f"no network namespaces here: {missing}") from missing
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(b".")
        if keeper.stdout.read(1) == b".":
            self._keepers.append(keeper)
            return True
        _end(keeper)
        return False

    # -- cables -------------------------------------------------------------------------------------------------------

    def _make_switch(self) -> None:
        self._run(self._switch, ["sh", "-c", _NO_IPV6])
        self._on(self._switch, f"ip link add {_SWITCH} type bridge mcast_snooping 0")
        self._on(self._switch, f"ip link set {_SWITCH} up")
        self._on(self._switch, f"ip link add {_SINK} type veth peer name {_SINK}-end")
        self._on(self._switch, f"ip link set {_SINK} master {_SWITCH}")  # and no other traffic may reach it:
        self._on(self._switch, f"ip link set {_SINK} type bridge_slave flood off mcast_flood off bcast_flood off")
        for end in (_SINK, f"{_SINK}-end"):
            self._on(self._switch, f"ip link set {end} up")
        self._on(self._switch, f"bridge fdb add {_NOBODY} dev {_SINK} master static")

    def _connect(self, host: Host, number: int) -> None:
        port, card = _port(number), _card(number)
        self._on(self._switch, f"ip link add {port} type veth peer name eth0 address {card} netns {host.pid}")
        self._on(self._switch, f"ip link set {port} master {_SWITCH} up")
        self._on(host.pid, f"ip addr add {host.address}/24 dev eth0")
        self._on(host.pid, "ip link set lo up")
        self._on(host.pid, "ip link set eth0 addrgenmode none up")

    def _direct(self, sender: Host, receiver: Host, card: str) -> None:
        """What ``sender`` sends to ``receiver`` goes to this card; nobody asks the network who has the address."""
        self._on(sender.pid, f"ip neigh replace {receiver.address} lladdr {card} dev eth0 nud permanent")

    def _number(self, host: Host) -> int:
        return int(host.address.rpartition(".")[2])

    def _on(self, pid: int, command: str) -> str:
        return self._run(pid, command.split())

    def _run(self, pid: int, command: list[str]) -> str:
        argv = [*_inside(pid, with_users=self._with_users), *command]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_TOOL_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as bad:
            raise DataPlaneUnavailable(f"{' '.join(command)}: {bad}") from bad
        if done.returncode:
            why = done.stderr.strip() or f"exit code {done.returncode}"
            raise DataPlaneUnavailable(f"{' '.join(command)}: {why}")
        return done.stdout

    # -- faults -------------------------------------------------------------------------------------------------------

    def partition(self, a: str, b: str, *, one_way: bool = False) -> None:
        """What ``a`` sends does not reach ``b`` any more, and unless ``one_way`` nor does what ``b`` sends ``a``."""
        for sender, receiver in [(a, b)] if one_way else [(a, b), (b, a)]:
            self._direct(self.host(sender), self.host(receiver), _NOBODY)
            self._cut.add((sender, receiver))

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Mend what is cut, in both directions: between ``a`` and ``b``, around ``a``, or everywhere."""
        concerned = {name for name in (a, b) if name is not None}
        for sender, receiver in sorted(cut for cut in self._cut if concerned <= set(cut)):
            to = self.host(receiver)
            self._direct(self.host(sender), to, _card(self._number(to)))
            self._cut.discard((sender, receiver))

    def flapping(self, a: str, b: str, *, down_s: float, up_s: float) -> Flaps:
        """Return what cuts and mends this connection in turn, from ``with`` to its end; in the end it is mended."""
        return Flaps(lambda: self.partition(a, b), lambda: self.heal(a, b), down_s, up_s)

    def unplug(self, name: str) -> None:
        """Pull the host's cable: its own kernel sees that the line is dead, and still says nothing to who sends."""
        self._on(self._switch, f"ip link set {_port(self._number(self.host(name)))} down")

    def plug(self, name: str) -> None:
        """Put it in again."""
        self._on(self._switch, f"ip link set {_port(self._number(self.host(name)))} up")

    @property
    def swallowed(self) -> int:
        """Packets that were sent into cuts so far: the proof that a cut was one."""
        (link,) = json.loads(self._on(self._switch, f"ip -json -statistics link show dev {_SINK}-end"))
        return int(link["stats64"]["rx"]["packets"])

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take it all down; what still runs on a host keeps that host, without a cable. Idempotent."""
        keepers, self._keepers = self._keepers, []
        for keeper in reversed(keepers):
            _end(keeper)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        cut = ", ".join(f"{a}->{b}" for a, b in sorted(self._cut))
        return f"Network({sorted(self._hosts)}, cut: {cut or 'nothing'})"


def _card(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def _port(number: int) -> str:
    return f"port{number}"


def _end(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.close()
    keeper.stdout.close()
    keeper.wait()
