"""A plane and agents on hosts of a network, started as users start them, and how a process of a crew comes to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from penstock import connect
from penstock.plane.client import PlaneClient
from penstock.testing.network import Host, Network
from penstock.wire import paths
from tests.faults.actors import registered

PORT = 7000
MIB = 1 << 20
END_S = 30.0
PLANE, HOSTS = "plane", ("a", "b")
CONFIG = {"heartbeat_s": 0.5, "dead_after_s": 2.0, "resume_grace_s": 2.0, "host_grace_s": 60.0}


class Served:
    """A program of the command line on a host, and its shared memory."""

    def __init__(self, host: Host, folder: Path, *words: str) -> None:
        self.host, self.folder = host, folder
        folder.mkdir(mode=0o700, exist_ok=True)
        self._argv = [sys.executable, "-m", "penstock", *words, "--json"]
        self.process: subprocess.Popen[bytes] | None = None
        self.said: Any = None

    def start(self) -> Self:
        log = (self.folder.parent / f"{self.folder.name}.stderr").open("ab")
        with log:
            self.process = self.host.start(self._argv, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, Path(log.name).read_text()
        self.said = json.loads(line)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.process.returncode

    def remove(self) -> None:
        """Kill what runs, and remove what it left in shared memory."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for path in paths.SHM_DIR.glob(f"penstock-{paths.plane_id(self.folder)}-*"):
            path.unlink(missing_ok=True)


class Site:
    """A plane on a host of its own, and an agent on each of the hosts a and b."""

    def __init__(self, network: Network, *, config: dict[str, object] | None = None) -> None:
        self.network = network
        host = network.host(PLANE)
        self.url = f"penstock://{host.address}:{PORT}"
        self.token_file = host.folder / "served" / "token"
        options = [f"--set={name}={value}" for name, value in {**CONFIG, **(config or {})}.items()]
        where = ["--data-dir", str(self.token_file.parent), "--listen", f"{host.address}:{PORT}"]
        self.plane = Served(host, self.token_file.parent, "serve", *where, *options)
        self.agents = {name: self._agent(network.host(name)) for name in HOSTS}

    def _agent(self, host: Host) -> Served:
        folder = host.folder / "agent"
        words = ["--plane", self.url, "--token-file", str(self.token_file), "--dir", str(folder), "--name", host.name]
        return Served(host, folder, "host", *words, "--max-bytes", str(16 * MIB))

    def join(self, name: str, **options: object) -> Abroad:
        """How a process comes to the plane from host ``name``."""
        agent = self.agents[name]
        return Abroad(agent.host, self.url, self.token_file, agent.folder, tuple(options.items()))

    def ended(self) -> dict[str, int]:
        """End all in good order; their exit codes."""
        return {name: served.end() for name, served in [*self.agents.items(), (PLANE, self.plane)]}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for served in (self.plane, *self.agents.values()):
                stack.callback(served.remove)
                served.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@dataclass(frozen=True)
class Abroad:
    """Enters a host and connects from there. For processes of a crew: it can be handed to them."""

    host: Host
    url: str
    token_file: Path
    host_dir: Path
    options: tuple[tuple[str, object], ...] = ()

    def __call__(self, _: Path) -> PlaneClient:
        os.chdir(self.host.folder)
        self.host.enter()
        options: dict[str, Any] = {"timeout_s": 5.0, **dict(self.options)}
        client = connect(self.url, token_file=self.token_file, host_dir=self.host_dir, **options)
        assert isinstance(client, PlaneClient)
        return registered(client)
