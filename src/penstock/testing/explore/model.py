"""What the ledger's lease and commit rules say, as a model small enough to be read: the explorer's reference.

One partition, a few rows, tasks of which the last is final. ``Model`` predicts the outcome of every request and the
state after it; the real ledger must agree on both. Tokens are the real ledger's: the model is told them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Hold", "Model", "ModelRow", "Outcome"]

Outcome: TypeAlias = Literal["done", "lease_lost", "row_removed", "unknown"]


@dataclass(slots=True)
class Hold:
    """A row's life for one task.

    Attributes:
        token: who holds it; "" = nobody.
        last: the token that held it last and was not superseded, "" = none.
        released: ``last`` was given back, so that it is good for nothing.
        ended: the token under which the task consumed it; None = not consumed.
        owner, timed: of the lease; ``timed`` leases expire.
        deliveries: that failed.
    """

    token: str = ""
    last: str = ""
    released: bool = False
    ended: str | None = None
    owner: str = ""
    timed: bool = False
    deliveries: int = 0

    def newest(self) -> str:
        return self.token or self.last

    def accepts(self, token: str) -> bool:
        """Whether ``token`` still speaks for the row."""
        if self.ended is not None or not token:
            return False
        return token == self.token if self.token else token == self.last and not self.released


@dataclass(slots=True)
class ModelRow:
    """``reason``: why it is gone; "" = it is there. ``ending``: the final task's token at its end.

    ``void``: it was there, or gone, before a clear of the whole partition: a later put makes a new row.
    """

    holds: dict[str, Hold]
    contents: set[int] = field(default_factory=set)
    reason: str = ""
    ending: str = ""
    void: bool = False

    @property
    def bars(self) -> bool:
        """Whether it is gone for good: a put does not make a new row of its key."""
        return self.reason not in ("", "cleared") and not self.void


class Model:
    """Args: tasks: the last is final. max_deliveries: as in the configuration."""

    def __init__(self, tasks: Sequence[str], max_deliveries: int) -> None:
        self.tasks = list(tasks)
        self.final = self.tasks[-1]
        self.max_deliveries = max_deliveries
        self.rows: dict[str, ModelRow] = {}

    # -- requests -----------------------------------------------------------------------------------------------------

    def put(self, keys: Sequence[str], content: int, cleared: Collection[str] = ()) -> Outcome:
        """Write the rows whole. A row that is gone takes nothing but the very bytes it once had, unless it was cleared.

        ``cleared``: the rows that were cleared between the put's grant and its commit; it is not for what came after.
        """
        gone = [k for k in keys if k in self.rows and self.rows[k].bars]
        if any(key in cleared for key in keys) or any(content not in self.rows[k].contents for k in gone):
            return "row_removed"
        for key in keys:
            if key not in gone:
                self._write(key, content)
        return "done"

    def _write(self, key: str, content: int) -> None:
        row = self.rows.get(key)
        if row is None or row.reason:
            row = self.rows[key] = ModelRow({task: Hold() for task in self.tasks})
        row.contents = {content}  # a whole write replaces what was there

    def claimable(self, task: str) -> list[str]:
        """The rows that a claim gets now, oldest first."""
        return [k for k, row in self.rows.items() if not row.reason and self._ready(row.holds[task])]

    def claimed(self, task: str, keys: Sequence[str], token: str, owner: str, timed: bool) -> None:
        """The claim was granted: it supersedes whatever was."""
        for key in keys:
            hold = self.rows[key].holds[task]
            hold.token, hold.owner, hold.timed, hold.last, hold.released = token, owner, timed, "", False

    def ack(self, task: str, keys: Sequence[str], token: str) -> Outcome:
        """The task is done with the rows, all of them or none."""
        final = task == self.final
        verdicts = {key: self._ack_verdict(key, task, token, final) for key in keys}
        if "lost" in verdicts.values():
            return "lease_lost"
        for key in [k for k, verdict in verdicts.items() if verdict == "held"]:
            if final:
                self._remove(key, "trained")
            else:
                hold = self.rows[key].holds[task]
                hold.ended, hold.token, hold.last, hold.owner = token, "", "", ""
        return "done"

    def _ack_verdict(self, key: str, task: str, token: str, final: bool) -> str:
        row = self.rows.get(key)
        if row is None:
            return "lost"
        if row.reason:  # of another task's rows that are gone there is nothing to acknowledge any more
            return "over" if not final or row.ending == token else "lost"
        if row.holds[task].accepts(token):
            return "held"
        return "over" if row.holds[task].ended == token and token else "lost"

    def pop(self, keys: Sequence[str], token: str) -> Outcome:
        """Remove as trained; ``token`` "" = rows that nobody holds."""
        if not all(self._may_pop(key, token) for key in keys):
            return "lease_lost"
        for key in keys:
            if key in self.rows and not self.rows[key].reason:
                self._remove(key, "trained")
        return "done"

    def _may_pop(self, key: str, token: str) -> bool:
        row = self.rows.get(key)
        if row is None:
            return not token
        if row.reason:
            return not token or row.ending == token
        hold = row.holds[self.final]
        return token == hold.token if hold.token else token in ("", hold.last)  # released or not

    def release(self, task: str, keys: Sequence[str], token: str) -> Outcome:
        """Give back; what was given back, consumed or removed under the token is so already."""
        if not all(self._may_release(key, task, token) for key in keys):
            return "lease_lost"
        for key in keys:
            hold = self.rows[key].holds[task]
            if hold.token == token:
                hold.token, hold.owner, hold.last, hold.released = "", "", token, True
        return "done"

    def _may_release(self, key: str, task: str, token: str) -> bool:
        row = self.rows.get(key)
        if row is None or not token:
            return False
        if row.reason:
            return task != self.final or row.reason != "trained" or row.void or row.ending == token
        hold = row.holds[task]
        return token in (hold.token, hold.last) or hold.ended == token

    def renew(self, task: str, keys: Sequence[str], token: str, owner: str, timed: bool) -> Outcome:
        """Hold on, or hold again what has lapsed."""
        rows = [self.rows.get(key) for key in keys]
        if not all(row is not None and not row.reason and row.holds[task].accepts(token) for row in rows):
            return "lease_lost"
        for key in keys:
            hold = self.rows[key].holds[task]
            hold.token, hold.last, hold.released, hold.owner, hold.timed = token, "", False, owner, timed
        return "done"

    def evict(self, keys: Sequence[str]) -> Outcome:
        """Remove whoever holds them."""
        for key in keys:
            if key in self.rows and not self.rows[key].reason:
                self._remove(key, "evicted")
        return "done"

    def clear(self, keys: Sequence[str]) -> Outcome:
        """Remove, for what was put so far."""
        for key in keys:
            if key in self.rows and not self.rows[key].reason:
                self._remove(key, "cleared")
        return "done"

    def clear_all(self) -> Outcome:
        """Remove everything, and forget what is gone."""
        self.clear(list(self.rows))
        for row in self.rows.values():
            row.void = True
        return "done"

    # -- what happens -------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Time passes beyond every timed lease."""
        self._fail_deliveries(lambda hold: hold.timed)

    def session_ends(self, owner: str) -> None:
        self._fail_deliveries(lambda hold: hold.owner == owner)

    def abandon(self, token: str) -> None:
        """The claim's reply never reached its caller."""
        for _, hold in self._held():
            if hold.token == token:
                hold.token, hold.owner, hold.last, hold.released = "", "", token, True

    def holding(self, token: str) -> list[str]:
        """The rows that ``token`` holds."""
        return [key for key, hold in self._held() if hold.token == token]

    def _held(self) -> list[tuple[str, Hold]]:
        return [
            (key, hold) for key, row in self.rows.items() if not row.reason for hold in row.holds.values() if hold.token
        ]

    def _fail_deliveries(self, of: Callable[[Hold], bool]) -> None:
        for key, hold in [(k, h) for k, h in self._held() if of(h)]:
            if hold.deliveries + 1 > self.max_deliveries:
                self._remove(key, "quarantined")
            else:
                hold.deliveries += 1
                hold.last, hold.released, hold.token, hold.owner = hold.token, False, "", ""

    def _remove(self, key: str, reason: str) -> None:
        row = self.rows[key]
        row.reason = reason
        row.ending = row.holds[self.final].newest() if reason == "trained" else ""  # an eviction is nobody's success

    @staticmethod
    def _ready(hold: Hold) -> bool:
        return not hold.token and hold.ended is None
