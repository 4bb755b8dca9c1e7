"""The prompt ledger: where every prompt of a run is. Pure bookkeeping.

Invariants: ``dispatched = trained + dropped + open``, always; prompts are opened in order and none is skipped; a
prompt has one live attempt, each with a group id of its own, so that a late one settles nothing; what became of an
attempt that is over is read from a listing that was asked for afterwards, never assumed.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass

from penstock.controller.policies import Candidate
from penstock.controller.record import ControllerRecord, OpenPrompt
from penstock.records import DataPlaneGroupMeta

__all__ = ["Prompt", "PromptLedger", "Where"]

_DIGITS = 18  # of a prompt's or an attempt's number; more are not ours


class Where(enum.Enum):
    """Where a prompt's live attempt is."""

    WAITING = "waiting"  # to be dispatched
    OUT = "out"  # at a generator
    LANDED = "landed"  # the generator is done with it; a listing will tell, or has told that it is not fit yet
    READY = "ready"  # in the plane, fit to be trained
    TRAINING = "training"  # in the step that is out


@dataclass(slots=True)
class Prompt:
    """One open prompt.

    Attributes:
        version: the weights it was dispatched with; None before, and in a new life until a listing tells.
        since: when it came to where it is.
        not_before: WAITING: when it may go.
        unseen: LANDED: no listing asked for after it landed has been read yet.
        trouble: why the attempt failed, "" if nobody said so.
        group: READY and TRAINING: as last listed.
        arrived: READY and TRAINING: in which order groups became so.
    """

    index: int
    attempt: int
    failures: int = 0
    where: Where = Where.WAITING
    version: int | None = None
    since: float = 0.0
    not_before: float = 0.0
    unseen: bool = False
    trouble: str = ""
    group: DataPlaneGroupMeta | None = None
    arrived: int = 0

    def candidate(self, group_id: str) -> Candidate:
        """Return it as policies see it."""
        return Candidate(group_id, self.index, self.weight_version, self.arrived)

    @property
    def weight_version(self) -> int:
        """The oldest version of its rows; where no row says, the one it was dispatched with."""
        tagged = None if self.group is None else self.group.weight_version
        return (self.version or 0) if tagged is None else tagged


