"""Reports: groups derived from tags, depth, audit, why."""

from __future__ import annotations

import pytest

from penstock.ledger import reports
from penstock.ledger.events import BlockMoved, BlocksLost
from penstock.ledger.state import Partition
from penstock.requests import (
    Audit,
    BlockPlace,
    Capabilities,
    CapabilitiesAre,
    Claim,
    Depth,
    Groups,
    ListMetadata,
    Locate,
    Number,
    Status,
    StatusReport,
    TagColumn,
    Why,
    WhyReport,
)
from tests.ledger.office import Office, group_tags


@pytest.fixture
def office() -> Office:
    made = Office()
    made.open(1)
    made.open(2)
    made.register(tasks=("prev_lp", "train"), group_size=4)
    return made


def groups(office: Office, **filters: object) -> Groups:
    reply = office.ask(1, ListMetadata("p", **filters))  # type: ignore[arg-type]
    assert isinstance(reply, Groups)
    return reply


def test_groups_are_derived_from_their_rows_tags(office: Office) -> None:
    """Oldest version, committed only if every row says so, bytes measured, tags of the first key."""
    one = [TagColumn("group_id", ["g"]), TagColumn("committed", ["yes"]), TagColumn("weight_version", [7])]
    two = [TagColumn("group_id", ["g"]), TagColumn("committed", [1]), TagColumn("weight_version", ["5"])]
    office.put_done(1, ["g_1"], tags=one)
    office.put_done(1, ["g_0"], tags=two, row_bytes=50)
    (meta,) = groups(office).groups
    assert (meta.group_id, meta.keys) == ("g", ["g_0", "g_1"])
    assert (meta.weight_version, meta.committed, meta.size_bytes) == (5, True, 150)
    assert meta.expected_num_keys == 4  # the partition's group size
    assert meta.tags["weight_version"] == "5"


def test_uncommitted_groups_and_untagged_rows_are_listed_too(office: Office) -> None:
    """A row that nobody tagged is a group of one; an unknown partition has none."""
    office.put_done(1, ["plain"])
    office.put_done(1, ["g_0"], tags=group_tags("g", 2, committed=False))
    assert [(m.group_id, m.committed) for m in groups(office).groups] == [("g", False), ("plain", False)]
    assert office.ask(1, ListMetadata("nowhere")) == Groups([], more=False)


def test_listing_pages_through_every_group_once(office: Office) -> None:
    """In order of group id, whatever the page's size."""
    for number in range(25):
        office.put_done(1, [f"g{number:02}_0"], tags=group_tags(f"g{number:02}", 1))
    seen: list[str] = []
    after = None
    while True:
        page = groups(office, limit=4, after=after)
        seen += [m.group_id for m in page.groups]
        if not page.more:
            break
        after = seen[-1]
    assert seen == [f"g{number:02}" for number in range(25)]


def test_filters_are_applied_on_the_plane(office: Office) -> None:
    """Committed, versions, age, readiness for a task."""
    for number in range(6):
        tags = [*group_tags(f"g{number}", 1, committed=number != 0), TagColumn("weight_version", [number])]
        office.put_done(1, [f"g{number}_0"], tags=tags)
    office.ask(1, Claim("p", "train", ["x"], 0, keys=["g5_0"], blocking=False))
    assert [m.group_id for m in groups(office, committed=False).groups] == ["g0"]
    assert [m.group_id for m in groups(office, min_version=2, max_version=3).groups] == ["g2", "g3"]
    assert "g5" not in [m.group_id for m in groups(office, ready_for="train").groups]
    assert "g5" in [m.group_id for m in groups(office, ready_for="prev_lp").groups]
    assert groups(office, older_than_s=1000.0).groups == []


def test_a_filter_that_rejects_much_still_fills_its_page(office: Office) -> None:
    """Ten matches among a hundred groups come in one page of ten."""
    for number in range(100):
        office.put_done(1, [f"g{number:03}_0"], tags=group_tags(f"g{number:03}", 1, committed=number % 10 == 0))
    page = groups(office, committed=True, limit=10)
    assert len(page.groups) == 10


