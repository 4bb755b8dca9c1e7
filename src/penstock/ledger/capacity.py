"""Admission of puts by bytes and rows: backpressure for new groups, never for finishing what was admitted.

A new group is charged whole at admission: its declared number of rows times the larger of its first row and the mean
of the rows that were trained. Puts to rows or groups that exist draw on their own promise and on a reserve, and never
queue behind new ones: a plane full of rows that lack their last column must not wait for itself.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneFull, DataPlaneUnavailable, UnknownName
from penstock.ledger import placing
from penstock.ledger.desk import Desk, failed
from penstock.ledger.events import Allot
from penstock.ledger.state import Charge, Partition, PendingGrant, State, Waiter
from penstock.ledger.writes import TagValues
from penstock.records import Tag, expected_of
from penstock.requests import Grant


def charge_of(partition: Partition, grant: Grant) -> Charge:
    """Work out what ``grant`` would take until its commit."""
    known_keys = _known(partition, grant.keys)
    mean = partition.mean_row_bytes
    sized = list(zip(grant.keys, grant.row_bytes, strict=True))
    known = [size for key, size in sized if key in known_keys] if known_keys else []
    columns = {c.name: TagValues(c) for c in grant.tags if c.name in _GROUPING}
    if not columns:  # rows that nobody groups: each new one begins a group of its own
        new = [size for key, size in sized if key not in known_keys] if known else grant.row_bytes
        if new and min(new) < mean:
            new = [max(size, mean) for size in new]
        return Charge(sum(known) + sum(new), len(new), bool(new))
    more_bytes, more_rows = sum(known), 0
    begun: dict[str, list[int]] = {}  # group -> [declared rows, bytes of one, rows here]
    gids = columns.get("group_id")
    for index, key in enumerate(grant.keys):
        if key in known_keys:
            continue
        tag = None if gids is None else gids.get(index)
        gid = key if tag is None else str(tag)
        entry = begun.get(gid)
        if entry is not None:
            entry[2] += 1
        elif gid in partition.groups or gid in partition.admitted or gid in partition.closed_groups:
            more_bytes += grant.row_bytes[index]
            more_rows += 1
        else:
            tags: dict[str, Tag] = {name: column.get(index) for name, column in columns.items()}  # type: ignore[misc]
            expected = expected_of(tags, partition.request.group_size) or 1
            begun[gid] = [expected, max(grant.row_bytes[index], mean), 1]
    more_bytes += sum(max(expected, count) * size for expected, size, count in begun.values())
    more_rows += sum(max(expected, count) for expected, _, count in begun.values())
    return Charge(more_bytes, more_rows, bool(begun), list(begun))


def _known(partition: Partition, keys: list[str]) -> set[str]:
    """The keys that begin nothing: rows that are there, and rows that were removed and do not come back.

    The commit tells the producer of a removed row so, as it does of a late row of a group that was given up; were they
    to wait for room as new ones, a stage that puts late columns would wait behind the very rows that need it.
    """
    known: set[str] = set()
    if not partition.rows.keys().isdisjoint(keys):
        known.update(key for key in keys if key in partition.rows)
    if not partition.tombstones.keys().isdisjoint(keys):
        stones = ((key, partition.stone_of(key)) for key in keys)
        known.update(key for key, stone in stones if stone is not None and stone.reason != "cleared")
    return known


_GROUPING = ("group_id", "expected_num_keys", "num_keys")


def ask(desk: Desk, waiter: Waiter) -> None:
    """Admit the grant now, or let it wait its turn; what can never fit is refused at once."""
    grant = waiter.body
    assert isinstance(grant, Grant)
    partition = desk.registered(grant.partition)
    charge = charge_of(partition, grant)
    _refuse_impossible(desk.config, partition, charge, grant.nbytes)
    waiter.charge = charge
    ahead = next((w for w in desk.grants if w.charge.begins and w.limit in ("", partition.name)), None)
    if (ahead is None or not charge.begins) and fits(desk, partition, charge):
        _admit(desk, waiter, partition, charge)
        return
    waiter.limit = ahead.limit if ahead is not None else limit_of(desk.config, partition, charge)
    desk.grants.append(waiter)
    desk.wait_until(waiter.deadline)


def serve_waiting(desk: Desk) -> None:
    """Admit what fits, in order; what waits for a limit holds up only what waits for the same limit."""
    left: list[Waiter] = []
    full: set[str] = set()  # partitions whose own limit holds up new groups; "" = the plane's
    for waiter in desk.grants:
        grant = waiter.body
        assert isinstance(grant, Grant)
        partition = desk.state.partitions.get(grant.partition)
        if partition is None or not partition.registered:
            gone = UnknownName(
                f"partition {grant.partition!r} was cleared while the put waited for room", partition=grant.partition
            )
            desk.refuse(waiter, gone)
            continue
        if waiter.deadline <= desk.now:
            left.append(waiter)
            continue
        ahead = next((limit for limit in ("", partition.name) if limit in full), None)
        if waiter.charge.begins and ahead is not None:
            waiter.limit = ahead
            left.append(waiter)
            continue
        charge = waiter.charge = charge_of(partition, grant)
        if fits(desk, partition, charge):
            try:
                _admit(desk, waiter, partition, charge)
            except DataPlaneUnavailable as silent:  # its host, meanwhile
                desk.refuse(waiter, silent)
            continue
        if charge.begins:
            waiter.limit = limit_of(desk.config, partition, charge)
            full.add(waiter.limit)
        left.append(waiter)
    desk.grants = left


def leave_queue(desk: Desk, leaves: Callable[[Waiter], bool]) -> list[Waiter]:
    """Take the grants that ``leaves`` says off the queue and return them; those they held up have their turn."""
    gone = [waiter for waiter in desk.grants if leaves(waiter)]
    if gone:
        desk.grants = [waiter for waiter in desk.grants if not leaves(waiter)]
    for waiter in gone:
        desk.books.touch(waiter.body.partition)
    return gone


def withdraw(desk: Desk, calls: frozenset[int]) -> None:
    """End the wait of those grants whose callers have left: room would come to nobody."""
    for waiter in leave_queue(desk, lambda w: w.call_id in calls):
        desk.counters["grants.withdrawn"] += 1
        desk.answer(waiter, failed(DataPlaneUnavailable("the caller of this put has left")))


def expire_waiting(desk: Desk) -> None:
    """Answer the grants whose deadline has passed."""
    for waiter in leave_queue(desk, lambda w: w.deadline <= desk.now):
        desk.refused[waiter.body.partition] = waiter
        desk.refuse(waiter, _full(desk, waiter))


def _full(desk: Desk, waiter: Waiter) -> DataPlaneFull:
    """Say which limit the grant waited for, what is taken of it and what the put was charged."""
    grant, charge = waiter.body, waiter.charge
    assert isinstance(grant, Grant)
    waited = desk.now - waiter.since
    charged = f"{charge.bytes} bytes and {charge.rows} rows (whole groups, at a trained row's mean)"
    missing = f"{usage(desk, waiter.limit)}, and the put is charged {charged}"
    return DataPlaneFull(
        f"no room for {len(grant.keys)} rows in partition {grant.partition!r} after {waited:.1f} s: "
        f"{missing}; consumers must pop, or raise the capacity",
        partition=grant.partition,
        keys=grant.keys,
        missing=[missing],
        elapsed_s=waited,
    )


class Usage:
    """What is taken or promised of a limit: the plane's, or a partition's own."""

    __slots__ = ("bytes", "max_bytes", "max_rows", "partitions", "rows", "whose")

    def __init__(self, partitions: list[Partition], max_bytes: int, max_rows: int, whose: str) -> None:
        self.partitions = partitions
        self.max_bytes, self.max_rows, self.whose = max_bytes, max_rows, whose
        self.bytes = sum(p.live_bytes + p.promised_bytes + p.granted_bytes for p in partitions)
        self.rows = sum(len(p.rows) + p.promised_rows + p.granted_rows for p in partitions)

    def __str__(self) -> str:
        return (
            f"{self.bytes} of {self.max_bytes} bytes and {self.rows} of {self.max_rows} rows of {self.whose} are taken "
            "or promised"
        )


def usage(desk: Desk, limit: str) -> Usage:
    """How much is used of the own limit of the partition ``limit``, or of the plane's ("")."""
    config = desk.config
    if not limit:
        return Usage(list(desk.state.active.values()), config.max_bytes, config.max_rows, "the plane")
    max_bytes, max_rows = config.partition_max_bytes or config.max_bytes, config.partition_max_rows or config.max_rows
    return Usage([desk.books.partition(limit)], max_bytes, max_rows, "the partition")


