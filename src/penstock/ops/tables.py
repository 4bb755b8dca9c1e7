"""Reports as tables for people. Pure: a report goes in, a table comes out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from penstock.plane.stores import address_of
from penstock.records import DataPlaneGroupMeta
from penstock.requests import (
    AuditReport,
    HostStatus,
    PartitionAudit,
    PartitionStatus,
    SessionStatus,
    StatusReport,
    WhyReport,
)

__all__ = ["audit_table", "bytes_text", "equation", "groups_table", "status_tables", "why_tables"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_KIB = 1024
_NAME_WIDTH = 9  # what a column of names keeps on a narrow terminal


def bytes_text(count: float) -> str:
    """Return ``count`` bytes as people read it."""
    for unit in _UNITS:
        if abs(count) < _KIB or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _KIB
    raise AssertionError("unreachable")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str | None = None) -> Table:
    """Return a plain table; columns whose name ends in ``>`` hold numbers: aligned right, never folded."""
    made = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in columns:
        if name.endswith(">"):
            made.add_column(name[:-1], justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="fold", min_width=_NAME_WIDTH if name else None)
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


# -- status -----------------------------------------------------------------------------------------------------------


def status_tables(report: StatusReport) -> list[Table]:
    """The plane, its hosts if it has any, its partitions, its sessions, and what it counted."""
    hosts = [table("hosts", _HOST_COLUMNS, [_host_row(h) for h in report.hosts])] if report.hosts else []
    return [
        _plane_table(report),
        *hosts,
        table("partitions (waits: claims/puts)", _PARTITION_COLUMNS, [_partition_row(p) for p in report.partitions]),
        table("sessions", _SESSION_COLUMNS, [_session_row(s) for s in report.sessions]),
        table("counters", ("counter", "count>"), sorted(report.counters.items())),
    ]


def _plane_table(report: StatusReport) -> Table:
    facts: Mapping[str, object] = {
        "pid": report.pid,
        "up": f"{report.uptime_s:.0f} s",
        "incarnation": report.incarnation,
        "durability": report.durability,
        "served": "yes" if report.served else "no (ends with its last client)",
        "rows": f"{report.rows} of {report.max_rows}",
        "live bytes": f"{bytes_text(report.live_bytes)} of {bytes_text(report.max_bytes)}",
        "arena": bytes_text(report.arena_bytes),
    }
    return table("plane", ("", ""), facts.items())


_HOST_COLUMNS = ("host", "address", "listeners", "state", "silent>", "blocks>", "bytes>")


def _host_row(status: HostStatus) -> tuple[object, ...]:
    place = status.place
    return (
        place.name,
        address_of(place.store) or place.address,
        " ".join(map(str, [*place.ports, *place.ucx_ports])),
        status.state,
        f"{status.silent_s:.1f} s",
        status.blocks,
        bytes_text(status.nbytes),
    )


_PARTITION_COLUMNS = (
    "partition",
    "tasks",
    "rows>",
    "groups>",
    "depth>",
    "leased>",
    "waits>",
    "bytes>",
)


def _partition_row(status: PartitionStatus) -> tuple[object, ...]:
    return (
        status.partition,
        " -> ".join(status.tasks),
        status.rows,
        status.groups,
        status.depth,
        status.leased,
        f"{status.waiting_claims}/{status.waiting_puts}",
        bytes_text(status.live_bytes),
    )


_SESSION_COLUMNS = ("session>", "owner", "role>", "pid>", "leases>", "silent>", "here>")


def _session_row(status: SessionStatus) -> tuple[object, ...]:
    return (
        f"{status.session_id:x}",
        status.owner,
        status.role,
        status.pid or "remote",
        status.leases,
        f"{status.silent_s:.1f} s",
        "yes" if status.connected else "no",
    )


# -- groups -----------------------------------------------------------------------------------------------------------


def groups_table(partition: str, groups: Sequence[DataPlaneGroupMeta], more: str | None) -> Table:
    """The groups of a partition; ``more`` names the group to continue after."""
    columns = ("group", "rows>", "expected>", "committed", "version>", "age>", "bytes>")
    caption = f"more: --after {more}" if more is not None else None
    return table(f"{partition}: {len(groups)} groups", columns, [_group_row(g, time.time()) for g in groups], caption)


def _group_row(group: DataPlaneGroupMeta, now: float) -> tuple[object, ...]:
    return (
        group.group_id,
        len(group.keys),
        "-" if group.expected_num_keys is None else group.expected_num_keys,
        "yes" if group.committed else "no",
        "-" if group.weight_version is None else group.weight_version,
        "-" if group.created_at is None else f"{now - group.created_at:.0f} s",
        bytes_text(group.size_bytes),
    )


# -- audit ------------------------------------------------------------------------------------------------------------


def equation(audit: PartitionAudit) -> str:
    """The conservation equation with its numbers; holds when ``residue`` is 0."""
    terms = (
        ("in flight", audit.in_flight),
        ("leased", audit.leased),
        ("trained", audit.trained),
        ("evicted", sum(audit.evicted.values())),
        ("cleared", audit.cleared),
        ("quarantined", audit.quarantined),
        ("lost", sum(audit.lost.values())),
    )
    return f"put {audit.put} = " + " + ".join(f"{name} {count}" for name, count in terms)


def audit_table(report: AuditReport) -> Table:
    """One line a partition: its equation, its residue, its reasons."""
    made = Table(
        title="put = in flight + leased + trained + evicted + cleared + quarantined + lost", title_justify="left"
    )
    for name in ("partition", "equation", "residue", "reasons"):
        made.add_column(name, overflow="fold", justify="right" if name == "residue" else "left")
    for audit in report.partitions:
        style = "red" if audit.residue or audit.broken or audit.lost else "green"
        made.add_row(
            escape(audit.partition if audit.registered else f"{audit.partition} (cleared)"),
            escape(equation(audit)),
            Text(str(audit.residue), style=style),
            escape(_reasons(audit)),
        )
    return made


def _reasons(audit: PartitionAudit) -> str:
    parts = [f"evicted {reason}: {count}" for reason, count in sorted(audit.evicted.items())]
    parts += [f"lost {reason}: {count}" for reason, count in sorted(audit.lost.items())]
    parts += [f"broken: {row}" for row in audit.broken]
    return "\n".join(parts)


# -- why --------------------------------------------------------------------------------------------------------------


def why_tables(report: WhyReport) -> list[Table]:
    """What is missing and who owes it, who waits for what, and what happened last."""
    owed = [(debt.says,) for debt in report.owed]
    waits = [(line,) for line in report.waits] or [("nothing is waited for",)]
    history = [(_dated(line),) for line in report.history]
    return [
        *([table(report.subject, ("is owed",), owed)] if owed else []),
        table("" if owed else report.subject, ("waits for",), waits),
        *([table("", ("last events",), history)] if history else []),
    ]


def _dated(line: str) -> str:
    """Show the seconds since the epoch, with which the plane begins a line, as local time."""
    stamp, _, what = line.partition(" ")
    try:
        moment = datetime.fromtimestamp(float(stamp), tz=UTC).astimezone()
    except (ValueError, OverflowError, OSError):
        return line
    return f"{moment.isoformat(sep=' ', timespec='milliseconds')} {what}"
