"""Questions that change nothing: where rows lie, groups, depth, audit, status."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import msgspec

from penstock.errors import BadArgument, FieldNotProduced, UnknownName, abbreviate
from penstock.ledger.desk import Desk
from penstock.ledger.events import Asked, Resolve
from penstock.ledger.hosts import Host
from penstock.ledger.readiness import row_ready
from penstock.ledger.state import Group, Partition, Row, Session, Unit
from penstock.ledger.waits import why as explain
from penstock.ledger.writes import Write
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, group_meta, is_true
from penstock.requests import (
    Audit,
    AuditReport,
    BlockPlace,
    CapabilitiesAre,
    CheckConsumption,
    Depth,
    Flag,
    Groups,
    HostStatus,
    ListMetadata,
    Locate,
    Number,
    PartitionAudit,
    PartitionStatus,
    RowIssue,
    SessionStatus,
    Source,
    StatusReport,
    Why,
)

PAGE_GROUPS = 1000  # groups in one page at most: about 5 ms of work
LISTING_S = 2.0  # for which the pages of a listing share one sorting of the names


def locate(desk: Desk, session: Session, asked: Asked) -> None:
    """Answer where the newest values of these fields of these rows lie, all at one moment."""
    body = asked.body
    assert isinstance(body, Locate)
    partition = desk.registered(body.partition)
    unknown = [name for name in body.fields if name not in partition.field_bits and name not in partition.fields]
    if unknown:
        raise UnknownName(
            f"unknown field {unknown} of partition {partition.name!r}", partition=partition.name, missing=unknown
        )
    if not body.fields:
        raise BadArgument("a read names at least one field", partition=partition.name)
    rows, issues = _readable(partition, body.keys)
    _check_produced(partition, rows, body.fields)
    blocks: dict[int, int] = {}
    places: list[BlockPlace] = []
    sources = _sources(partition, rows, body.fields, blocks, places)
    resolve = Resolve(session.id, asked.call_id, places, sources, issues)
    if any(place.host for place in places):
        resolve = _with_hosts(desk, resolve)
    desk.out.append(resolve)


def _with_hosts(desk: Desk, resolve: Resolve) -> Resolve:
    """Name the second places and the agents; where the first place's host is silent and the other is not, swap them."""
    state = desk.state
    blocks: list[BlockPlace] = []
    others: list[BlockPlace] = []
    for place in resolve.blocks:
        lies = state.writes[place.block_id].places() if place.host else [place]
        if len(lies) > 1 and state.hosts[lies[0].host].state != "up":
            lies.sort(key=lambda place: state.hosts[place.host].state != "up")
        blocks.append(lies[0])
        others += lies[1:]
    named = dict.fromkeys(place.host for place in (*blocks, *others) if place.host)
    hosts = sorted((state.hosts[host_id] for host_id in named), key=lambda host: host.state != "up")
    return msgspec.structs.replace(resolve, blocks=blocks, others=others, hosts=[host.place for host in hosts])


def _readable(partition: Partition, keys: list[str]) -> tuple[list[Row], list[RowIssue]]:
    found = list(map(partition.rows.get, keys))
    rows = [row for row in found if row is not None]
    if len(rows) == len(keys):
        return rows, []
    absent: list[str] = []
    issues: list[RowIssue] = []
    for key, row in zip(keys, found, strict=True):
        if row is not None:
            continue
        stone = partition.stone_of(key)
        if stone is not None and stone.reason == "lost":
            issues.append(
                RowIssue(key, "DataPlaneReadError", f"lost: {stone.detail or 'its block was missing or damaged'}")
            )
        else:
            absent.append(key)
    if absent:
        raise UnknownName(
            f"unknown rows of partition {partition.name!r}: {abbreviate(absent)}", partition=partition.name, keys=absent
        )
    return rows, issues


def _check_produced(partition: Partition, rows: list[Row], fields: list[str]) -> None:
    mask = partition.mask_of(fields)
    lacking = [row for row in rows if mask & ~row.produced]
    if lacking:
        missing = sorted({name for row in lacking for name in partition.names_of(mask & ~row.produced)})
        keys = [row.key for row in lacking]
        raise FieldNotProduced(
            f"field {missing} is not produced yet for rows {abbreviate(keys)} of partition {partition.name!r}",
            partition=partition.name,
            keys=keys,
            missing=missing,
        )


def _sources(
    partition: Partition, rows: list[Row], fields: list[str], blocks: dict[int, int], places: list[BlockPlace]
) -> list[Source]:
    """One source per set of fields that lie in the same blocks at the same indices."""
    mask = partition.mask_of(fields)
    if all(len(row.writes) == 2 for row in rows):
        return [_source(fields, [row.writes for row in rows], blocks, places)]  # type: ignore[misc]
    found: dict[tuple[tuple[int, int], ...], tuple[list[str], list[tuple[Write, int]]]] = {}
    for name in fields:
        bit = partition.field_bits[name]
        pairs = [next((w, i) for w, i in row.pairs() if w.field_bits & bit) for row in rows]
        same = tuple((w.id, i) for w, i in pairs)
        found.setdefault(same, ([], pairs))[0].append(name)
    assert mask
    return [_source(names, pairs, blocks, places) for names, pairs in found.values()]


