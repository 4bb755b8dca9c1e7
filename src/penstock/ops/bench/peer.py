"""What a peer of the benchmark is: something that takes a batch and gives it back, lap by lap."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.ops.bench.batch import Batch

__all__ = ["Laps", "Peer"]


class Laps:
    """Seconds by the name of the operation."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def lap(self, operation: str) -> Iterator[None]:
        """Measure the body."""
        begun = time.perf_counter()
        yield
        self.seconds[operation] = time.perf_counter() - begun


class Peer(ABC):
    """One system under measurement, in a process of its own.

    ``turn`` puts a batch, reads it whole, reads a random half where the peer can select rows, and removes it, so that
    the next turn finds the peer as this one did. What it reads it verifies, outside the laps.
    """

    @abstractmethod
    def open(self) -> None:
        """Start what must run. Not measured."""

    @abstractmethod
    def turn(self, batch: Batch, number: int, laps: Laps) -> None:
        """Measure one turn.

        Raises:
            ValueError: what was read is not what was put.
        """

    @abstractmethod
    def close(self) -> None:
        """End everything ``open`` started; idempotent, and safe after a failed ``open``."""

    def versions(self) -> dict[str, str]:
        """What was measured, by package."""
        return {}