def test_depth_counts_committed_and_complete_groups(office: Office) -> None:
    """And follows every change."""
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2, committed=False))
    assert office.ask(1, Depth("p")) == Number(0)
    office.tag(1, ["g_0", "g_1"], committed=True)
    assert office.ask(1, Depth("p")) == Number(1)
    office.pop(1, ["g_0"])
    assert office.ask(1, Depth("p")) == Number(0)
    assert office.ask(1, Depth("nowhere")) == Number(0)


def test_reads_name_what_is_missing(office: Office) -> None:
    """Rows, fields not produced yet, unknown fields and partitions: each its own error."""
    office.put_done(1, ["a", "b"])
    office.put_done(1, ["b"], fields=["logprobs"])
    assert office.fails(1, Locate("p", ["a", "nobody"], ["x"]), "UnknownName").keys == ["nobody"]
    missing = office.fails(1, Locate("p", ["a", "b"], ["logprobs"]), "FieldNotProduced")
    assert (missing.keys, missing.missing) == (["a"], ["logprobs"])
    assert office.fails(1, Locate("p", ["a"], ["typo"]), "UnknownName").missing == ["typo"]
    office.fails(1, Locate("nowhere", ["a"], ["x"]), "UnknownName")
    office.fails(1, Locate("p", ["a"], []), "BadArgument")


def test_fields_of_different_puts_come_from_their_own_blocks(office: Office) -> None:
    """Fields that lie alike share a source."""
    office.put_done(1, ["a", "b"], fields=["x", "y"])
    office.put_done(1, ["b", "a"], fields=["logprobs"])
    office.post(1, Locate("p", ["a", "b"], ["x", "logprobs", "y"]))
    sources = {tuple(s.fields): (s.block, s.index) for s in office.resolved[-1].sources}
    assert sources == {("x", "y"): ([0, 0], [0, 1]), ("logprobs",): ([1, 1], [1, 0])}


def test_a_lost_block_costs_its_rows_and_names_them(office: Office) -> None:
    """Never served, counted as lost, said at the read; other rows are fine."""
    office.put_done(1, ["a"])
    block = office.filled[-1]
    office.put_done(1, ["b"])
    office.event(BlocksLost([block], "missing after restart"))
    assert office.audit().lost == {"missing after restart": 1}
    office.post(1, Locate("p", ["a", "b"], ["x"]))
    found = office.resolved[-1]
    assert [(i.key, i.code) for i in found.issues] == [("a", "DataPlaneReadError")]
    assert found.sources[0].index == [0]


def test_a_compacted_block_is_read_at_its_new_indices(office: Office) -> None:
    """Sparse blocks are offered for compaction; afterwards indices are those of the block as it lies."""
    keys = [f"k{i}" for i in range(10)]
    office.put_done(1, keys)
    office.pop(1, keys[:7])
    ((place, kept, now_at),) = office.ledger.sparse_blocks()
    assert (kept, now_at) == ([7, 8, 9], [7, 8, 9])
    office.event(BlockMoved(BlockPlace(place.block_id, 1, 999_424, 64, 2), kept))
    office.crash()
    office.resume(1)
    office.post(1, Locate("p", ["k9", "k7"], ["x"]))
    found = office.resolved[-1]
    assert found.blocks[0].offset == 999_424
    assert found.sources[0].index == [2, 0]
    assert office.ledger.sparse_blocks() == []


def test_audit_counts_every_way_out(office: Office) -> None:
    """put = in flight + leased + trained + evicted + cleared + quarantined + lost."""
    office.put_done(1, ["a", "b", "c", "d", "e"])
    office.claim(1, batch=1)
    office.pop(1, ["b"])
    office.evict(1, ["c"], "stale")
    office.clear(1, ["d"])
    audit = office.audit()
    assert (audit.put, audit.in_flight, audit.leased, audit.trained, audit.evicted, audit.cleared) == (
        5, 1, 1, 1, {"stale": 1}, 1,
    )  # fmt: skip