def _source(
    fields: list[str], pairs: list[tuple[Write, int]], blocks: dict[int, int], places: list[BlockPlace]
) -> Source:
    first = pairs[0][0] if pairs else None
    if first is not None and first.kept is None and not blocks and all(write is first for write, _ in pairs):
        assert first.place is not None
        blocks[first.id] = 0
        places.append(first.place)
        return Source(fields, [0] * len(pairs), [at for _, at in pairs])
    block: list[int] = []
    index: list[int] = []
    for write, at in pairs:
        known = blocks.get(write.id)
        if known is None:
            assert write.place is not None
            known = blocks[write.id] = len(places)
            places.append(write.place)
        block.append(known)
        index.append(at if write.kept is None else bisect_left(write.kept, at))
    return Source(fields, block, index)


def list_metadata(desk: Desk, session: Session, asked: Asked) -> None:
    """Answer one page of groups, in order of group id. Groups that begin between two pages may be left out."""
    body = asked.body
    assert isinstance(body, ListMetadata)
    partition = desk.state.partitions.get(body.partition)
    if partition is None or not partition.registered:
        desk.answer(asked, Groups([], more=False))
        return
    if body.ready_for is not None:
        desk.task_of(partition, body.ready_for)
    limit = min(body.limit, PAGE_GROUPS) if body.limit > 0 else PAGE_GROUPS
    names = _listing(desk, partition, body.after)
    at = 0 if body.after is None else bisect_right(names, body.after)
    page: list[DataPlaneGroupMeta] = []
    while at < len(names) and len(page) < limit:
        unit = _unit(partition, names[at])
        at += 1
        rows = [] if unit is None else [unit] if isinstance(unit, Row) else list(unit.rows.values())
        if unit is not None and _may_match(partition, body, unit, rows):
            meta = _meta(partition, unit, rows)
            if _matches(desk, body, meta):
                page.append(meta)
    more = at < len(names)
    if not more:
        partition.listing = None
    desk.answer(asked, Groups(page, more))


def _listing(desk: Desk, partition: Partition, after: str | None) -> list[str]:
    """The sorted names that a listing goes through: sorted once for its pages, as they were at its first one."""
    began, names = partition.listing or (-LISTING_S, [])
    if after is None or desk.books.clock - began >= LISTING_S:
        names = sorted(_names(partition))
        partition.listing = (desk.books.clock, names)
    return names


def _names(partition: Partition) -> list[str]:
    names = list(partition.groups)
    if len(partition.rows) > partition.grouped:
        names += [key for key, row in partition.rows.items() if row.group is None]
    return names


def _unit(partition: Partition, name: str) -> Unit | None:
    """The group of this name, or the row that is in none; None: it went while it was listed."""
    group = partition.groups.get(name)
    if group is not None:
        return group
    row = partition.rows.get(name)
    return row if row is not None and row.group is None else None


def _meta(partition: Partition, unit: Unit, rows: list[Row]) -> DataPlaneGroupMeta:
    return group_meta(
        partition.name,
        unit.gid if isinstance(unit, Group) else unit.key,
        [(row.key, row.tags()) for row in rows],
        size_bytes=sum(row.bytes() for row in rows),
        created_at=min(row.wall for row in rows),
        default_expected=partition.request.group_size,
        partial_keys=_partial_keys(unit),
    )


def _partial_keys(unit: Unit) -> list[str]:
    """The rows that its policy lets go without their siblings; none of a group that is whole or not released."""
    if isinstance(unit, Row) or unit.done or not unit.partial:
        return []
    return [row.key for row in unit.rows.values() if is_true(row.tag("committed"))]


def _may_match(partition: Partition, body: ListMetadata, unit: Unit, rows: list[Row]) -> bool:
    """The filters that need no meta: most of what a filtered listing passes over is not worth building one."""
    if body.committed is not None:
        committed = all(is_true(row.tag("committed")) for row in rows) or bool(_partial_keys(unit))
        if committed != body.committed:
            return False
    task = partition.tasks[body.ready_for] if body.ready_for is not None else None
    return task is None or all(row_ready(row, task, 0) for row in rows)


def _matches(desk: Desk, body: ListMetadata, meta: DataPlaneGroupMeta) -> bool:
    version = meta.weight_version
    if body.min_version is not None and (version is None or version < body.min_version):
        return False
    if body.max_version is not None and (version is None or version > body.max_version):
        return False
    return body.older_than_s is None or desk.books.wall - (meta.created_at or 0.0) > body.older_than_s


