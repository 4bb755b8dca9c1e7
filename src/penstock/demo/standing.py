"""How a run stands: what the controller counts and everybody else only reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Standing"]


@dataclass
class Standing:
    """Written by the controller's thread alone.

    Attributes:
        version: of the policy; -1 = no trainer has told yet.
        rewards: mean per step.
        rows_trained: rows popped.
        depth: groups in the plane, at the last look.
        notes: what went otherwise than straight to training, and how often.
        answered_at: when the plane last listed its groups, monotonic seconds.
    """

    version: int = -1
    rewards: list[float] = field(default_factory=list)
    rows_trained: int = 0
    depth: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    answered_at: float = 0.0
