"""Going on when the plane is away for a while: a role waits for its plane and repeats the call.

Invariant: only ``DataPlaneUnavailable`` (nothing happened) and ``DataPlaneTimeout`` (repeating is safe) are waited out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane.contract import DataPlaneClient
from penstock.retry import Deadline, reconnect_delays

__all__ = ["await_plane", "patiently"]

PING_S = 1.0

T = TypeVar("T")


def patiently(call: Callable[[], T], patience_s: float, sleep: Callable[[float], object] | None = None) -> T:
    """Return ``call()``, repeated while the plane is away; after ``patience_s`` its last error is raised."""
    delays = reconnect_delays(Deadline(patience_s), random.Random())
    while True:
        try:
            return call()
        except (DataPlaneUnavailable, DataPlaneTimeout):
            delay = next(delays, None)
            if delay is None:
                raise
            (sleep or time.sleep)(delay)


def await_plane(client: DataPlaneClient, patience_s: float, stop: Event) -> None:
    """Return when the plane answers a ping, or as soon as ``stop`` is set.

    Raises:
        DataPlaneUnavailable, DataPlaneTimeout: it did not within ``patience_s``.
    """

    def ping() -> None:
        if not stop.is_set():
            client.ping(timeout_s=PING_S)

    patiently(ping, patience_s, stop.wait)
