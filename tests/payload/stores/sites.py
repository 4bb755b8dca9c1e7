"""Where a store stands, for the suite: the twin in memory, the store on a fake Mooncake, the store on a real one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from penstock.payload.stores.contract import BlockStore
from penstock.payload.stores.memory import MemoryStore, Shelf
from penstock.payload.stores.mooncake.store import MooncakeStore
from penstock.retry import Deadline
from penstock.testing.fake_mooncake import FakeMooncake
from penstock.testing.mooncake import MooncakeCluster
from tests.payload.stores.rigs import MIB, Clock

_serial = itertools.count(1)


class Site(Protocol):
    def open(self, **options: Any) -> BlockStore: ...
    def deadline(self, timeout_s: float = 30.0) -> Deadline: ...
    def key(self, name: str) -> str: ...
    def restart(self) -> None: ...


class Keys:
    """Keys of one test: a store may be everybody's."""

    def __init__(self) -> None:
        self._prefix = f"suite{next(_serial)}"

    def key(self, name: str) -> str:
        return f"{self._prefix}/{name}"


class MemorySite(Keys):
    def __init__(self, capacity_bytes: int = 256 * MIB) -> None:
        super().__init__()
        self._shelf = Shelf(capacity_bytes)
        self._clock = Clock()

    def open(self, **options: Any) -> BlockStore:
        return MemoryStore(self._shelf, clock=self._clock, **options)

    def deadline(self, timeout_s: float = 30.0) -> Deadline:
        return Deadline(timeout_s, self._clock)

    def restart(self) -> None:
        self._shelf.restart()


class FakeSite(Keys):
    """Time passes when a retry waits."""

    def __init__(self, stack: ExitStack, segment_bytes: int = 64 * MIB) -> None:
        super().__init__()
        self.clock = Clock()
        self.fake = stack.enter_context(FakeMooncake([segment_bytes] * 2, clock=self.clock))
        self._stack = stack

    def open(self, *, on_restarted: Callable[[str], None] | None = None, **settings: Any) -> MooncakeStore:
        store = MooncakeStore(
            self.fake.config(**settings),
            library=self.fake,
            ask=self.fake.ask,
            clock=self.clock,
            sleep=self.sleep,
            on_restarted=on_restarted,
        )
        return self._stack.enter_context(store)

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds

    def deadline(self, timeout_s: float = 30.0) -> Deadline:
        return Deadline(timeout_s, self.clock)

    def restart(self) -> None:
        self.fake.restart_master()


class RealSite(Keys):
    def __init__(self, stack: ExitStack, cluster: MooncakeCluster) -> None:
        super().__init__()
        self._cluster = cluster
        self._stack = stack

    def open(self, *, on_restarted: Callable[[str], None] | None = None, **settings: Any) -> BlockStore:
        store = MooncakeStore(self._cluster.config(**settings), on_restarted=on_restarted)
        return self._stack.enter_context(store)

    def deadline(self, timeout_s: float = 30.0) -> Deadline:
        return Deadline(timeout_s, time.monotonic)

    def restart(self) -> None:
        self._cluster.restart_master()
