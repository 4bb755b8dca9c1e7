"""Exhaustive exploration of the handshake: every order of messages, timers and a few faults between two peers.

Breadth first, so that what it finds is as short as can be. Of each state: agreement, one-shot binding, sound ``RST``,
work settled once; of each step from a connected pair: stability; of the whole graph: from every state fair delivery
leads to a connected pair (liveness), and no message begets messages for ever (quiescence).
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from penstock.endpoint.machine import Pair
from penstock.testing.explore.handshake_planted import PLANTED
from penstock.testing.explore.handshake_world import Budget, MakePair, Move, World, WorldState, matched, objection
from penstock.testing.explore.ledger import ExploreReport, Finding

__all__ = ["LARGE", "SMALL", "Exploration", "HandshakeReport", "Shape", "explore", "run"]


class Shape(msgspec.Struct, frozen=True):
    """What is explored: who wants to be connected, and which faults may strike."""

    wants: str
    restarts: int = 0
    losses: int = 0
    duplicates: int = 0
    evictions: int = 0
    haste: int = 0
    posts: int = 0

    @property
    def budget(self) -> Budget:
        return Budget(self.restarts, self.losses, self.duplicates, self.evictions, self.haste, self.posts)

    def __str__(self) -> str:
        return f"{' and '.join(self.wants)}, {self.budget}"


SMALL = (
    Shape("AB", duplicates=1, haste=2),
    Shape("AB", losses=1),
    Shape("AB", evictions=1),
    Shape("AB", restarts=1),
    Shape("A", restarts=1),
    Shape("A", evictions=1, posts=2),
)
LARGE = (
    Shape("AB", restarts=2),
    Shape("AB", restarts=1, losses=1),
    Shape("AB", restarts=1, duplicates=1),
    Shape("AB", restarts=1, evictions=1),
    Shape("AB", restarts=1, haste=2),
    Shape("AB", restarts=2, losses=1),
    Shape("A", restarts=2),
    Shape("A", restarts=1, losses=1, duplicates=1),
    Shape("A", restarts=1, evictions=1),
    Shape("AB", evictions=1, posts=2),
)


class Exploration(msgspec.Struct, frozen=True):
    """One shape, explored. ``complete``: all of its states, within the time."""

    shape: str
    states: int
    transitions: int
    connected: int
    complete: bool
    elapsed_s: float
    finding: Finding | None


class HandshakeReport(ExploreReport, frozen=True, kw_only=True):
    """What was explored and found; ``shapes`` tells it of each shape."""

    shapes: list[Exploration]


def run(*, shapes: Sequence[Shape] = LARGE, budget_s: float = 600.0) -> HandshakeReport:
    """Explore the real handshake in each of ``shapes``, then hunt every planted bug.

    Args:
        shapes: what to explore.
        budget_s: of processor time; after that it ends anyway, and is not ``complete``. The defaults need about 120.
    """
    begun, wall = time.process_time(), time.perf_counter()

    def left() -> float:
        return max(0.0, begun + budget_s - time.process_time())

    planted = {name: _hunt(bug, left()) for name, bug in PLANTED.items()}
    real = [explore(shape, Pair, left()) for shape in shapes]
    found = sum(finding is not None for finding in planted.values())
    findings = [e.finding for e in real if e.finding is not None]
    return HandshakeReport(
        states=sum(e.states for e in real),
        transitions=sum(e.transitions for e in real),
        shapes=real,
        violations=len(findings),
        findings=findings,
        planted=planted,
        planted_found=found,
        planted_total=len(PLANTED),
        complete=all(e.complete for e in real),
        elapsed_s=time.perf_counter() - wall,
    )


def _hunt(bug: MakePair, budget_s: float) -> Finding | None:
    """Return the shortest path to the bug over all small shapes."""
    until = time.process_time() + budget_s
    findings = [explore(shape, bug, max(0.0, until - time.process_time())).finding for shape in SMALL]
    return min((f for f in findings if f is not None), key=lambda f: len(f.path), default=None)


def explore(shape: Shape, make_pair: MakePair = Pair, budget_s: float = 600.0) -> Exploration:
    """Visit every state of ``shape``, or until something is found or the time is over."""
    search = _Search(World(("A" in shape.wants, "B" in shape.wants), shape.budget, make_pair))
    begun = time.perf_counter()
    complete, at, what = search.visit(time.process_time() + budget_s)
    if complete:
        at, what = search.judge_graph()
    finding = Finding(str(shape), search.path(at), what) if what else None
    return Exploration(
        shape=str(shape),
        states=len(search.states),
        transitions=search.transitions,
        connected=sum(map(bool, search.connected)),
        complete=complete,
        elapsed_s=time.perf_counter() - begun,
        finding=finding,
    )


class _Search:
    """The graph of a world's states, as far as it has been visited."""

    def __init__(self, world: World) -> None:
        self.world = world
        first = world.initial()
        self.states: dict[WorldState, int] = {first: 0}
        self.connected = bytearray(b"\0")
        self.transitions = 0
        self._parents = array("l", [-1])
        self._moves: list[tuple[str, ...]] = [()]
        self._fair = (array("l"), array("l"))  # edges without faults: from, to
        self._deliveries = (array("l"), array("l"))

    def visit(self, until: float) -> tuple[bool, int, str]:
        """Return whether all was visited; else, if something was found, the state where and what."""
        queue = deque(self.states)
        while queue:
            if time.process_time() > until:
                return False, 0, ""
            before = queue.popleft()
            number = self.states[before]
            for move in self.world.moves(before):
                self.transitions += 1
                after = move.after
                known = len(self.states)
                to = self.states.setdefault(after, known)
                if to == known:
                    self._enter(number, move)
                    queue.append(after)
                    move = move._replace(what=move.what or objection(after))
                what = move.what or _unstable(before, move)
                if what:
                    return False, self._note(number, move), what
                self._link(number, to, move)
        return True, 0, ""

    def _enter(self, number: int, move: Move) -> None:
        self._parents.append(number)
        self._moves.append(move.label)
        self.connected.append(matched(move.after) is not None)

    def _note(self, number: int, move: Move) -> int:
        """Make a place of its own for the step that broke something, whether or not its state was known."""
        self._parents.append(number)
        self._moves.append(move.label)
        return len(self._parents) - 1

    def _link(self, number: int, to: int, move: Move) -> None:
        if not move.fault:
            self._fair[0].append(number)
            self._fair[1].append(to)
            if move.delivery:
                self._deliveries[0].append(number)
                self._deliveries[1].append(to)

    # -- the whole graph ----------------------------------------------------------------------------------------------

    def judge_graph(self) -> tuple[int, str]:
        """Return the first state from which fair delivery need not end, or need not end connected; and which."""
        stuck = self._stuck()
        if stuck is not None:
            return stuck, "liveness: from here no delivery, timer or opening leads to a connected pair"
        endless = self._endless()
        if endless is not None:
            return endless, "quiescence: from here messages beget messages for ever"
        return 0, ""

    def _stuck(self) -> int | None:
        """The first state that reaches no connected one without faults."""
        into = _grouped(self._fair[1], self._fair[0], len(self.states))
        reaches = bytearray(self.connected)
        todo = [number for number, yes in enumerate(self.connected) if yes]
        while todo:
            for number in into(todo.pop()):
                if not reaches[number]:
                    reaches[number] = 1
                    todo.append(number)
        stuck = reaches.find(0)
        return stuck if stuck >= 0 else None

    def _endless(self) -> int | None:
        """The first state on, or before, a circle of deliveries alone."""
        out = [0] * len(self.states)
        for number in self._deliveries[0]:
            out[number] += 1
        into = _grouped(self._deliveries[1], self._deliveries[0], len(self.states))
        todo = [number for number, count in enumerate(out) if not count]
        left = len(self.states)
        while todo:
            left -= 1
            for number in into(todo.pop()):
                out[number] -= 1
                if not out[number]:
                    todo.append(number)
        return next(number for number, count in enumerate(out) if count) if left else None

    # -- paths --------------------------------------------------------------------------------------------------------

    def path(self, number: int) -> list[str]:
        """Tell the way to a state: each step, with the names that the sessions were given first."""
        labels: list[tuple[str, ...]] = []
        while number > 0:
            labels.append(self._moves[number])
            number = self._parents[number]
        return list(_told(self.world, labels[::-1]))


