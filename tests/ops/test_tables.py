"""Reports as tables."""

from __future__ import annotations

import io

import msgspec
from rich.console import Console, RenderableType

from penstock.debts import Party, SilentSession
from penstock.ops.metrics import exposition
from penstock.ops.tables import audit_table, bytes_text, equation, groups_table, status_tables, why_tables
from penstock.records import group_meta
from penstock.requests import (
    AuditReport,
    HostPlace,
    HostStatus,
    PartitionAudit,
    PartitionStatus,
    SessionStatus,
    StatusReport,
    WhyReport,
)

BOOKS = AuditReport(
    3,
    [
        PartitionAudit(
            partition="train",
            put=10,
            in_flight=1,
            leased=2,
            trained=3,
            evicted={"stale": 2},
            quarantined=1,
            lost={"x": 1},
        ),
        PartitionAudit(partition="old", put=2, cleared=1, residue=1, broken=["k[1]"], registered=False),
    ],
)
STATUS = StatusReport(
    incarnation=3,
    pid=42,
    uptime_s=5.0,
    durability="process",
    served=True,
    rows=10,
    live_bytes=2048,
    arena_bytes=4096,
    max_bytes=1 << 30,
    max_rows=100,
    sessions=[SessionStatus(session_id=255, owner="w[0]", role="r", pid=1, silent_s=0.5, leases=2, connected=False)],
    partitions=[
        PartitionStatus(
            partition="train",
            fields=[],
            tasks=["prev_lp", "train"],
            rows=10,
            groups=3,
            depth=2,
            leased=2,
            waiting_claims=1,
            waiting_puts=0,
            live_bytes=2048,
        )
    ],
    counters={"commits": 7},
)


def shown(*tables: RenderableType) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    for table in tables:
        console.print(table)
    return console.export_text()


def test_equation_names_every_term() -> None:
    """The equation shows all seven terms with their numbers."""
    assert equation(BOOKS.partitions[0]) == (
        "put 10 = in flight 1 + leased 2 + trained 3 + evicted 2 + cleared 0 + quarantined 1 + lost 1"
    )


def test_audit_table_names_reasons_residue_and_broken_rows() -> None:
    """Each reason is counted, a residue is shown, and a broken row is named as it is."""
    text = shown(audit_table(BOOKS))
    for part in ("evicted stale: 2", "lost x: 1", "broken: k[1]", "old (cleared)"):
        assert part in text


def test_status_shows_partitions_sessions_and_counters() -> None:
    """The three tables hold what the report holds."""
    text = shown(*status_tables(STATUS))
    for part in ("prev_lp -> train", "w[0]", "ff", "commits", "10 of 100", "2.0 KiB of 1.0 GiB"):
        assert part in text


def test_status_shows_hosts_if_there_are_any() -> None:
    """A host's name, where it is reached, whether it is, what lies there; a plane of one machine has none."""
    place = HostPlace(7, 1, "node-7", "10.0.0.7", [7001, 7002])
    silent = HostStatus(place=place, state="silent", silent_s=12.5, blocks=3, nbytes=4096)
    text = shown(*status_tables(msgspec.structs.replace(STATUS, hosts=[silent])))
    for part in ("node-7", "10.0.0.7", "7001 7002", "silent", "12.5 s", "4.0 KiB"):
        assert part in text
    assert "listeners" not in shown(*status_tables(STATUS))
    told = exposition(msgspec.structs.replace(STATUS, hosts=[silent]), BOOKS)
    assert 'penstock_host_up{host="node-7/7",state="silent"} 0.0' in told
    assert "penstock_host" not in exposition(STATUS, BOOKS)


def test_groups_table_tells_how_to_go_on() -> None:
    """A page that is not the last names the group to continue after."""
    group = group_meta("train", "g1", [("g1_g0", {"group_id": "g1", "weight_version": 4})], created_at=0.0)
    assert "--after g1" in shown(groups_table("train", [group], "g1"))
    assert "--after" not in shown(groups_table("train", [group], None))


def test_why_without_waits_says_so() -> None:
    """Nothing to wait for is an answer."""
    assert "nothing is waited for" in shown(*why_tables(WhyReport("task train", [], [])))


def test_what_is_owed_comes_first() -> None:
    """The sentence of each debt, above who waits for what."""
    debt = SilentSession(
        says="rollout-1 is silent", party=Party(session_id=1, who="rollout-1"), dead_after_s=10.0, unfinished=0
    )
    text = shown(*why_tables(WhyReport("task train", ["it waits"], [], [debt])))
    assert text.index("rollout-1 is silent") < text.index("it waits")


def test_bytes_are_readable() -> None:
    """Binary units, one decimal."""
    assert [bytes_text(n) for n in (0, 1023, 1536, 5 << 40)] == ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]


def test_metrics_are_prometheus_text() -> None:
    """Every count has its name and labels; the residue is there to alert on."""
    text = exposition(STATUS, BOOKS)
    for line in (
        'penstock_audit_rows{partition="train",reason="stale",state="evicted"} 2.0',
        'penstock_audit_residue{partition="old"} 1.0',
        'penstock_events_total{event="commits"} 7.0',
        'penstock_partition_depth{partition="train"} 2.0',
        "penstock_live_bytes 2048.0",
    ):
        assert line in text


def test_names_survive_a_narrow_terminal() -> None:
    """Numbers are never cut, and a partition's name keeps room beside them."""
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in status_tables(STATUS):
        console.print(table)
    text = console.export_text()
    for part in ("train", "prev_lp", "w[0]", "2.0 KiB"):
        assert part in text


def test_moments_are_shown_as_local_time() -> None:
    """The plane's seconds since the epoch become a date; a line without them stays as it is."""
    text = shown(*why_tables(WhyReport("row", [], ["86400.5 put", "no moment"])))
    assert "1970-01-0" in text
    assert ":00.500" in text
    assert "no moment" in text