def test_audit_names_a_partition_nobody_registered(office: Office) -> None:
    """It is unknown."""
    office.fails(1, Audit("nowhere"), "UnknownName")


def why(office: Office, **about: str) -> WhyReport:
    reply = office.ask(1, Why("p", **about))
    assert isinstance(reply, WhyReport)
    return reply


def test_why_explains_a_waiting_task(office: Office) -> None:
    """Who waits, for how long, for what; and who holds rows."""
    office.put_done(1, ["a"])
    office.claim(2)
    office.waiting_claim(1, batch=4, min_rows=2, timeout_s=60.0)
    office.later(2.0)
    text = "\n".join(why(office, task="train").waits)
    assert "for 2.0 s owner1" in text
    assert "0 of 2 rows are ready" in text
    assert "1 rows of task 'train' are leased to owner2" in text


def test_why_explains_a_stuck_group(office: Office) -> None:
    """Which sibling is missing, and whose it is."""
    office.put_done(2, ["g_0"], tags=group_tags("g", 2))
    text = "\n".join(why(office, group="g").waits)
    assert "has 1 of 2 rows" in text
    assert "owner2" in text
    office.fails(1, Why("p", group="nobody"), "UnknownName")


def test_why_explains_a_row(office: Office) -> None:
    """Its state for each task."""
    office.put_done(1, ["a"])
    office.claim(2)
    text = "\n".join(why(office, key="a").waits)
    assert "task 'prev_lp': ready" in text
    assert "leased for task 'train'" in text
    office.fails(1, Why("p", key="nobody"), "UnknownName")
    office.fails(1, Why("p", key="a", group="g"), "BadArgument")


def test_why_explains_a_full_plane() -> None:
    """Who waits for how much room."""
    office = Office(max_bytes=1000)
    office.open(1)
    office.register()
    office.put_done(1, ["a"], row_bytes=900)
    office.grant(1, ["b"], row_bytes=500)
    for about in ({}, {"task": "train"}, {"key": "b"}):
        assert "waits for room for 1 rows, 500 bytes" in "\n".join(why(office, **about).waits)


def test_status_counts_rows_groups_and_waiters(office: Office) -> None:
    """Per partition."""
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    office.put_done(1, ["plain"])
    office.waiting_claim(1, batch=9, min_rows=9)
    report = office.ask(1, Status())
    assert isinstance(report, StatusReport)
    (p,) = report.partitions
    assert (p.rows, p.groups, p.depth, p.waiting_claims, p.live_bytes) == (3, 2, 1, 1, 300)


def test_capabilities_state_durability_and_incarnation(office: Office) -> None:
    """As configured."""
    reply = office.ask(1, Capabilities())
    assert isinstance(reply, CapabilitiesAre)
    value = reply.value
    assert (value.durability, value.incarnation, value.supports_persistent_recovery) == ("process", 1, True)


def test_the_pages_of_a_listing_sort_the_names_once(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that nothing passes, or a small page, do not make it quadratic; what goes meanwhile is left out."""
    office.put_done(1, [f"k{i}" for i in range(10)])
    sorts: list[int] = []
    names = reports._names

    def counted(partition: Partition) -> list[str]:
        sorts.append(1)
        return names(partition)

    monkeypatch.setattr(reports, "_names", counted)
    found: list[str] = []
    more, after = True, None
    while more:
        page = office.ask(1, ListMetadata("p", limit=3, after=after))
        found += [group.group_id for group in page.groups]  # type: ignore[union-attr]
        more, after = page.more, found[-1]  # type: ignore[union-attr]
        office.evict(1, ["k9"])
    assert found[:9] == [f"k{i}" for i in range(9)]
    assert "k9" not in found
    assert len(sorts) == 1
    office.put_done(1, ["a new one"])
    assert office.ask(1, ListMetadata("p", limit=1)).groups[0].group_id == "a new one"  # type: ignore[union-attr]
