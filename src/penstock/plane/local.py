"""The embedded engine's client: metadata over the plane's Unix socket, payload bytes through shared memory.

Invariants: a call checks its arguments before anything is sent; every error is of the tree in ``errors``; a client that
is closed, collected or forked away leaves no view that depends on memory it does not pin; a client is fit for use by
several threads, each call with its own deadline.
"""

from __future__ import annotations

import logging
import os
import weakref
from pathlib import Path
from typing import NoReturn

from penstock import requests
from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import RefusedType
from penstock.plane import checks
from penstock.plane.again import pause
from penstock.plane.arenas import Arenas, Unpins
from penstock.plane.blocks import ArenaBlocks
from penstock.plane.client import CLOSE_S, PlaneClient, Putting, identity_of
from penstock.plane.dialing import LocalDialer
from penstock.plane.link import Link
from penstock.plane.puts import GRANT_AGAIN, Puts
from penstock.plane.reads import RE_READ, Reads
from penstock.plane.store_blocks import StoreBlocks
from penstock.plane.store_puts import STORE_AGAIN, StorePuts
from penstock.plane.stores import EXIT_S, Stores
from penstock.requests import Done, StatusReport
from penstock.retry import Deadline, Retrier

__all__ = ["LocalDataPlaneClient"]

log = logging.getLogger(__name__)


class LocalDataPlaneClient(PlaneClient):
    """A session on the plane of a data directory, which is started if none runs and none was ever served there.

    Args:
        data_dir: the plane's directory; None = a private plane, which ends with this client and leaves nothing.
        config: this client's behaviour.
        plane: how a plane that is started behaves; one that runs keeps its own configuration.
        start: False = only join a plane that runs: for looking, not for working.

    Raises:
        DataPlaneUnavailable: no plane answers within ``config.timeout_s``; says what was tried.
        BadArgument: the directory cannot be used.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        config: ClientConfig | None = None,
        plane: PlaneConfig | None = None,
        start: bool = True,
    ) -> None:
        config = config or ClientConfig()
        dialer = LocalDialer(data_dir, plane or PlaneConfig(), start=start)
        self.data_dir: Path = dialer.data_dir
        unpins = Unpins()
        self._arenas = Arenas(self.data_dir, unpins, config.integrity)
        try:
            link = Link(identity_of(config), dialer, before_end=self._arenas.end, before_exit=self._arenas.end_writing)
        except BaseException:
            dialer.tidy(parted=False)
            raise
        weakref.finalize(self, link.end).atexit = False  # the link has its own farewell
        unpins.link = link
        self._stores = Stores(link, config.store)
        weakref.finalize(self, self._stores.close, EXIT_S)
        puts: Putting = Puts(link, self._arenas, Retrier(GRANT_AGAIN), read_back=config.integrity == "paranoid")
        if config.store:
            puts = StorePuts(link, self._stores, Retrier(STORE_AGAIN, sleep=pause), config)
        blocks = StoreBlocks(ArenaBlocks(self._arenas), self._stores, config.integrity)
        super().__init__(config, link, puts, Reads(link, blocks, Retrier(RE_READ, sleep=pause)))
        try:
            deadline = self._deadline(None)
            link.ask(requests.Ping(), Done, deadline, method="connect")
            if plane is not None and plane != PlaneConfig():
                self._say_what_differs(plane, deadline)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = self._link.statistics()
        return (
            f"LocalDataPlaneClient({str(self.data_dir)!r}, {state.phase}, life {state.incarnation}, "
            f"{state.pending} calls under way, {self._arenas.live_views} views)"
        )

    def __reduce__(self) -> NoReturn:
        raise RefusedType(
            f"a client is one process's and cannot be pickled; make another with data_dir={str(self.data_dir)!r}"
        )

    def close(self, *, timeout_s: float | None = None) -> None:
        deadline = Deadline(checks.seconds(timeout_s, "timeout_s", CLOSE_S))
        self._stores.close(deadline.remaining())
        self._link.close(deadline.remaining())

    def _say_what_differs(self, wanted: PlaneConfig, deadline: Deadline) -> None:
        """A plane that runs keeps its configuration: who asked for another is told."""
        runs = self._link.ask(requests.Status(), StatusReport, deadline, method="connect")
        for name in ("durability", "max_bytes", "max_rows"):
            asked, has = getattr(wanted, name), getattr(runs, name)
            if asked not in (has, getattr(PlaneConfig(), name)):
                log.warning(
                    "the plane of %s runs with %s=%r and keeps it; asked for %r", self.data_dir, name, has, asked
                )
