"""How one world ended, whatever its kind."""

from __future__ import annotations

import msgspec

__all__ = ["Outcome"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One world.

    Attributes:
        violations: sentences; empty when all promises were kept.
        operations: calls of the plane.
        acknowledged, trained, evicted, recovered: rows, as the checker counts them.
        faults: that fired, by kind.
        run: of a world of a run: its steps, prompts and lives.
        hosts: of a world whose machines have agents: what became of blocks there.
    """

    seed: int
    violations: list[str]
    operations: int
    acknowledged: int
    trained: int
    evicted: int
    recovered: int
    faults: dict[str, int]
    virtual_s: float
    run: dict[str, int] = {}
    hosts: dict[str, int] = {}
    trace: list[str] = []
