"""How far the run is, as its event stream tells: read as it grows, folded into the few numbers that are shown.

Invariants: it only reads; a line that its writer did not finish is no event; a step, a group, a prompt counts once,
however many lives of the controller tell of it. What died unwritten with a controller is missing here, and nowhere
else: nothing is decided by these numbers but when the run may end.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from penstock.controller.events import (
    Again,
    Committed,
    Dispatched,
    Dropped,
    Evicted,
    Paused,
    Popped,
    Published,
    Recovered,
    RunEvent,
    Started,
    Trained,
)
from penstock.demo.messages import group_of_key, prompt_of
from penstock.errors import EventsCorrupt

__all__ = ["EventTail", "Progress"]


class EventTail:
    """The events that are appended to a file, those not yet seen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._decoder: msgspec.json.Decoder[RunEvent] = msgspec.json.Decoder(RunEvent)
        self._lines = 0

    def read(self) -> list[RunEvent]:
        """Return what has come since the last call; nothing while there is no file.

        Raises:
            EventsCorrupt: a finished line is no event.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        return [self._event(line) for line in whole.splitlines()]

    def _event(self, line: bytes) -> RunEvent:
        self._lines += 1
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError as bad:
            raise EventsCorrupt(f"{self._path}, line {self._lines} is no event: {bad}", line=self._lines) from bad


class Progress:
    """The numbers.

    Attributes:
        steps: made, according to the newest word.
        rewards: mean, by step; a step whose event died with a controller is missing.
        rows_trained: popped.
        groups: in the plane.
        prompts: open.
        notes: what went otherwise than straight to training, and how often.
        resumed_s: from each return of the plane to the next step that was made.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.rewards: dict[int, float] = {}
        self.rows_trained = 0
        self.groups: set[str] = set()
        self.prompts: set[int] = set()
        self.notes: Counter[str] = Counter()
        self.resumed_s: list[float] = []
        self._is_away = False
        self._back_at: float | None = None

    def curve(self) -> list[float]:
        """The rewards, step after step."""
        return [reward for _, reward in sorted(self.rewards.items())]

    def note(self, event: RunEvent) -> None:
        """Fold ``event`` in."""
        match event:
            case Dispatched(prompt=prompt):
                self.prompts.add(prompt)
            case Committed(group_id=group):
                self.groups.add(group)
            case Started(step=step):
                self.steps, self._is_away, self._back_at = max(self.steps, step), False, None
            case Published(version=step):
                self.steps = max(self.steps, step)
            case Trained():
                self._trained(event)
            case Popped(keys=keys):
                self._popped(keys)
            case Evicted(group_id=group, keys=keys, reason=reason):
                self.groups.discard(group)
                self.notes[f"rows {reason}"] += len(keys)
            case Again():
                self.notes["prompts again"] += 1
            case Dropped(prompt=prompt):
                self.prompts.discard(prompt)
                self.notes["prompts dropped"] += 1
            case Paused():
                self.notes["plane away"] += 1
                self._is_away = True
            case Recovered(at=at, plane_s=plane_s) if self._is_away:  # and not the first look of a new life
                self._is_away, self._back_at = False, at - plane_s

    def _trained(self, event: Trained) -> None:
        self.steps = max(self.steps, event.step)
        reward = event.metrics.get("reward")
        if reward is not None:
            self.rewards[event.step] = reward
        if self._back_at is not None:
            self.resumed_s.append(event.at - self._back_at)
            self._back_at = None

    def _popped(self, keys: list[str]) -> None:
        gone = {group_of_key(key) for key in keys}
        self.rows_trained += len(keys)
        self.groups -= gone
        self.prompts -= {prompt_of(group) for group in gone}
