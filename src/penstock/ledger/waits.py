"""Why something waits: what is missing, since when, and whose sign of life is old. Cheap: bounded looks, no scans."""

from __future__ import annotations

from itertools import islice

from penstock.errors import BadArgument, UnknownName
from penstock.ledger.debts import LOOKED_AT, SHOWN, debts, party, silent_hosts, stuck_group, told
from penstock.ledger.desk import Desk
from penstock.ledger.leasing import Hold, hold_of
from penstock.ledger.readiness import find_queue, row_ready
from penstock.ledger.state import Partition, Row, Task, Waiter
from penstock.requests import Claim, Why, WhyReport

HISTORY_SHOWN = 20


def missing_for_claim(desk: Desk, body: Claim) -> list[str]:
    """What a claim still lacks, in sentences; at least one."""
    partition = desk.state.partitions.get(body.partition)
    task = partition.tasks.get(body.task) if partition is not None else None
    if partition is None or task is None:
        return [f"partition {body.partition!r} is not registered any more"]
    mask = partition.mask_of(body.required)
    if body.keys is not None:
        missing = _keys_missing(partition, task, mask, body.keys)
    else:
        queue = find_queue(partition, task, body.required, body.whole_groups)
        ready = queue.count if queue is not None else 0
        missing = [f"{ready} of {body.min_rows} rows are ready for task {task.name!r}"]
        missing += _fields_missing(partition, task, body.required)
        if body.whole_groups and ready >= body.min_rows:
            missing.append(f"the oldest groups that fit into batch_size {body.batch} hold fewer than that")
        if body.whole_groups:
            missing += _groups_missing(desk, partition)
    return missing + silent_sessions(desk)


def _keys_missing(partition: Partition, task: Task, mask: int, keys: list[str]) -> list[str]:
    missing = []
    for key in keys:
        row = partition.rows.get(key)
        if row is None:
            missing.append(f"{key!r}: removed, or never put")
        elif not row_ready(row, task, mask):
            missing.append(f"{key!r}: {_row_state(partition, row, task, mask)}")
        if len(missing) == SHOWN:
            break
    return missing or ["no row is missing"]


def _row_state(partition: Partition, row: Row, task: Task, mask: int) -> str:
    absent = partition.names_of(mask & ~row.produced)
    if absent:
        return f"fields {absent} are not produced"
    hold = hold_of(row, task)
    if hold is Hold.LEASED:
        return f"leased for task {task.name!r} under {task.held[row.id].token}"
    return f"{hold.value} for task {task.name!r}"


def _fields_missing(partition: Partition, task: Task, required: list[str]) -> list[str]:
    looked = list(islice(partition.rows.values(), LOOKED_AT))
    waiting = [row for row in looked if not row.consumed & task.bit and row.id not in task.held]
    missing = []
    for name in required:
        bit = partition.field_bits.get(name, 0)
        lacking = [row.key for row in waiting if not bit or not row.produced & bit]
        if lacking:
            missing.append(
                f"field {name!r} is not produced for {len(lacking)} of {len(waiting)} rows, e.g. {lacking[0]!r}"
            )
    if not partition.rows:
        missing.append("no row is there")
    elif len(waiting) < len(looked):
        missing.append(f"{len(looked) - len(waiting)} rows are leased or consumed for task {task.name!r}")
    return missing


def _groups_missing(desk: Desk, partition: Partition) -> list[str]:
    undone = [group for group in islice(partition.groups.values(), LOOKED_AT) if not group.done]
    return [stuck_group(desk, group).says for group in undone[:SHOWN]]


def silent_sessions(desk: Desk) -> list[str]:
    """Sessions whose heartbeat is late."""
    limit = 2 * desk.config.heartbeat_s
    clock = desk.books.clock
    late = [s for s in desk.state.sessions.values() if clock - s.heard > limit]
    return [f"the heartbeat of {s.who()} is {clock - s.heard:.1f} s old" for s in late[:SHOWN]]


def why(desk: Desk, body: Why) -> WhyReport:
    """Explain a partition, or one task, row or group of it."""
    named = [name for name in ("task", "key", "group") if getattr(body, name) is not None]
    if len(named) > 1:
        raise BadArgument(f"why takes one of task, key and group, got {named}", partition=body.partition)
    partition = desk.state.partitions.get(body.partition)
    if partition is None:
        desk.registered(body.partition)
        raise AssertionError("unreachable")
    if body.key is not None:
        return _why_key(desk, partition, body.key)
    if body.group is not None:
        return _why_group(desk, partition, body.group)
    tasks = [desk.task_of(partition, body.task)] if body.task is not None else list(partition.tasks.values())
    waits = [line for task in tasks for line in _why_task(desk, partition, task)]
    waits += _why_full(desk, partition)
    if body.task is None:
        waits += _groups_missing(desk, partition)
    subject = f"task {body.task!r} of partition {partition.name!r}" if body.task else f"partition {partition.name!r}"
    waits += [debt.says for debt in silent_hosts(desk, partition)]
    waits += silent_sessions(desk)
    return WhyReport(subject, waits, _history(desk, partition.name), debts(desk, partition, tasks))


