"""What is missing when nothing moves, and who owes it: the facts behind ``why``. Bounded looks, no scans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from penstock.debts import AnyDebt, FullPlane, Party, Room, SilentHost, SilentSession, StarvedTask, StuckGroup
from penstock.ledger import capacity
from penstock.ledger.desk import Desk
from penstock.ledger.events import GOODBYE
from penstock.ledger.hosts import Host
from penstock.ledger.readiness import ready_rows, row_ready
from penstock.ledger.state import Group, Partition, Row, Task, Waiter, Wanted
from penstock.records import is_true
from penstock.requests import Claim

LOOKED_AT = 2000  # rows, groups or leases inspected for one answer
SHOWN = 8  # of each kind
RECENT_S = 600.0  # for which a session that ended without a goodbye is named


def debts(desk: Desk, partition: Partition, tasks: Sequence[Task]) -> list[AnyDebt]:
    """All that is owed to these tasks of a partition, the worst first."""
    owed: list[AnyDebt] = [*_full(desk, partition), *_stuck_groups(desk, partition, tasks)]
    for task in tasks:
        owed += _starved(desk, partition, task)
    return [*owed, *silent_hosts(desk, partition), *_silent(desk, partition)]


# -- sessions ---------------------------------------------------------------------------------------------------------


def party(desk: Desk, session_id: int, *, rows: int = 0, waits_s: float = 0.0) -> Party:
    """Who a session is, or was."""
    clock = desk.books.clock
    session = desk.state.sessions.get(session_id)
    if session is not None:
        silent = round(clock - session.heard, 3)
        return Party(
            session_id=session_id, who=session.who(), pid=session.pid, silent_s=silent, rows=rows, waits_s=waits_s
        )
    past = desk.state.departed.get(session_id)
    if past is None:
        return Party(session_id=0, who="a session that has ended", ended="long ago, or in an earlier life of the plane")
    return Party(
        session_id=session_id, who=past.who, pid=past.pid, silent_s=round(clock - past.at, 3), ended=past.why, rows=rows
    )


def told(someone: Party) -> str:
    """A party in words."""
    rows = f" ({someone.rows} rows)" if someone.rows else ""
    if not someone.session_id:
        return f"{someone.who}{rows}"
    if someone.ended:
        return f"{someone.who}{rows}, which ended {someone.silent_s:.1f} s ago: {someone.ended}"
    return f"{someone.who}{rows}, heard of {someone.silent_s:.1f} s ago"


def _all_told(parties: Iterable[Party]) -> str:
    return " and ".join(told(someone) for someone in parties) or "nobody that is known"


def is_late(desk: Desk, someone: Party) -> bool:
    """Whether a living session's sign of life is overdue."""
    return not someone.ended and someone.silent_s > 2 * desk.config.heartbeat_s


def _silent(desk: Desk, partition: Partition) -> list[SilentSession]:
    clock, config = desk.books.clock, desk.config
    unfinished: dict[int, int] = {}
    for group in _undone(partition):
        for session_id in group.putters:
            unfinished[session_id] = unfinished.get(session_id, 0) + 1
    parties = [party(desk, s.id, rows=sum(len(lease.rows) for lease in s.leases.values()))
               for s in desk.state.sessions.values() if clock - s.heard > 2 * config.heartbeat_s]  # fmt: skip
    parties += [
        party(desk, session_id)
        for session_id, past in reversed(desk.state.departed.items())
        if past.why != GOODBYE and clock - past.at < RECENT_S
    ]
    return [_silence(desk, someone, unfinished.get(someone.session_id, 0)) for someone in parties[:SHOWN]]


def _silence(desk: Desk, someone: Party, unfinished: int) -> SilentSession:
    limit = desk.config.dead_after_s
    if someone.ended:
        what = f"{someone.who} ended {someone.silent_s:.1f} s ago without a goodbye: {someone.ended}"
    else:
        what = (
            f"the heartbeat of {someone.who} is {someone.silent_s:.1f} s old (dead after {limit:g} s); "
            f"it holds {someone.rows} rows"
        )
    owes = f"; {unfinished} groups that it put to are not whole" if unfinished else ""
    return SilentSession(says=what + owes, party=someone, dead_after_s=limit, unfinished=unfinished)


# -- hosts ------------------------------------------------------------------------------------------------------------


def silent_hosts(desk: Desk, partition: Partition) -> list[SilentHost]:
    """The hosts for which rows wait; those that will lose rows of this partition first."""
    silent = [h for h in desk.state.hosts.values() if h.state == "silent" and h.blocks and not h.is_store]
    if not silent:
        return []
    hosts, only_here = desk.state.hosts, {host.id: list[str]() for host in silent}
    for row in islice(partition.rows.values(), LOOKED_AT):
        for write, _ in row.pairs():
            lies = [place.host for place in write.places()] if write.hosted else []
            if lies and all(hosts[host_id].state != "up" for host_id in lies):
                for host_id in lies:
                    only_here[host_id].append(row.key)
    found = [_silent_host(desk, host, list(dict.fromkeys(only_here[host.id]))) for host in silent]
    return sorted(found, key=lambda debt: -debt.rows)[:SHOWN]


