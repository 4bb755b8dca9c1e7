"""Judges a run by what its producers and consumers wrote down, and by nothing else: it knows nothing of the plane.

Each producer logs every row before and after its put, each consumer before and after its commit, the controller before
and after each eviction, the injector each fault that fired. Every process life has its own append-only file.

Invariants: "after" is the only proof that something happened, "before" the only proof that it was tried; a torn last
line (the writer was killed in it) is no evidence, a malformed line anywhere else is an error; the order of the
entries does not matter.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import msgspec

from penstock.errors import BadArgument, abbreviate

__all__ = ["Entry", "EventLog", "Evicted", "Fault", "Moment", "Put", "Report", "Trained", "check", "read_log"]

Moment: TypeAlias = Literal["before", "after"]


class Put(msgspec.Struct, frozen=True, tag="put", forbid_unknown_fields=True):
    """A producer writes a row. ``xxh3``: of the row's bytes, computed by the producer from what it generated."""

    moment: Moment
    key: str
    xxh3: str
    weight_version: int


class Trained(msgspec.Struct, frozen=True, tag="trained", forbid_unknown_fields=True):
    """A consumer commits a row as trained, in its commit number ``commit``, with the policy at ``policy_version``."""

    moment: Moment
    key: str
    xxh3: str
    weight_version: int
    commit: int
    policy_version: int


class Evicted(msgspec.Struct, frozen=True, tag="evicted", forbid_unknown_fields=True):
    """The controller removes a row, for a reason."""

    moment: Moment
    key: str
    reason: str


class Fault(msgspec.Struct, frozen=True, tag="fault", forbid_unknown_fields=True):
    """A fault that fired: seen in the victim's exit status, not merely sent."""

    kind: str
    pid: int


Entry: TypeAlias = Put | Trained | Evicted | Fault


class EventLog:
    """An append-only file of entries, one process life's own.

    One ``write`` is one system call in the usual case, and what a killed process had written stays written: the page
    cache outlives it. That is all the checker needs, so nothing is synced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._close = weakref.finalize(self, os.close, self._fd)

    def write(self, entries: Iterable[Entry]) -> None:
        """Append ``entries``; on return they survive the death of this process."""
        if not self._close.alive:
            raise BadArgument(f"the log {self.path} is closed")
        left = memoryview(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
        while left:
            left = left[os.write(self._fd, left) :]

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EventLog({str(self.path)!r}, {'open' if self._close.alive else 'closed'})"


def read_log(path: Path) -> list[Entry]:
    """Read one file; a torn last line is left out.

    Raises:
        BadArgument: a complete line is not an entry; names file and line.
    """
    decoder = msgspec.json.Decoder(Entry)
    entries: list[Entry] = []
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(decoder.decode(line))
        except msgspec.DecodeError as bad:
            raise BadArgument(f"{path}:{number}: not a log entry: {bad}") from bad
    return entries


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the logs say.

    Attributes:
        puts, acknowledged, trained: rows a producer tried to put, got an answer for, rows committed as trained.
        evicted: rows by reason.
        lost: acknowledged, but neither trained nor evicted. Meaningful after quiescence only.
        duplicated: settled twice: trained in two commits, or both trained and evicted.
        corrupted: trained with a hash or weight version that no producer of that key wrote.
        phantom: trained though nobody tried to put it.
        stale: trained further behind the policy than the bound allows.
        recovered: trained though the producer never got its answer: allowed, and counted.
        unanswered: neither acknowledged nor trained nor evicted; the producer died, or was told that it failed.
        faults: how many fired, by kind.
    """

    puts: int = 0
    acknowledged: int = 0
    trained: int = 0
    evicted: dict[str, int] = {}
    lost: list[str] = []
    duplicated: list[str] = []
    corrupted: list[str] = []
    phantom: list[str] = []
    stale: list[str] = []
    recovered: int = 0
    unanswered: int = 0
    faults: dict[str, int] = {}

    @property
    def violations(self) -> dict[str, list[str]]:
        """The outcomes that must not be, with the rows they concern; empty when all is well."""
        named = {name: getattr(self, name) for name in ("lost", "duplicated", "corrupted", "phantom", "stale")}
        return {name: keys for name, keys in named.items() if keys}

    @property
    def ok(self) -> bool:
        """Whether no promise was broken."""
        return not self.violations

    def verdict(self) -> str:
        """One sentence for people."""
        fired = sum(self.faults.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())) or "none"
        told = f"{self.acknowledged} acknowledged rows, {self.trained} trained, {sum(self.evicted.values())} evicted"
        if self.ok:
            return f"PASS: {told}; {fired} faults fired ({kinds}); nothing lost, duplicated, corrupted or stale"
        broken = "; ".join(f"{len(keys)} {name}: {abbreviate(keys)}" for name, keys in self.violations.items())
        return f"FAIL: {broken} ({told}; {fired} faults fired: {kinds})"


class _Row:
    """All that was logged of one key."""

    __slots__ = ("acknowledged", "evicted", "put", "trained")

    def __init__(self) -> None:
        self.put: set[tuple[str, int]] = set()  # (xxh3, weight_version) of every attempt
        self.acknowledged = False
        self.trained: dict[int, Trained] = {}  # by commit: a commit that is logged again is the same commit
        self.evicted: str | None = None

    def note(self, entry: Put | Trained | Evicted) -> None:
        if isinstance(entry, Put):
            self.put.add((entry.xxh3, entry.weight_version))
            self.acknowledged |= entry.moment == "after"
        elif entry.moment == "before":
            return
        elif isinstance(entry, Trained):
            self.trained[entry.commit] = entry
        else:
            self.evicted = entry.reason

    def corrupted(self) -> bool:
        return bool(self.put) and any((t.xxh3, t.weight_version) not in self.put for t in self.trained.values())

    def settled(self) -> int:
        return len(self.trained) + (self.evicted is not None)

    def staleness(self) -> int:
        return max((t.policy_version - t.weight_version for t in self.trained.values()), default=0)


def check(entries: Iterable[Entry], *, max_staleness: int | None = None) -> Report:
    """Join the logs of a run that has come to rest.

    Args:
        entries: of all processes, in any order.
        max_staleness: how many versions behind the policy a row may be trained; None = not judged.
    """
    rows: defaultdict[str, _Row] = defaultdict(_Row)
    faults: Counter[str] = Counter()
    for entry in entries:
        if isinstance(entry, Fault):
            faults[entry.kind] += 1
        else:
            rows[entry.key].note(entry)
    return _report(rows, dict(faults), max_staleness)


def _report(rows: dict[str, _Row], faults: dict[str, int], max_staleness: int | None) -> Report:
    def keys(chosen: Sequence[bool]) -> list[str]:
        return sorted(key for key, is_chosen in zip(rows, chosen, strict=True) if is_chosen)

    known = list(rows.values())
    return Report(
        puts=sum(bool(r.put) for r in known),
        acknowledged=sum(r.acknowledged for r in known),
        trained=sum(bool(r.trained) for r in known),
        evicted=dict(Counter(r.evicted for r in known if r.evicted is not None)),
        lost=keys([r.acknowledged and not r.settled() for r in known]),
        duplicated=keys([r.settled() > 1 for r in known]),
        corrupted=keys([r.corrupted() for r in known]),
        phantom=keys([bool(r.trained) and not r.put for r in known]),
        stale=keys([max_staleness is not None and r.staleness() > max_staleness for r in known]),
        recovered=sum(bool(r.trained) and not r.acknowledged and bool(r.put) for r in known),
        unanswered=sum(bool(r.put) and not r.acknowledged and not r.settled() for r in known),
        faults=faults,
    )
