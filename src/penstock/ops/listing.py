"""``penstock ls``: the groups of partitions, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.errors import UnknownName
from penstock.ops.report import Report
from penstock.ops.tables import groups_table
from penstock.records import DataPlaneGroupMeta

if TYPE_CHECKING:
    from penstock.plane.client import PlaneClient

__all__ = ["Page", "list_partitions"]


@dataclass(frozen=True)
class Page:
    """Which groups of a partition to show. ``after`` makes sense for one partition only."""

    limit: int
    after: str | None = None
    ready_for: str | None = None
    committed: bool | None = None


@dataclass(frozen=True)
class Listed:
    partition: str
    groups: list[DataPlaneGroupMeta]
    more: str | None


def list_partitions(report: Report, plane: PlaneClient, partition: str | None, page: Page) -> None:
    """Print a page of each partition, or of ``partition`` alone.

    Raises:
        UnknownName: there is no such partition.
    """
    known = {p.partition: p.tasks for p in plane.status().partitions}
    if partition is not None and partition not in known:
        raise UnknownName(f"unknown partition {partition!r}; this plane has {sorted(known)}", partition=partition)
    names = [partition] if partition is not None else sorted(known)
    if page.ready_for is not None and partition is None:  # a task of one partition is not a task of all
        names = [name for name in names if page.ready_for in known[name]]
    found = [_page_of(plane, name, page) for name in names]
    value = {"partitions": [{"partition": f.partition, "more": f.more, "groups": f.groups} for f in found]}
    report.answer(value, *(groups_table(f.partition, f.groups, f.more) for f in found))


def _page_of(plane: PlaneClient, partition: str, page: Page) -> Listed:
    groups = plane.list_metadata(
        partition,
        committed=page.committed,
        ready_for=page.ready_for,
        limit=page.limit + 1,  # one more than shown says whether there is a next page
        after=page.after,
    )
    shown = groups[: page.limit]
    return Listed(partition, shown, shown[-1].group_id if len(groups) > page.limit else None)
