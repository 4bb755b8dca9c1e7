"""The prompts that are open: which attempt at each is live, and where it is. Pure bookkeeping, no I/O.

Invariants: prompts are opened in order, none is skipped, and each stays open until its rows are trained; a prompt has
one live attempt, rows of any other are to be evicted; an attempt that is nowhere goes again as the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from penstock.demo.messages import PromptRef, group_of, prompt_of
from penstock.records import DataPlaneGroupMeta

__all__ = ["Prompts"]


@dataclass
class _Prompt:
    """The live attempt, and where it is: waiting, at a worker, in training; none of these = in the plane, or gone."""

    live: PromptRef
    waiting: bool = True
    worker: str | None = None
    training: bool = False


class Prompts:
    """At most ``limit`` open prompts."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.opened = 0
        self._open: dict[int, _Prompt] = {}

    def __len__(self) -> int:
        return len(self._open)

    def take(self, worker: str, count: int) -> list[PromptRef]:
        """Give ``worker`` up to ``count`` attempts: those that go again first, then new prompts."""
        while len(self._open) < self.limit:
            self._open[self.opened] = _Prompt(PromptRef(self.opened, 0))
            self.opened += 1
        taken = [prompt for prompt in self._open.values() if prompt.waiting][:count]
        for prompt in taken:
            prompt.waiting, prompt.worker = False, worker
        return [prompt.live for prompt in taken]

    def put_down(self, worker: str) -> None:
        """``worker`` is done, or dead: from now on the plane's listing tells what became of its attempts."""
        for prompt in self._open.values():
            prompt.worker = None if prompt.worker == worker else prompt.worker

    def reason_to_evict(self, group: DataPlaneGroupMeta, oldest_version: int) -> str | None:
        """Say why nobody will train ``group``; None = somebody will."""
        ref = prompt_of(group.group_id)
        prompt = self._open.get(ref.index)
        if prompt is None or prompt.live != ref or prompt.waiting:
            return "superseded"
        if prompt.training:
            return None
        if not (group.committed and group.is_complete):
            return None if prompt.worker else "abandoned"
        return "stale" if (group.weight_version or 0) < oldest_version else None

    def go_again(self, here: Collection[str]) -> int:
        """Let attempts that are nowhere, ``here`` being the groups in the plane, go again. Returns how many."""
        gone = [p for p in self._open.values() if not (p.waiting or p.worker or p.training)]
        gone = [p for p in gone if group_of(p.live) not in here]
        for prompt in gone:
            prompt.live, prompt.waiting = PromptRef(prompt.live.index, prompt.live.attempt + 1), True
        return len(gone)

    def is_training(self, group: DataPlaneGroupMeta) -> bool:
        """Whether ``group`` is in the step that is out."""
        prompt = self._open.get(prompt_of(group.group_id).index)
        return prompt is not None and prompt.training

    def begin_training(self, groups: Iterable[DataPlaneGroupMeta]) -> None:
        """The rows of ``groups`` are leased and in a step."""
        for group in groups:
            self._open[prompt_of(group.group_id).index].training = True

    def end_training(self, *, trained: bool) -> None:
        """The step is settled: its prompts are closed, or (not ``trained``) left to what the listing tells."""
        if trained:
            self._open = {index: prompt for index, prompt in self._open.items() if not prompt.training}
        for prompt in self._open.values():
            prompt.training = False
