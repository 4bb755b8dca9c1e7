"""What a courier keeps: errands, news that the plane has yet to read, and what the client holds of the plane's memory.

Plain state, changed by ``courier`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.requests import MUTATIONS, ReplyBody, Request, Shutdown

__all__ = ["Errand", "Holdings", "News"]


class Errand:
    """One caller's request.

    Attributes:
        number: the shell's name for it.
        seq: its sequence number in the session; 0 = none yet, or not a mutation.
        call_id: the call that carries it on this connection; 0 = none does.
        departed: bytes of it may have reached the kernel, on this connection or an earlier one.
        answer: the reply, until its caller takes it.
    """

    __slots__ = ("answer", "body", "call_id", "deadline", "departed", "number", "once", "seq")

    def __init__(self, number: int, body: Request, deadline: float, once: bool) -> None:
        self.number = number
        self.body = body
        self.deadline = deadline
        self.once = once
        self.seq = 0
        self.call_id = 0
        self.departed = False
        self.answer: ReplyBody | None = None

    @property
    def is_mutation(self) -> bool:
        """Whether it changes something, so that its outcome matters when no reply came."""
        return isinstance(self.body, (*MUTATIONS, Shutdown))

    def __repr__(self) -> str:
        state = "answered" if self.answer is not None else "sent" if self.call_id or self.departed else "waiting"
        return f"Errand({self.number}, {type(self.body).__name__}, seq {self.seq}, {state})"


class News:
    """Numbers that the plane must read once: each rides on one call per connection until a reply shows it was read."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: dict[int, int] = {}  # number -> the call that carries it on this connection, 0 = none yet

    def add(self, number: int) -> None:
        self.items[number] = 0

    def carry(self, call_id: int) -> list[int]:
        """What the call of that id has to carry."""
        fresh = [number for number, carrier in self.items.items() if not carrier]
        self.items.update(dict.fromkeys(fresh, call_id))
        return fresh

    def read_up_to(self, call_id: int) -> None:
        """A reply came to that call: the plane has read it and those before it."""
        if self.items:
            self.items = {n: carrier for n, carrier in self.items.items() if not 0 < carrier <= call_id}

    def not_sent(self, call_id: int) -> None:
        """That call never left."""
        self.items.update({n: 0 for n, carrier in self.items.items() if carrier == call_id})

    def unread(self) -> None:
        """The connection is lost: whether anything on it was read is not known."""
        self.items = dict.fromkeys(self.items, 0)


class Holdings:
    """Grants or pins of one life of the plane: those held, and the one that came last, in the order of its answers."""

    __slots__ = ("held", "last")

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.last = 0

    def add(self, numbers: Sequence[int]) -> None:
        self.held.update(numbers)
        self.last = numbers[-1] if numbers else self.last
