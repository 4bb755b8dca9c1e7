"""Going on when the plane is away for a while: a role waits for its plane and repeats the call.

Invariant: only ``DataPlaneUnavailable`` (nothing happened) and ``DataPlaneTimeout`` (repeating is safe) are waited out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.retry import Deadline, reconnect_delays

__all__ = ["patiently"]

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
