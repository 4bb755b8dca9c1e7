"""Sums a soak up: what fired where, how long it took to get over it, and what was found. Pure, but for its types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from penstock.demo.processes import kind_of
from penstock.demo.soak.opponent import Struck
from penstock.demo.soak.options import PairFigures
from penstock.demo.soak.places import PLACES, Place
from penstock.demo.soak.schedule import KINDS, SHAPES
from penstock.demo.soak.verdict import Times
from penstock.testing.faults import Fired

__all__ = ["by_kind", "by_pair", "by_place", "by_shape", "never_fired", "places_struck", "times_by_role"]


def by_kind(fired: Iterable[Fired]) -> dict[str, dict[str, int]]:
    """Count faults: kind -> role -> how many."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for fault in fired:
        counts[fault.sentence.kind][kind_of(fault.sentence.victim)] += 1
    return {kind: dict(sorted(roles.items())) for kind, roles in counts.items()}


def by_place(fired: Iterable[Fired]) -> dict[str, int]:
    """Count faults by where they came."""
    return dict(sorted(Counter(str(_place(fault)) for fault in fired).items()))


def places_struck(fired: Iterable[Fired], wanted: Sequence[Place] = PLACES) -> int:
    """Return at how many of the places somebody was struck."""
    return len({_place(fault) for fault in fired} & set(wanted))


def _place(fault: Fired) -> Place:
    return Place(kind_of(fault.sentence.role), fault.sentence.point)


def never_fired(struck: Iterable[Struck]) -> list[str]:
    """Say of each fault that was armed and did not fire why not."""
    return [f"strike {one.strike.number}: {said}" for one in struck for said in one.shortfalls]


def by_pair(struck: Iterable[Struck]) -> dict[str, PairFigures]:
    """Sum up strikes at two roles, in whatever order they were named."""
    found: dict[str, list[Struck]] = {}
    for one in struck:
        roles = sorted({kind_of(sentence.victim) for sentence in one.strike.sentences})
        if one.strike.shape == "pair" and len(roles) == 2:
            found.setdefault("+".join(roles), []).append(one)
    return {pair: _figures(strikes) for pair, strikes in sorted(found.items())}


def _figures(strikes: Sequence[Struck]) -> PairFigures:
    seconds = [one.seconds for one in strikes if one.seconds is not None]
    return PairFigures(
        strikes=len(strikes),
        fired=sum(len(one.fired) for one in strikes),
        slowest_s=round(max(seconds), 3) if seconds else None,
    )


def by_shape(struck: Iterable[Struck]) -> dict[str, Times]:
    """Return how long the run took to get over strikes, those at one, at two and at everybody apart."""
    seconds: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for one in struck:
        if one.seconds is not None:
            seconds[one.strike.shape].append(one.seconds)
    return times_by_role(seconds)


def times_by_role(seconds: Mapping[str, Sequence[float]]) -> dict[str, Times]:
    """Sum durations up, role by role."""
    return {role: times for role, some in seconds.items() if (times := Times.of(some)) is not None}
