"""Where a transport client takes time and chance from; tests bring their own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from penstock.retry import AsyncRetrier, Clock, Policy
from penstock.retry.backoff import RandomSource

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Clock, sleep and random source of one client; its deadlines are on ``clock``."""

    clock: Clock = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    rng: RandomSource = field(default_factory=random.Random)

    def retrier(self, policy: Policy, level: int) -> AsyncRetrier:
        """Return a retrier on this time; ``level`` is that of its rounds with failures in the log."""
        return AsyncRetrier(policy, clock=self.clock, sleep=self.sleep, rng=self.rng, level=level)
