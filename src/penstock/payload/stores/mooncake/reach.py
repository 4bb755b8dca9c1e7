"""Whether a store answers, before the calls of its library that hold the interpreter's lock.

``setup`` and ``close`` keep the lock while they talk to the master: with one that does not answer (a wrong address, a
machine that hangs) every thread of the process stands still, deadlines and all. So a place is tried in a process of its
own before the first ``setup`` here, which ends at the deadline whatever it does; later the servers at that place are
asked over HTTP, and a client whose master does not answer is not closed but left behind.

Invariant: nothing here waits past its deadline.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
from typing import Protocol
from urllib.parse import urlsplit

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.mooncake.config import MooncakeConfig, address_of
from penstock.retry import Deadline

__all__ = ["Always", "Reach", "Reaching"]

_ASKING_S = 2.0
_TRIAL_S = 8.0
_TRIAL = """
import os, sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
code = store.setup(sys.argv[1], sys.argv[2], 0, 0, sys.argv[3], sys.argv[4], sys.argv[5])
if code == 0:
    store.close()
os._exit(0 if code == 0 else 3)
"""

_tried: set[tuple[str, str]] = set()  # places where a client was set up by another process


class Reaching(Protocol):
    """What is asked before a client is set up or closed."""

    def before_setup(self, deadline: Deadline) -> None:
        """Raise ``DataPlaneUnavailable`` if ``setup`` would not come back, or fail."""
        ...

    def before_close(self, deadline: Deadline) -> bool:
        """Whether ``close`` will come back."""
        ...


class Always:
    """For twins, which always come back."""

    def before_setup(self, deadline: Deadline) -> None: ...

    def before_close(self, deadline: Deadline) -> bool:  # noqa: ARG002
        return True


class Reach:
    """The real thing."""

    def __init__(self, config: MooncakeConfig) -> None:
        self._config = config

    def before_setup(self, deadline: Deadline) -> None:
        """See ``Reaching``."""
        trouble = self._trouble(deadline)
        if trouble:
            raise DataPlaneUnavailable(f"no store at {self._config.master}: {trouble}")
        place = (self._config.master, self._config.metadata)
        if place not in _tried:
            self._try(deadline.within(_TRIAL_S))
            _tried.add(place)

    def before_close(self, deadline: Deadline) -> bool:
        """See ``Reaching``. A master that is dead, not silent, does no harm: the library finds its port closed."""
        return not self._trouble(deadline, dead_is_trouble=False)

    def _trouble(self, deadline: Deadline, *, dead_is_trouble: bool = True) -> str:
        """Why nobody answers at one of the addresses; "" = all do."""
        config = self._config
        try:
            address = address_of(config.master, "master")
            socket.create_connection(address, min(_ASKING_S, deadline.remaining()) or 1e-3).close()
            for url in _http_of(config):
                _ask(url, min(_ASKING_S, deadline.remaining()) or 1e-3)
        except ConnectionRefusedError as error:
            return f"{error}" if dead_is_trouble else ""
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__} {error}".strip()
        return ""

    def _try(self, deadline: Deadline) -> None:
        config = self._config
        address = [config.host, config.metadata, config.protocol, config.devices, config.master]
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", _TRIAL, *address],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=deadline.remaining(),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DataPlaneUnavailable(
                f"what listens at {config.master} did not answer as a Mooncake master within {error.timeout:.1f} s"
            ) from error
        if done.returncode != 0:
            raise DataPlaneUnavailable(
                f"the store at {config.master} refuses clients (metadata {config.metadata}, protocol "
                f"{config.protocol!r}, host {config.host!r}): exit code {done.returncode} of a trial"
            )


def _http_of(config: MooncakeConfig) -> list[str]:
    """The URLs that answer as long as the master, or what it depends on, does."""
    urls = [f"{config.metadata}?key=penstock"] if config.metadata.startswith("http://") else []
    return [*urls, f"http://{config.metrics}/health"] if config.metrics else urls


def _ask(url: str, timeout_s: float) -> None:
    """Return when there is an answer, whatever it says."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        connection.getresponse().read(1)
    finally:
        connection.close()
