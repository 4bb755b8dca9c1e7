"""The handshakes before Penstock's, as documented behaviour to compare with: the classic one, and an older one.

Both ask by a call and are answered by a reply, and know a peer by its resource's number. ``Classic`` merges what both
sides open at once, and holds without restarts; a restarted peer whose resource has the old number it takes for the old
peer. ``DeletesFirst`` deletes what it finds unconnected before it answers: opened from both sides at once, both sides
end with endpoints that are destroyed.

``life`` is what a resource truly is. No guard sees it: it is there so that ``healthy`` can tell.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Literal, NamedTuple, Protocol, TypeAlias

__all__ = ["Classic", "DeletesFirst", "Meeting", "State", "broken_path"]


_MAX_STEPS = 16


class State(enum.Enum):
    UNCONNECTED = "unconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"


class Resource(NamedTuple):
    """``number``: as of a queue pair; unique in its process's life only. ``life``: unique for ever."""

    number: int
    life: int


class Say(NamedTuple):
    """A call, or the reply to the call numbered ``attempt``."""

    kind: Literal["call", "reply"]
    attempt: int
    resource: Resource


Fresh: TypeAlias = Callable[[], Resource]


class Machine(Protocol):
    """``used`` is what this side works with, and ``peer`` what that is bound to."""

    used: Resource | None
    peer: Resource | None

    def open(self) -> list[Say]: ...

    def called(self, attempt: int, peer: Resource) -> list[Say]: ...

    def returned(self, attempt: int, peer: Resource) -> list[Say]: ...

    def failed(self, attempt: int) -> list[Say]: ...

    def alive(self, resource: Resource) -> bool: ...

    def key(self) -> tuple[object, ...]: ...


class Classic:
    """Reuses what is there. A re-established endpoint takes fresh resources, as some cannot be reset."""

    def __init__(self, fresh: Fresh) -> None:
        self.state = State.UNCONNECTED
        self.used: Resource | None = None
        self.peer: Resource | None = None
        self._fresh = fresh
        self._attempts = 0

    def open(self) -> list[Say]:
        """Only the first caller calls; the others wait, and never reset anything."""
        return self._call() if self.state is State.UNCONNECTED else []

    def called(self, attempt: int, peer: Resource) -> list[Say]:
        """Reuse the endpoint that is there, never delete it first; another number means that the peer has restarted."""
        same = self.state is State.CONNECTED and self._is_peer(peer)
        if self.state is not State.CONNECTING and not same:
            self.used = self._fresh()
        if not same:
            self._connect(peer)
        assert self.used is not None
        return [Say("reply", attempt, self.used)]

    def returned(self, attempt: int, peer: Resource) -> list[Say]:
        """Reuse what the passive side has connected meanwhile, if it is the same peer."""
        if self.state is State.CONNECTED:
            return [] if self._is_peer(peer) else self._call()
        if self.state is State.CONNECTING and attempt == self._attempts:
            self._connect(peer)
        return []

    def failed(self, attempt: int) -> list[Say]:
        """The call had no reply: what the passive side has connected meanwhile stays."""
        if self.state is State.CONNECTING and attempt == self._attempts:
            self.state, self.used = State.UNCONNECTED, None
        return []

    def alive(self, resource: Resource) -> bool:
        return resource == self.used

    def key(self) -> tuple[object, ...]:
        return self.state, self.used, self.peer, self._attempts

    def _call(self) -> list[Say]:
        self._attempts += 1
        self.state, self.used, self.peer = State.CONNECTING, self._fresh(), None
        return [Say("call", self._attempts, self.used)]

    def _connect(self, peer: Resource) -> None:
        self.state, self.peer = State.CONNECTED, peer

    def _is_peer(self, peer: Resource) -> bool:
        return self.peer is not None and self.peer.number == peer.number


class DeletesFirst:
    """Who is called deletes an endpoint that is not connected, and makes another; callers bind what they reserved."""

    def __init__(self, fresh: Fresh) -> None:
        self.used: Resource | None = None
        self.peer: Resource | None = None
        self._fresh = fresh
        self._attempts = 0
        self._reserved: dict[int, Resource] = {}
        self._kept: Resource | None = None  # what the table of endpoints has: the reclaimer destroys all others
        self._connected = False

    def open(self) -> list[Say]:
        if self._kept is not None:
            return []
        self._attempts += 1
        self._kept = self._reserved[self._attempts] = self._fresh()
        return [Say("call", self._attempts, self._kept)]

    def called(self, attempt: int, peer: Resource) -> list[Say]:
        if not self._connected:
            self._kept = self._fresh()
        self._connected = True
        if self.used is None:
            self.used, self.peer = self._kept, peer
        assert self._kept is not None
        return [Say("reply", attempt, self._kept)]

    def returned(self, attempt: int, peer: Resource) -> list[Say]:
        self.used, self.peer = self._reserved[attempt], peer
        self._connected = True
        return []

    def failed(self, attempt: int) -> list[Say]:
        self._reserved.pop(attempt, None)
        return []

    def alive(self, resource: Resource) -> bool:
        return resource == self._kept

    def key(self) -> tuple[object, ...]:
        return self.used, self.peer, self._kept, self._connected, tuple(self._reserved.items())


