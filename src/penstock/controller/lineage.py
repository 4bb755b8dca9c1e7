"""The story of one sample: every event that concerns a row, its group or its prompt, and where it is now. Pure.

Invariants: no event that names the prompt, one of its groups or one of their rows is left out; events that changed
everything meanwhile (a new life, a pause) stand between them, marked as such, until the story is over.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from penstock.controller import events as ev
from penstock.controller.sentences import sentence
from penstock.errors import UnknownName, abbreviate

__all__ = ["Line", "Lineage", "lineage"]

_NEAR = 5  # names that an error offers
_LOOKED_AT = 2000  # names that are compared for it, those about the unknown one in alphabetical order

What = Literal["row", "group", "prompt"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the story.

    Attributes:
        at: seconds since the epoch.
        after_s: seconds since the line before.
        life: of the controller.
        event: its kind.
        text: what it says.
        own: False: it concerns another attempt at the prompt, or the whole run.
    """

    at: float
    after_s: float
    life: int
    event: str
    text: str
    own: bool


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The story of ``key``.

    Attributes:
        what: which kind of name it is.
        prompt: the number of its prompt; None = the events do not say.
        groups: all attempts at the prompt, in the order in which they appeared.
        keys: the rows of the group asked for; of all groups where a prompt was asked for.
        lines: the events, oldest first.
        now: where it is.
        seconds: from the first line to the last that is its own.
    """

    key: str
    what: What
    prompt: int | None
    groups: list[str]
    keys: list[str]
    lines: list[Line]
    now: str
    seconds: float


def lineage(events: Sequence[ev.RunEvent], key: str) -> Lineage:
    """Return the story of ``key`` in a run's events, oldest first.

    Args:
        events: of one run, all its lives.
        key: a row's key, a group's id, or a prompt's number.

    Raises:
        UnknownName: no event names it; the message offers names that are near.
    """
    subject = _Index(events).subject(key)
    story = _Story(subject)
    for event in events:
        story.read(event)
    own = [event.at for event, is_own in story.told if is_own]
    return Lineage(
        key=key,
        what=subject.what,
        prompt=subject.prompt,
        groups=list(subject.groups),
        keys=[row for row, group_id in subject.rows.items() if group_id in subject.own_groups],
        lines=list(_lines(story.told)),
        now=story.now,
        seconds=own[-1] - own[0] if own else 0.0,
    )


# -- who is asked for --------------------------------------------------------------------------------------------------


@dataclass
class _Subject:
    what: What
    prompt: int | None
    groups: dict[str, None]  # of the prompt; in order
    own_groups: set[str]
    rows: dict[str, str]  # of all the groups: key -> group
    own_row: str | None = None


class _Index:
    """Which row is of which group, which group of which prompt."""

    def __init__(self, events: Sequence[ev.RunEvent]) -> None:
        self.prompt_of: dict[str, int | None] = {}  # by group
        self.group_of: dict[str, str] = {}  # by row
        self.prompts: set[int] = set()
        loose: list[str] = []  # rows whose group no event names
        for event in events:
            if isinstance(event, ev.Dispatched | ev.Committed):
                self.prompt_of[event.group_id] = event.prompt
            if isinstance(event, ev.Dispatched | ev.Committed | ev.Again | ev.Dropped):
                self.prompts.add(event.prompt)
            if isinstance(event, ev.Committed | ev.Evicted):
                self.prompt_of.setdefault(event.group_id, None)
                for row in event.keys:
                    self.group_of.setdefault(row, event.group_id)
            if isinstance(event, ev.Claimed | ev.Trained):
                for group_id in event.groups:
                    self.prompt_of.setdefault(group_id, None)
            if isinstance(event, ev.Claimed | ev.Popped):
                loose += [row for row in event.keys if row not in self.group_of]
        for row in loose:  # by the convention for keys: group_g0, group_g1, ...
            self.group_of.setdefault(row, row.rpartition("_g")[0] or row)

    def subject(self, key: str) -> _Subject:
        if key in self.group_of:
            group_id = self.group_of[key]
            return self._of_group("row", group_id, key)
        if key in self.prompt_of:
            return self._of_group("group", key)
        if key.isdecimal() and int(key) in self.prompts:
            groups = self._groups(int(key))
            return _Subject("prompt", int(key), groups, set(groups), self._rows(groups))
        near = self._near(key)
        offered = f"; near it: {abbreviate(near, _NEAR)}" if near else "; there are none at all"
        raise UnknownName(f"no event names a row, a group or a prompt {key!r}{offered}", missing=near)

    def _of_group(self, what: What, group_id: str, row: str | None = None) -> _Subject:
        prompt = self.prompt_of.get(group_id)
        groups = {group_id: None} if prompt is None else self._groups(prompt)
        return _Subject(what, prompt, groups, {group_id}, self._rows(groups), row)

    def _groups(self, prompt: int) -> dict[str, None]:
        return dict.fromkeys(group_id for group_id, of in self.prompt_of.items() if of == prompt)

    def _rows(self, groups: dict[str, None]) -> dict[str, str]:
        return {row: group_id for row, group_id in self.group_of.items() if group_id in groups}

    def _near(self, key: str) -> list[str]:
        names = sorted({*self.prompt_of, *self.group_of, *(str(prompt) for prompt in self.prompts)})
        place = bisect_left(names, key)
        about = names[max(0, place - _LOOKED_AT // 2) : place + _LOOKED_AT // 2]
        return difflib.get_close_matches(key, about, n=_NEAR, cutoff=0.3) or about[:_NEAR]


# -- what concerns it, and where that leaves it ------------------------------------------------------------------------

_MEANWHILE = (ev.Started, ev.Paused, ev.Recovered, ev.Stalled, ev.Missed, ev.Finished)


class _Story:
    """Reads events; keeps those that concern the subject, and where they leave it."""

    def __init__(self, subject: _Subject) -> None:
        self.told: list[tuple[ev.RunEvent, bool]] = []  # and whether it is the subject's own
        self._subject = subject
        self._place = "unknown"
        self._went_on = ""  # what became of the prompt, where one of its groups was asked for
        self._unsettled = False  # a controller that dies now leaves open what became of it
        self._removed = False  # as trained: nothing can change that
        self._over = False  # the prompt is trained and its rows are removed, or it is dropped
        self._live: str | None = None  # the group of the prompt's latest attempt
        self._steps: dict[int, bool] = {}  # steps with a group of the prompt in them -> whether it is our own

    @property
    def now(self) -> str:
        return self._place + self._went_on

    def read(self, event: ev.RunEvent) -> None:
        if isinstance(event, _MEANWHILE):
            self._meanwhile(event)
            return
        own = self._own(event)
        if own is None:
            return
        self.told.append((event, own))
        if own and not self._removed:
            self._settle(event)
        self._removed = self._removed or (own and isinstance(event, ev.Popped))
        self._over = self._over or isinstance(event, ev.Dropped | ev.Popped)

    def _meanwhile(self, event: ev.RunEvent) -> None:
        if not self.told or self._over:
            return
        self.told.append((event, False))
        if isinstance(event, ev.Started | ev.Finished):
            self._steps.clear()  # their leases end with the life that holds them
            if self._unsettled:
                self._place += f", when life {event.life} {'began' if isinstance(event, ev.Started) else 'ended'}"
                self._place += "; nothing has said since what became of it"
                self._unsettled = False

    # -- is it ours? --------------------------------------------------------------------------------------------------

    def _own(self, event: ev.RunEvent) -> bool | None:
        """Return whether it is the subject's own event; None = it does not concern the prompt at all."""
        if isinstance(event, ev.Dispatched | ev.Committed):
            return self._of_attempt(event)
        if isinstance(event, ev.Again | ev.Dropped):
            return self._of_prompt(event)
        if isinstance(event, ev.Claimed):
            return self._of_claim(event)
        if isinstance(event, ev.Ordered):
            return self._steps.get(event.step)
        if isinstance(event, ev.Trained):
            return self._of_groups(event.groups)
        if isinstance(event, ev.Popped):
            return self._of_rows(event.keys)
        return self._of_eviction(event) if isinstance(event, ev.Evicted) else None

    def _of_attempt(self, event: ev.Dispatched | ev.Committed) -> bool | None:
        if event.group_id not in self._subject.groups:
            return None
        self._live = event.group_id
        return event.group_id in self._subject.own_groups

    def _of_prompt(self, event: ev.Again | ev.Dropped) -> bool | None:
        if event.prompt != self._subject.prompt:
            return None
        live, self._live = self._live, None
        return self._subject.what == "prompt" or live in self._subject.own_groups

    def _of_claim(self, event: ev.Claimed) -> bool | None:
        of_groups, of_rows = self._of_groups(event.groups), self._of_rows(event.keys)
        own = of_groups or of_rows if of_groups is not None else of_rows
        self._steps.pop(event.step, None)  # a claim of an earlier attempt at this step came to nothing
        if own is not None:
            self._steps[event.step] = own
        return own

    def _of_groups(self, groups: Sequence[str]) -> bool | None:
        if self._subject.groups.keys().isdisjoint(groups):
            return None
        return not self._subject.own_groups.isdisjoint(groups)

    def _of_rows(self, keys: Sequence[str]) -> bool | None:
        rows = self._subject.rows
        if rows.keys().isdisjoint(keys):
            return None
        if self._subject.own_row is not None:
            return self._subject.own_row in keys
        return any(rows.get(key) in self._subject.own_groups for key in keys)

    def _of_eviction(self, event: ev.Evicted) -> bool | None:
        of_rows = self._of_rows(event.keys)
        if of_rows is None and event.group_id not in self._subject.groups:
            return None
        if self._subject.what != "prompt":
            return bool(of_rows)
        return event.group_id == self._live  # else the prompt is past it: it goes again

    # -- where does that leave it? ------------------------------------------------------------------------------------

    def _settle(self, event: ev.RunEvent) -> None:
        self._unsettled = isinstance(event, ev.Dispatched | ev.Claimed | ev.Ordered)
        if isinstance(event, ev.Again):
            self._goes_again(event)
        elif (place := self._after(event)) is not None:
            self._place = place

    def _goes_again(self, event: ev.Again) -> None:
        if self._subject.what == "prompt":
            self._place = f"waits to be dispatched again, as attempt {event.attempt}: {event.why}"
        else:
            self._place = f"given up: {event.why}"
            self._went_on = f"; its prompt went again, as attempt {event.attempt}"

    def _after(self, event: ev.RunEvent) -> str | None:
        if isinstance(event, ev.Dispatched):
            return f"is being generated, as attempt {event.attempt}, with the weights of version {event.version}"
        if isinstance(event, ev.Committed):
            return "is in the plane and waits to be trained"
        if isinstance(event, ev.Claimed):
            return f"is leased for step {event.step}"
        if isinstance(event, ev.Ordered):
            return f"is being trained, in step {event.step}"
        if isinstance(event, ev.Trained):
            return f"was trained in step {event.step}; its rows are not removed yet"
        if isinstance(event, ev.Popped):
            return self._after_pop(event)
        if isinstance(event, ev.Evicted):
            return f"evicted: {event.reason}"
        return f"dropped: {event.reason}" if isinstance(event, ev.Dropped) else None

    def _after_pop(self, event: ev.Popped) -> str:
        if self._subject.own_row in event.lost:
            return f"was trained in step {event.step}; its row was gone from the plane before it could be removed"
        return f"was trained in step {event.step} and removed"


def _lines(told: Sequence[tuple[ev.RunEvent, bool]]) -> Iterator[Line]:
    before = told[0][0].at if told else 0.0
    for event, own in told:
        after_s, before = event.at - before, event.at
        kind = type(event).__name__
        yield Line(at=event.at, after_s=after_s, life=event.life, event=kind, text=sentence(event), own=own)
