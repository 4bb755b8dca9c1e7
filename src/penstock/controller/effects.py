"""What the controller's machine wants done: one closed union.

Invariants: effects are carried out in their order; a ``Save`` is durable before the next one begins; at most one
``PlaneCall`` is out at a time, and each is answered by exactly one news, as each of the others that ask is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from penstock.controller.events import RunEvent
from penstock.controller.record import ControllerRecord
from penstock.records import KVBatchMeta

__all__ = [
    "AskTrainer",
    "AskWhy",
    "AwaitPlane",
    "Cancel",
    "Claim",
    "Dispatch",
    "Effect",
    "Evict",
    "Finish",
    "List",
    "PlaneCall",
    "Pop",
    "Publish",
    "Register",
    "Release",
    "Save",
    "Tell",
    "Train",
]


@dataclass(frozen=True, slots=True)
class Save:
    """Make the record durable."""

    record: ControllerRecord


@dataclass(frozen=True, slots=True)
class Tell:
    """Let listeners know."""

    event: RunEvent


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Have a prompt answered: ``Generated``, ``GenerationFailed`` or ``NoSuchPrompt`` follows.

    Listeners are told by whoever carries it out, once the source has given the prompt.
    """

    group_id: str
    prompt: int
    attempt: int
    version: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give an attempt up; nothing follows."""

    group_id: str


@dataclass(frozen=True, slots=True)
class AskTrainer:
    """Ask where the trainer stands: ``TrainerStands`` or ``TrainerSilent`` follows."""


@dataclass(frozen=True, slots=True)
class Train:
    """Have a step made: ``StepMade``, ``StepFailed`` or ``StepUnreadable`` follows."""

    step: int
    meta: KVBatchMeta


@dataclass(frozen=True, slots=True)
class Publish:
    """Have weights spread: ``PublicationMade`` or ``PublicationFailed`` follows."""

    version: int


@dataclass(frozen=True, slots=True)
class AwaitPlane:
    """Wait until the plane answers: ``PlaneBack`` or ``PlaneGone`` follows."""


@dataclass(frozen=True, slots=True)
class AskWhy:
    """Ask the plane why the task waits: ``Explained`` follows."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over, and nothing of the machine's is left to do. ``ok`` False: it could not go on."""

    reason: str
    ok: bool
    went_back: bool = False


# -- calls of the plane: answered as named, or by CallFailed, or by CallBroken -----------------------------------------


@dataclass(frozen=True, slots=True)
class Register:
    """Register the partition: ``Registered``."""


@dataclass(frozen=True, slots=True)
class List:
    """List its groups: ``Listed``."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Lease exactly these rows, without waiting: ``Leased``, or ``Refused``."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Give rows back: ``RowsGone``, or ``Refused``."""

    meta: KVBatchMeta


@dataclass(frozen=True, slots=True)
class Pop:
    """Remove trained rows under these tokens: ``RowsGone``, or ``Refused``."""

    keys: tuple[str, ...]
    lease: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evict:
    """Remove rows for a reason: ``RowsGone``."""

    keys: tuple[str, ...]
    reason: str


PlaneCall: TypeAlias = Register | List | Claim | Release | Pop | Evict
Effect: TypeAlias = (
    Save | Tell | Dispatch | Cancel | AskTrainer | Train | Publish | AwaitPlane | AskWhy | Finish | PlaneCall
)
