"""The reference model under a clock that the test moves: leases, groups and tombstones end when they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneTimeout, LeaseLost, RowRemoved, UnknownName
from penstock.plane.model import TOKEN_RULES
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.plane.rows import Held
from penstock.records import GroupPolicy, KVBatchMeta
from penstock.requests import PartitionAudit

CONFIG = PlaneConfig(durability="memory", max_deliveries=2, tombstone_s=100.0, abandon_grace_s=60.0)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> NoOpDataPlaneClient:
    client = NoOpDataPlaneClient(clock=clock, wall=clock, config=CONFIG)
    client.register_partition("p", ["x"], 4, ["prep", "train"])
    return client


def put(client: NoOpDataPlaneClient, *keys: str, **tag: Any) -> None:
    client.put_samples(keys, "p", {"x": torch.arange(len(keys))}, [dict(tag) for _ in keys])


def claim(client: NoOpDataPlaneClient, task: str = "train", **options: Any) -> KVBatchMeta:
    return client.claim_meta("p", task, ["x"], 64, blocking=False, **options)


def keys(client: NoOpDataPlaneClient) -> list[str]:
    return [key for group in client.list_metadata("p") for key in group.keys]


def audit(client: NoOpDataPlaneClient) -> PartitionAudit:
    (found,) = client.audit("p").partitions
    return found


def test_a_lease_ends_at_its_time(client: NoOpDataPlaneClient, clock: Clock) -> None:
    """Until lease_s has passed the rows are held; from then on they are ready, and the late token is still good."""
    put(client, "a")
    meta = claim(client, lease_s=10.0)
    clock.passes(9.9)
    assert claim(client).size == 0
    clock.passes(0.1)
    assert client.list_metadata("p", ready_for="train") != []
    client.renew(meta, 10.0)
    clock.passes(9.9)
    assert claim(client).size == 0
    clock.passes(0.1)
    assert claim(client).size == 1
    with pytest.raises(LeaseLost):
        client.ack(meta)


def test_rows_delivered_too_often_are_quarantined(client: NoOpDataPlaneClient, clock: Clock) -> None:
    """A row whose deliveries failed more often than max_deliveries is set aside; a release is no failure."""
    put(client, "a", "b")
    for _ in range(5):
        client.release(claim(client, keys=["b"]))
    for _ in range(CONFIG.max_deliveries + 1):
        assert claim(client, keys=["a"], lease_s=1.0).size == 1
        clock.passes(1.0)
    assert keys(client) == ["b"]
    assert (audit(client).quarantined, audit(client).residue) == (1, 0)
    with pytest.raises(RowRemoved):
        put(client, "a")


def test_a_whole_group_is_quarantined_together(client: NoOpDataPlaneClient, clock: Clock) -> None:
    """Whole-group claims that fail too often set the whole group aside."""
    put(client, "a", "b", group_id="g", committed=True)
    put(client, "c", committed=True)
    claim(client, keys=["c"])
    for _ in range(CONFIG.max_deliveries + 1):
        assert claim(client, whole_groups=True, lease_s=1.0).size == 2
        clock.passes(1.0)
    assert (keys(client), audit(client).quarantined) == (["c"], 2)


def test_tombstones_are_forgotten_in_time(client: NoOpDataPlaneClient, clock: Clock) -> None:
    """A removed row refuses late writes for tombstone_s, then its key is free."""
    put(client, "a")
    client.pop(["a"], "p")
    clock.passes(99.9)
    with pytest.raises(RowRemoved):
        client.put_samples(["a"], "p", {"x": torch.ones(1, dtype=torch.int64)})
    clock.passes(0.1)
    client.put_samples(["a"], "p", {"x": torch.ones(1, dtype=torch.int64)})
    assert keys(client) == ["a"]


def test_unfinished_groups_of_ended_sessions_are_abandoned(client: NoOpDataPlaneClient, clock: Clock) -> None:
    """A group that says it is unfinished goes abandon_grace_s after its last putter ended; others stay."""
    writer = client.peer()
    put(writer, "open", group_id="open", committed=False)
    put(writer, "short", group_id="short", expected_num_keys=2, committed=True)
    put(writer, "done", group_id="done", expected_num_keys=1, committed=True)
    put(writer, "plain")
    put(writer, "shared", group_id="shared", committed=False)
    put(client, "shared2", group_id="shared", committed=False)
    clock.passes(1000.0)
    assert len(keys(client)) == 6
    writer.close()
    clock.passes(59.9)
    assert len(keys(client)) == 6
    clock.passes(0.1)
    assert keys(client) == ["done", "plain", "shared", "shared2"]
    assert audit(client).evicted == {"abandoned": 2}


def test_no_timer_takes_a_row_from_its_holder(client: NoOpDataPlaneClient, clock: Clock) -> None:
    """A group of which somebody holds a row is given up once he no longer does."""
    client.register_partition(
        "p", [], 4, ["prep", "train"], group_policy=GroupPolicy(on_deadline="drop", deadline_s=10.0)
    )
    put(client, "a", "b", group_id="g", expected_num_keys=3, committed=True)
    held = claim(client, keys=["a"])
    clock.passes(20.0)
    assert keys(client) == ["a", "b"]
    client.release(held)
    clock.passes(1.0)
    assert (keys(client), audit(client).evicted) == ([], {"incomplete": 2})


def test_group_policies_act_at_the_deadline(client: NoOpDataPlaneClient, clock: Clock) -> None:
    """Partial groups go from their deadline on, counted from the first row; too small ones are evicted."""
    client.register_partition(
        "p", [], 4, ["prep", "train"], group_policy=GroupPolicy(on_deadline="partial", deadline_s=10.0, min_ready=2)
    )
    put(client, "a", group_id="g", committed=True, num_keys=3)
    clock.passes(5.0)
    put(client, "b", group_id="g", committed=True, num_keys=3)
    put(client, "c", group_id="h", committed=True, num_keys=3)
    clock.passes(4.9)
    assert claim(client, whole_groups=True).size == 0
    clock.passes(0.1)
    meta = claim(client, whole_groups=True)
    assert (meta.sample_ids, [tag["partial"] for tag in meta.tags or []]) == (["a", "b"], [True, True])
    assert "partial" not in client.list_metadata("p")[0].tags
    clock.passes(5.0)
    assert keys(client) == ["a", "b"]
    assert audit(client).evicted == {"incomplete": 1}


def test_a_claim_is_never_granted_past_its_deadline(client: NoOpDataPlaneClient) -> None:
    """With no time left a blocking claim tries once and says what was missing."""
    put(client, "a")
    claim(client)
    with pytest.raises(DataPlaneTimeout, match="leased by session") as caught:
        client.claim_meta("p", "train", ["x"], 1, timeout_s=0.0)
    assert caught.value.missing
    assert caught.value.incarnation == client.get_capabilities().incarnation


def test_the_books_balance(client: NoOpDataPlaneClient) -> None:
    """put = in flight + leased + trained + evicted + cleared + quarantined, through every way out."""
    put(client, "a", "b", "c", "d", "e", "f")
    client.ack(claim(client, keys=["a"]))
    client.pop(["b"], "p")
    client.evict(["c"], "p", "old")
    client.clear_samples(["d"], "p")
    claim(client, keys=["e"])
    found = audit(client)
    assert (found.put, found.in_flight, found.leased, found.trained, found.evicted, found.cleared, found.residue) == (
        6, 1, 1, 2, {"old": 1}, 1, 0
    )  # fmt: skip
    client.clear_samples(None, "p")
    gone = audit(client)
    assert (gone.put, gone.trained, gone.cleared, gone.in_flight, gone.residue, gone.registered) == (
        6,
        2,
        3,
        0,
        0,
        False,
    )
    client.register_partition("p", ["x"], 4, ["prep", "train"])
    put(client, "a")
    assert (audit(client).put, audit(client).in_flight, audit(client).residue) == (7, 1, 0)


def test_removal_from_a_partition_nobody_knows_is_refused(client: NoOpDataPlaneClient) -> None:
    """A mistyped partition is a KeyError for pop and evict; one that was cleared is not."""
    for remove in (client.pop, client.evict):
        with pytest.raises(UnknownName, match="typo"):
            remove(["a"], "typo")
    client.clear_samples(None, "p")
    client.pop(["a"], "p")
    client.evict(["a"], "p")


def test_the_token_rules_cover_what_they_should() -> None:
    """A lapsed lease can do all that a live one can; what was ended otherwise repeats only what ended it."""
    operations = {operation for operation, _ in TOKEN_RULES}
    assert {o for o in operations if TOKEN_RULES.get((o, Held.LEASED))} == operations
    assert {o for o in operations if TOKEN_RULES.get((o, Held.LAPSED))} == operations
    assert {rule for rule in TOKEN_RULES if TOKEN_RULES[rule] is False} == {
        ("ack", Held.CONSUMED),
        ("release", Held.CONSUMED),
        ("release", Held.RELEASED),
    }


def test_repr_shows_the_state(client: NoOpDataPlaneClient) -> None:
    """repr says whether the client is open."""
    assert "open" in repr(client)
    client.close()
    assert "closed" in repr(client)
