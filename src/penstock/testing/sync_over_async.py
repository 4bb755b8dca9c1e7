"""An async client as a blocking one: what is written for the contract, the conformance suite first, then runs on it.

    with BackgroundLoop() as loop:
        client = SyncOverAsync(AsyncDataPlaneClient(inner), loop)

Invariants: each call is one coroutine on the loop's thread, its result or error passed on unchanged; the methods are
made from the contract's, so that none can be forgotten.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from penstock.plane.aio import AsyncDataPlaneClient
from penstock.plane.contract import DataPlaneClient

__all__ = ["BackgroundLoop", "Driver", "SyncOverAsync"]

T = TypeVar("T")
_END_S = 10.0


class BackgroundLoop:
    """An event loop in a thread of its own, from ``with`` to its end; what is left running then is cancelled."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="penstock-background-loop", daemon=True)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop and return its result; for any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_S)
        self._loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Driver(DataPlaneClient):
    """What ``SyncOverAsync`` has besides the contract's methods.

    Attributes:
        facade: the async client.
        loop: where its coroutines run.
    """

    def __init__(self, facade: AsyncDataPlaneClient, loop: BackgroundLoop) -> None:
        self.facade = facade
        self.loop = loop


def _through(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method, updated=())  # not its __dict__, which says that it is abstract
    def call(self: Driver, *args: Any, **options: Any) -> Any:
        return self.loop.run(getattr(self.facade, name)(*args, **options))

    return call


_METHODS = {name: member for name, member in vars(DataPlaneClient).items() if callable(member) and name[0] != "_"}
SyncOverAsync: Callable[[AsyncDataPlaneClient, BackgroundLoop], DataPlaneClient] = type(
    "SyncOverAsync", (Driver,), {name: _through(name, method) for name, method in _METHODS.items()}
)
