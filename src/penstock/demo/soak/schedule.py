"""What happens to whom, in which order: a pure function of the seed.

Invariants: each place is struck once before any is struck again; a strike's faults are told apart by their victims;
nothing here looks at a clock or at the run, so the same seed always names the same faults. What the run is doing when
they come is not the seed's: each process lives its own time.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from penstock.demo.soak.places import PLACES, ROLES, Place, lead_to
from penstock.testing.faults import Sentence, kill, stop, terminate

__all__ = ["MATRIX", "Shape", "Strike", "pairs", "schedule"]

Shape: TypeAlias = Literal["single", "pair", "all"]

SHAPES: tuple[Shape, ...] = ("single", "pair", "all")
SHAPE_WEIGHTS = (60, 28, 12)
KINDS = ("kill", "stop", "terminate")
KIND_WEIGHTS = (60, 25, 15)
BETWEEN = 0.35  # of the strikes come a moment after the point: in the middle of something
LONGEST_BETWEEN_S = 0.3
STOP_S = (0.1, 5.0)
OFTEN_NTH, LEAD_NTH = 6, 30  # at most
RESTLESS = 0.3  # of the strikes are followed by the next before the run has got over them
GAP_S = 0.4  # at most, before the next
EVERYBODY = ("worker-0", "worker-1", "scorer", "trainer", "controller", "plane")

MATRIX: dict[str, tuple[str, ...]] = {  # where a pair is struck at one moment: before and after what each role owes
    "worker": ("client.copied", "worker.put"),
    "scorer": ("scorer.put",),
    "trainer": ("trainer.stepped", "trainer.saved"),
    "controller": ("controller.claimed", "controller.recorded", "controller.popped"),
    "plane": ("server.decided", "server.journaled"),
}


@dataclass(frozen=True)
class Strike:
    """Faults that belong together.

    Attributes:
        number: in its schedule, from 1.
        place: where they come; the last of the sentences are about it, one before may lead to it.
        sentences: what happens; all are armed at once.
        rest: whether the run is to get over them before the next strike.
        gap_s: seconds before the next, after that.
    """

    number: int
    shape: Shape
    place: Place
    sentences: tuple[Sentence, ...]
    rest: bool = True
    gap_s: float = 0.0

    def __str__(self) -> str:
        return f"strike {self.number} ({self.shape}): " + "; ".join(map(str, self.sentences))


def schedule(seed: int, places: tuple[Place, ...] = PLACES) -> Iterator[Strike]:
    """Yield strikes without end, at ``places``: singly, in pairs, and everybody at once."""
    rng = random.Random(f"penstock chaos {seed}")
    deck: list[Place] = []
    for number in itertools.count(1):
        if not deck:
            deck = rng.sample(places, len(places))
        yield _strike(rng, number, deck.pop())


def _strike(rng: random.Random, number: int, place: Place) -> Strike:
    shape = rng.choices(SHAPES, SHAPE_WEIGHTS)[0]
    nth = rng.randint(1, OFTEN_NTH) if place.often else 1
    between = place.often and rng.random() < BETWEEN
    sentences = [_fault(rng, victim, place, nth, between=between) for victim in _victims(rng, shape, place)]
    lead = lead_to(place, rng.randint(1, LEAD_NTH))
    ordered = sentences if lead is None else [lead, *sentences]
    return Strike(number, shape, place, tuple(ordered), rng.random() >= RESTLESS, rng.uniform(0, GAP_S))


def _victims(rng: random.Random, shape: Shape, place: Place) -> list[str]:
    if shape == "all":
        return list(EVERYBODY)
    others = [role for role in ROLES if role != place.role]
    return [place.role] if shape == "single" else [place.role, rng.choice(others)]


def _fault(rng: random.Random, victim: str, place: Place, nth: int, *, between: bool) -> Sentence:
    kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
    later_s = round(rng.uniform(0.001, LONGEST_BETWEEN_S), 4) if between else 0.0
    at = f"{place.role}:{place.point}"
    if kind == "stop":
        shortest, longest = STOP_S
        for_s = round(shortest * (longest / shortest) ** rng.random(), 3)  # as many short ones as long ones
        return stop(victim, at=at, for_s=for_s, nth=nth, later_s=later_s)
    make = kill if kind == "kill" else terminate
    return make(victim, at=at, nth=nth, later_s=later_s)


def pairs(seed: int) -> list[Strike]:
    """Return one strike for each pair of roles and each place in ``MATRIX`` of either: both killed at that moment."""
    rng = random.Random(f"penstock pairs {seed}")
    found = []
    for one, other in itertools.combinations(ROLES, 2):
        for role, victim in ((one, other), (other, one)):
            found += [_both_killed(rng, Place(role, point), victim) for point in MATRIX[role]]
    rng.shuffle(found)
    return [Strike(number, "pair", place, both) for number, (place, both) in enumerate(found, start=1)]


def _both_killed(rng: random.Random, place: Place, other: str) -> tuple[Place, tuple[Sentence, ...]]:
    nth = rng.randint(1, OFTEN_NTH)
    return place, tuple(kill(victim, at=f"{place.role}:{place.point}", nth=nth) for victim in (place.role, other))
