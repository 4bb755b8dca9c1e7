"""What outlives every process of a run: disks, and what each role wrote down for the judge.

Invariant: an entry is made by the process that did the thing, when it did it; nothing here is read by the machine but
``record``, its own durable record, and, through the trainer, the trainer's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.controller.effects import Finish
from penstock.controller.events import RunEvent
from penstock.controller.record import ControllerRecord
from penstock.controller.roles import StepRecord
from penstock.testing import checker

__all__ = ["Attempt", "Book"]


@dataclass(slots=True)
class Attempt:
    """One group that some worker began. ``versions``: the tags, oldest and newest, of what it put."""

    prompt: int
    version: int
    keys: list[str]


@dataclass
class Book:
    """The disks of one world.

    Attributes:
        record: the controller's.
        saves: how often it was saved.
        steps: of the trainer, in the order in which they became durable; the last is what it tells when asked.
        log: rows, by the workers and the trainer, for the checker.
        attempts: by group id, by the workers.
        dispatched: group ids that were sent out, with the life that did.
        evicted: rows that the controller wanted gone, with the reasons.
        published: versions, as the weights spread.
        events: what every life told, with its number.
        finishes: how lives ended by themselves.
        wrong: what was seen to be wrong when it was done.
    """

    record: ControllerRecord | None = None
    saves: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    log: list[checker.Entry] = field(default_factory=list)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    dispatched: dict[str, int] = field(default_factory=dict)
    evicted: dict[str, str] = field(default_factory=dict)
    published: list[int] = field(default_factory=list)
    events: list[tuple[int, RunEvent]] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def stand(self) -> int:
        """The trainer's last durable step."""
        return self.steps[-1].step if self.steps else 0

    def save(self, record: ControllerRecord) -> None:
        """The controller's record becomes durable; a record never goes back."""
        old = self.record
        if old is not None and (record.life, record.step) < (old.life, old.step):
            self.wrong.append(f"the record goes back from life {old.life}, step {old.step}: {record}")
        self.record, self.saves = record, self.saves + 1

    def knows_attempt(self, prompt: int, attempt: int) -> bool:
        """Whether the durable record tells of this attempt."""
        record = self.record
        return record is not None and any((p.index, p.attempt) == (prompt, attempt) for p in record.open)
