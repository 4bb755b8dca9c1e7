"""Staleness policies: which groups may be dispatched, which make the next step, which are too old. Pure.

A policy holds no state: it is asked with the facts. Invariants: staleness counts from a group's oldest version, queue
time included; a policy never selects a group that it would call stale; what it selects it was given.
The names are the field's; the version-gated admission is AReaL's ``max_head_offpolicyness``: at version v at most
``(eta + v + 1) * batch`` groups were ever admitted, those accepted and those still running together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from penstock.errors import BadArgument

__all__ = [
    "Candidate",
    "InOrder",
    "ReadyFirst",
    "StalenessPolicy",
    "Standing",
    "WeightFifo",
    "Windowed",
    "in_order",
    "ready_first",
    "weight_fifo",
    "windowed",
]


class Candidate(msgspec.Struct, frozen=True):
    """A group that could be trained.

    Attributes:
        group_id: names it.
        prompt: the number of its prompt.
        weight_version: the oldest of its rows.
        arrived: counts the groups of this run in the order in which they became ready.
    """

    group_id: str
    prompt: int
    weight_version: int
    arrived: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands when a policy is asked.

    Attributes:
        version: of the trainer's weights.
        published: the version that is dispatched now; it lags while weights are spread.
        batch: groups that a step takes.
        minimum: the fewest groups that make a step.
        training: groups in the step that is out.
        ready: groups that could be trained, in the order in which they arrived.
        coming: for every prompt that is out or whose group is not ready yet: its number and the version it started
            from, or None where it has not started.
    """

    version: int
    published: int
    batch: int
    minimum: int
    training: int
    ready: Sequence[Candidate]
    coming: Sequence[tuple[int, int | None]]


class StalenessPolicy(Protocol):
    """Owns the whole contract on off-policyness; bring your own."""

    def admits(self, now: Standing) -> int:
        """Return how many more groups may be dispatched now."""

    def oldest_version(self, version: int) -> int | None:
        """Return the oldest version that may still be trained at ``version``; None = any."""

    def select(self, now: Standing) -> Sequence[Candidate]:
        """Return the groups of the next step, ``minimum`` to ``batch`` of them; none = wait."""


def _gate(now: Standing, lookahead: int) -> int:
    """What version-gated admission leaves: one batch for the step that comes, and one for each version ahead.

    A group that is dispatched with weights that lag is born that much older: it may lie ahead that much less.
    """
    ahead = lookahead - (now.version - now.published)
    return max(0, (ahead + 1) * now.batch - (now.training + len(now.ready) + len(now.coming)))


def _enough(now: Standing, chosen: Sequence[Candidate]) -> Sequence[Candidate]:
    return chosen[: now.batch] if len(chosen) >= now.minimum else ()


class InOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prompts are trained in the order of their numbers; a straggler is waited for, so nothing is lost to its length.

    Attributes:
        max_lookahead_versions: how many steps' worth of groups may be generated ahead of the step that comes.
    """

    max_lookahead_versions: int = 1

    def __post_init__(self) -> None:
        _not_negative("max_lookahead_versions", self.max_lookahead_versions)

    def admits(self, now: Standing) -> int:
        return _gate(now, self.max_lookahead_versions)

    def oldest_version(self, version: int) -> int | None:  # noqa: ARG002 - the protocol's
        return None  # who waits for its turn is not late; the lookahead bounds how far ahead it was made

    def select(self, now: Standing) -> Sequence[Candidate]:
        first_missing = min((prompt for prompt, _ in now.coming), default=math.inf)
        ready = sorted(now.ready, key=lambda group: group.prompt)
        return _enough(now, [group for group in ready if group.prompt < first_missing])


class Windowed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Any ready group inside the window of versions is trained, the oldest version first.

    Attributes:
        max_staleness_versions: how many versions a group may lag behind the trainer.
        sample_freshest_first: train the newest first instead.
        wait_for_stragglers: the version does not pass a group that is still being generated: a step that would make it
            stale waits for it. Without this long answers are dropped more often than short ones.
    """

    max_staleness_versions: int = 1
    sample_freshest_first: bool = False
    wait_for_stragglers: bool = True

    def __post_init__(self) -> None:
        _not_negative("max_staleness_versions", self.max_staleness_versions)

    def admits(self, now: Standing) -> int:
        return _gate(now, self.max_staleness_versions)

    def oldest_version(self, version: int) -> int | None:
        return version - self.max_staleness_versions

    def select(self, now: Standing) -> Sequence[Candidate]:
        oldest = now.version - self.max_staleness_versions
        sign = -1 if self.sample_freshest_first else 1
        fit = sorted(
            (group for group in now.ready if group.weight_version >= oldest),
            key=lambda group: (sign * group.weight_version, group.arrived),
        )
        return () if self.wait_for_stragglers and self._must_wait(now, fit) else _enough(now, fit)

    def _must_wait(self, now: Standing, fit: Sequence[Candidate]) -> bool:
        """Whether a step now would make groups stale that are still coming.

        A version's last step is the one at which it is the oldest in the window. Of the groups that are not newer than
        a version, the steps after this one, up to its last, can take a batch each: no more of them may be still coming,
        unless this step is full of such groups anyhow.
        """
        oldest = now.version - self.max_staleness_versions
        coming = [version for _, version in now.coming if version is not None and version >= oldest]
        if oldest in coming:
            return True
        for version in set(coming):
            late = sum(one <= version for one in coming)
            taken = sum(group.weight_version <= version for group in fit)
            if late > (version - oldest) * now.batch and taken < now.batch:
                return True
        return False


class ReadyFirst(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Groups are trained as they become ready, whatever their version.

    Attributes:
        max_staleness_versions: groups that lag further are evicted; None = none is.
        max_lookahead_versions: how many steps' worth of groups may be generated ahead.
    """

    max_staleness_versions: int | None = None
    max_lookahead_versions: int = 1

    def __post_init__(self) -> None:
        _not_negative("max_staleness_versions", self.max_staleness_versions or 0)
        _not_negative("max_lookahead_versions", self.max_lookahead_versions)

    def admits(self, now: Standing) -> int:
        return _gate(now, self.max_lookahead_versions)

    def oldest_version(self, version: int) -> int | None:
        return None if self.max_staleness_versions is None else version - self.max_staleness_versions

    def select(self, now: Standing) -> Sequence[Candidate]:
        oldest = self.oldest_version(now.version)
        ready = [group for group in now.ready if oldest is None or group.weight_version >= oldest]
        return _enough(now, sorted(ready, key=lambda group: group.arrived))


class WeightFifo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Versions are trained strictly in order: a newer group waits until no older one is ready or coming.

    Attributes:
        max_staleness_versions: how many versions a group may lag behind the trainer.
    """

    max_staleness_versions: int = 1

    def __post_init__(self) -> None:
        _not_negative("max_staleness_versions", self.max_staleness_versions)

    def admits(self, now: Standing) -> int:
        return _gate(now, self.max_staleness_versions)

    def oldest_version(self, version: int) -> int | None:
        return version - self.max_staleness_versions

    def select(self, now: Standing) -> Sequence[Candidate]:
        oldest = now.version - self.max_staleness_versions
        coming = [version for _, version in now.coming if version is not None and version >= oldest]
        limit = min(coming, default=math.inf)
        fit = [group for group in now.ready if oldest <= group.weight_version <= limit]
        return _enough(now, sorted(fit, key=lambda group: (group.weight_version, group.arrived)))


in_order, windowed, ready_first, weight_fifo = InOrder, Windowed, ReadyFirst, WeightFifo


def _not_negative(name: str, value: int) -> None:
    if value < 0:
        raise BadArgument(f"{name} must be 0 or more, got {value}")
