"""What is known of single rows: their tags and the fields that are produced. A question that changes nothing.

Rules: rows that are named are answered in the order asked for, those that are not there are left out; a listing of all
goes by pages in the order of their first put, and says nothing of rows that are put or removed while it goes on.
"""

from __future__ import annotations

from bisect import bisect_right

from penstock.ledger.desk import Desk
from penstock.ledger.events import Asked
from penstock.ledger.state import Partition, Row, Session
from penstock.records import DataPlaneRowMeta
from penstock.requests import ListRows, Rows

PAGE_ROWS = 1000  # rows in one page at most: about 5 ms of work
LISTING_S = 2.0  # for which the pages of a listing share one list of the rows


def list_rows(desk: Desk, session: Session, asked: Asked) -> None:
    body = asked.body
    assert isinstance(body, ListRows)
    partition = desk.state.partitions.get(body.partition)
    if partition is None or not partition.registered:
        desk.answer(asked, Rows([], 0))
    elif body.keys is not None:
        found = map(partition.rows.get, body.keys)
        desk.answer(asked, Rows(_metas(partition, [row for row in found if row is not None]), 0))
    else:
        _page(desk, partition, asked, body)


def _page(desk: Desk, partition: Partition, asked: Asked, body: ListRows) -> None:
    limit = min(body.limit, PAGE_ROWS) if body.limit > 0 else PAGE_ROWS
    ids = _listing(desk, partition, body.after)
    at = bisect_right(ids, body.after)
    page = ids[at : at + limit]
    more = at + limit < len(ids)
    if not more:
        partition.row_listing = None
    desk.answer(asked, Rows(_metas(partition, desk.books.rows_of(partition, page)), page[-1] if more else 0))


def _listing(desk: Desk, partition: Partition, after: int) -> list[int]:
    """The ids that a listing goes through: collected once for its pages, as they were at its first one."""
    began, ids = partition.row_listing or (-LISTING_S, [])
    if after <= 0 or desk.books.clock - began >= LISTING_S:
        ids = _ids(partition)
        partition.row_listing = (desk.books.clock, ids)
    return ids


def _ids(partition: Partition) -> list[int]:
    return sorted(partition.rows_by_id)


def _metas(partition: Partition, rows: list[Row]) -> list[DataPlaneRowMeta]:
    names: dict[int, list[str]] = {}  # rows mostly have the same fields
    metas = []
    for row in rows:
        fields = names.get(row.produced)
        if fields is None:
            fields = names[row.produced] = sorted(partition.names_of(row.produced))
        metas.append(DataPlaneRowMeta(row.key, fields, row.tags()))
    return metas