def release(partition: Partition, grant: PendingGrant) -> None:
    """The grant no longer reserves anything."""
    partition.granted_bytes -= grant.bytes
    partition.granted_rows -= grant.rows
    partition.admitted.difference_update(grant.groups)
    grant.bytes = grant.rows = 0
    grant.groups = []


def used_bytes(state: State) -> int:
    """Bytes held, promised or granted, over all partitions."""
    return sum(p.live_bytes + p.promised_bytes + p.granted_bytes for p in state.active.values())


def used_rows(state: State) -> int:
    """Rows held, promised or granted, over all partitions."""
    return sum(len(p.rows) + p.promised_rows + p.granted_rows for p in state.active.values())


def _admit(desk: Desk, waiter: Waiter, partition: Partition, charge: Charge) -> None:
    grant = waiter.body
    assert isinstance(grant, Grant)
    hosts = placing.choose(desk, grant) if grant.host else []
    session = desk.state.sessions[waiter.session_id]
    pending = PendingGrant(desk.new_ids(1)[0], session, grant, desk.state.clears)
    pending.bytes, pending.rows, pending.groups = charge.bytes, charge.rows, charge.groups
    partition.granted_bytes += charge.bytes
    partition.granted_rows += charge.rows
    partition.admitted.update(charge.groups)
    desk.state.grants[pending.id] = pending
    if hosts:
        placing.assign(desk, waiter, pending, hosts)
        return
    desk.out.append(Allot(waiter.session_id, waiter.call_id, pending.id, grant.nbytes, waiter.deadline))


