"""The table of a row's life for one task. A pair that is missing is an error of ours, never of a user.

READY   --claim-->   LEASED   --consume--> CONSUMED
  ^                    |
  +--- return ---------+        renew keeps LEASED, and takes a lapsed row (READY) back to LEASED
any --remove--> gone (its tombstone remembers the ending token)
"""

from __future__ import annotations

from enum import Enum

from penstock.ledger.state import Row, Task


class Hold(Enum):
    """Where a row stands for a task."""

    READY = "ready"  # produced or not: nobody holds it
    LEASED = "leased"
    CONSUMED = "consumed"


class Step(Enum):
    """What may happen to it."""

    CLAIM = "claim"
    RENEW = "renew"
    RETURN = "return"
    CONSUME = "consume"


TRANSITIONS: dict[tuple[Hold, Step], Hold] = {
    (Hold.READY, Step.CLAIM): Hold.LEASED,
    (Hold.READY, Step.RENEW): Hold.LEASED,  # a lapsed lease that nobody has superseded
    (Hold.READY, Step.CONSUME): Hold.CONSUMED,  # likewise: its token is still good
    (Hold.LEASED, Step.RENEW): Hold.LEASED,
    (Hold.LEASED, Step.RETURN): Hold.READY,
    (Hold.LEASED, Step.CONSUME): Hold.CONSUMED,
}


def hold_of(row: Row, task: Task) -> Hold:
    """Return where ``row`` stands for ``task``."""
    if row.consumed & task.bit:
        return Hold.CONSUMED
    return Hold.LEASED if row.id in task.held else Hold.READY


def check_step(row: Row, task: Task, step: Step) -> None:
    """Refuse a transition that is not in the table."""
    hold = hold_of(row, task)
    assert (hold, step) in TRANSITIONS, f"{step.value} of {row.key!r} for {task.name!r} while {hold.value}"
