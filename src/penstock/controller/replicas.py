"""Who takes part in a run: replicas by role, when each was last heard, and which roles have nobody. Pure bookkeeping.

Invariants: a role is vacant only after somebody held it; who was stopped does not bury the living when he wakes.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.controller.config import Role

__all__ = ["Replica", "Replicas"]


@dataclass(slots=True)
class Replica:
    """One of them. ``beats``: it says that it lives; another's end is reported by whoever watches it."""

    name: str
    role: Role
    heard_at: float
    beats: bool


class Replicas:
    """The living, by name."""

    def __init__(self, dead_after_s: float) -> None:
        self.dead_after_s = dead_after_s
        self.living: dict[str, Replica] = {}
        self.vacant_since: dict[Role, float] = {}  # roles that were held once

    def join(self, name: str, role: Role, now: float, *, beats: bool) -> bool:
        """Note a replica; return whether it is new. One that registers again is heard."""
        known = self.living.get(name)
        is_new = known is None or known.role != role
        if known is not None and is_new:
            self.leave(name, now)
        self.living[name] = Replica(name, role, now, beats)
        self.vacant_since.pop(role, None)
        return is_new

    def hear(self, name: str, now: float) -> None:
        """Note a heartbeat; one of a stranger says nothing: he must register."""
        if name in self.living:
            self.living[name].heard_at = now

    def leave(self, name: str, now: float) -> Replica | None:
        """Note that a replica is gone; return it, None where it was not known."""
        gone = self.living.pop(name, None)
        if gone is not None and not self.count(gone.role):
            self.vacant_since[gone.role] = now
        return gone

    def silent(self, now: float) -> list[Replica]:
        """Return those that have been silent for too long."""
        return [one for one in self.living.values() if one.beats and now - one.heard_at > self.dead_after_s]

    def count(self, role: Role) -> int:
        """How many hold ``role``."""
        return sum(one.role == role for one in self.living.values())

    def was_held(self, role: Role) -> bool:
        """Whether anybody ever held ``role``."""
        return role in self.vacant_since or self.count(role) > 0

    def shift(self, gap_s: float) -> None:
        """We were stopped for ``gap_s``: nobody was silent in that time, as far as we know."""
        for one in self.living.values():
            one.heard_at += gap_s
        self.vacant_since = {role: since + gap_s for role, since in self.vacant_since.items()}

    def next_timer(self) -> float | None:
        """When somebody may next be found silent."""
        return min((one.heard_at + self.dead_after_s for one in self.living.values() if one.beats), default=None)
