"""The demo on Ray: a cluster of this machine, whose actors are the plane, an agent on each node, and the roles.

Plane and agents are those of ``penstock.launch``, and restarted by it; a role's actor holds its process, and the
launcher makes the next one, as it does without Ray. Invariants: to ``Processes`` each of them is a child like any
other; what was struck by ``ray.kill`` has ended when its successor serves, or when Ray says that the actor is dead;
after ``close`` there is no Ray, no process and no folder of its.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from penstock.demo.processes import MUTE, Child, Spawn, kind_of, role_command, role_environment
from penstock.demo.site import Site, host_of
from penstock.demo.spec import RunFiles
from penstock.errors import DataPlaneError
from penstock.launch.asking import ray_module
from penstock.launch.cluster import Actors
from penstock.launch.keeper import Standing
from penstock.launch.orders import HostOrders
from penstock.launch.ray import RayPlane, access, start

__all__ = ["RaySite", "RoleActor"]

_NAME = "demo"
_SECOND = "127.0.0.2"  # Ray gives the first node the machine's own address
_CPUS = 16  # logical: nobody asks for any
_STORE_BYTES = 80 << 20  # of Ray's object store, in which only letters lie
_ARENA_BYTES = 256 << 20
_LINGER_S = 5.0
_LOOK_S = 0.25
_ANSWER_S = 0.2
_END_S = 20.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RoleActor:
    """A role's process on a node, and its two pipes. Calls of one concurrency group are carried out in their order."""

    def __init__(self, root: Path, peer: str, log: Path) -> None:
        found = access(_NAME)
        there = RunFiles(root).access(host_of(peer))
        fresh = there.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(found))
        fresh.replace(there)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                role_command(root, peer),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env=role_environment(root),
            )

    def pid(self) -> int:
        return self._process.pid

    def words(self) -> Iterator[bytes]:
        """Yield what it says, line by line, until it has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:  # noqa: UP028 - Ray sends into the generator, which a file does not take
            yield line

    def tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def hang_up(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def status(self) -> int:
        return self._process.wait()


class RaySite(Site):
    """Args: count: of nodes, 1 or 2; files: of the run."""

    def __init__(self, count: int, files: RunFiles) -> None:
        super().__init__(1, files.root)
        self._ray = ray_module()
        self._files = files
        self.hosts = (str(self._ray.util.get_node_ip_address()), _SECOND)[:count]
        self._cluster: Any = None
        self._folder = Path()
        self._before: dict[str, str | None] = {}
        self._plane: RayPlane | None = None
        self._board: _Board | None = None

    @property
    def spawn(self) -> Spawn:
        return self._spawned

    def folders(self, files: RunFiles) -> list[Path]:
        return [files.plane, *(files.root / "hosts" / host for host in self.hosts)]

    def _spawned(self, peer: str, log: Path) -> Child:
        kind = kind_of(peer)
        if kind not in MUTE:
            return _Role(self._ray, self._role(peer, log))
        if self._board is None:
            self._begin()
        assert self._board is not None
        return _Kept(self._board, "plane" if kind == "plane" else self.hosts[host_of(peer)])

    def _role(self, peer: str, log: Path) -> Any:
        make = self._ray.remote(
            num_cpus=0,
            max_restarts=0,
            resources={f"node:{self.hosts[min(host_of(peer), len(self.hosts) - 1)]}": 0.001},
            concurrency_groups={"ear": 1, "mouth": 1, "hand": 1},
        )
        return make(RoleActor).remote(self._files.root, peer, log)

    def _begin(self) -> None:
        """Start Ray, the plane and the agents."""
        from ray.cluster_utils import Cluster

        self._folder = Path(tempfile.mkdtemp(prefix="pr-"))  # sockets lie in it: a short name
        self._before = {name: os.environ.get(name) for name in (*_ENVIRONMENT, "RAY_TMPDIR")}
        os.environ.update(_ENVIRONMENT, RAY_TMPDIR=str(self._folder))  # where Ray notes which cluster is the latest
        self._cluster = Cluster()
        ray_folder = self._folder / "ray"
        ray_folder.mkdir()
        common = {"num_cpus": _CPUS, "object_store_memory": _STORE_BYTES}
        head = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        self._cluster.add_node(**common, **head, temp_dir=str(ray_folder))
        for address in self.hosts[1:]:
            self._cluster.add_node(**common, node_ip_address=address)
        self._ray.init(address=self._cluster.address, namespace=_NAME, log_to_driver=False, logging_level="ERROR")
        spec = self._files.spec()
        self._plane = start(
            _NAME,
            data_dir=self._files.root,
            plane=_options(spec.plane),
            hosts=HostOrders(max_bytes=_ARENA_BYTES),
            linger_s=_LINGER_S,
        )
        self._board = _Board(self._plane)

    def close(self) -> None:
        if self._cluster is None:
            return
        cluster, self._cluster = self._cluster, None
        with ExitStack() as ends:  # each happens, whatever becomes of those before it; the last one first
            ends.callback(shutil.rmtree, self._folder, ignore_errors=True)
            ends.callback(self._restore_environment)
            ends.callback(cluster.shutdown)
            ends.callback(self._ray.shutdown)
            if self._plane is not None:
                with suppress(DataPlaneError):  # what it holds is removed by whoever removes the run
                    self._plane.close(_END_S)

    def _restore_environment(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _options(assignments: tuple[str, ...]) -> dict[str, Any]:
    from penstock.ops.serve import plane_config

    config = plane_config("process", list(assignments))
    return {name: getattr(config, name) for name in config.__struct_fields__}


class _Board:
    """How plane and agents stand: looked at now and then, for all of them together."""

    def __init__(self, plane: RayPlane) -> None:
        self.plane = plane
        self._seen: dict[str, Standing] = {}
        self._next_at = 0.0

    def standing(self, role: str) -> Standing:
        now = time.monotonic()
        if now >= self._next_at:
            with suppress(DataPlaneError):  # nobody can say just now
                self._seen = self.plane.standing(_ANSWER_S)
            self._next_at = time.monotonic() + _LOOK_S
        return self._seen.get(role, Standing())

    def end(self, role: str) -> None:
        self._actor(role).end.remote()

    def kill(self, role: str, *, for_good: bool) -> None:
        ray_module().kill(self._actor(role), no_restart=for_good)

    def _actor(self, role: str) -> Any:
        actors = Actors(self.plane.name, self.plane.namespace)
        return actors.plane() if role == "plane" else actors.hosts()[role]


class _Kept:
    """The plane, or an agent: the process that its actor keeps at present. It is over when another one serves."""

    stdin = stdout = None

    def __init__(self, board: _Board, role: str) -> None:
        self._board, self._role = board, role
        self.returncode: int | None = None
        self.pid = board.standing(role).pid
        self._is_asked = False

    def poll(self) -> int | None:
        if self.returncode is None:
            now = self._board.standing(self._role)
            if now.state == "ended":
                self.returncode = now.code or 0
            elif now.state == "ready" and not self.pid:
                self.pid = now.pid
            elif now.state == "ready" and now.pid != self.pid:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def send_signal(self, sig: int) -> None:
        with suppress(DataPlaneError, KeyError):  # its actor is gone
            if sig == signal.SIGKILL:
                self._board.kill(self._role, for_good=self._is_asked)
            else:
                self._is_asked = True
                self._board.end(self._role)
        if sig == signal.SIGKILL and self._is_asked:
            self.returncode = -signal.SIGKILL


class _Role:
    """A role's process, by its actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._pid = actor.pid.remote()
        self._known_pid = 0
        self._asked: Any = None  # how it ended
        self.returncode: int | None = None
        self.stdin = _Mouth(actor)
        self.stdout = _Ear(ray, actor)

    @property
    def pid(self) -> int:
        """Of the process, not of the actor; 0 = not known yet."""
        if not self._known_pid:
            with suppress(self._ray.exceptions.RayError):
                self._known_pid = self._ray.get(self._pid, timeout=0)
        return self._known_pid

    def poll(self) -> int | None:
        if self.returncode is None and self.stdout.is_over.is_set():
            self._asked = self._asked or self._actor.status.remote()
            answered, _ = self._ray.wait([self._asked], timeout=0)
            if answered:
                self.returncode = self._status(self._asked)
                self._ray.kill(self._actor, no_restart=True)
        return self.returncode

    def _status(self, answer: Any) -> int:
        try:
            return int(self._ray.get(answer, timeout=_ANSWER_S))
        except self._ray.exceptions.RayActorError:  # the actor is dead, and its process with it
            return -signal.SIGKILL

    def send_signal(self, sig: int) -> None:
        if sig == signal.SIGKILL:
            self._ray.kill(self._actor, no_restart=True)
        else:
            self._actor.signal.options(concurrency_group="hand").remote(sig)


class _Mouth:
    """Its standard input. Whoever has died is told nothing."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def write(self, line: bytes) -> None:
        self._actor.tell.options(concurrency_group="mouth").remote(line)

    def flush(self) -> None:
        """What was written is on its way."""

    def close(self) -> None:
        self._actor.hang_up.options(concurrency_group="mouth").remote()


class _Ear:
    """Its standard output: lines, until the process has ended or its actor has died."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.is_over = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None) -> None:
        self.is_over.set()

    def __iter__(self) -> Iterator[bytes]:
        said = self._actor.words.options(num_returns="streaming", concurrency_group="ear").remote()
        with suppress(self._ray.exceptions.RayActorError):
            for line in said:
                yield self._ray.get(line)