class _Numbers:
    """Gives resources; after a restart its numbers begin again, unless they go on."""

    def __init__(self, first_number: int, first_life: int) -> None:
        self.number, self.life = first_number, first_life

    def __call__(self) -> Resource:
        self.number, self.life = self.number + 1, self.life + 1
        return Resource(self.number, self.life)


Step: TypeAlias = tuple[str, ...]


class Meeting:
    """Two peers with that machine, and what is under way between them.

    Args:
        restarts: how often a peer may restart; its calls and the replies to them end with it.
        reuse: a restarted peer's numbers begin again.
    """

    def __init__(self, make: Callable[[Fresh], Machine], *, restarts: int = 0, reuse: bool = False) -> None:
        self._make = make
        self._restarts = restarts
        self._reuse = reuse
        self._numbers = [_Numbers(0, 0), _Numbers(0, 1000)]
        self.peers = [make(numbers) for numbers in self._numbers]
        self._wants = [True, True]
        self.under_way: list[tuple[int, Say]] = []  # to whom

    def steps(self) -> Iterator[Step]:
        """What may happen next."""
        for side, name in enumerate("AB"):
            if self._wants[side]:
                yield "open", name
            if self._restarts and self.peers[side].used is not None:
                yield "restart", name
        for i, (to, say) in enumerate(self.under_way):
            yield say.kind, "to", "AB"[to], str(i)

    def take(self, step: Step) -> None:
        """Do one of ``steps``."""
        if step[0] == "open":
            side = "AB".index(step[1])
            self._wants[side] = False
            self._say(side, self.peers[side].open())
        elif step[0] == "restart":
            self._restart("AB".index(step[1]))
        else:
            to, say = self.under_way.pop(int(step[3]))
            act = self.peers[to].called if say.kind == "call" else self.peers[to].returned
            self._say(to, act(say.attempt, say.resource))

    def healthy(self) -> bool:
        """Whether what both work with is alive, and bound to each other."""
        a, b = self.peers
        if a.used is None or b.used is None:
            return False
        return a.alive(a.used) and b.alive(b.used) and a.peer == b.used and b.peer == a.used

    def key(self) -> tuple[object, ...]:
        """What tells this state from others."""
        numbers = tuple((n.number, n.life) for n in self._numbers)
        peers = tuple(peer.key() for peer in self.peers)
        return peers, numbers, tuple(sorted(self.under_way)), tuple(self._wants), self._restarts

    def _say(self, side: int, said: Sequence[Say]) -> None:
        self.under_way += [(1 - side, say) for say in said]

    def _restart(self, side: int) -> None:
        self._restarts -= 1
        numbers = self._numbers[side]
        self._numbers[side] = _Numbers(0 if self._reuse else numbers.number, numbers.life)
        self.peers[side] = self._make(self._numbers[side])
        self._wants[side] = True
        self.under_way = [
            (to, say) for to, say in self.under_way if (say.kind, to) not in {("call", 1 - side), ("reply", side)}
        ]


def broken_path(make: Callable[[Fresh], Machine], *, restarts: int = 0, reuse: bool = False) -> list[str] | None:
    """Return the shortest way to an end that is not healthy, over every order of steps; None = there is none.

    Not beyond ``_MAX_STEPS``: after a restart two classic machines may re-establish each other's work for ever.
    """
    queue: deque[tuple[Meeting, list[Step]]] = deque([(Meeting(make, restarts=restarts, reuse=reuse), [])])
    seen = set()
    while queue:
        meeting, path = queue.popleft()
        steps = list(meeting.steps())
        if all(step[0] == "restart" for step in steps) and not meeting.healthy():
            return [" ".join(step[:3]) for step in path]
        for step in steps if len(path) < _MAX_STEPS else ():
            after = deepcopy(meeting)
            after.take(step)
            if after.key() not in seen:
                seen.add(after.key())
                queue.append((after, [*path, step]))
    return None
