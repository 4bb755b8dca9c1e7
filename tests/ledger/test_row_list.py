"""What is told of single rows: tags, produced fields, pages."""

from __future__ import annotations

import pytest

from penstock.ledger import row_list
from penstock.ledger.state import Partition
from penstock.records import DataPlaneRowMeta
from penstock.requests import Clear, ListRows, PutTags, Rows, TagColumn
from tests.ledger.office import Office, group_tags


@pytest.fixture
def office() -> Office:
    made = Office()
    made.open(1)
    made.register()
    return made


def rows(office: Office, keys: list[str] | None = None, limit: int = 0, after: int = 0) -> Rows:
    reply = office.ask(1, ListRows("p", keys, limit, after))
    assert isinstance(reply, Rows)
    return reply


def test_each_row_has_its_own_tags_and_fields(office: Office) -> None:
    """Also the rows of one group, of which a listing of groups tells the first one's tags only."""
    office.put_done(1, ["g_0"], tags=[*group_tags("g", 2), TagColumn("n", [0])])
    office.put_done(1, ["g_1"], tags=[*group_tags("g", 2), TagColumn("n", [1])])
    office.put_done(1, ["g_1"], fields=["a"], content=2)
    office.ask(1, PutTags("p", ["g_0"], [TagColumn("n", [7])]))
    one, two = rows(office, ["g_1", "g_0"]).rows
    assert (one.key, one.fields, one.tags["n"]) == ("g_1", ["a", "x"], 1)
    assert (two.key, two.fields, two.tags["n"], two.tags["group_id"]) == ("g_0", ["x"], 7, "g")


def test_rows_that_are_not_there_are_left_out(office: Office) -> None:
    """In the order asked for; an unknown partition, or one that was cleared, has none."""
    office.put_done(1, ["b", "a"])
    assert [row.key for row in rows(office, ["a", "nobody", "b"]).rows] == ["a", "b"]
    assert office.ask(1, ListRows("nowhere")) == Rows([], 0)
    office.ask(1, Clear("p", None))
    assert rows(office) == Rows([], 0)


def test_pages_go_through_all_rows_in_the_order_of_their_puts(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their size; what goes meanwhile is left out; the rows are collected once for all pages."""
    office.put_done(1, [f"k{9 - i}" for i in range(10)])
    collected: list[int] = []

    ids = row_list._ids

    def counted(partition: Partition) -> list[int]:
        collected.append(1)
        return ids(partition)

    monkeypatch.setattr(row_list, "_ids", counted)
    found: list[DataPlaneRowMeta] = []
    page = rows(office, limit=3)
    office.evict(1, ["k5", "k4"])
    while page.last:
        found += page.rows
        page = rows(office, limit=3, after=page.last)
    found += page.rows
    assert [row.key for row in found] == ["k9", "k8", "k7", "k6", "k3", "k2", "k1", "k0"]
    assert collected == [1]


def test_a_page_that_is_gone_does_not_end_the_listing(office: Office) -> None:
    """All rows of a page were removed meanwhile: it is empty, and says where the next one begins."""
    office.put_done(1, [f"k{i}" for i in range(6)])
    page = rows(office, limit=2)
    office.evict(1, ["k2", "k3"])
    page = rows(office, limit=2, after=page.last)
    assert page.rows == []
    assert [row.key for row in rows(office, limit=2, after=page.last).rows] == ["k4", "k5"]
