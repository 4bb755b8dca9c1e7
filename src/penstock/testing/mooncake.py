"""A real Mooncake on this machine, for tests, benches and the demo: a master and processes that own segments.

    with MooncakeCluster(folder, owners=2) as cluster:
        store = open_store(cluster.url)
        cluster.kill_owner(0)

Invariants: it is ready when it is made, or it raises and leaves nothing; every process is of one group that a guard
ends when this process does, however that ends; the master keeps its ports across restarts; eviction is off unless asked
for. Logs lie in ``folder``. Not thread-safe; readiness is asked for over HTTP, for there is nothing to wait on.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from penstock.errors import BadArgument, DataPlaneUnavailable, MissingExtra

if TYPE_CHECKING:
    from penstock.payload.stores.mooncake.config import MooncakeConfig

__all__ = ["MooncakeCluster", "Owner", "unavailable"]

MIB = 1 << 20
READY_S = 20.0
_PORTS = (20_000, 32_000)  # below what Linux gives to connections, above what Mooncake picks at random
_PORT_TRIES = 100
_LISTEN = "0A"  # include/net/tcp_states.h
_TRIES = 3  # a free port may be taken by somebody else before its server binds it
_LOOK_S = 0.02
_ASK_S = 2.0
_LOG_TAIL = 600
_LIBRARIES = "libibverbs1 libnuma1 libcurl4"
_GUARD = "read line; kill -9 0"  # its standard input ends when we do
_NO_EVICTION = ("--eviction_high_watermark_ratio=1.0", "--eviction_ratio=0")


class Start(Protocol):
    """Starts a program: ``subprocess.Popen``, or ``Host.start`` of ``testing.network``."""

    def __call__(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]: ...


def _popen(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, **options)


def unavailable() -> str | None:
    """Why no Mooncake can run here; None = it can."""
    try:
        binaries = _binaries()
    except MissingExtra as missing:
        return str(missing)
    return _cannot_run(binaries / "mooncake_master")


@dataclass(eq=False)
class Owner:
    """A process that lends its memory to the store.

    Attributes:
        segment: the name that the master knows its memory by (``preferred_segment``); host and port, of no listener.
    """

    process: subprocess.Popen[bytes]
    segment: str
    log: Path
    paused: bool = field(default=False)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


class MooncakeCluster:
    """One master and its segment owners.

    Args:
        folder: for logs; made if it is not there.
        owners: processes that own a segment each, at the start.
        segment_bytes: of each.
        client_ttl_s: how long the master believes in an owner that is silent.
        lease_ms: for how long a value that was read cannot be removed without force.
        evicting: leave Mooncake's default eviction on, which drops values in silence.
        host: where all of it listens.
        master_flags: more of ``mooncake_master``'s.
        start: starts the master, and owners that are started without one of their own.

    Raises:
        MissingExtra: the package is not installed, or a library that it needs.
        DataPlaneUnavailable: it was not ready in time; the message has the end of the log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        owners: int = 1,
        segment_bytes: int = 64 * MIB,
        client_ttl_s: int = 10,
        lease_ms: int = 10_000,
        evicting: bool = False,
        host: str = "127.0.0.1",
        master_flags: Sequence[str] = (),
        start: Start = _popen,
    ) -> None:
        if owners < 0 or segment_bytes < 16 * MIB:
            raise BadArgument(f"owners must be 0 or more and segments 16 MiB or more; got {owners}, {segment_bytes}")
        self.host = host
        self.owners: list[Owner] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self._binaries = _binaries()
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._start = start
        self._ports = _free_ports(host)
        self._flags = [
            f"--client_ttl={client_ttl_s}",
            f"--default_kv_lease_ttl={lease_ms}",
            *(() if evicting else _NO_EVICTION),
            *master_flags,
        ]
        self._closed = False
        folder.mkdir(parents=True, exist_ok=True)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0
        )
        try:
            self._first_master()
            for _ in range(owners):
                self.start_owner()
        except BaseException:
            self.close()
            raise

    # -- where it is --------------------------------------------------------------------------------------------------

    @property
    def master_address(self) -> str:
        return f"{self.host}:{self._ports.rpc}"

    @property
    def metadata_url(self) -> str:
        return f"http://{self.host}:{self._ports.metadata}/metadata"

    @property
    def metrics_address(self) -> tuple[str, int]:
        return self.host, self._ports.metrics

    @property
    def url(self) -> str:
        """What ``open_store`` and ``connect(store=...)`` take."""
        metadata = urllib.parse.quote(self.metadata_url, safe=":/")
        return f"mooncake://{self.master_address}?metadata={metadata}&metrics={_joined(self.metrics_address)}"

    def config(self, **changes: Any) -> MooncakeConfig:
        """The configuration of a client that lends no memory, with ``changes``."""
        from penstock.payload.stores.mooncake.config import MooncakeConfig

        addresses = {"master": self.master_address, "metadata": self.metadata_url}
        return MooncakeConfig(**addresses | {"metrics": _joined(self.metrics_address)} | changes)

    def segments(self) -> list[str]:
        """The segments that the master knows now: dead owners' too, for as long as it believes in them.

        Raises:
            DataPlaneUnavailable: the master does not answer.
        """
        return self._ask("/get_all_segments").split()

    def metric(self, name: str) -> float:
        """One number of the master's own account, as ``master_allocated_bytes``.

        Raises:
            BadArgument: it has no such number.
        """
        found = re.search(rf"^{re.escape(name)} (\S+)$", self._ask("/metrics"), re.MULTILINE)
        if found is None:
            raise BadArgument(f"the master has no metric {name!r}")
        return float(found[1])

    # -- what happens to it -------------------------------------------------------------------------------------------

    def kill_master(self) -> int:
        """As ``kill -9``: it forgets every key; the owners keep their bytes and nobody knows what they are.

        Returns what it ended of, as ``subprocess`` counts: minus the signal's number.
        """
        _kill(self._master)
        return int(self._master.wait())

    def restart_master(self, *, timeout_s: float = READY_S) -> None:
        """Kill it if it lives, start it on its old ports and wait until the living owners are back in."""
        self.kill_master()
        until = time.monotonic() + timeout_s
        self._master = self._start_master()
        self._wait_for_master(until)
        expected = {owner.segment for owner in self.owners if owner.alive and not owner.paused}
        self._wait(lambda: expected <= set(self.segments()), self._master, "master.log", "an owner's return", until)

    def pause_master(self) -> None:
        """As a machine that hangs: connections stay, nobody answers. Until ``resume_master``."""
        self._master.send_signal(signal.SIGSTOP)

    def resume_master(self) -> None:
        self._master.send_signal(signal.SIGCONT)

    def start_owner(self, *, host: str | None = None, start: Start | None = None, timeout_s: float = READY_S) -> int:
        """Add an owner and wait until the master knows its segment; returns its number."""
        until = time.monotonic() + timeout_s
        number, host = len(self.owners), host or self.host
        before = set(self.segments())
        log = self._folder / f"owner{number}.log"
        process = self._spawn(
            "mooncake_client",
            [
                f"--host={host}",
                f"--port={_free_port(host)}",
                f"--global_segment_size={self._segment_bytes}",
                f"--master_server_address={self.master_address}",
                f"--metadata_server={self.metadata_url}",
                "--protocol=tcp",
            ],
            log,
            start or self._start,
            env=os.environ | {"MC_TCP_BIND_ADDRESS": host},  # else: the machine's first interface, for all the world
        )
        try:
            self._wait(lambda: bool(set(self.segments()) - before), process, log.name, "an owner's segment", until)
        except BaseException:
            _kill(process)
            raise
        (segment,) = set(self.segments()) - before
        self.owners.append(Owner(process, segment, log))
        return number

    def kill_owner(self, number: int) -> None:
        """As ``kill -9``: its bytes are gone; the master learns of it ``client_ttl_s`` later."""
        _kill(self.owners[number].process)

    def pause_owner(self, number: int) -> None:
        """As a machine that hangs: transfers to and from it neither end nor fail. Until ``resume_owner``."""
        self.owners[number].process.send_signal(signal.SIGSTOP)
        self.owners[number].paused = True

    def resume_owner(self, number: int) -> None:
        self.owners[number].process.send_signal(signal.SIGCONT)
        self.owners[number].paused = False

    def data_address(self, number: int) -> tuple[str, int]:
        """Where clients opened from now on send and fetch the bytes of an owner."""
        found = self._segment_record(number)
        return str(found["tcp_data_host"]), int(found["tcp_data_port"])

    def reroute(self, number: int, address: tuple[str, int]) -> None:
        """Send clients that are opened from now on to ``address`` for an owner's bytes: a proxy before it."""
        record = self._segment_record(number) | {"tcp_data_host": address[0], "tcp_data_port": address[1]}
        self._metadata(number, "PUT", json.dumps(record).encode())

    # -- its end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End every process. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._guard.pid, signal.SIGKILL)  # the guard is not reaped before: the number is still its own
        for process in self._started:
            process.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        alive = sum(owner.alive for owner in self.owners)
        state = "closed" if self._closed else "up" if self._master.poll() is None else "master down"
        return f"MooncakeCluster({self.master_address}, {state}, {alive} of {len(self.owners)} owners alive)"

    # -- how ----------------------------------------------------------------------------------------------------------

    def _first_master(self) -> None:
        for is_last in [False] * (_TRIES - 1) + [True]:
            self._master = self._start_master()
            try:
                self._wait_for_master(time.monotonic() + READY_S)
            except MissingExtra:
                raise
            except DataPlaneUnavailable:
                is_dead = self._master.poll() is not None  # as it is when a port is taken, after a second of life
                _kill(self._master)
                if is_last or not is_dead:
                    raise
                self._ports = _free_ports(self.host)
            else:
                break

    def _start_master(self) -> subprocess.Popen[bytes]:
        return self._spawn(
            "mooncake_master",
            [
                f"--rpc_address={self.host}",
                f"--rpc_port={self._ports.rpc}",
                "--enable_http_metadata_server=true",
                f"--http_metadata_server_host={self.host}",
                f"--http_metadata_server_port={self._ports.metadata}",
                f"--metrics_host={self.host}",
                f"--metrics_port={self._ports.metrics}",
                *self._flags,
            ],
            self._folder / "master.log",
            self._start,
        )

    def _spawn(
        self, program: str, flags: Sequence[str], log: Path, start: Start, **options: Any
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            process = start(
                [str(self._binaries / program), *flags],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=self._guard.pid,
                **options,
            )
        self._started.append(process)
        return process

    def _wait_for_master(self, until: float) -> None:
        self._wait(self._is_serving, self._master, "master.log", "the master", until)

    def _is_serving(self) -> bool:
        """Whether it answers, and it is ours that answers."""
        ready = json.loads(self._ask("/health")).get("service_ready")
        return bool(ready) and {self._ports.rpc, self._ports.metadata, self._ports.metrics} <= _listens_at(self._master)

    def _wait(
        self, ready: Callable[[], bool], process: subprocess.Popen[bytes], log: str, what: str, until: float
    ) -> None:
        """Wait until ``ready``, and no longer than ``process`` lives."""
        while True:
            with contextlib.suppress(DataPlaneUnavailable, ValueError):
                if ready():
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
                raise self._not_ready(f"{what}: the process ended with {process.returncode}", log)
            if time.monotonic() > until:
                raise self._not_ready(f"{what} was not there in time", log)

    def _not_ready(self, why: str, log: str) -> DataPlaneUnavailable:
        path = self._folder / log
        tail = path.read_text(errors="replace")[-_LOG_TAIL:] if path.exists() else ""
        if missing := re.search(r"error while loading shared libraries: (\S+?):", tail):
            return _no_library(missing[1])
        return DataPlaneUnavailable(f"{why}; {path} ends with: {tail.strip() or 'nothing'}")

    def _ask(self, path: str) -> str:
        status, body = _http(self.metrics_address, "GET", path)
        if status != http.HTTPStatus.OK:
            raise DataPlaneUnavailable(f"the master answers {status} to {path}")
        return body.decode(errors="replace")

    def _segment_record(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._metadata(number, "GET"))
        return found

    def _metadata(self, number: int, method: str, body: bytes | None = None) -> bytes:
        key = urllib.parse.quote(f"mooncake/ram/{self.owners[number].segment}", safe="")
        status, answer = _http((self.host, self._ports.metadata), method, f"/metadata?key={key}", body)
        if status != http.HTTPStatus.OK:
            raise DataPlaneUnavailable(f"the metadata server answers {status} about owner {number}")
        return answer


# -- the package and the machine --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ports:
    rpc: int
    metadata: int
    metrics: int


def _binaries() -> Path:
    found = importlib.util.find_spec("mooncake")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    for folder in folders:
        if (folder / "mooncake_master").exists():
            return folder
    raise MissingExtra(f"no mooncake_master here: pip install 'penstock[mooncake]' (and, on Debian, {_LIBRARIES})")


def _cannot_run(binary: Path) -> str | None:
    if not os.access(binary, os.X_OK):
        return f"{binary} may not be executed"
    tried = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=READY_S, check=False)
    missing = re.search(r"error while loading shared libraries: (\S+?):", tried.stderr)
    return str(_no_library(missing[1])) if missing else None