def _silent_host(desk: Desk, host: Host, keys: list[str]) -> SilentHost:
    silent = round(desk.books.clock - host.since, 3)
    left = round(max(0.0, host.until - desk.books.clock), 3)
    example = keys[0] if keys else ""
    rows = f"{len(keys)} rows wait for it, e.g. {example!r}" if keys else "all that lies there lies elsewhere too"
    return SilentHost(
        says=f"{host.who()} at {host.place.address or 'an unknown address'} is silent for {silent:.1f} s: {rows}; "
        f"it counts as gone in {left:.1f} s",
        host=host.who(),
        address=host.place.address,
        silent_s=silent,
        left_s=left,
        rows=len(keys),
        example=example,
        blocks=len(host.blocks),
    )


# -- groups -----------------------------------------------------------------------------------------------------------


def _undone(partition: Partition) -> list[Group]:
    """The oldest groups that are not whole and that no policy hands out as they are."""
    return [g for g in islice(partition.groups.values(), LOOKED_AT) if not g.done and not g.partial]


def _stuck_groups(desk: Desk, partition: Partition, tasks: Sequence[Task]) -> list[StuckGroup]:
    bits = sum(task.bit for task in tasks)
    undone = (g for g in _undone(partition) if any(row.consumed & bits != bits for row in g.rows.values()))
    return [stuck_group(desk, group) for group in islice(undone, SHOWN)]


def stuck_group(desk: Desk, group: Group) -> StuckGroup:
    """What a group lacks, and who put what there is of it."""
    size, expected = len(group.rows), group.expected
    committed = all(is_true(row.tag("committed")) for row in group.rows.values())
    age = max(0.0, desk.books.wall - group.wall)
    owed_by = [party(desk, session_id) for session_id in group.putters]
    lacks = []
    if expected is not None and size != expected:
        lacks.append(f"has {size} of {expected} rows")
    if group.gone:
        lacks.append(f"lost {group.gone} for good")
    if not committed:
        lacks.append("is not committed")
    state = ", ".join(lacks) or "is committed and complete"
    return StuckGroup(
        says=f"group {group.gid!r} {state}, {age:.1f} s old; put by {_all_told(owed_by)}",
        group=group.gid,
        rows=size,
        expected=expected,
        gone=group.gone,
        committed=committed,
        age_s=round(age, 3),
        owed_by=owed_by,
    )


# -- tasks ------------------------------------------------------------------------------------------------------------


def _starved(desk: Desk, partition: Partition, task: Task) -> list[StarvedTask]:
    wanted = _wanted(desk, partition, task)
    looked = list(islice(partition.rows.values(), LOOKED_AT))
    left = [row for row in looked if not row.consumed & task.bit]
    mask = sum(partition.field_bits.get(name, 0) for name in wanted.fields)
    ready = _ready(task, left, wanted, mask) if all(name in partition.field_bits for name in wanted.fields) else 0
    if ready >= wanted.rows:
        return []
    free = [row for row in left if row.id not in task.held]
    found = []
    for name in wanted.fields:
        bit = partition.field_bits.get(name, 0)
        lacking = [row for row in free if not row.produced & bit]
        if lacking:
            what = f"field {name!r} is not produced for {len(lacking)} of {len(free)} rows, e.g. {lacking[0].key!r}"
            found.append(_starving(desk, partition, task, wanted, ready, what, lacking, name))
    held = [row for row in left if row.id in task.held]
    if held:
        what = f"{len(held)} rows are leased already"
        found.append(_starving(desk, partition, task, wanted, ready, what, held, ""))
    if not found:
        what = f"{len(free)} rows are there, in groups that are not whole" if free else "it has consumed all rows"
        what = what if looked else "no row is there"
        found.append(_starving(desk, partition, task, wanted, ready, what, [], ""))
    return found[:SHOWN]


def _wanted(desk: Desk, partition: Partition, task: Task) -> Wanted:
    """What the task's last claim asked for, and as many rows as one that waits; at first, all declared fields."""
    waiting = [w.body for w in desk.claims.get(partition.name, ()) if isinstance(w.body, Claim)]
    rows = max((body.min_rows for body in waiting if body.task == task.name), default=1)
    last = task.wanted or Wanted(partition.request.fields, False)
    return Wanted(last.fields, last.whole, rows)


def _ready(task: Task, left: list[Row], wanted: Wanted, mask: int) -> int:
    if not wanted.whole:
        return sum(row_ready(row, task, mask) for row in left)
    groups = {row.group.id: row.group for row in left if row.group is not None}
    return sum(len(ready_rows(group, task, mask)) for group in groups.values())