def _unstable(before: WorldState, move: Move) -> str:
    """From a connected pair only a fault leads away."""
    was = matched(before)
    if was is None or move.fault:
        return ""
    if matched(move.after) != tuple(move.names.get(session) for session in was):
        return "stability: both ends were connected, and no fault struck"
    alone = not before.net and before.a[1] is before.b[1] is None
    if alone and any(said[0] != "PING" for said in move.after.net):
        return "quiescence: two connected peers say more than PING of their own accord"
    return ""


def _grouped(keys: array[int], values: array[int], count: int) -> _Lookup:
    return _Lookup(keys, values, count)


class _Lookup:
    """The values of each key, in little memory."""

    def __init__(self, keys: array[int], values: array[int], count: int) -> None:
        self._starts = array("l", bytes(8 * (count + 1)))
        for key in keys:
            self._starts[key + 1] += 1
        for i in range(count):
            self._starts[i + 1] += self._starts[i]
        at = array("l", self._starts)
        self._values = array("l", bytes(8 * len(values)))
        for key, value in zip(keys, values, strict=True):
            self._values[at[key]] = value
            at[key] += 1

    def __call__(self, key: int) -> array[int]:
        return self._values[self._starts[key] : self._starts[key + 1]]


def _told(world: World, labels: list[tuple[str, ...]]) -> Iterator[str]:
    """Walk the path again, and name each session when it is met first: A1, A2, B1, ..."""
    state = world.initial()
    names: dict[int, str] = {}
    count = {"A": 0, "B": 0}
    for label in labels:
        move = next(m for m in world.moves(state) if m.label == label)
        for session in move.names:
            if session not in names:
                side = "AB"[session & 1]
                count[side] += 1
                names[session] = f"{side}{count[side]}"
        yield " ".join(names.get(int(word), "") if word.lstrip("-").isdigit() else word for word in label).strip()
        names = {new: names[old] for old, new in move.names.items()}
        state = move.after