def limit_of(config: PlaneConfig, partition: Partition, charge: Charge) -> str:
    """The partition whose own limit the charge exceeds; "" = it is the plane's."""
    return partition.name if _partition_full(config, partition, charge) else ""


def fits(desk: Desk, partition: Partition, charge: Charge) -> bool:
    config = desk.config
    state = desk.state
    if charge.begins:
        return (
            used_bytes(state) + charge.bytes <= config.max_bytes
            and used_rows(state) + charge.rows <= config.max_rows
            and not _partition_full(config, partition, charge)
        )
    reserve = 1.0 + config.reserve_fraction
    held = sum(p.live_bytes + p.granted_bytes for p in state.active.values())
    rows = sum(len(p.rows) + p.granted_rows for p in state.active.values())
    return held + charge.bytes <= config.max_bytes * reserve and rows + charge.rows <= config.max_rows * reserve


def _partition_full(config: PlaneConfig, partition: Partition, charge: Charge) -> bool:
    used = partition.live_bytes + partition.promised_bytes + partition.granted_bytes
    rows = len(partition.rows) + partition.promised_rows + partition.granted_rows
    return (config.partition_max_bytes is not None and used + charge.bytes > config.partition_max_bytes) or (
        config.partition_max_rows is not None and rows + charge.rows > config.partition_max_rows
    )


def _refuse_impossible(config: PlaneConfig, partition: Partition, charge: Charge, nbytes: int) -> None:
    """Refuse what no pop makes room for. ``nbytes``: of the block, its columns' offsets and header included."""
    reserve = 1.0 + config.reserve_fraction
    max_bytes, max_rows = int(config.max_bytes * reserve), int(config.max_rows * reserve)
    if charge.begins:
        max_bytes = min(config.max_bytes, config.partition_max_bytes or config.max_bytes)
        max_rows = min(config.max_rows, config.partition_max_rows or config.max_rows)
    if charge.bytes > max_bytes or charge.rows > max_rows or nbytes > max_bytes + _BLOCK_SLACK:
        raise DataPlaneFull(
            f"{charge.rows} rows of {charge.bytes} bytes, in a block of {nbytes}, can never fit: "
            f"the limits are {max_rows} rows and {max_bytes} bytes",
            partition=partition.name,
            missing=[f"{charge.bytes} bytes"],
        )


_BLOCK_SLACK = 64 << 20  # bytes that a block may have beyond its rows' payload