def _starving(
    desk: Desk,
    partition: Partition,
    task: Task,
    wanted: Wanted,
    ready: int,
    what: str,
    rows: list[Row],
    field: str,
) -> StarvedTask:
    """One reason: these ``rows`` lack the ``field``, or are held; who is to see to it."""
    stage = _stage(partition, task, rows) if field else task if rows else None
    unclaimed = 0
    if stage is not None:
        late = [row for row in rows if not row.consumed & stage.bit]
        owed_by = _holders(desk, stage, late)
        unclaimed = sum(row.id not in stage.held for row in late)
        nobody = f"; {unclaimed} nobody has claimed for it" if unclaimed else ""
        held = f", held by {_all_told(owed_by)}" if owed_by else ""
        how = f"; task {stage.name!r} has not acknowledged them{held}{nobody}"
    else:
        owed_by = [party(desk, session_id) for session_id in _putters(rows)]
        how = f"; the rows were put by {_all_told(owed_by)}" if rows else ""
    return StarvedTask(
        says=f"{ready} of {wanted.rows} rows are ready for task {task.name!r}: {what}{how}",
        task=task.name,
        ready=ready,
        wanted=wanted.rows,
        field=field,
        rows=len(rows),
        example=rows[0].key if rows else "",
        stage=stage.name if stage is not None else "",
        unclaimed=unclaimed,
        owed_by=owed_by,
    )


def _stage(partition: Partition, task: Task, rows: list[Row]) -> Task | None:
    """The first task before this one that has not acknowledged all of these rows."""
    earlier = list(partition.tasks.values())[: task.index]
    return next((stage for stage in earlier if any(not row.consumed & stage.bit for row in rows)), None)


def _holders(desk: Desk, task: Task, rows: Iterable[Row]) -> list[Party]:
    """Who holds these rows for the task, with how many of them each."""
    held: dict[int, int] = {}
    for row in rows:
        lease = task.held.get(row.id)
        if lease is not None:
            held[lease.session_id] = held.get(lease.session_id, 0) + 1
    return [party(desk, session_id, rows=number) for session_id, number in islice(held.items(), SHOWN)]


def _putters(rows: list[Row]) -> list[int]:
    found: dict[int, None] = {}
    for row in rows:
        found |= dict.fromkeys(row.group.putters if row.group is not None else [row.pairs()[-1][0].session_id])
    return list(found)[:SHOWN]


# -- room -------------------------------------------------------------------------------------------------------------


def _full(desk: Desk, partition: Partition) -> list[FullPlane]:
    """That puts of this partition wait for room, or that there still is none for the last one that waited in vain."""
    waiting = [w for w in desk.grants if w.body.partition == partition.name]
    refused = desk.refused.get(partition.name)
    if not waiting and (refused is None or capacity.fits(desk, partition, refused.charge)):
        return []
    first = waiting[0] if waiting else refused
    limit = first.limit if first is not None else ""
    usage = capacity.usage(desk, limit)
    parties = [party(desk, w.session_id, rows=w.charge.rows, waits_s=round(desk.now - w.since, 3)) for w in waiting]
    held = [_room(p) for p in usage.partitions[:SHOWN]]
    held_by = _lease_holders(desk, {p.name for p in usage.partitions})
    says = f"{usage}; {_queue_told(desk, parties, refused)}; " + "; ".join(map(_room_told, held))
    says += f"; leases are held by {_all_told(held_by)}" if held_by else "; nobody holds a lease"
    return [
        FullPlane(
            says=says,
            limit=limit,
            used_bytes=usage.bytes,
            max_bytes=usage.max_bytes,
            used_rows=usage.rows,
            max_rows=usage.max_rows,
            waiting=parties[:SHOWN],
            held=held,
            held_by=held_by,
        )
    ]


def _queue_told(desk: Desk, parties: list[Party], refused: Waiter | None) -> str:
    if parties:
        more = f", and {len(parties) - 1} more" if len(parties) > 1 else ""
        return f"{told(parties[0])}, has waited for room for {parties[0].waits_s:.1f} s{more}"
    assert refused is not None
    ago = desk.now - refused.deadline
    return f"the last put that found no room ended {ago:.1f} s ago: {refused.charge.rows} rows of " + told(
        party(desk, refused.session_id)
    )


def _room(p: Partition) -> Room:
    return Room(
        partition=p.name,
        rows=len(p.rows),
        leased=len(p.final_task.held) if p.tasks else 0,
        unfinished=sum(len(group.rows) for group in _undone(p)),
        bytes=p.live_bytes,
        promised_rows=p.promised_rows,
        promised_bytes=p.promised_bytes,
        granted_rows=p.granted_rows,
        granted_bytes=p.granted_bytes,
    )


def _room_told(room: Room) -> str:
    return (
        f"partition {room.partition!r} has {room.rows} rows, {room.leased} of them leased for its final task and "
        f"{room.unfinished} of groups that are not whole; {room.promised_rows} more are promised to such groups, "
        f"{room.granted_rows} are being written"
    )


def _lease_holders(desk: Desk, partitions: set[str]) -> list[Party]:
    held: dict[int, int] = {}
    for lease in islice(desk.state.leases.values(), LOOKED_AT):
        if lease.partition in partitions:
            held[lease.session_id] = held.get(lease.session_id, 0) + len(lease.rows)
    return [party(desk, session_id, rows=number) for session_id, number in islice(held.items(), SHOWN)]
