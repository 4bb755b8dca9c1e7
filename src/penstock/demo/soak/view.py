"""What the user sees while a soak goes on: a line now and then. It only reads."""

from __future__ import annotations

from collections.abc import Callable

from penstock.controller.record import RecordFile
from penstock.demo.messages import RUN
from penstock.demo.soak.opponent import Opponent
from penstock.demo.soak.sums import by_kind
from penstock.demo.spec import RunFiles
from penstock.demo.view import Snapshot

__all__ = ["SoakView", "faults_line"]

PERIOD_S = 5.0


class SoakView:
    """A line every few seconds.

    Args:
        opponent: who strikes.
        files: of the run.
        say: what a line is given to.
    """

    def __init__(self, opponent: Opponent, files: RunFiles, say: Callable[[str], None]) -> None:
        self._opponent, self._record, self._say = opponent, RecordFile(files.root), say
        self._next_s = 0.0

    def show(self, now: Snapshot) -> None:
        if now.seconds < self._next_s:
            return
        self._next_s = now.seconds + PERIOD_S
        faults = faults_line(by_kind(self._opponent.fired))
        self._say(f"{now.seconds:5.0f} s  step {now.version}  reward {now.reward:.3f}  {self._books()}  {faults}")

    def close(self) -> None:
        """Nothing to undo."""

    def _books(self) -> str:
        record = self._record.load(RUN)
        if record is None:
            return "no prompts yet"
        dropped, still_open = sum(record.dropped.values()), len(record.open)
        return f"prompts {record.cursor} = {record.trained} trained + {dropped} dropped + {still_open} open"


def faults_line(faults: dict[str, dict[str, int]]) -> str:
    """Return how many fired, by kind and role, in one line."""
    told = [
        f"{sum(roles.values())} {kind} ({', '.join(f'{role} {count}' for role, count in roles.items())})"
        for kind, roles in faults.items()
        if roles
    ]
    return f"{sum(sum(roles.values()) for roles in faults.values())} faults: " + (", ".join(told) or "none")
