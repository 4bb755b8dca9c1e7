"""A plane and the agents of its hosts, as processes, and clients on any of those hosts."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.config import ClientConfig
from penstock.plane.remote import RemoteDataPlaneClient
from penstock.wire import paths
from penstock.wire.auth import read_token
from tests.host.harness import AgentProcess, TcpPlane


class Site:
    """``with`` closes its clients, kills its processes and removes their shared memory."""

    def __init__(
        self,
        folder: Path,
        hosts: str = "ab",
        flags: tuple[str, ...] = (),
        plane_flags: tuple[str, ...] = (),
        **config: Any,
    ) -> None:
        self.folder, self.flags = folder, flags
        self.plane = TcpPlane(folder / "plane", 0, plane_flags, **config)
        self.agents = {name: AgentProcess(folder / name, self.plane, *flags) for name in hosts}
        self.clients: list[RemoteDataPlaneClient] = []

    @property
    def token(self) -> bytes:
        return read_token(self.plane.token_file)

    def client(self, host: str = "a", **config: Any) -> RemoteDataPlaneClient:
        """A client on that host, with a patience that a loaded machine needs."""
        options = ClientConfig(**{"timeout_s": 40.0, **config})
        made = RemoteDataPlaneClient(self.plane.url, self.token, host_dir=self.folder / host, config=options)
        self.clients.append(made)
        return made

    def start(self, name: str) -> None:
        """The next life of an agent that has ended."""
        self.agents[name].__exit__()
        self.agents[name] = AgentProcess(self.folder / name, self.plane, *self.flags)

    def restart(self, name: str) -> None:
        """Kill an agent, and start its next life."""
        self.agents[name].kill()
        self.start(name)

    def restart_plane(self, **config: Any) -> None:
        """Kill the plane, and start its next life."""
        self.plane.kill()
        self.plane = self.plane.again(**config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self.clients:
            client.close()
        for agent in self.agents.values():
            agent.__exit__()
            for name in agent.segments():
                (paths.SHM_DIR / name).unlink(missing_ok=True)
        self.plane.__exit__()