class PromptLedger:
    """All prompts of a run.

    Args:
        record: as the life before left them; its attempts are over, and a listing will tell what became of them.
    """

    def __init__(self, record: ControllerRecord, now: float) -> None:
        self._prefix = f"{record.run}."
        self.cursor = record.cursor
        self.trained = record.trained
        self.dropped: Counter[str] = Counter(record.dropped)
        self.open: dict[int, Prompt] = {
            p.index: Prompt(p.index, p.attempt, p.failures, Where.LANDED, since=now, unseen=True) for p in record.open
        }
        self.exhausted = False  # the source has no more
        self._arrivals = 0
        self._at: dict[Where, dict[int, Prompt]] = {where: {} for where in Where}
        self._at[Where.LANDED].update(self.open)
        self._lasting: tuple[OpenPrompt, ...] | None = None  # until it changes

    # -- names --------------------------------------------------------------------------------------------------------

    def group_id(self, prompt: Prompt) -> str:
        """Return the group id of the live attempt."""
        return f"{self._prefix}{prompt.index}.{prompt.attempt}"

    def parse(self, group_id: str) -> tuple[int, int] | None:
        """Return prompt and attempt that a group id names; None = it is not one of this run's."""
        index, _, attempt = group_id.removeprefix(self._prefix).partition(".")
        is_ours = group_id.startswith(self._prefix) and _is_number(index) and _is_number(attempt)
        return (int(index), int(attempt)) if is_ours else None

    def live(self, group_id: str) -> Prompt | None:
        """Return the open prompt whose live attempt this is; None = it is of no account any more."""
        named = self.parse(group_id)
        prompt = None if named is None else self.open.get(named[0])
        return prompt if prompt is not None and named is not None and prompt.attempt == named[1] else None

    # -- looking ------------------------------------------------------------------------------------------------------

    def at(self, *places: Where) -> list[Prompt]:
        """Return the open prompts that are at one of ``places``, by number."""
        return sorted((prompt for where in places for prompt in self._at[where].values()), key=lambda one: one.index)

    def count(self, *places: Where) -> int:
        """How many are."""
        return sum(len(self._at[where]) for where in places)

    # -- moving -------------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> Prompt:
        """Open the next new prompt."""
        prompt = self.open[self.cursor] = self._at[Where.WAITING][self.cursor] = Prompt(self.cursor, 0, since=now)
        self.cursor += 1
        self._lasting = None
        return prompt

    def is_news(self, prompt: Prompt) -> bool:
        """Whether it, and any opened after it, are on their first way out: nothing has become of one of them yet."""
        later = [self.open.get(index) for index in range(prompt.index, self.cursor)]
        return all(p is not None and p.where is Where.OUT and p.attempt == 0 for p in later)

    def unbegin(self, prompt: Prompt) -> None:
        """The source has no such prompt: it, and any opened after it, never were."""
        for index in range(prompt.index, self.cursor):
            self._leave(self.open[index])
        self.cursor = prompt.index

    def send_out(self, prompt: Prompt, version: int, now: float) -> None:
        """Its attempt goes to a generator."""
        prompt.version, prompt.trouble = version, ""
        self._move(prompt, Where.OUT, now)

    def land(self, prompt: Prompt, now: float, trouble: str = "") -> None:
        """Its attempt is over, or its step came to nothing: the next listing tells what is there."""
        self._move(prompt, Where.LANDED, now)
        prompt.unseen, prompt.trouble = True, trouble

    def listing_asked(self) -> None:
        """A listing is asked for: it will tell of everything that has landed by now."""
        for prompt in self.at(Where.LANDED, Where.READY):
            prompt.unseen = False

    def arrive(self, prompt: Prompt, group: DataPlaneGroupMeta, now: float) -> bool:
        """Its group is fit to be trained; return whether that is new."""
        prompt.group = group
        if prompt.where is Where.READY:
            return False
        self._arrivals += 1
        prompt.arrived, prompt.trouble = self._arrivals, ""
        self._move(prompt, Where.READY, now)
        return True

    def withdraw(self, prompt: Prompt, now: float) -> None:
        """Its group is not fit any more (a row of it went): back to where listings are awaited."""
        if prompt.where is Where.READY:
            prompt.group = None
            self._move(prompt, Where.LANDED, now)

    def train(self, prompt: Prompt, now: float) -> None:
        """Its rows are leased and in a step."""
        self._move(prompt, Where.TRAINING, now)

    def again(self, prompt: Prompt, now: float, not_before: float, *, failed: bool) -> None:
        """It goes again, as the next attempt."""
        prompt.attempt += 1
        prompt.failures += failed
        prompt.not_before, prompt.group, prompt.version = not_before, None, None
        self._lasting = None
        self._move(prompt, Where.WAITING, now)

    def close(self, prompt: Prompt, reason: str | None) -> None:
        """It is trained, or dropped for ``reason``."""
        self._leave(prompt)
        if reason is None:
            self.trained += 1
        else:
            self.dropped[reason] += 1

    def _move(self, prompt: Prompt, where: Where, now: float) -> None:
        del self._at[prompt.where][prompt.index]
        self._at[where][prompt.index] = prompt
        prompt.where, prompt.since, prompt.unseen = where, now, False

    def _leave(self, prompt: Prompt) -> None:
        del self.open[prompt.index], self._at[prompt.where][prompt.index]
        self._lasting = None

    # -- lasting ------------------------------------------------------------------------------------------------------

    def lasting(self) -> tuple[OpenPrompt, ...]:
        """What a record keeps of the open prompts."""
        if self._lasting is None:
            self._lasting = tuple(OpenPrompt(p.index, p.attempt, p.failures) for _, p in sorted(self.open.items()))
        return self._lasting

    def check_invariants(self) -> None:
        """Raise if prompts are not conserved."""
        dropped = sum(self.dropped.values())
        assert self.cursor == self.trained + dropped + len(self.open), (
            f"{self.cursor} dispatched, {self.trained} trained, {dropped} dropped, {len(self.open)} open"
        )
        assert all(index < self.cursor and prompt.index == index for index, prompt in self.open.items())
        places = {index: where for where, prompts in self._at.items() for index in prompts}
        assert places == {index: prompt.where for index, prompt in self.open.items()}
        assert sum(map(len, self._at.values())) == len(places)


def _is_number(text: str) -> bool:
    """Whether ``text`` is a number as we write them: no sign, no leading zero, ASCII digits."""
    return len(text) <= _DIGITS and text.isascii() and text.isdecimal() and str(int(text)) == text