def _why_task(desk: Desk, partition: Partition, task: Task) -> list[str]:
    waits = []
    for waiter in desk.claims.get(partition.name, ()):
        body = waiter.body
        if isinstance(body, Claim) and body.task == task.name:
            rank = "" if body.dp_rank is None else f", dp_rank {body.dp_rank}"
            lacks = "; ".join(missing_for_claim(desk, body))
            waits.append(f"{_waiter(desk, waiter)}{rank} claims rows for {task.name!r}: {lacks}")
    if not waits:
        waits.append(f"nobody waits in task {task.name!r}; {len(task.held)} rows are leased, {task.consumed} consumed")
    holders: dict[str, int] = {}
    for lease in islice(desk.state.leases.values(), LOOKED_AT):
        if lease.partition == partition.name and lease.task == task.name:
            who = told(party(desk, lease.session_id))
            holders[who] = holders.get(who, 0) + len(lease.rows)
    return waits + [f"{count} rows of task {task.name!r} are leased to {who}" for who, count in holders.items()]


def _waiter(desk: Desk, waiter: Waiter) -> str:
    session = desk.state.sessions.get(waiter.session_id)
    who = session.who() if session is not None else "a session that has ended"
    return f"for {desk.now - waiter.since:.1f} s {who}"


def _why_full(desk: Desk, partition: Partition) -> list[str]:
    waiting = [w for w in desk.grants if w.body.partition == partition.name]
    return [_waits_for_room(desk, w) for w in waiting[:SHOWN]]


def _waits_for_room(desk: Desk, waiter: Waiter) -> str:
    return f"{_waiter(desk, waiter)} waits for room for {waiter.charge.rows} rows, {waiter.charge.bytes} bytes"


def _why_key(desk: Desk, partition: Partition, key: str) -> WhyReport:
    row = partition.rows.get(key)
    stone = partition.tombstones.get(key)
    subject = f"row {key!r} of partition {partition.name!r}"
    history = _history(desk, partition.name, key)
    if row is None:
        waiting = [w for w in desk.grants if w.body.partition == partition.name and key in (w.body.keys or ())]
        if waiting:
            return WhyReport(subject, [_waits_for_room(desk, w) for w in waiting], history)
        if stone is None and not history:
            raise UnknownName(f"unknown rows of partition {partition.name!r}: {key!r}", keys=[key])
        state = f"removed: {stone.reason} {stone.detail}".rstrip() if stone is not None else "removed long ago"
        return WhyReport(subject, [state], history)
    mask = partition.mask_of(partition.fields)
    waits = [f"task {t.name!r}: {_row_state(partition, row, t, mask)}" for t in partition.tasks.values()]
    waits += [
        f"task {t.name!r}: {t.deliveries[row.id]} failed deliveries of at most {desk.config.max_deliveries}"
        for t in partition.tasks.values()
        if row.id in t.deliveries
    ]
    if row.group is not None:
        waits.append(stuck_group(desk, row.group).says)
    waits += _where(desk, row)
    owed = [stuck_group(desk, row.group)] if row.group is not None and not row.group.done else []
    return WhyReport(subject, waits, history, list(owed))


def _where(desk: Desk, row: Row) -> list[str]:
    """On which hosts the row lies, and which of them are not heard of."""
    places = dict.fromkeys(place.host for write, _ in row.pairs() if write.hosted for place in write.places())
    hosts = [desk.state.hosts[host_id] for host_id in places]
    clock = desk.books.clock
    return [
        f"it lies on {host.who()}" + ("" if host.state == "up" else f", silent for {clock - host.since:.1f} s")
        for host in hosts
    ]


def _why_group(desk: Desk, partition: Partition, gid: str) -> WhyReport:
    group = partition.groups.get(gid)
    if group is None:
        if gid in partition.closed_groups:
            return WhyReport(f"group {gid!r}", ["evicted unfinished; late puts to it are refused"], [])
        raise UnknownName(f"unknown group {gid!r} of partition {partition.name!r}", missing=[gid])
    mask = partition.mask_of(partition.fields)
    state = stuck_group(desk, group)
    waits = [state.says]
    for row in islice(group.rows.values(), SHOWN):
        states = [f"{t.name}: {_row_state(partition, row, t, mask)}" for t in partition.tasks.values()]
        waits.append(f"row {row.key!r}: " + "; ".join(states))
    history = [line for row in islice(group.rows.values(), SHOWN) for line in _history(desk, partition.name, row.key)]
    return WhyReport(f"group {gid!r} of partition {partition.name!r}", waits, history, [] if group.done else [state])


def _history(desk: Desk, partition: str, key: str | None = None) -> list[str]:
    """The last events of a partition (those of sessions included), or of one row."""
    found = []
    for wall, name, text, keys in reversed(desk.state.history):
        if (key is None and name in ("", partition)) or (name == partition and key in keys):
            found.append(f"{wall:.3f} {text}")
            if len(found) == HISTORY_SHOWN:
                break
    return found[::-1]
