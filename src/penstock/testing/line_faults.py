"""What can happen to the bytes of one connection, as sentences: ``reset(at=100, toward="client")``.

``Stream`` is the pure part of ``proxy.FaultProxy``: the bytes of one direction of one connection go in, what is to be
done comes out.

Invariants: positions count the bytes of one direction that came before, so that a sentence means the same however the
bytes arrive; a fault has fired when it changed something: bytes, their pace, or the connection's life.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from penstock.errors import BadArgument

__all__ = [
    "Action",
    "End",
    "LineFault",
    "LineKind",
    "Pass",
    "Stream",
    "Toward",
    "Wait",
    "blackhole",
    "delay",
    "duplicate",
    "flip",
    "half_close",
    "reset",
    "slices",
    "stall",
    "truncate",
]

LineKind = Literal["truncate", "reset", "half_close", "stall", "duplicate", "flip", "slices", "delay", "blackhole"]
Toward = Literal["client", "server"]

_LASTING = ("flip", "slices", "delay", "blackhole")  # they concern bytes; the others a moment between two bytes
_MAX_AGAIN = 1 << 20  # bytes that a stream remembers for ``duplicate``


@dataclass(frozen=True)
class LineFault:
    """One fault of a connection.

    Attributes:
        toward: who receives the bytes that it concerns.
        at: how many bytes have passed in this direction before it.
        connection: the number of the connection, from 0 in the order of their arrival; None = all.
        nbytes: how many bytes it concerns; None = all that follow.
        for_s: how long a stall or a delay lasts; None = for ever.
        size: bytes of a slice; the number of the bit that is flipped.
    """

    kind: LineKind
    toward: Toward
    at: int
    connection: int | None = None
    nbytes: int | None = 0
    for_s: float | None = 0.0
    size: int = 0

    def __post_init__(self) -> None:
        if self.at < 0 or (self.nbytes or 0) < 0 or (self.for_s or 0.0) < 0 or self.size < 0:
            raise BadArgument(f"{self!r} makes no sense")

    def __str__(self) -> str:
        lasting = "" if self.kind not in ("stall", "delay") else f" for {_seconds(self.for_s)}"
        whom = "every connection" if self.connection is None else f"connection {self.connection}"
        return f"{self.kind}{lasting} toward the {self.toward} at byte {self.at} of {whom}"

    @property
    def end(self) -> float:
        """The position behind the last byte that it concerns."""
        return math.inf if self.nbytes is None else self.at + self.nbytes


def _seconds(for_s: float | None) -> str:
    return "ever" if for_s is None else f"{for_s:g} s"


def truncate(*, at: int, toward: Toward, connection: int | None = None) -> LineFault:
    """Both ends see the connection end, in good order, when so many bytes have passed."""
    return LineFault("truncate", toward, at, connection)


def reset(*, at: int, toward: Toward, connection: int | None = None) -> LineFault:
    """Both ends get a reset; the receiver may have read just so many bytes."""
    return LineFault("reset", toward, at, connection)


def half_close(*, at: int, toward: Toward, connection: int | None = None) -> LineFault:
    """The receiver sees an end, what follows is swallowed, and the other direction goes on."""
    return LineFault("half_close", toward, at, connection)


def stall(*, at: int, toward: Toward, for_s: float | None = None, connection: int | None = None) -> LineFault:
    """Nothing is taken or given for so long: the sender's buffers fill. None = for ever."""
    return LineFault("stall", toward, at, connection, for_s=for_s)


def duplicate(*, at: int, nbytes: int, toward: Toward, connection: int | None = None) -> LineFault:
    """The last ``nbytes`` bytes before this moment are sent once more."""
    if not 1 <= nbytes <= min(at, _MAX_AGAIN):
        raise BadArgument(f"{nbytes} bytes cannot be sent again after {at}; at most {_MAX_AGAIN} are remembered")
    return LineFault("duplicate", toward, at, connection, size=nbytes)


def flip(*, at: int, toward: Toward, bit: int = 0, connection: int | None = None) -> LineFault:
    """One bit of byte ``at`` arrives wrong."""
    if not 0 <= bit < 8:
        raise BadArgument(f"a byte has bits 0 to 7, not {bit}")
    return LineFault("flip", toward, at, connection, nbytes=1, size=bit)


def slices(
    *, at: int = 0, nbytes: int | None = None, size: int = 1, toward: Toward, connection: int | None = None
) -> LineFault:
    """Bytes arrive in pieces of ``size``, each a segment of its own."""
    if size < 1:
        raise BadArgument(f"a slice has 1 byte or more, not {size}")
    return LineFault("slices", toward, at, connection, nbytes=nbytes, size=size)


