"""A host as the ledger knows it: where its agent is reached, whether it is heard of, what lies there, what it is told.

Who is up and what is ordered is never journaled: an agent enlists again in each life of the plane, and the answer names
all that rows need there. Where an agent is reached is journaled, so that a restarted plane can name it at once.

Invariants: orders are numbered upwards and kept until the agent says that it has carried them out; a block has at most
one of adopt and free, the newest; a host that is not up has none, for its next enlisting stands for them all.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from penstock.requests import BlockPlace, HostPlace, Orders

__all__ = ["Host", "Order", "Report", "Standing"]

Standing: TypeAlias = Literal["up", "silent", "gone"]
Order: TypeAlias = Literal["adopt", "free", "verify"]


class Report:
    """The agent's call that waits for orders. ``until``: when it is answered without any, on the shell's clock."""

    __slots__ = ("after", "call_id", "session_id", "until")

    def __init__(self, session_id: int, call_id: int, after: int, until: float) -> None:
        self.session_id = session_id
        self.call_id = call_id
        self.after = after
        self.until = until


class Host:
    """One machine; or a store, whose agent is at no time the only one who can get at what lies there.

    Attributes:
        place: as its agent last stated it.
        state: ``up``: its session lives; ``silent``: it has ended, rows wait for it; ``gone``: they wait no longer.
        since: when that began, on the ledger's clock; of a silent one, ``until`` is when it will be gone.
        session_id: of its agent; 0 = none.
        number: of the newest order.
        blocks: block -> bytes, of those that rows need and that lie here; ``nbytes``: their sum.
        grants: the same of blocks that were granted and may come to lie here.
        losing: blocks that do not lie here any more, and why: what follows for their rows is decided bit by bit.
        given_up: its grace is over, and it is gone when nothing is left here.
        stored: of a store, the blocks that may lie there, needed or not: each from its grant until the agent has said
            that it is freed. Journaled: the store would keep for ever what nobody remembers.
    """

    __slots__ = (
        "_orders",
        "_suspects",
        "blocks",
        "given_up",
        "granted_bytes",
        "grants",
        "losing",
        "nbytes",
        "number",
        "place",
        "report",
        "session_id",
        "since",
        "state",
        "stored",
        "until",
    )

    def __init__(self, place: HostPlace) -> None:
        self.place = place
        self.state: Standing = "silent"
        self.since = 0.0
        self.until = 0.0
        self.session_id = 0
        self.number = 0
        self.report: Report | None = None
        self.blocks: dict[int, int] = {}
        self.nbytes = 0
        self.grants: dict[int, int] = {}
        self.granted_bytes = 0
        self.losing: dict[int, str] = {}
        self.given_up = False
        self.stored: dict[int, None] = {}
        self._orders: dict[int, tuple[int, Order]] = {}  # block -> number and what, in order of their numbers
        self._suspects: dict[int, int] = {}  # block that is to be verified -> number

    @property
    def id(self) -> int:
        return self.place.host_id

    @property
    def is_store(self) -> bool:
        return bool(self.place.store)

    @property
    def kind(self) -> str:
        return "store" if self.is_store else "host"

    @property
    def load(self) -> int:
        """Bytes that lie here, or were promised to."""
        return self.nbytes + self.granted_bytes

    def who(self) -> str:
        """The host in words."""
        return f"{self.kind} {self.place.name or '(unnamed)'} ({self.id:x})"

    # -- what lies here -----------------------------------------------------------------------------------------------

    def holds(self, place: BlockPlace) -> None:
        """A block that rows need lies here."""
        self.lets_go(place.block_id)
        self.blocks[place.block_id] = place.nbytes
        self.nbytes += place.nbytes

    def lets_go(self, block_id: int) -> None:
        """The block lies here no longer, or nobody needs it."""
        self.nbytes -= self.blocks.pop(block_id, 0)
        self.losing.pop(block_id, None)

    def promise(self, grant: int, nbytes: int) -> None:
        self.grants[grant] = nbytes
        self.granted_bytes += nbytes

    def unpromise(self, grant: int) -> None:
        self.granted_bytes -= self.grants.pop(grant, 0)

    # -- orders -------------------------------------------------------------------------------------------------------

    def order(self, what: Order, block_id: int) -> bool:
        """Have the agent do something with a block; whether it is up to be told."""
        if self.state != "up":
            return False
        self.number += 1
        if what == "verify":
            self._suspects[block_id] = self.number
        else:
            self._orders.pop(block_id, None)  # adopted, and freed before it was told: freed
            self._orders[block_id] = (self.number, what)
        return True

    def carried_out(self, after: int) -> list[int]:
        """The agent has carried out all orders up to this number: forget them; return the blocks that it has freed."""
        self._suspects = {block_id: number for block_id, number in self._suspects.items() if number > after}
        freed = []
        while self._orders:
            block_id, (number, what) = next(iter(self._orders.items()))
            if number > after:
                break
            del self._orders[block_id]
            if what == "free":
                freed.append(block_id)
        return freed

    def forget_orders(self) -> None:
        """What the agent is told when it enlists stands for all of them."""
        self._orders.clear()
        self._suspects.clear()

    @property
    def has_orders(self) -> bool:
        return bool(self._orders or self._suspects)

    def orders(self) -> Orders:
        """All that is not known to be carried out."""
        adopt = [block_id for block_id, (_, what) in self._orders.items() if what == "adopt"]
        free = [block_id for block_id, (_, what) in self._orders.items() if what == "free"]
        return Orders(self.number, adopt, free, list(self._suspects))

    def ordered(self, block_id: int) -> Order | None:
        """What the agent is to do with the block, if it has not said that it is done."""
        return self._orders[block_id][1] if block_id in self._orders else None
