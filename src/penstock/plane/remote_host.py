"""The agent of this machine as its clients see it: the memory that is mapped here, and the session that holds it.

Invariants: there is no link before memory is wanted and an agent is there, so that whoever only looks at metadata needs
none; no agent is ever started from here; what one link pinned or reserved is let go of through the same link.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from penstock.config import Integrity
from penstock.errors import DataPlaneUnavailable
from penstock.plane.arenas import Arenas, Unpins
from penstock.plane.courier import Identity
from penstock.plane.dialing import Starting, connected
from penstock.plane.link import Link
from penstock.requests import Status, StatusReport
from penstock.retry import Deadline
from penstock.wire import paths

__all__ = ["HostDialer", "OwnHost"]


class HostDialer:
    """Reaches the agent that serves ``host_dir``; ``plane`` is its plane's URL, for messages."""

    def __init__(self, host_dir: Path, plane: str) -> None:
        self.host_dir = host_dir
        self._plane = plane

    @property
    def address(self) -> str:
        return str(paths.socket_path(self.host_dir))

    @property
    def is_there(self) -> bool:
        """Whether an agent serves the directory, or served it until it was killed."""
        return self.host_dir.is_dir() and Path(self.address).exists()

    def dial(self) -> socket.socket:
        try:
            return connected(self.address)
        except BlockingIOError as full:
            why = f"the agent at {self.address} does not take connections (is it stopped?)"
            raise DataPlaneUnavailable(why) from full
        except OSError as failed:
            raise self.absent(failed.strerror or str(failed)) from failed

    def absent(self, why: str = "nothing is there") -> DataPlaneUnavailable:
        """Return the error of a client that has no agent."""
        return DataPlaneUnavailable(
            f"no agent of {self._plane} answers on this machine, at {self.host_dir} ({why}): start it with "
            f"`penstock host --plane {self._plane} --token-file FILE`, or name its directory with host_dir="
        )

    def start(self) -> Starting | None:
        return None

    def tidy(self, *, parted: bool) -> None:
        del parted

    def __repr__(self) -> str:
        return f"HostDialer({self.host_dir})"


class OwnHost:
    """This machine's agent, and what a client has of its memory. Thread-safe.

    Args:
        host_dir: the agent's directory.
        plane: its plane's URL, for messages.
        identity: the client's, the same as at the plane: the agent reports there which clients have ended.
        integrity: what a reader verifies.

    Attributes: arenas: the agent's.
    """

    def __init__(self, host_dir: Path, plane: str, identity: Identity, integrity: Integrity) -> None:
        self._dialer = HostDialer(host_dir, plane)
        self._identity = identity
        self._unpins = Unpins()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._closing = False
        self._known: tuple[int, int] = (0, 0)  # the agent's life, and the host's id that it told
        self.arenas = Arenas(host_dir, self._unpins, integrity)

    def begin(self) -> Link | None:
        """Return the link to the agent, made if there is one to be reached; None where there is none."""
        if self._link is None and self._dialer.is_there and os.getpid() == self._pid:
            with self._lock:
                if self._link is None and not self._closing:
                    self._link = self._unpins.link = Link(
                        self._identity,
                        self._dialer,
                        before_end=self.arenas.end,
                        before_exit=self.arenas.end_writing,
                    )
        return self._link

    def link(self, method: str) -> Link:
        """Return the link to the agent.

        Raises:
            DataPlaneUnavailable: this machine has none, says how to start it; or the client is closed.
        """
        link = self.begin()
        if link is None:
            raise DataPlaneUnavailable(
                f"{method}: {'the client is closed' if self._closing else self._dialer.absent()}"
            )
        return link

    def host_id(self, link: Link, deadline: Deadline, *, once: bool = False) -> int:
        """Return this host's id, which its agent knows.

        Raises:
            DataPlaneUnavailable, DataPlaneTimeout: it does not answer.
        """
        life, host_id = self._known
        if not host_id or life != link.incarnation:
            here = link.ask(Status(), StatusReport, deadline, once=once, method="connect").hosts
            if not here or here[0].place.life != link.incarnation:
                raise DataPlaneUnavailable(
                    f"who serves {self._dialer.address} is a plane and no agent: host_dir is the directory of an agent"
                )
            self._known = (link.incarnation, here[0].place.host_id)
        return self._known[1]

    def ask_to_end(self) -> None:
        """Let the link end, without waiting for it; fit for finalizers."""
        self._closing = True
        link = self._link
        if link is not None:
            link.end()

    def close(self, timeout_s: float) -> None:
        """Let go of all memory and end the session. Idempotent."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closing = True
        if self._link is None:
            self.arenas.end()
        else:
            self._link.close(timeout_s)

    def __repr__(self) -> str:
        state = "not in use" if self._link is None else repr(self._link)
        return f"OwnHost({self._dialer.host_dir}, {state}, {self.arenas.live_views} views)"