def depth(desk: Desk, session: Session, asked: Asked) -> None:
    body = asked.body
    assert isinstance(body, Depth)
    partition = desk.state.partitions.get(body.partition)
    desk.answer(asked, Number(0 if partition is None else partition.depth))


def check_consumption(desk: Desk, session: Session, asked: Asked) -> None:
    """True when every row is claimed or consumed by every named task."""
    body = asked.body
    assert isinstance(body, CheckConsumption)
    partition = desk.registered(body.partition)
    tasks = [desk.task_of(partition, name) for name in body.tasks]
    desk.answer(asked, Flag(all(len(t.held) + t.consumed == len(partition.rows) for t in tasks)))


def capabilities(desk: Desk, session: Session, asked: Asked) -> None:
    durable = desk.config.durability != "memory"
    desk.answer(
        asked,
        CapabilitiesAre(
            DataPlaneCapabilities(
                supports_persistent_recovery=durable,
                supports_server_side_filtering=True,
                supports_atomic_batch_put=True,
                supports_verified_clear=True,
                supports_leases=True,
                supports_bounded_bytes=True,
                durability=desk.config.durability,
                incarnation=desk.state.incarnation,
            )
        ),
    )


def audit(desk: Desk, session: Session, asked: Asked) -> None:
    """The conservation equation of one partition, or of all."""
    body = asked.body
    assert isinstance(body, Audit)
    partitions = list(desk.state.partitions.values())
    if body.partition is not None:
        partitions = [p for p in partitions if p.name == body.partition]
        if not partitions:
            desk.registered(body.partition)
    desk.answer(asked, AuditReport(desk.state.incarnation, [audit_partition(p) for p in partitions]))


def audit_partition(partition: Partition) -> PartitionAudit:
    """Recount one partition. ``broken``: rows whose lease and state contradict each other."""
    held = partition.final_task.held if partition.tasks else {}
    broken = [
        row.key
        for lease_row_id, lease in held.items()
        if (row := lease.rows.get(lease_row_id)) is not None and partition.rows.get(row.key) is not row
    ]
    broken += [f"row id {row_id}" for row_id, lease in held.items() if row_id not in lease.rows]
    leased = len(held)
    in_flight = len(partition.rows) - leased
    gone = partition.trained + partition.cleared + partition.quarantined
    gone += sum(partition.evicted.values()) + sum(partition.lost.values())
    return PartitionAudit(
        partition=partition.name,
        put=partition.put,
        in_flight=in_flight,
        leased=leased,
        trained=partition.trained,
        evicted=dict(partition.evicted),
        cleared=partition.cleared,
        quarantined=partition.quarantined,
        lost=dict(partition.lost),
        residue=partition.put - (in_flight + leased + gone),
        broken=broken,
        live_bytes=partition.live_bytes,
        registered=partition.registered,
    )


def why(desk: Desk, session: Session, asked: Asked) -> None:
    body = asked.body
    assert isinstance(body, Why)
    desk.answer(asked, explain(desk, body))


def status(desk: Desk, session: Session, asked: Asked) -> None:
    """The ledger's part of the report; what only the process knows is filled in by its shell."""
    state, clock = desk.state, desk.books.clock
    sessions = [
        SessionStatus(
            session_id=s.id,
            owner=s.owner,
            role=s.role,
            pid=s.pid,
            silent_s=round(clock - s.heard, 3),
            leases=len(s.leases),
            connected=s.connected,
        )
        for s in state.sessions.values()
    ]
    live = [p for p in state.partitions.values() if p.registered]
    desk.answer(
        asked,
        StatusReport(
            incarnation=state.incarnation,
            pid=0,
            uptime_s=0.0,
            durability=desk.config.durability,
            served=False,
            rows=sum(len(p.rows) for p in live),
            live_bytes=sum(p.live_bytes for p in live),
            arena_bytes=0,
            max_bytes=desk.config.max_bytes,
            max_rows=desk.config.max_rows,
            sessions=sessions,
            partitions=[_partition_status(desk, p) for p in live],
            counters=dict(desk.counters),
            hosts=[_host_status(desk, host) for host in state.hosts.values()],
            plane=desk.plane,
        ),
    )


def _host_status(desk: Desk, host: Host) -> HostStatus:
    return HostStatus(
        place=host.place,
        state=host.state,
        silent_s=0.0 if host.state == "up" else round(desk.books.clock - host.since, 3),
        blocks=len(host.blocks),
        nbytes=host.nbytes,
    )


def _partition_status(desk: Desk, p: Partition) -> PartitionStatus:
    return PartitionStatus(
        partition=p.name,
        fields=list(p.specs.values()),
        tasks=list(p.tasks),
        rows=len(p.rows),
        groups=len(p.groups) + len(p.rows) - p.grouped,
        depth=p.depth,
        leased=sum(len(t.held) for t in p.tasks.values()),
        waiting_claims=len(desk.claims.get(p.name, ())),
        waiting_puts=sum(1 for w in desk.grants if w.body.partition == p.name),
        live_bytes=p.live_bytes,
    )
