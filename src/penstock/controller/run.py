"""What the parts of the controller's machine share: where the run stands, and the effects of the present news.

Invariants: one object, owned by the machine; parts change it, nobody else does; the phase changes by the table alone.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.controller import events as ev
from penstock.controller.config import ControllerConfig
from penstock.controller.effects import Effect, Tell
from penstock.controller.prompts import PromptLedger, Where
from penstock.controller.record import ControllerRecord
from penstock.controller.replicas import Replicas
from penstock.errors import IllegalTransition
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta
from penstock.retry.backoff import RandomSource, full_jitter

__all__ = ["PHASES", "Accept", "Phase", "Run"]

Accept = Callable[[DataPlaneGroupMeta], bool]  # the dynamic filter
_HISTORY = 24  # news remembered for the error of an illegal transition


class Phase(enum.Enum):
    """What a run is doing."""

    RECOVERING = "recovering"  # waits for the plane, or reads from it how things stand
    RUNNING = "running"
    FINISHING = "finishing"  # dispatches nothing; settles what is out
    OVER = "over"


# (phase, what happened) -> phase. A missing entry is our own bug.
PHASES: dict[tuple[Phase, str], Phase] = {
    (Phase.RECOVERING, "rebuilt"): Phase.RUNNING,
    (Phase.RECOVERING, "plane away"): Phase.RECOVERING,
    (Phase.RECOVERING, "finish"): Phase.FINISHING,
    (Phase.RECOVERING, "broken"): Phase.OVER,
    (Phase.RUNNING, "plane away"): Phase.RECOVERING,
    (Phase.RUNNING, "finish"): Phase.FINISHING,
    (Phase.RUNNING, "broken"): Phase.OVER,
    (Phase.FINISHING, "plane away"): Phase.OVER,
    (Phase.FINISHING, "settled"): Phase.OVER,
    (Phase.FINISHING, "broken"): Phase.OVER,
}


@dataclass
class Run:
    """A run, as its controller sees it.

    Attributes:
        life: counts the controller's starts.
        step: the last settled step, which is also the version of the newest weights.
        published: the version that generators may use; None until the first publication of this life.
        rows: that were trained.
        capabilities: of the plane that answered last.
        gate: why the user forbids dispatching; None = he does not.
        progress_at: when something last moved.
        effects: of the news that is being handled.
    """

    config: ControllerConfig
    prompts: PromptLedger
    replicas: Replicas
    rng: RandomSource
    accept: Accept | None
    life: int
    step: int
    rows: int
    began_at: float
    phase: Phase = Phase.RECOVERING
    published: int | None = None
    capabilities: DataPlaneCapabilities = field(default_factory=DataPlaneCapabilities)
    gate: str | None = None
    progress_at: float = 0.0
    effects: list[Effect] = field(default_factory=list)
    history: deque[str] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    def turn(self, what: str) -> None:
        """Change the phase as the table says."""
        if (self.phase, what) not in PHASES:
            raise IllegalTransition(f"controller: {what!r} while {self.phase.value}", history=list(self.history))
        self.phase = PHASES[self.phase, what]

    def do(self, effect: Effect) -> None:
        self.effects.append(effect)

    def tell(self, event: ev.RunEvent) -> None:
        self.effects.append(Tell(event))

    def later(self, failures: int, now: float) -> float:
        """Return when to try again what has failed so often."""
        return now + full_jitter(max(0, failures - 1), self.config.retry_base_s, self.config.retry_cap_s, self.rng)

    def prompts_are_used_up(self) -> bool:
        """Whether there are no more new prompts."""
        limit = self.config.max_prompts
        return self.prompts.exhausted or (limit is not None and self.prompts.cursor >= limit)

    def again(self, prompt_index: int, now: float, why: str, *, failed: bool) -> None:
        """Let a prompt go again; one that has failed too often is dropped."""
        prompt = self.prompts.open[prompt_index]
        if failed and prompt.failures + 1 >= self.config.max_attempts:
            self.drop(prompt_index, "failed")
            return
        not_before = self.later(prompt.failures + 1, now) if failed else now
        self.prompts.again(prompt, now, not_before, failed=failed)
        self.tell(ev.Again(prompt=prompt.index, attempt=prompt.attempt, why=why))

    def drop(self, prompt_index: int, reason: str) -> None:
        """Give a prompt up for good."""
        self.prompts.close(self.prompts.open[prompt_index], reason)
        self.tell(ev.Dropped(prompt=prompt_index, reason=reason))

    def record(self) -> ControllerRecord:
        """Return what a next life must know."""
        prompts = self.prompts
        return ControllerRecord(
            run=self.config.run,
            life=self.life,
            step=self.step,
            cursor=prompts.cursor,
            trained=prompts.trained,
            rows=self.rows,
            dropped=dict(prompts.dropped),
            open=prompts.lasting(),
        )

    @property
    def in_plane(self) -> int:
        """How many groups of the run the plane holds, or may hold."""
        return self.prompts.count(Where.OUT, Where.LANDED, Where.READY, Where.TRAINING)