def _no_library(name: str) -> MissingExtra:
    return MissingExtra(f"Mooncake needs {name}, which is not installed; on Debian: apt-get install {_LIBRARIES}")


def _free_port(host: str) -> int:
    """A port that nobody listens at, and that no connection is given as its own: those begin higher.

    Raises:
        DataPlaneUnavailable: none was found.
    """
    for _ in range(_PORT_TRIES):
        with contextlib.suppress(OSError), socket.create_server((host, port := random.randrange(*_PORTS))):
            return port
    raise DataPlaneUnavailable(f"no free port on {host} between {_PORTS[0]} and {_PORTS[1]}")


def _free_ports(host: str) -> _Ports:
    return _Ports(_free_port(host), _free_port(host), _free_port(host))


def _listens_at(process: subprocess.Popen[bytes]) -> set[int]:
    """The TCP ports at which a process listens, in whatever network it lives."""
    folder = Path(f"/proc/{process.pid}")
    found: set[int] = set()
    with contextlib.suppress(OSError):  # it has ended meanwhile
        held = {str(link.readlink()) for link in (folder / "fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in (folder / "net" / table).read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == _LISTEN and f"socket:[{inode}]" in held:
                    found.add(int(local.rpartition(":")[2], 16))
    return found


def _http(address: tuple[str, int], method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Ask once.

    Raises:
        DataPlaneUnavailable: nobody answers.
    """
    connection = http.client.HTTPConnection(*address, timeout=_ASK_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataPlaneUnavailable(f"nobody answers at {address[0]}:{address[1]}: {error}") from error
    finally:
        connection.close()


def _joined(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
