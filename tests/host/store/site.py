"""A real plane, the agent of a store on a thread of this process, and clients: over a store in this process's memory.

The store's life is the test's: it can be restarted, and lose, damage or refuse what the test says.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.config import ClientConfig
from penstock.host.store.lifecycle import StoreOptions, serving
from penstock.parts import HostPlace
from penstock.payload.stores.contract import BlockStore, Failed, Full, Outcome, Value
from penstock.payload.stores.memory import MemoryStore, Shelf
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.stores import block_key
from penstock.reports import HostStatus
from penstock.retry import Deadline
from penstock.server.startup import Starter
from tests.server.harness import DEADLINE_S, PlaneProcess, eventually

URL = "memory://pool"


class FaultyStore(MemoryStore):
    """A store in memory with which goes wrong what ``faults`` says."""

    def __init__(self, shelf: Shelf, faults: Faults) -> None:
        super().__init__(shelf)
        self._faults = faults

    def put_many(self, keys: Sequence[str], values: Sequence[Value], deadline: Deadline) -> list[Outcome]:
        self._faults.before_put()
        if self._faults.full:
            return [Full() for _ in keys]
        if self._faults.down:
            return [Failed("TRANSFER_FAIL") for _ in keys]
        done = super().put_many(keys, values, deadline)
        self._faults.puts += len(keys)
        self._faults.after_put(keys)
        return done

    def get_many(self, keys: Sequence[str], sizes: Sequence[int] | None, deadline: Deadline) -> list[Outcome]:
        if self._faults.down:
            return [Failed("TRANSFER_FAIL") for _ in keys]
        return super().get_many(keys, sizes, deadline)

    def remove_many(self, keys: Sequence[str], deadline: Deadline) -> list[Outcome]:
        if self._faults.down:
            return [Failed("RPC_FAIL") for _ in keys]
        return super().remove_many(keys, deadline)


class Faults:
    """What goes wrong with the store, for all its clients at once.

    Attributes: down: calls fail; full: there is no room; before_put, after_put: called; puts: blocks written so far.
    """

    def __init__(self) -> None:
        self.down = False
        self.full = False
        self.puts = 0
        self.before_put: Callable[[], None] = lambda: None
        self.after_put: Callable[[Sequence[str]], None] = lambda keys: None


class InThread:
    """The agent of a store, in a thread of this process. ``end`` is a clean end; ``said``: its first word."""

    def __init__(self, options: StoreOptions, opened: Callable[[str], BlockStore]) -> None:
        reading, writing = os.pipe()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[int] | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(options, Starter(writing), opened), name="store-agent")
        self._thread.start()
        with os.fdopen(reading) as pipe:
            self.said = pipe.readline().strip()

    def _run(self, options: StoreOptions, starter: Starter, opened: Callable[[str], BlockStore]) -> None:
        try:
            self._task = self._loop.create_task(serving(options, starter, opened))
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except Exception as error:  # shown by the test that asked for it
            self.error = error
            starter.say(f"error: {error}")
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def end(self) -> None:
        if self._thread.is_alive() and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the agent does not end"


class StoreSite:
    """``with`` ends its clients, its agent and its plane."""

    def __init__(self, folder: Path, *, agent: bool = True, **config: Any) -> None:
        self.folder = folder
        self.shelf = Shelf(name="pool")
        self.faults = Faults()
        self.plane = PlaneProcess(folder / "plane", **config)
        self.clients: list[LocalDataPlaneClient] = []
        self.agent: InThread | None = None
        if agent:
            self.start_agent()

    def opened(self, url: str) -> BlockStore:
        assert url == URL
        return FaultyStore(self.shelf, self.faults)

    def start_agent(self, options: StoreOptions | None = None) -> InThread:
        options = options or StoreOptions(store=URL, data_dir=self.plane.data_dir, name="pool")
        self.agent = InThread(options, self.opened)
        assert self.agent.said.startswith("ready "), self.agent.said
        return self.agent

    def end_agent(self) -> None:
        assert self.agent is not None
        self.agent.end()

    def restart_plane(self, **config: Any) -> None:
        self.plane.kill()
        self.plane = PlaneProcess(self.plane.data_dir, **config)

    def client(self, **config: Any) -> LocalDataPlaneClient:
        """A client that puts into the store."""
        options = ClientConfig(**{"timeout_s": 30.0, "store": "memory", **config})
        made = LocalDataPlaneClient(self.plane.data_dir, config=options, start=False)
        made._stores._opened = self.opened
        self.clients.append(made)
        return made

    def host(self) -> HostStatus:
        """The store, as the plane knows it."""
        (status,) = [host for host in self.clients[0].status().hosts if host.place.store]
        return status

    def place(self) -> HostPlace:
        return self.host().place

    def keys(self) -> list[str]:
        """What lies in the store."""
        return sorted(self.shelf._values)

    def key_of(self, block_id: int) -> str:
        return block_key(self.place().host_id, block_id)

    def until_empty(self) -> None:
        """Wait until everything has been freed."""
        eventually("everything is freed", lambda: not self.keys())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self.clients:
            client.close()
        if self.agent is not None:
            self.agent.end()
        self.plane.__exit__()
