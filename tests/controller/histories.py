"""Random histories of a run, as a controller would tell them: several lives, kills anywhere, a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from msgspec.structs import replace

from penstock.controller import events as ev

ROWS = 2


@dataclass
class _Run:
    """A small controller with its plane and its trainer; only what it would tell is of interest."""

    rng: random.Random
    told: list[ev.RunEvent] = field(default_factory=list)
    at: float = 1_700_000_000.0
    life: int = 0
    cursor: int = 0
    attempts: dict[int, int] = field(default_factory=dict)  # open prompts
    out: dict[int, str] = field(default_factory=dict)
    plane: dict[int, str] = field(default_factory=dict)  # committed groups, by prompt
    waiting: set[int] = field(default_factory=set)
    step: int = 0
    version: int = 0
    training: list[int] = field(default_factory=list)
    ordered: int = 0
    recorded: bool = False
    paused: bool = False
    replicas: set[str] = field(default_factory=set)

    def tell(self, event: ev.RunEvent) -> None:
        self.at += self.rng.choice((0.0, 0.001, 0.3, 2.0, 2.0, 40.0, -1.5))
        self.told.append(replace(event, at=self.at, life=self.life))

    def keys(self, group_id: str) -> list[str]:
        return [f"{group_id}_g{i}" for i in range(ROWS)]

    # -- what may happen ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A life begins; the one before may have been killed anywhere."""
        self.life += 1
        self.paused, self.ordered = False, 0
        self.replicas.clear()
        self.tell(ev.Started(step=self.step, cursor=self.cursor, open_prompts=len(self.attempts)))
        self.training, training = [], self.training
        if self.recorded:
            self.made(training)
            self.popped(training)
        self.recorded = False
        self.tell(_recovered(self.rng))
        for prompt in sorted(self.plane):
            self.committed(prompt, self.plane[prompt])
        for prompt in sorted(self.out):
            self.out.pop(prompt)
            self.again(prompt, "it was never put")

    def dispatch(self) -> None:
        prompt = self.waiting.pop() if self.waiting else self.cursor
        if prompt == self.cursor:
            self.cursor += 1
            self.attempts[prompt] = 0
        group_id = f"run.{prompt}.{self.attempts[prompt]}"
        self.out[prompt] = group_id
        attempt = self.attempts[prompt]
        self.tell(ev.Dispatched(group_id=group_id, prompt=prompt, attempt=attempt, version=self.version))

    def commit(self) -> None:
        if self.out:
            prompt = self.rng.choice(sorted(self.out))
            self.plane[prompt] = self.out.pop(prompt)
            self.committed(prompt, self.plane[prompt])

    def committed(self, prompt: int, group_id: str) -> None:
        keys = self.keys(group_id)
        version = max(0, self.version - 1)
        self.tell(
            ev.Committed(
                group_id=group_id, prompt=prompt, keys=keys, version=version, end_version=self.version, size_bytes=64
            )
        )

    def again(self, prompt: int, why: str) -> None:
        self.attempts[prompt] += 1
        self.waiting.add(prompt)
        self.tell(ev.Again(prompt=prompt, attempt=self.attempts[prompt], why=why))

    def fail(self) -> None:
        if self.out:
            prompt = self.rng.choice(sorted(self.out))
            self.out.pop(prompt)
            self.again(prompt, "ConnectionError")

    def drop(self) -> None:
        if self.out:
            prompt = self.rng.choice(sorted(self.out))
            self.out.pop(prompt)
            self.attempts.pop(prompt)
            self.tell(ev.Dropped(prompt=prompt, reason="rejected"))

    def evict(self) -> None:
        ready = sorted(self.plane.keys() - set(self.training))
        if ready:
            prompt = self.rng.choice(ready)
            group_id = self.plane.pop(prompt)
            self.again(prompt, "stale")
            if self.rng.random() < 0.5:
                self.dispatch()
            self.tell(ev.Evicted(group_id=group_id, keys=self.keys(group_id), reason="stale"))

    def train(self) -> None:
        """One more piece of a step: claim, order, order again, train, pop, publish."""
        ready = sorted(self.plane)
        if not self.training:
            if ready:
                self.training = ready[: self.rng.randint(1, 3)]
                groups = [self.plane[prompt] for prompt in self.training]
                keys = [key for group_id in groups for key in self.keys(group_id)]
                self.tell(ev.Claimed(step=self.step + 1, groups=groups, keys=keys, lease=["t"], staleness=1))
        elif not self.ordered or (self.ordered < 3 and not self.recorded and self.rng.random() < 0.3):
            self.ordered += 1
            self.tell(ev.Ordered(step=self.step + 1, attempt=self.ordered))
            self.recorded = self.rng.random() < 0.3  # durable, and not told yet
        elif self.rng.random() < 0.1 and not self.recorded:
            self.training, self.ordered = [], 0  # the step came to nothing: its rows are given back
            for prompt in ready:
                self.committed(prompt, self.plane[prompt])
        else:
            training, self.training, self.ordered, self.recorded = self.training, [], 0, False
            self.made(training)
            self.popped(training)
            self.tell(ev.Published(version=self.version, seconds=0.25))

    def made(self, prompts: list[int]) -> None:
        groups = [self.plane[prompt] for prompt in prompts]
        metrics = {"reward": self.rng.choice((0.5, 0.25, None, float("nan")))}
        self.tell(ev.Trained(step=self.step + 1, groups=groups, rows=ROWS * len(groups), seconds=1.0, metrics=metrics))

    def popped(self, prompts: list[int]) -> None:
        keys = [key for prompt in prompts for key in self.keys(self.plane[prompt])]
        self.step, self.version = self.step + 1, self.step + 1
        self.tell(ev.Popped(step=self.step, keys=keys, lost=keys[:1] if self.rng.random() < 0.2 else []))
        for prompt in prompts:
            self.plane.pop(prompt)
            self.attempts.pop(prompt)

    def pause(self) -> None:
        if self.paused and self.rng.random() < 0.7:
            self.tell(_recovered(self.rng))
            self.paused = False
        else:
            self.tell(ev.Paused(why="the plane does not answer"))
            self.paused = True

    def replica(self) -> None:
        name = f"worker-{self.rng.randint(0, 2)}"
        if name in self.replicas:
            self.replicas.discard(name)
            self.tell(ev.Reaped(replica=name, role="rollout", silent_s=self.rng.choice((0.0, 12.0))))
        else:
            self.replicas.add(name)
            self.tell(ev.Joined(replica=name, role="rollout"))

    def stall(self) -> None:
        self.tell(ev.Stalled(seconds=120.0, owed=["step 1 is awaited"]))

    def miss(self) -> None:
        self.tell(ev.Missed(events=3, why="the queue was full"))

    def finish(self) -> None:
        self.tell(ev.Finished(reason="stopped", ok=self.rng.random() < 0.5, step=self.step))
        self.begin()