def delay(*, by_s: float, at: int = 0, toward: Toward, connection: int | None = None) -> LineFault:
    """Each piece arrives so much later."""
    return LineFault("delay", toward, at, connection, nbytes=None, for_s=by_s)


def blackhole(*, at: int = 0, toward: Toward, connection: int | None = None) -> LineFault:
    """What follows is taken from the sender and reaches nobody; the connection stays."""
    return LineFault("blackhole", toward, at, connection, nbytes=None)


# -- the pure part ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """Give these bytes to the receiver, at once."""

    data: bytes


@dataclass(frozen=True)
class Wait:
    """Do nothing for so long in this direction; None = for ever."""

    for_s: float | None


@dataclass(frozen=True)
class End:
    """End the connection, or what the receiver gets of it."""

    how: Literal["close", "reset", "half_close"]


Action: TypeAlias = Pass | Wait | End

_ENDS: dict[LineKind, Literal["close", "reset", "half_close"]] = {
    "truncate": "close",
    "reset": "reset",
    "half_close": "half_close",
}


class Stream:
    """One direction of one connection.

    Attributes:
        passed: bytes that have come in so far.
        fired: the faults that took effect here.
    """

    def __init__(self, faults: Sequence[LineFault]) -> None:
        self.passed = self._under_way = 0
        self.fired: list[LineFault] = []
        self._moments = [fault for fault in faults if fault.kind not in _LASTING]
        self._lasting = [fault for fault in faults if fault.kind in _LASTING]
        self._ended = self._swallows = False
        self._recent = bytearray()
        self._memory = max((f.size for f in self._moments if f.kind == "duplicate"), default=0)

    def add(self, fault: LineFault) -> None:
        """Let ``fault`` happen as well; its ``at`` counts from now. One of those between two bytes."""
        if fault.kind in _LASTING or fault.kind == "duplicate":
            raise BadArgument(f"{fault.kind} has to be there from the start")
        self._moments.append(dataclasses.replace(fault, at=self._under_way + fault.at))

    @property
    def silent(self) -> bool:
        """Whether the receiver is to hear nothing more of the sender, its end included."""
        return self._ended or self._swallows

    def begin(self) -> Iterator[Action]:
        """What is to be done before the first byte."""
        return self._strike()

    def feed(self, data: bytes) -> Iterator[Action]:
        """Take what the sender sent; an action is to be carried out before the next one is asked for."""
        while data and not self._ended:
            piece = data[: self._room()]
            data = data[len(piece) :]
            self._under_way = self.passed + len(piece)
            yield from self._carry(piece)
            self.passed += len(piece)
            yield from self._strike()

    def _room(self) -> int | None:
        """Bytes until something begins or ends; None = nothing does."""
        edges = [f.at for f in (*self._moments, *self._lasting)] + [f.end for f in self._lasting]
        next_edge = min((edge for edge in edges if edge > self.passed), default=math.inf)
        return None if next_edge == math.inf else int(next_edge) - self.passed

    def _strike(self) -> Iterator[Action]:
        """The faults of this moment, between two bytes."""
        for fault in [f for f in self._moments if f.at == self.passed]:
            self._moments.remove(fault)
            if self._ended:
                return
            self._note(fault)
            if fault.kind == "duplicate":
                yield Pass(bytes(self._recent[-fault.size :]))
            elif fault.kind == "stall":
                yield Wait(fault.for_s)
            else:
                self._ended = True
                yield End(_ENDS[fault.kind])

    def _carry(self, piece: bytes) -> Iterator[Action]:
        active = [f for f in self._lasting if f.at <= self.passed < f.end]
        for fault in active:
            self._note(fault)
            if fault.kind == "delay":
                yield Wait(fault.for_s)
            elif fault.kind == "flip":
                piece = bytes([piece[0] ^ (1 << fault.size)])
        self._remember(piece)
        self._swallows = any(fault.kind == "blackhole" for fault in active)
        if self._swallows:
            return
        size = min((fault.size for fault in active if fault.kind == "slices"), default=len(piece))
        for start in range(0, len(piece), size):
            yield Pass(piece[start : start + size])

    def _remember(self, piece: bytes) -> None:
        if self._memory:
            self._recent = (self._recent + piece)[-self._memory :]

    def _note(self, fault: LineFault) -> None:
        if fault not in self.fired:
            self.fired.append(fault)
