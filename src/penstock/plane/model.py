"""The reference model of a plane: the contract's rules in one process's memory, written to be read.

It is what the engine is checked against, so it scans where the engine keeps queues. No clock, no lock, no waiting:
``now`` (monotonic seconds) and ``wall`` (seconds since the epoch) are given; callers bring their own lock.

Invariants: a method that raises has changed nothing; per partition, put = live + trained + evicted + cleared +
quarantined; what a token may do to a row is ``TOKEN_RULES``, and a missing entry is ``LeaseLost``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import xxhash

from penstock.config import PlaneConfig
from penstock.errors import BadArgument, LeaseLost, RowRemoved, UnknownName, abbreviate
from penstock.plane.columns import Column
from penstock.plane.rows import Held, Hold, Partition, Row, Tombstone
from penstock.records import DataPlaneGroupMeta, Tag, expected_of, is_true
from penstock.requests import AuditReport, FieldSpec, RegisterPartition

Operation: TypeAlias = Literal["ack", "release", "renew", "pop"]
Remembered: TypeAlias = Callable[[str, str], list[str]]  # (task, key) -> the tokens the caller holds the key under

# What an operation under a row's current token does: True = do it, False = it was done before (success, no effect).
TOKEN_RULES: dict[tuple[Operation, Held], bool] = {
    ("ack", Held.LEASED): True,
    ("ack", Held.LAPSED): True,
    ("ack", Held.CONSUMED): False,
    ("release", Held.LEASED): True,
    ("release", Held.LAPSED): True,
    ("release", Held.RELEASED): False,
    ("release", Held.CONSUMED): False,
    ("renew", Held.LEASED): True,
    ("renew", Held.LAPSED): True,
    ("pop", Held.LEASED): True,
    ("pop", Held.LAPSED): True,
    ("pop", Held.RELEASED): True,  # nobody leases the row
}


@dataclass(frozen=True)
class Want:
    """What a claim asks for; see ``DataPlaneClient.claim_meta``."""

    task: str
    required: list[str]
    batch: int
    min_rows: int
    keys: list[str] | None
    whole_groups: bool
    lease_s: float | None


@dataclass(frozen=True)
class Grant:
    """Rows leased under ``token``; ``token`` is empty when there are none."""

    token: str
    rows: list[Row]
    partial_groups: frozenset[str] = frozenset()


class MemoryPlane:
    """Partitions, rows, sessions and leases of one plane."""

    def __init__(self, incarnation: int, config: PlaneConfig) -> None:
        self.incarnation = incarnation
        self.config = config
        self.partitions: dict[str, Partition] = {}
        self._cleared: dict[str, Partition] = {}  # kept for their counts
        self._ended_at: dict[int, float] = {}
        self._sessions = 0
        self._tokens = 0

    # -- sessions and time --------------------------------------------------------------------------------------------

    def open_session(self) -> int:
        self._sessions += 1
        return self._sessions

    def end_session(self, session: int, now: float) -> None:
        """Give the session's leases back; its rows stay."""
        self._ended_at[session] = now
        self._lapse(lambda hold: hold.session == session, now)

    def tick(self, now: float) -> None:
        """Let pass what ``now`` has overtaken: leases, group deadlines, abandoned groups, tombstones."""
        self._lapse(lambda hold: hold.ends_at is not None and hold.ends_at <= now, now)
        for part in self.partitions.values():
            for group, rows in part.groups().items():
                if any(row.leased(task) for row in rows for task in part.tasks):
                    continue  # only evict and clear end other people's leases
                if self._to_drop(part, group, rows, now):
                    self._evict_group(part, rows, "incomplete", now)
                elif self._abandoned(part, group, rows, now):
                    self._evict_group(part, rows, "abandoned", now)
            part.tombs = {key: tomb for key, tomb in part.tombs.items() if tomb.ends_at > now}
            part.closed_groups = {group: at for group, at in part.closed_groups.items() if at > now}

    def next_change_at(self, now: float) -> float | None:
        """When time alone will next change what a claim can get, after ``now``; None = never."""
        times: list[float] = []
        for part in self.partitions.values():
            for row in part.rows.values():
                times += [h.ends_at for h in row.holds.values() if h.state is Held.LEASED and h.ends_at is not None]
                times += [] if part.policy.deadline_s is None else [row.born_at + part.policy.deadline_s]
        return min((at for at in times if at > now), default=None)

    def _lapse(self, ends: Callable[[Hold], bool], now: float) -> None:
        for part in self.partitions.values():
            for row in list(part.rows.values()):
                for task, hold in row.holds.items():
                    if hold.state is Held.LEASED and ends(hold):
                        hold.state = Held.LAPSED
                        row.deliveries[task] += 1
            self._quarantine(part, now)

    def _quarantine(self, part: Partition, now: float) -> None:
        limit = self.config.max_deliveries
        tired = [row for row in part.rows.values() if any(n > limit for n in row.deliveries.values())]
        whole = {row.group for row in tired if any(hold.whole_group for hold in row.holds.values())}
        fellows = [row for row in part.rows.values() if row.group in whole]
        for key in dict.fromkeys(row.key for row in (*tired, *fellows)):
            self._remove(part, key, "quarantined", now)

    def _to_drop(self, part: Partition, group: str, rows: list[Row], now: float) -> bool:
        if part.policy.on_deadline == "wait" or not part.overdue(rows, now):
            return False
        return not part.done(group, rows) and not part.partial(rows, now)

    def _abandoned(self, part: Partition, group: str, rows: list[Row], now: float) -> bool:
        """Whether a group is declared unfinished and all who could finish it have been gone for long."""
        ends = [self._ended_at.get(session) for row in rows for session in row.putters]
        if not ends or any(end is None or end + self.config.abandon_grace_s > now for end in ends):
            return False
        declared = any(expected_of(row.tags, None) is not None for row in rows)
        if declared and not part.describe(group, rows).is_complete:
            return True
        return any("committed" in row.tags and not is_true(row.tags["committed"]) for row in rows)

    # -- partitions ---------------------------------------------------------------------------------------------------

    def register(self, wanted: RegisterPartition) -> None:
        name, enums = wanted.partition, wanted.enums or {}
        part = self.partitions.get(name) or Partition(name, wanted.tasks, enums)
        if part.tasks != wanted.tasks:
            raise BadArgument(f"partition {name!r} has tasks {part.tasks}, not {wanted.tasks}", partition=name)
        if part.enums != enums:
            raise BadArgument(f"partition {name!r} has enums {part.enums}, not {enums}", partition=name)
        if name not in self.partitions and name in self._cleared:
            past = self._cleared.pop(name)
            part.put, part.removed, part.tombs = past.put, past.removed, past.tombs
        self.partitions[name] = part
        part.fields = list(dict.fromkeys([*part.fields, *wanted.fields]))
        part.num_samples, part.group_size = wanted.num_samples, wanted.group_size
        part.policy = wanted.policy or type(part.policy)()

    def partition(self, name: str) -> Partition:
        if name not in self.partitions:
            known = abbreviate(sorted(self.partitions)) or "none"
            raise UnknownName(f"unknown partition {name!r}; known: {known}", partition=name, missing=[name])
        return self.partitions[name]

    def mentioned(self, name: str) -> Partition:
        """Return a partition that is, or was, registered: removing from it again is a success."""
        return self._cleared[name] if name in self._cleared else self.partition(name)

    def audit(self, name: str | None = None) -> AuditReport:
        """Return the conservation equation of one partition or of all, those that were cleared included."""
        parts = [*self._cleared.values(), *self.partitions.values()]
        found = [part.audit(part.name in self.partitions) for part in parts if name in (None, part.name)]
        return AuditReport(self.incarnation, found)

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(
        self,
        session: int,
        name: str,
        keys: list[str],
        columns: list[Column],
        tags: list[dict[str, Tag]],
        now: float,
        wall: float,
    ) -> list[Row]:
        """Make a put visible, whole, and return its rows that are alive."""
        part = self.partition(name)
        self._same_types(part, [column.spec for column in columns])
        content = xxhash.xxh3_64_intdigest(repr([(c.spec.name, c.checksum()) for c in columns]).encode())
        repeated = self._repeated(part, keys, tags, content if columns else None)
        if not columns:
            part.rows_of([key for key in keys if key not in repeated])
        part.specs.update({c.spec.name: c.spec for c in columns if keys})
        for index, key in enumerate(keys):
            if key not in repeated:
                self._write(part, session, key, index, columns, tags[index], content, now, wall)
        return [part.rows[key] for key in keys if key in part.rows]

    def check_types(self, name: str, specs: Sequence[FieldSpec]) -> None:
        """Refuse a put of such fields, if its partition would."""
        self._same_types(self.partition(name), specs)

    def _same_types(self, part: Partition, specs: Sequence[FieldSpec]) -> None:
        for spec in specs:
            known = part.specs.get(spec.name, spec)
            if (known.dtype, known.rank) != (spec.dtype, spec.rank):
                raise BadArgument(
                    f"field {spec.name!r} of partition {part.name!r} is {known.dtype} of rank {known.rank} a row, "
                    f"not {spec.dtype} of rank {spec.rank}",
                    partition=part.name,
                )

    def _repeated(self, part: Partition, keys: list[str], tags: list[dict[str, Tag]], content: int | None) -> set[str]:
        """Return the keys that were removed and whose put is an exact repeat; any other late write is refused."""
        gone = [(i, key) for i, key in enumerate(keys) if key not in part.rows and part.barred(key)]
        repeated = {key for i, key in gone if content is not None and (content, i) in part.tombs[key].contents}
        late = [key for _, key in gone if key not in repeated]
        late += [key for key, tag in zip(keys, tags, strict=True) if content is not None and part.closed(key, tag)]
        if late:
            raise RowRemoved(f"too late: rows were removed: {abbreviate(late)}", partition=part.name, keys=late)
        return repeated

    def _write(
        self,
        part: Partition,
        session: int,
        key: str,
        index: int,
        columns: list[Column],
        tags: dict[str, Tag],
        content: int,
        now: float,
        wall: float,
    ) -> None:
        row = part.rows.get(key)
        if row is None:
            row = part.rows[key] = Row(key, now, wall)
            part.tombs.pop(key, None)
            part.put += 1
        row.tags = {**row.tags, **tags}
        row.putters.add(session)
        if columns:
            row.contents.add((content, index))
        for column in columns:
            row.values[column.spec.name] = column.values[index]
            row.nbytes[column.spec.name] = column.nbytes(index)
            if column.ragged and row.length is None:
                row.length = len(column.values[index])

    # -- claiming -----------------------------------------------------------------------------------------------------

    def claim(self, session: int, name: str, want: Want, now: float, at_least: int) -> Grant | None:
        """Lease what ``want`` asks for, or return None while fewer than ``at_least`` rows are ready."""
        part = self.partition(name)
        part.known_task(want.task)
        rows = self._choose(part, want, now, at_least)
        if rows is None:
            return None
        if not rows:
            return Grant("", [])
        self._tokens += 1
        token = f"{self.incarnation}.{self._tokens}"
        ends_at = None if want.lease_s is None else now + want.lease_s
        for row in rows:
            row.holds[want.task] = Hold(token, session, ends_at, want.whole_groups)
        partial = {row.group for row in rows if want.whole_groups and self._is_partial(part, row.group, now)}
        return Grant(token, rows, frozenset(partial))

    def _choose(self, part: Partition, want: Want, now: float, at_least: int) -> list[Row] | None:
        if want.keys is not None:
            rows = part.chosen_rows(want.keys, want.task, want.required)
            return rows if rows is not None or at_least else []
        if not want.whole_groups:
            ready = part.ready_rows(want.task, want.required)
            return ready[: want.batch] if len(ready) >= at_least else None
        groups = part.ready_groups(want.task, want.required, now)
        large = next((rows for rows in groups if len(rows) > want.batch), None)
        if large is not None:
            raise BadArgument(
                f"group {large[0].group!r} has {len(large)} rows, more than batch_size {want.batch}: it is handed out "
                "whole or not at all",
                partition=part.name,
                keys=[row.key for row in large],
            )
        return _fitting(groups, want.batch) if sum(map(len, groups)) >= at_least else None

    def _is_partial(self, part: Partition, group: str, now: float) -> bool:
        return bool(part.partial_keys(group, part.groups()[group], now))

    def missing(self, name: str, want: Want) -> list[str]:
        """Say what a claim still waits for."""
        part = self.partition(name)
        rows = list(part.rows.values()) if want.keys is None else part.rows_of(want.keys)
        waits = [f"field {f!r} of {_told([r for r in rows if f not in r.values])}" for f in want.required]
        waits = [wait for wait in waits if not wait.endswith("no row")]
        leased = [row for row in rows if row.leased(want.task)]
        waits += [f"{_told(leased)}, leased by session {leased[0].holds[want.task].session}"] if leased else []
        for group, members in part.groups().items() if want.whole_groups else ():
            meta = part.describe(group, members)
            if not meta.is_complete:
                waits.append(f"group {group!r}: {len(meta.keys)} of {meta.expected_num_keys} keys")
            elif not meta.committed:
                waits.append(f"group {group!r} is not committed")
        return waits or [f"rows that no producer has put yet: {len(rows)} are there"]

    def ready(self, name: str, want: Want, now: float) -> int:
        """How many rows ``want`` could get now."""
        part = self.partition(name)
        if want.keys is not None:
            return sum(row.free(want.task) and not row.lacks(want.required) for row in part.rows_of(want.keys))
        if want.whole_groups:
            return sum(map(len, part.ready_groups(want.task, want.required, now)))
        return len(part.ready_rows(want.task, want.required))

    # -- finishing ----------------------------------------------------------------------------------------------------

    def finish(
        self,
        operation: Operation,
        name: str,
        task: str,
        keys: list[str],
        tokens: Remembered,
        session: int,
        now: float,
        lease_s: float | None = None,
    ) -> None:
        """Ack, release, renew or pop rows under their tokens, all or none."""
        part = self.mentioned(name) if operation == "pop" else self.partition(name)
        task = part.final_task if operation == "pop" else part.known_task(task)
        keys = list(dict.fromkeys(keys))
        verdicts = {key: self._verdict(part, operation, task, key, tokens(task, key)) for key in keys}
        lost = [key for key, verdict in verdicts.items() if verdict is None]
        if lost:
            raise LeaseLost(
                f"{operation} of rows that task {task!r} holds under another lease, or none: {abbreviate(lost)}",
                partition=name,
                keys=lost,
            )
        for key in (key for key, verdict in verdicts.items() if verdict):
            self._finish_row(part, operation, task, key, session, now, lease_s)

    def _verdict(self, part: Partition, operation: Operation, task: str, key: str, held: list[str]) -> bool | None:
        """Return whether to act on the row (True), that nothing is to do (False), or that the lease is lost (None)."""
        row = part.rows.get(key)
        if row is None:
            tomb = part.tombs.get(key)
            if tomb is not None and task != part.final_task and operation in ("ack", "release"):
                return False  # an earlier stage has nothing left to do for a row that is gone
            if tomb is not None and operation == "release" and tomb.reason != "trained":
                return False  # nothing to give back
            if not held:
                return False if operation == "pop" else None
            ended_here = operation != "renew" and tomb is not None and tomb.token in held
            return False if ended_here else None
        hold = row.holds.get(task)
        if operation == "pop" and not held:
            return None if row.leased(task) else True
        if hold is None or hold.token not in held:
            return None
        return TOKEN_RULES.get((operation, hold.state))

    def _finish_row(
        self,
        part: Partition,
        operation: Operation,
        task: str,
        key: str,
        session: int,
        now: float,
        lease_s: float | None,
    ) -> None:
        hold = part.rows[key].holds.get(task)
        if operation == "pop" or (operation == "ack" and task == part.final_task):
            self._remove(part, key, "trained", now)
        elif hold is not None and operation == "renew":
            hold.state, hold.session = Held.LEASED, session
            hold.ends_at = None if lease_s is None else now + lease_s
        elif hold is not None:
            hold.state = Held.CONSUMED if operation == "ack" else Held.RELEASED

    # -- removing -----------------------------------------------------------------------------------------------------

    def evict(self, name: str, keys: list[str], reason: str, now: float) -> None:
        part = self.mentioned(name)
        touched = {part.rows[key].group for key in keys if key in part.rows}
        unfinished = {g for g, rows in part.groups().items() if g in touched and not part.done(g, rows)}
        for key in keys:
            self._remove(part, key, f"evicted:{reason}", now)
        for group in unfinished - set(part.groups()):
            part.closed_groups[group] = now + self.config.tombstone_s

    def clear(self, name: str, keys: list[str] | None, now: float) -> None:
        """Remove rows; later puts make new ones."""
        part = self.partitions.get(name)
        if part is None:
            return
        for key in list(part.rows) if keys is None else keys:
            self._remove(part, key, "cleared", now)
        if keys is None:
            part.tombs = {key: replace(tomb, reason="cleared") for key, tomb in part.tombs.items()}  # all keys are free
            self._cleared[name] = self.partitions.pop(name)

    def _evict_group(self, part: Partition, rows: list[Row], reason: str, now: float) -> None:
        self.evict(part.name, [row.key for row in rows], reason, now)

    def _remove(self, part: Partition, key: str, reason: str, now: float) -> None:
        row = part.rows.pop(key, None)
        if row is None:
            return
        hold = row.holds.get(part.final_task)
        token = None if hold is None or reason != "trained" else hold.token  # an eviction is nobody's success
        part.removed[reason] += 1
        part.tombs[key] = Tombstone(reason, token, row.contents, now + self.config.tombstone_s)

    # -- asking -------------------------------------------------------------------------------------------------------

    def all_handed_out(self, name: str, tasks: Sequence[str]) -> bool:
        part = self.partition(name)
        known = [part.known_task(task) for task in tasks]
        return all(not row.free(task) for row in part.rows.values() for task in known)

    def groups(self, name: str, ready_for: str | None, now: float) -> list[DataPlaneGroupMeta]:
        part = self.partitions.get(name)
        if part is None:
            return []
        if ready_for is not None:
            part.known_task(ready_for)
        return [
            part.describe(group, rows, part.partial_keys(group, rows, now))
            for group, rows in part.groups().items()
            if ready_for is None or all(row.free(ready_for) for row in rows)
        ]


def _fitting(groups: Sequence[list[Row]], batch: int) -> list[Row]:
    """Return whole groups, oldest first, until the next one no longer fits."""
    chosen: list[Row] = []
    for rows in groups:
        if len(chosen) + len(rows) > batch:
            break
        chosen += rows
    return chosen


def _told(rows: Sequence[Row]) -> str:
    return f"{len(rows)} rows ({abbreviate([row.key for row in rows])})" if rows else "no row"