_OFTEN: tuple[Callable[[_Run], None], ...] = (_Run.dispatch, _Run.commit, _Run.train)
_SELDOM: tuple[Callable[[_Run], None], ...] = (
    _Run.begin,
    _Run.fail,
    _Run.drop,
    _Run.evict,
    _Run.pause,
    _Run.replica,
    _Run.stall,
    _Run.miss,
    _Run.finish,
)


def _recovered(rng: random.Random) -> ev.Recovered:
    return ev.Recovered(seconds=1.5, plane_s=0.5, incarnation=2, empty=rng.random() < 0.2, kept=1, again=1)


def history(rng: random.Random, moves: int) -> list[ev.RunEvent]:
    """Return what a run of ``moves`` moves tells."""
    run = _Run(rng)
    run.begin()
    for _ in range(moves):
        rng.choice(_OFTEN if rng.random() < 0.85 else _SELDOM)(run)
    return run.told


def torn(events: list[ev.RunEvent], rng: random.Random) -> list[ev.RunEvent]:
    """Return ``events`` with holes anywhere."""
    return [event for event in events if rng.random() < 0.8]


# A seed and a length shrink to the shortest history of a seed; drawing each choice would take a hundred times as long.
histories = st.builds(lambda seed, moves: history(random.Random(seed), moves), st.integers(0), st.integers(0, 150))
torn_histories = st.builds(lambda events, seed: torn(events, random.Random(seed)), histories, st.integers(0))
