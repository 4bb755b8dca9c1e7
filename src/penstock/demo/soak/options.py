"""What a user asks of a soak, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from penstock.demo.prompt_books import PromptBooks
from penstock.demo.soak.verdict import Times
from penstock.errors import BadArgument

__all__ = ["PairFigures", "SoakOptions", "SoakResult"]

SECONDS = 60.0


class SoakOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked for.

    Attributes:
        seed: of the schedule, the task and the weights.
        seconds: strike for so long; None = no limit, or ``SECONDS`` when there is no other.
        faults: strike until so many have fired; fewer are a finding.
        only: places, each a role, a point or "role/point"; none = all.
        pairs: strike each pair of roles at chosen points instead, once through.
        out: keep the run's folder here; None = a temporary one, which stays only if there is a finding.
    """

    seed: int = 0
    seconds: float | None = None
    faults: int | None = None
    only: tuple[str, ...] = ()
    pairs: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "faults"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise BadArgument(f"{name} must be positive, got {value!r}")
        if self.pairs and self.only:
            raise BadArgument("--pairs strikes at places of its own: it goes with no --only")

    @property
    def limit_s(self) -> float | None:
        """How long to strike."""
        bounded = self.faults is not None or self.pairs
        return self.seconds if self.seconds is not None or bounded else SECONDS

    @property
    def replay(self) -> str:
        """The command line that asks for the same."""
        words = ["penstock chaos", f"--seed {self.seed}"]
        words += [f"--{name} {getattr(self, name):g}" for name in ("faults", "seconds") if getattr(self, name)]
        words += [f"--only {word}" for word in self.only]
        return " ".join([*words, *(["--pairs"] if self.pairs else [])])


class PairFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Strikes at two roles at one moment. ``slowest_s``: until the run had got over it; None = it never fired."""

    strikes: int
    fired: int
    slowest_s: float | None


class SoakResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a soak ended; ``--json`` prints exactly this.

    Attributes:
        ok, findings: whether every promise was kept, and a sentence for each that was not.
        interrupted: the user ended it; what was done until then is judged all the same.
        replay: the command that strikes the same again.
        folder: the run's logs, where they were kept.
        strikes, fired: strikes that were tried; faults that the kernel says took effect.
        faults: fired, by kind and role. by_place: by "role/point" where they came.
        never_fired: armed, and why they did not come.
        places, places_struck: how many there are of those that were asked for, and how many were struck.
        steps, first_reward, reward: of the run.
        put, acknowledged, trained, recovered: rows, by the checker; evicted: by reason.
        lost, duplicated, corrupted, phantom, stale: rows, by the checker, by name.
        residue: of the plane's books.
        prompts: by the controller's record and the others' logs.
        recovery_s: from a death to the next work of the slot that died, by role.
        after_stop_s: from the end of a stop to the next work of the slot that was stopped, by role.
        resume_s: from the first answer of a plane that was away to the next work of the run; resume_alone_s: those of
            them at which nobody else was missing.
        strike_s: from a strike's first fault until all that it hit were at work again, by shape.
        pairs: by "role+role", of strikes at two.
        stuck, died, left: when nothing happened; who died, not by our hand, and how often; what was left behind.
    """

    ok: bool
    findings: list[str]
    interrupted: bool
    seed: int
    replay: str
    folder: str | None
    seconds: float
    strikes: int
    fired: int
    faults: dict[str, dict[str, int]]
    by_place: dict[str, int]
    never_fired: list[str]
    places: int
    places_struck: int
    steps: int
    first_reward: float
    reward: float
    put: int
    acknowledged: int
    trained: int
    evicted: dict[str, int]
    recovered: int
    lost: list[str]
    duplicated: list[str]
    corrupted: list[str]
    phantom: list[str]
    stale: list[str]
    residue: int
    prompts: PromptBooks
    recovery_s: dict[str, Times]
    after_stop_s: dict[str, Times]
    resume_s: Times | None
    resume_alone_s: Times | None
    strike_s: dict[str, Times]
    pairs: dict[str, PairFigures]
    stuck: list[str]
    died: dict[str, int]
    left: list[str]
