"""Which lease tokens a client holds its rows under, so that every pop, ack, release and renewal names them.

Invariants: the token of a key is the one of its latest claim by this client; a lease that the client ended is
remembered for a while, so that a repeat names it too; memory is bounded: of each (partition, task) at least
``MAX_LIVE`` live and ``MAX_ENDED`` ended keys are remembered, and at most twice as many; of the partitions those
``MAX_PARTITIONS`` that were claimed from last (some runs have one a step and never clear it).
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.requests import ANY_TOKEN, NO_TOKEN, Tokens

__all__ = ["LeaseBook"]

MAX_LIVE = 1_000_000  # keys; a lease that somebody else's pop ended stays until the client claims this many more
MAX_ENDED = 65_536  # keys; a repeat follows its original closely
MAX_PARTITIONS = 256  # with leases; their final tasks are asked for again once forgotten
_MAX_FINALS = 65_536


class _Recent:
    """Key -> token, the most recent ones: two generations, of which the older is dropped when the younger is full."""

    __slots__ = ("_limit", "_old", "_young")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._young: dict[str, str] = {}
        self._old: dict[str, str] = {}

    def add(self, tokens: dict[str, str]) -> None:
        self._young.update(tokens)
        if len(self._young) >= self._limit:
            self._old, self._young = self._young, {}

    def take(self, keys: Sequence[str]) -> dict[str, str]:
        """Forget ``keys``; return the tokens that were known."""
        taken = {}
        for key in keys:
            older, newer = self._old.pop(key, None), self._young.pop(key, None)
            token = newer or older
            if token is not None:
                taken[key] = token
        return taken

    def get(self, key: str) -> str | None:
        return self._young.get(key) or self._old.get(key)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


class _Leases:
    """The leases of one task in one partition."""

    __slots__ = ("ended", "live")

    def __init__(self, max_live: int, max_ended: int) -> None:
        self.live = _Recent(max_live)
        self.ended = _Recent(max_ended)

    def token_of(self, key: str) -> str | None:
        return self.live.get(key) or self.ended.get(key)


class LeaseBook:
    """What one client remembers, across its sessions."""

    def __init__(
        self, max_live: int = MAX_LIVE, max_ended: int = MAX_ENDED, max_partitions: int = MAX_PARTITIONS
    ) -> None:
        self._limits = (max_live, max_ended)
        self._max_partitions = max_partitions
        self._of: dict[str, dict[str, _Leases]] = {}  # partition -> task
        self._finals: dict[str, str] = {}  # partition -> its final task

    def hold(self, partition: str, task: str, token: str, keys: Sequence[str]) -> None:
        """The client got ``keys`` under ``token``."""
        tasks = self._of[partition] = self._of.pop(partition, {})  # the latest comes last
        if len(self._of) > self._max_partitions:
            del self._of[self._dispensable()]
        leases = tasks.get(task) or tasks.setdefault(task, _Leases(*self._limits))
        leases.live.add(dict.fromkeys(keys, token))

    def _dispensable(self) -> str:
        """The partition to forget: the one claimed from longest ago, of those without a live lease if there are."""
        over = (name for name, tasks in self._of.items() if not any(len(leases.live) for leases in tasks.values()))
        return next(over, next(iter(self._of)))

    def end(self, partition: str, task: str | None, keys: Sequence[str]) -> None:
        """The client ended its leases of ``keys`` for ``task``; None = for every task."""
        for leases in self._leases(partition, task):
            leases.ended.add(leases.live.take(keys))

    def forget(self, partition: str, keys: Sequence[str] | None) -> None:
        """The rows were cleared or evicted: later rows of these keys are other rows. None = the whole partition."""
        if keys is None:
            self._of.pop(partition, None)
            self._finals.pop(partition, None)
            return
        for leases in self._leases(partition, None):
            leases.live.take(keys)
            leases.ended.take(keys)

    def learn(self, partition: str, final_task: str) -> None:
        """The partition's final task is this: a pop looks at its leases only."""
        self._finals.pop(partition, None)
        self._finals[partition] = final_task
        if len(self._finals) > _MAX_FINALS:
            del self._finals[next(iter(self._finals))]

    def knows(self, partition: str) -> bool:
        """Whether the partition's final task is known."""
        return partition in self._finals

    def pop_tokens(self, partition: str, keys: Sequence[str]) -> Tokens:
        """Return what to send with a pop: the leases of the final task, of any task if it is not known."""
        return self.tokens(partition, self._finals.get(partition), keys)

    def tokens(self, partition: str, task: str | None, keys: Sequence[str]) -> Tokens:
        """Return what to send with a request about ``keys``; ``task`` None = the leases of any task."""
        known = self._leases(partition, task)
        held = [list(dict.fromkeys(t for leases in known if (t := leases.token_of(key)))) for key in keys]
        distinct = {token: at for at, token in enumerate(dict.fromkeys(t for tokens in held for t in tokens))}
        if len(distinct) <= 1 and all(len(tokens) == len(distinct) for tokens in held):
            return Tokens(list(distinct), [])
        return Tokens(list(distinct), [_index(tokens, distinct) for tokens in held])

    def _leases(self, partition: str, task: str | None) -> list[_Leases]:
        tasks = self._of.get(partition, {})
        if task is None:
            return list(tasks.values())
        return [tasks[task]] if task in tasks else []

    def __repr__(self) -> str:
        held = sum(len(leases.live) for tasks in list(self._of.values()) for leases in list(tasks.values()))
        return f"LeaseBook({held} keys held in {len(self._of)} partitions)"


def _index(tokens: Sequence[str], distinct: dict[str, int]) -> int:
    if not tokens:
        return NO_TOKEN
    return distinct[tokens[0]] if len(tokens) == 1 else ANY_TOKEN
